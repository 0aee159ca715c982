//! The functions and the view that answer from a history: made beside it, and made anew when their definition is another.
//!
//! The history does not need them. Where they cannot be made, a line of the log says so, and waltrail goes on.

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use super::{LINES_MAX, Mode};
use crate::answers::inherited;
use crate::answers::ledger::Ledger;
use crate::answers::objects::Objects;
use crate::fault::Result;
use crate::schema::{HistoryTable, Rules, SourceTable, TableName};
use crate::server::Side;

/// How long the view and the functions of a former definition may be in use.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

/// The comment of each function (`$1`, as SQL names it), and whether the schema (`$2`) takes new ones; one that is not
/// there is going to be made.
const KNOWN: &str = "
    SELECT pg_catalog.obj_description(pg_catalog.to_regprocedure(w.witness), 'pg_proc'),
           coalesce(pg_catalog.has_schema_privilege(n.oid, 'CREATE'), true)
      FROM unnest($1::text[], $2::name[]) WITH ORDINALITY AS w (witness, schema, nth)
      LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema ORDER BY w.nth";

/// What has one of these names (schemas `$2`, names `$3`, each for the history of number `$1`; `$4`: a relation of this name is
/// in the way, too): the statement that drops it, whether waltrail made it, and a statement that gives it another name.
const TAKEN: &str = "
    WITH wanted AS (SELECT * FROM unnest($1::int4[], $2::name[], $3::name[], $4::bool[]) AS w (nth, schema, name, is_view))
    SELECT w.nth, format('DROP VIEW %I.%I', n.nspname, c.relname),
           c.relkind = 'v' AND coalesce(pg_catalog.obj_description(c.oid, 'pg_class') LIKE '%made by waltrail%', false),
           format('ALTER TABLE %I.%I RENAME TO %I', n.nspname, c.relname, pg_catalog.left(c.relname::text, 50) || '_former'),
           0 AS first
      FROM wanted w JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
     WHERE w.is_view
    UNION ALL
    SELECT w.nth, 'DROP FUNCTION ' || p.oid::regprocedure::text,
           coalesce(pg_catalog.obj_description(p.oid, 'pg_proc') LIKE '%made by waltrail%', false),
           format('ALTER ROUTINE %s RENAME TO %I', p.oid::regprocedure, pg_catalog.left(p.proname::text, 50) || '_former'), 1
      FROM wanted w JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
      JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid AND p.proname = w.name
     ORDER BY first";

/// Histories whose functions are made in one transaction: each takes some locks until it ends.
const MADE_AT_ONCE: usize = 200;

/// A history of which the answers are wanted.
pub(super) type Wanted<'a> = (&'a SourceTable, &'a HistoryTable, Rules);

/// Makes what is missing, or notes the SQL.
///
/// # Errors
/// The target cannot be asked. What it refuses to make is left out.
pub(super) async fn prepare(target: &Client, wanted: &[Wanted<'_>], mode: &mut Mode) -> Result<()> {
    if matches!(mode, Mode::Refuse) {
        return Ok(());
    }
    let failed = Side::Target.failed("could not show the functions beside its histories");
    let inherited = inherited::read(target).await.map_err(&failed)?;
    let mut ledgers = Vec::new();
    for (source, history, rules) in wanted {
        let none = Vec::new();
        let of_history = inherited.get(&history.name.to_string()).unwrap_or(&none);
        match Ledger::of_source(source, history, rules, of_history) {
            Ok(ledger) => ledgers.push(ledger),
            Err(reason) => tracing::debug!(
                table = %source.name, history = %history.name, %reason,
                "no functions answer from this history"
            ),
        }
    }
    let objects: Vec<Objects<'_>> = ledgers.iter().map(Objects::of).collect();
    let known = known(target, &ledgers, &objects).await.map_err(&failed)?;
    let wanted = std::iter::zip(&objects, known).filter_map(|(objects, (comment, may_create))| {
        (may_create && comment.as_deref() != Some(&objects.comment())).then_some(objects)
    });
    let wanted: Vec<&Objects<'_>> = wanted.collect();
    let statements = statements(target, &wanted).await.map_err(&failed)?;
    if let Mode::DryRun(noted) = mode {
        let all = statements.iter().flat_map(|(_, statements)| statements);
        noted.extend(all.map(|sql| format!("-- target\n{sql};")));
        return Ok(());
    }
    let mut made = Vec::new();
    for some in statements.chunks(MADE_AT_ONCE) {
        made.extend(make(target, some).await?);
    }
    if made.len() > LINES_MAX {
        tracing::info!(side = %Side::Target, created = "functions beside histories", count = made.len(), "created");
        return Ok(());
    }
    for history in made {
        tracing::info!(side = %Side::Target, created = format!("functions beside {history}"), "created");
    }
    Ok(())
}

/// Of each history, the comment that its functions have, and whether its schema takes new ones.
pub(crate) async fn known(
    target: &Client,
    ledgers: &[Ledger],
    objects: &[Objects<'_>],
) -> Result<Vec<(Option<String>, bool)>, Error> {
    let witnesses: Vec<String> = objects.iter().map(Objects::witness).collect();
    let schemas: Vec<&str> = ledgers.iter().map(|l| l.history.schema.as_str()).collect();
    let rows = target.query(KNOWN, &[&witnesses, &schemas]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What has one of the names that functions beside a history have.
pub(crate) struct Taken {
    /// The statement that drops it.
    drop: String,
    pub(crate) is_ours: bool,
    /// A statement that gives it another name.
    pub(crate) rename: String,
}

/// What has one of their names, by their place in `wanted`.
pub(crate) async fn taken(
    target: &Client,
    wanted: &[&Objects<'_>],
) -> Result<HashMap<i32, Vec<Taken>>, Error> {
    let (mut nths, mut schemas, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let mut are_views = Vec::new();
    for (nth, objects) in (0_i32..).zip(wanted) {
        for name in objects.names() {
            nths.push(nth);
            schemas.push(objects.history().schema.as_str());
            are_views.push(name == objects.view_name());
            names.push(name);
        }
    }
    let mut found: HashMap<i32, Vec<Taken>> = HashMap::new();
    let rows = target
        .query(TAKEN, &[&nths, &schemas, &names, &are_views])
        .await?;
    for row in rows {
        let of_history = found.entry(row.get(0)).or_default();
        of_history.push(Taken {
            drop: row.get(1),
            is_ours: row.get(2),
            rename: row.get(3),
        });
    }
    Ok(found)
}

/// For each history the statements that make its functions in place of those of a former definition; without those of which a
/// name is taken.
async fn statements<'o>(
    target: &Client,
    wanted: &[&'o Objects<'o>],
) -> Result<Vec<(&'o TableName, Vec<String>)>, Error> {
    let mut found = taken(target, wanted).await?;
    let mut all = Vec::with_capacity(wanted.len());
    for (nth, objects) in (0_i32..).zip(wanted) {
        let taken = found.remove(&nth).unwrap_or_default();
        if let Some(other) = taken.iter().find(|taken| !taken.is_ours) {
            let name = other.drop.trim_start_matches("DROP ");
            tracing::warn!(
                history = %objects.history(), taken = name,
                "functions that answer from this history are not made: one of their names is taken"
            );
            continue;
        }
        let mut statements: Vec<String> = taken.into_iter().map(|taken| taken.drop).collect();
        statements.extend(objects.sql());
        all.push((objects.history(), statements));
    }
    Ok(all)
}

/// Makes those of some histories in one transaction; when that fails, those of each by themselves. Returns the histories that
/// have them then.
async fn make<'o>(
    target: &Client,
    some: &[(&'o TableName, Vec<String>)],
) -> Result<Vec<&'o TableName>> {
    let run = async |some: &[(&TableName, Vec<String>)]| {
        let all: Vec<&str> = some
            .iter()
            .flat_map(|(_, s)| s)
            .map(String::as_str)
            .collect();
        // One message is one transaction.
        let statements = format!("{LOCK_TIMEOUT};\n{}", all.join(";\n"));
        target.batch_execute(&statements).await
    };
    if run(some).await.is_ok() {
        return Ok(some.iter().map(|(history, _)| *history).collect());
    }
    let mut made = Vec::new();
    for one in some {
        let failed = Side::Target.failed("could not make functions that answer from a history");
        match run(std::slice::from_ref(one)).await {
            Ok(()) => made.push(one.0),
            Err(error) if error.is_closed() => return Err(failed(error)),
            Err(error) => tracing::warn!(
                history = %one.0,
                error = %failed(error),
                "the history goes on without the functions that answer from it"
            ),
        }
    }
    Ok(made)
}
