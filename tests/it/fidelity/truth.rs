//! What really happened, known without logical decoding: triggers write each change into `fid.change`, in the transaction
//! that makes it, every value as its output function writes it.
//!
//! A DDL statement changes rows without a trigger, so the driver keeps all rows before it and after it, in one order.
//! Transactions of one schedule commit one after the other, so their commit times are in the order of their commits.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

/// Values by column, as text; `None` is NULL.
pub type Doc = BTreeMap<String, Option<String>>;

const PINNED: &str = "SET search_path = public, pg_catalog SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
    SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' SET lc_monetary = 'C'";

const OBJECTS: &str = "
    CREATE SCHEMA fid;
    CREATE TABLE fid.change (
        seq bigserial PRIMARY KEY, xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint, op text NOT NULL,
        tbl text NOT NULL, identity text, mixed boolean, key text[], hidden text[], old jsonb, new jsonb,
        -- The key before DDL.
        was text[]);
    -- Changes of this transaction that are not in the order of the WAL would not be a truth.
    CREATE FUNCTION fid.doc(rel regclass) RETURNS text LANGUAGE sql AS $$
        SELECT format('jsonb_object(ARRAY[%s]::text[], ARRAY[%s]::text[])',
            string_agg(quote_literal(attname), ',' ORDER BY attname),
            string_agg(format('CASE num_nulls(($1).%1$I) WHEN 0 THEN format(''%%s'', ($1).%1$I) END', attname), ','
                       ORDER BY attname))
          FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped $$;
    CREATE FUNCTION fid.traits(rel regclass, OUT identity text, OUT mixed boolean, OUT key text[], OUT hidden text[])
    LANGUAGE sql AS $$
        SELECT c.relreplident::text,
            coalesce((SELECT bool_or(l.relreplident <> r.relreplident)
                        FROM pg_partition_tree(r.oid) t JOIN pg_class l ON l.oid = t.relid), false),
            (SELECT array_agg(a.attname::text) FROM pg_index i
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
              WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
            (SELECT array_agg(a.attname::text) FROM pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated <> '')
          FROM pg_class c JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid) WHERE c.oid = rel $$;
    CREATE FUNCTION fid.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {PINNED} AS $$
    DECLARE o jsonb; n jsonb; form text := fid.doc(TG_RELID); BEGIN
        IF TG_OP IN ('UPDATE', 'DELETE') THEN EXECUTE 'SELECT ' || form INTO o USING OLD; END IF;
        IF TG_OP IN ('UPDATE', 'INSERT') THEN EXECUTE 'SELECT ' || form INTO n USING NEW; END IF;
        INSERT INTO fid.change (op, tbl, identity, mixed, key, hidden, old, new)
            SELECT TG_OP, TG_ARGV[0], t.*, o, n FROM fid.traits(TG_RELID) t;
        RETURN NULL;
    END $$;
    CREATE FUNCTION fid.rows(rel regclass) RETURNS jsonb LANGUAGE plpgsql {PINNED} AS $$
    DECLARE all_rows jsonb; BEGIN
        EXECUTE format('SELECT coalesce(jsonb_agg(%s ORDER BY tableoid::regclass::text, ctid), ''[]'') FROM %s t',
            replace(fid.doc(rel), '($1)', 't'), rel) INTO all_rows;
        RETURN all_rows;
    END $$;
    CREATE FUNCTION fid.follow(rel regclass, named text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE format('CREATE TRIGGER \"00_row\" AFTER INSERT OR UPDATE OR DELETE ON %s
            FOR EACH ROW EXECUTE FUNCTION fid.record(%L)', rel, named);
        EXECUTE format('CREATE TRIGGER \"00_truncate\" AFTER TRUNCATE ON %s
            FOR EACH STATEMENT EXECUTE FUNCTION fid.record(%L)', rel, named);
    END $$;
    -- Before a DDL statement; other transactions are kept away until it is committed.
    CREATE FUNCTION fid.before(rel regclass, named text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', rel);
        INSERT INTO fid.change (op, tbl, identity, mixed, key, hidden, old)
            SELECT 'DDL', named, t.*, fid.rows(rel) FROM fid.traits(rel) t;
    END $$;
    CREATE FUNCTION fid.after(rel regclass, named text) RETURNS void LANGUAGE sql AS $$
        UPDATE fid.change c SET new = fid.rows(rel), was = c.key, identity = t.identity, mixed = c.mixed OR t.mixed, key = t.key,
               hidden = t.hidden
          FROM fid.traits(rel) t
         WHERE seq = (SELECT max(seq) FROM fid.change WHERE op = 'DDL' AND tbl = named
                         AND xid = pg_current_xact_id()::text::bigint) $$;";

/// Makes what [`read`] needs. `fid.follow` adds a table.
pub fn objects() -> String {
    OBJECTS.replace("{PINNED}", PINNED)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Insert,
    Update,
    Delete,
    Truncate,
    /// The statement that made all rows what they are after it.
    Ddl,
}

/// One change of one table. Of DDL, `old` and `new` are empty and `rows` has each row before and after.
#[derive(Clone, Debug)]
pub struct Event {
    pub xid: u64,
    /// Microseconds since 1970, UTC.
    pub commit_time: i64,
    /// The change's ordinal in its transaction, over all tables that are followed, from 1.
    pub tx_seq: i64,
    pub op: Op,
    pub identity: char,
    /// The table's key; for a table without one all its columns.
    pub key: BTreeSet<String>,
    pub has_key: bool,
    /// Its key before DDL.
    pub was_key: BTreeSet<String>,
    /// Columns that are never in the stream.
    pub hidden: BTreeSet<String>,
    pub old: Doc,
    pub new: Doc,
    pub rows: Vec<(Doc, Doc)>,
}

/// All changes, in the order of the commits, and whether a partition ever had another identity than its table.
#[derive(Debug, Default)]
pub struct Truth {
    pub events: Vec<Event>,
    pub mixed: bool,
}

impl Truth {
    /// The changes of a transaction, and their ordinals.
    pub fn of(&self, xid: u64) -> Vec<(Op, i64)> {
        let of = self.events.iter().filter(|event| event.xid == xid);
        of.map(|event| (event.op, event.tx_seq)).collect()
    }
}

impl History {
    /// What is recorded of the transaction that committed then.
    pub fn of(&self, commit_time: i64) -> Vec<(&str, Option<&String>)> {
        let rows = self.rows.iter();
        rows.filter(|row| row.commit_time == Some(commit_time))
            .map(|row| {
                (
                    row.change_type.as_str(),
                    row.values.get("tx_seq").and_then(Option::as_ref),
                )
            })
            .collect()
    }
}

/// What happened to each table.
pub async fn read(source: &Client) -> BTreeMap<String, Truth> {
    let rows = source
        .query(
            "SELECT xid, (extract(epoch FROM pg_xact_commit_timestamp((xid % 4294967296)::text::xid)) * 1000000)::bigint,
                 count(*) FILTER (WHERE op <> 'DDL') OVER (PARTITION BY xid ORDER BY seq), op, tbl, identity, mixed,
                 coalesce(key, '{}'), coalesce(hidden, '{}'), old::text, new::text, coalesce(was, '{}')
             FROM fid.change ORDER BY 2, seq",
            &[],
        )
        .await
        .unwrap();
    let mut tables: BTreeMap<String, Truth> = BTreeMap::new();
    for row in rows {
        let op = match row.get(3) {
            "INSERT" => Op::Insert,
            "UPDATE" => Op::Update,
            "DELETE" => Op::Delete,
            "TRUNCATE" => Op::Truncate,
            _ => Op::Ddl,
        };
        let text = |at: usize| row.get::<_, Option<&str>>(at).unwrap_or("{}");
        let doc = |at: usize| -> Doc {
            match op {
                Op::Ddl => Doc::new(),
                _ => serde_json::from_str(text(at)).unwrap(),
            }
        };
        let (old, new) = (doc(9), doc(10));
        let rows: Vec<(Doc, Doc)> = match op {
            Op::Ddl => {
                let all = |at: usize| -> Vec<Doc> { serde_json::from_str(text(at)).unwrap() };
                let (before, after) = (all(9), all(10));
                assert_eq!(before.len(), after.len(), "DDL keeps the rows");
                before.into_iter().zip(after).collect()
            }
            _ => Vec::new(),
        };
        let key: Vec<String> = row.get(7);
        let hidden: Vec<String> = row.get(8);
        let all = || old.keys().chain(new.keys()).cloned().collect();
        let truth = tables.entry(row.get(4)).or_default();
        truth.mixed |= row.get::<_, bool>(6);
        truth.events.push(Event {
            xid: row.get::<_, i64>(0).cast_unsigned(),
            commit_time: row.get(1),
            tx_seq: row.get(2),
            op,
            identity: row.get::<_, &str>(5).chars().next().unwrap(),
            has_key: !key.is_empty(),
            was_key: row.get::<_, Vec<String>>(11).into_iter().collect(),
            key: match key.is_empty() {
                true => all(),
                false => key.into_iter().collect(),
            },
            hidden: hidden.into_iter().collect(),
            old,
            new,
            rows,
        });
    }
    tables
}

/// The rows of a table.
pub async fn rows(source: &Client, table: u32) -> Vec<Doc> {
    let row = source
        .query_one("SELECT fid.rows($1::oid::regclass)::text", &[&table])
        .await
        .unwrap();
    serde_json::from_str(row.get(0)).unwrap()
}

/// A history row, with all its columns.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub values: Doc,
    pub change_type: String,
    /// Microseconds since 1970, UTC.
    pub commit_time: Option<i64>,
    pub unavailable: BTreeSet<String>,
    pub changed: Option<BTreeSet<String>>,
}

/// A history and where it keeps what.
#[derive(Debug)]
pub struct History {
    pub rows: Vec<Recorded>,
    pub columns: BTreeSet<String>,
    /// History columns that do not follow from the rule: the source's column, and whether they hold the value before.
    pub homes: BTreeMap<String, (String, bool)>,
}

/// Reads a history in the order of `cdc_id`. The target has the functions of [`objects`] too.
pub async fn history(target: &Client, history: &str) -> History {
    let columns = target
        .query(
            "SELECT attname::text FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            &[&history],
        )
        .await
        .unwrap();
    let homes = target
        .query(
            "SELECT history_column, source_column, former FROM waltrail.home WHERE history = $1",
            &[&history],
        )
        .await
        .unwrap();
    let columns: BTreeSet<String> = columns.iter().map(|row| row.get(0)).collect();
    let array = |name: &str| match columns.contains(name) {
        true => format!("{name}::text[]"),
        false => "NULL::text[]".to_owned(),
    };
    let form: String = target
        .query_one(
            "SELECT replace(fid.doc($1::text::regclass), '($1)', 'h')",
            &[&history],
        )
        .await
        .unwrap()
        .get(0);
    let sql = format!(
        "SELECT {form}::text, change_type::text, (extract(epoch FROM change_timestamp) * 1000000)::bigint, {}, {}
         FROM {history} h ORDER BY cdc_id",
        array("unavailable_columns"),
        array("changed_columns"),
    );
    let pinned = PINNED.replace("SET ", "; SET ");
    target.batch_execute(&pinned).await.unwrap();
    let rows = target.query(&sql, &[]).await.unwrap();
    let set = |row: &tokio_postgres::Row, at: usize| {
        let list: Option<Vec<String>> = row.get(at);
        list.map(|names| names.into_iter().collect::<BTreeSet<String>>())
    };
    let recorded = |row: &tokio_postgres::Row| Recorded {
        values: serde_json::from_str(row.get(0)).unwrap(),
        change_type: row.get(1),
        commit_time: row.get(2),
        unavailable: set(row, 3).unwrap_or_default(),
        changed: set(row, 4),
    };
    History {
        rows: rows.iter().map(recorded).collect(),
        homes: homes
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect(),
        columns,
    }
}
