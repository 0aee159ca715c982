//! The functions and the view that answer from a history: made beside it, and made anew when their definition is another.
//!
//! The history does not need them. Where they cannot be made, a line of the log says so, and waltrail goes on.

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use super::{LINES_MAX, Mode};
use crate::answers::ledger::{Inherited, Ledger};
use crate::answers::objects::Objects;
use crate::config::Table;
use crate::fault::Result;
use crate::schema::{HistoryTable, Identifier, SourceTable};
use crate::server::Side;

/// How long the view and the functions of a former definition may be in use.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

/// The comment of each function (`$1`, as SQL names it), and whether the schema (`$2`) takes new ones.
const KNOWN: &str = "
    SELECT pg_catalog.obj_description(pg_catalog.to_regprocedure(w.witness), 'pg_proc'),
           coalesce(pg_catalog.has_schema_privilege(n.oid, 'CREATE'), false)
      FROM unnest($1::text[], $2::name[]) WITH ORDINALITY AS w (witness, schema, nth)
      LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema ORDER BY w.nth";

/// What has one of these names (`$2`) in a schema: the statement that drops it, and whether waltrail made it.
const TAKEN: &str = "
    SELECT 'DROP VIEW ' || format('%I.%I', n.nspname, c.relname),
           coalesce(pg_catalog.obj_description(c.oid, 'pg_class') LIKE '%made by waltrail%', false)
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relname = $3
    UNION ALL
    SELECT 'DROP FUNCTION ' || p.oid::regprocedure::text,
           coalesce(pg_catalog.obj_description(p.oid, 'pg_proc') LIKE '%made by waltrail%', false)
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname = $1 AND p.proname = ANY ($2)";

/// A history of which the answers are wanted.
pub(super) type Wanted<'a> = (&'a Table, &'a SourceTable, &'a HistoryTable);

/// Makes what is missing, or notes the SQL.
///
/// # Errors
/// The target cannot be asked. What it refuses to make is left out.
pub(super) async fn prepare(target: &Client, wanted: &[Wanted<'_>], mode: &mut Mode) -> Result<()> {
    if matches!(mode, Mode::Refuse) {
        return Ok(());
    }
    let failed = Side::Target.failed("could not show the functions beside its histories");
    let inherited = inherited(target).await.map_err(&failed)?;
    let mut ledgers = Vec::new();
    for (table, source, history) in wanted.iter().filter(|(table, ..)| table.functions) {
        let none = Vec::new();
        let of_history = inherited.get(&history.name.to_string()).unwrap_or(&none);
        match Ledger::of_source(source, history, &table.rules(), of_history) {
            Ok(ledger) => ledgers.push(ledger),
            Err(reason) => tracing::debug!(
                table = %source.name, history = %history.name, %reason,
                "no functions answer from this history"
            ),
        }
    }
    let objects: Vec<Objects<'_>> = ledgers.iter().map(Objects::of).collect();
    let known = known(target, &ledgers, &objects).await.map_err(&failed)?;
    let mut made = Vec::new();
    for ((ledger, objects), (comment, may_create)) in std::iter::zip(&ledgers, &objects).zip(known)
    {
        if comment.as_deref() == Some(&objects.comment()) || !may_create {
            continue;
        }
        match make(target, ledger, objects, mode).await {
            Ok(true) => made.push(ledger.history.to_string()),
            Ok(false) => {}
            Err(error) if error.is_closed() => return Err(failed(error)),
            Err(error) => tracing::warn!(
                history = %ledger.history,
                error = %Side::Target.failed("refused")(error),
                "could not make the functions that answer from this history; the history goes on without them"
            ),
        }
    }
    match made.len() {
        0 => {}
        more if more > LINES_MAX => tracing::info!(side = %Side::Target, created = "functions beside histories", count = more, "created"),
        _ => made.iter().for_each(|history| {
            tracing::info!(side = %Side::Target, created = format!("functions beside {history}"), "created");
        }),
    }
    Ok(())
}

/// What rows from before a schema change have elsewhere, by history; nothing where the control schema is older.
async fn inherited(target: &Client) -> Result<HashMap<String, Vec<Inherited>>, Error> {
    let known = "SELECT pg_catalog.to_regclass('waltrail.inherited') IS NOT NULL";
    if !target.query_one(known, &[]).await?.get::<_, bool>(0) {
        return Ok(HashMap::new());
    }
    let all = "SELECT history, source_column, after_number, until_number, history_column, value \
        FROM waltrail.inherited ORDER BY history, source_column, after_number";
    let mut found: HashMap<String, Vec<Inherited>> = HashMap::new();
    for row in target.query(all, &[]).await? {
        found.entry(row.get(0)).or_default().push(Inherited {
            source_column: row.get(1),
            after_number: row.get(2),
            until_number: row.get(3),
            history_column: row.get(4),
            value: row.get(5),
        });
    }
    Ok(found)
}

/// Of each history, the comment that its functions have, and whether its schema takes new ones.
async fn known(
    target: &Client,
    ledgers: &[Ledger],
    objects: &[Objects<'_>],
) -> Result<Vec<(Option<String>, bool)>, Error> {
    let witnesses: Vec<String> = objects.iter().map(Objects::witness).collect();
    let schemas: Vec<&str> = ledgers.iter().map(|l| l.history.schema.as_str()).collect();
    let rows = target.query(KNOWN, &[&witnesses, &schemas]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Makes them in one transaction in place of those of a former definition. False where a name is taken.
async fn make(
    target: &Client,
    ledger: &Ledger,
    objects: &Objects<'_>,
    mode: &mut Mode,
) -> Result<bool, Error> {
    let schema = &ledger.history.schema;
    let taken = target
        .query(TAKEN, &[schema, &objects.names(), &objects.view_name()])
        .await?;
    let mut statements = Vec::new();
    for row in &taken {
        let (drop, is_ours): (String, bool) = (row.get(0), row.get(1));
        if !is_ours {
            let name = drop.trim_start_matches("DROP ");
            tracing::warn!(
                history = %ledger.history, taken = name, schema = %Identifier(schema),
                "functions that answer from this history are not made: one of their names is taken"
            );
            return Ok(false);
        }
        statements.push(drop);
    }
    statements.extend(objects.sql());
    if let Mode::DryRun(noted) = mode {
        noted.extend(statements.iter().map(|sql| format!("-- target\n{sql};")));
        return Ok(false);
    }
    let statements = statements.join(";\n");
    // One message is one transaction.
    let statements = format!("{LOCK_TIMEOUT};\n{statements}");
    target.batch_execute(&statements).await.map(|()| true)
}
