//! The functions and the view beside a history: `employees_as_of()`, `employees_versions`, `employees_changes()`.
//!
//! Their bodies are texts, so that they depend on no table: a history can be altered and dropped as if they were not there. What
//! is called by a query runs as who asks and is put into the query by the planner; only [`position`](Objects) reads the control
//! schema, and runs as its owner.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use super::changes;
use super::fold::{self, Bounds};
use super::inherited;
use super::ledger::{Column, Ledger, object};
use crate::schema::plan::literal;
use crate::schema::{Identifier, TableName};

/// The last words of a comment on what waltrail makes, before the hash.
const MADE: &str = "made by waltrail";

/// Stands for this code: what it makes of two histories that are as different as they can be. To make the statements of each
/// history only to compare them would take a start longer than all else.
static GENERATOR: LazyLock<u64> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    for keyed in [true, false] {
        let ledger = Ledger::sample(keyed);
        Objects::of(&ledger).statements().hash(&mut hasher);
    }
    hasher.finish()
});

/// How a moment is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Time,
    Lsn,
    /// Either of them as text, so that a literal without a type is understood.
    Text,
}

impl Moment {
    fn sql(self) -> &'static str {
        match self {
            Self::Time => "timestamptz",
            Self::Lsn => "pg_lsn",
            Self::Text => "text",
        }
    }
}

/// What is made beside a history.
pub struct Objects<'a> {
    ledger: &'a Ledger,
}

impl<'a> Objects<'a> {
    pub fn of(ledger: &'a Ledger) -> Self {
        Self { ledger }
    }

    fn name(&self, what: &str) -> TableName {
        object(&self.ledger.history, what)
    }

    fn moments(&self) -> &'static [Moment] {
        match self.ledger.commit_lsn {
            Some(_) => &[Moment::Time, Moment::Lsn, Moment::Text],
            None => &[Moment::Time],
        }
    }

    /// The function whose comment says which definition of all of them is there.
    pub fn witness(&self) -> String {
        format!("{}(timestamptz)", self.name("_as_of"))
    }

    /// The comment of [`Objects::witness`].
    pub fn comment(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (*GENERATOR, self.ledger).hash(&mut hasher);
        let source = &self.ledger.source;
        format!("{source} as it was, {MADE} ({:016x})", hasher.finish())
    }

    /// The names of the functions, in the history's schema, and of the view.
    pub fn names(&self) -> Vec<String> {
        let names = [
            "_as_of",
            "_versions",
            "_changes",
            "_position",
            "_unbroken",
            "_until",
            "_carried",
            "_current",
        ];
        names.iter().map(|what| self.name(what).name).collect()
    }

    /// The name of the view, in the history's schema.
    pub fn view_name(&self) -> String {
        self.name("_versions").name
    }

    pub fn history(&self) -> &'a TableName {
        &self.ledger.history
    }

    /// The statements that make them, without the comment of the witness.
    fn statements(&self) -> Vec<String> {
        let mut made = Vec::new();
        let moments = self.moments();
        made.push(self.current());
        made.extend(moments.iter().map(|&moment| self.position(moment)));
        if self.ledger.is_open {
            made.push(self.until());
        }
        made.extend(self.carried());
        let is_keyed = !self.ledger.key.is_empty();
        made.extend(moments.iter().map(|&moment| self.as_of(moment)));
        if is_keyed {
            made.push(self.versions());
            made.push(self.view());
            made.push(self.unbroken());
            made.extend(moments.iter().map(|&moment| self.changes(moment)));
        }
        made
    }

    /// The statements that make all of them, in one transaction.
    pub fn sql(&self) -> Vec<String> {
        let mut made = self.statements();
        let comment = literal(&self.comment());
        made.push(format!(
            "COMMENT ON FUNCTION {} IS {comment}",
            self.witness()
        ));
        made
    }

    /// A function, with a comment that says whose it is.
    fn function(&self, what: &str, arguments: &str, types: &str, rest: &str, body: &str) -> String {
        let name = self.name(what);
        let mut tags = (0..).map(|n| match n {
            0 => "$$".to_owned(),
            n => format!("$w{n}$"),
        });
        let tag = tags.find(|tag| !body.contains(tag)).unwrap_or_default();
        format!(
            "CREATE FUNCTION {name}({arguments}) {rest} AS {tag}\n{body}\n{tag};\n\
             COMMENT ON FUNCTION {name}({types}) IS {}",
            literal(&format!("for {}, {MADE}", self.ledger.history))
        )
    }

    /// From which row to which the history counts as of a moment. Raises where the history does not know.
    fn position(&self, moment: Moment) -> String {
        let kind = moment.sql();
        let name = self.name("_position");
        let rest = "LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER SET search_path = ''";
        let body = match moment {
            Moment::Text => format!(
                "BEGIN\n\
                 \x20   IF moment ~ '^[0-9A-Fa-f]+/[0-9A-Fa-f]+$' THEN\n\
                 \x20       SELECT p.after, p.upto INTO after, upto FROM {name}(moment::pg_lsn) p;\n\
                 \x20   ELSE\n\
                 \x20       SELECT p.after, p.upto INTO after, upto FROM {name}(moment::timestamptz) p;\n\
                 \x20   END IF;\n\
                 END"
            ),
            Moment::Time | Moment::Lsn => self.search(moment),
        };
        let arguments = format!("moment {kind}, OUT after bigint, OUT upto bigint");
        self.function("_position", &arguments, kind, rest, &body)
    }

    /// The body of the search for a time or a position of the WAL.
    ///
    /// Numbers ascend in the order of the commits, so the last row is found by halving, without an index on the time. Commit
    /// times are nearly in that order: none lies more than `disorder` before an earlier one.
    fn search(&self, moment: Moment) -> String {
        let ledger = self.ledger;
        let (history, number, kind) = (&ledger.history, ledger.number(), ledger.kind());
        // At a position of the WAL there is what has its commit record before it; at a time, also what committed then.
        let (of_row, of_baseline, of_gap, past, till) = match (moment, &ledger.commit_lsn) {
            (Moment::Lsn, Some(lsn)) => (ledger.own(lsn), "point", "from_lsn", ">= moment", "<"),
            _ => (
                ledger.time(),
                "taken_at",
                "whole_at",
                "> moment + margin",
                "<=",
            ),
        };
        let row_kind = moment.sql();
        let margin = match moment {
            Moment::Lsn => "",
            _ => {
                "    SELECT c.disorder INTO margin FROM waltrail.checkpoint c WHERE c.slot = began.slot;\n"
            }
        };
        let halve = match moment {
            Moment::Lsn => "low + 1 < high",
            _ => "margin IS NOT NULL AND low + 1 < high",
        };
        format!(
            "#variable_conflict use_variable\n\
             DECLARE\n\
             \x20   began waltrail.baseline; gap waltrail.gap; goes_on timestamptz; margin interval;\n\
             \x20   low bigint; middle bigint; high bigint; seen bigint; seen_at {row_kind};\n\
             BEGIN\n\
             \x20   PERFORM {current}();\n\
             {}\
             {margin}\
             \x20   low := began.last_number;\n\
             \x20   SELECT coalesce(max({number}), 0) + 1 INTO high FROM {history} h;\n\
             \x20   WHILE {halve} LOOP\n\
             \x20       middle := (low + high) / 2;\n\
             \x20       SELECT {number}, {of_row} INTO seen, seen_at FROM {history} h\n\
             \x20        WHERE {number} <= middle AND {number} > low AND {kind} <> 'GAP'::text ORDER BY {number} DESC LIMIT 1;\n\
             \x20       IF seen_at {past} THEN high := seen; ELSE low := middle; END IF;\n\
             \x20   END LOOP;\n\
             \x20   SELECT {number} INTO upto FROM {history} h\n\
             \x20    WHERE {number} < high AND {number} > began.last_number AND {of_row} {till} moment AND {kind} <> 'GAP'::text\n\
             \x20    ORDER BY {number} DESC LIMIT 1;\n\
             \x20   upto := coalesce(upto, began.last_number);\n\
             \x20   SELECT coalesce(max({number}), 0) INTO after FROM {history} h WHERE {} AND {number} <= upto;\n\
             END",
            self.refusals(of_baseline, of_gap, till),
            fold::clears(ledger),
            current = self.name("_current"),
        )
    }

    /// The part that finds the existing rows that a moment counts from, and raises where the history is not whole.
    fn refusals(&self, of_baseline: &str, of_gap: &str, till: &str) -> String {
        let source = literal(&self.ledger.source.to_string());
        let name = literal(&self.ledger.history.to_string());
        format!(
            "\x20   SELECT b.* INTO began FROM waltrail.baseline b\n\
             \x20    WHERE b.history = {name} AND b.{of_baseline} <= moment ORDER BY b.id DESC LIMIT 1;\n\
             \x20   IF NOT FOUND THEN\n\
             \x20       SELECT b.* INTO began FROM waltrail.baseline b WHERE b.history = {name} ORDER BY b.id LIMIT 1;\n\
             \x20       IF NOT FOUND THEN\n\
             \x20           RAISE EXCEPTION 'the history of % does not have the rows that existed before it', {source}\n\
             \x20               USING ERRCODE = 'WTR04', HINT = 'See waltrail status: they are on their way, or snapshot.mode is \"never\".';\n\
             \x20       END IF;\n\
             \x20       RAISE EXCEPTION 'the history of % begins at % (%), which is after %', {source}, began.taken_at, began.point, moment\n\
             \x20           USING ERRCODE = 'WTR04';\n\
             \x20   END IF;\n\
             \x20   SELECT g.* INTO gap FROM waltrail.gap g WHERE g.history = {name} AND g.id > began.after_gap\n\
             \x20      AND (g.{of_gap} IS NULL OR g.{of_gap} {till} moment) ORDER BY g.id LIMIT 1;\n\
             \x20   IF FOUND THEN\n\
             \x20       SELECT b.taken_at INTO goes_on FROM waltrail.baseline b\n\
             \x20        WHERE b.history = {name} AND b.after_gap >= gap.id ORDER BY b.id LIMIT 1;\n\
             \x20       RAISE EXCEPTION 'changes of % are missing at %: from % (%) to %', {source}, moment,\n\
             \x20           coalesce(gap.whole_at, began.taken_at), gap.from_lsn, coalesce(goes_on::text, 'now')\n\
             \x20           USING ERRCODE = 'WTR05', HINT = gap.reason;\n\
             \x20   END IF;\n"
        )
    }

    /// Raises where a schema change has come that the functions do not know: of their columns, one is gone, or has values
    /// elsewhere. A column that they do not have is none of it.
    fn current(&self) -> String {
        let ledger = self.ledger;
        let history = literal(&ledger.history.to_string());
        let columns = ledger.columns.iter().map(|column| literal(&column.name));
        let columns = columns.collect::<Vec<String>>().join(", ");
        let body = format!(
            "DECLARE\n\
             \x20   columns text[] := ARRAY[{columns}];\n\
             BEGIN\n\
             \x20   IF {}\n\
             \x20      OR NOT columns <@ (SELECT pg_catalog.array_agg(c.name) FROM waltrail.layout l,\n\
             \x20             pg_catalog.jsonb_to_recordset(l.columns) AS c (name text) WHERE l.history = {history}) THEN\n\
             \x20       RAISE EXCEPTION 'the functions beside % are older than its columns', {history}\n\
             \x20           USING ERRCODE = 'WTR06', HINT = 'waltrail makes them anew at its next start: waltrail setup.';\n\
             \x20   END IF;\n\
             \x20   RETURN true;\n\
             END",
            inherited::unknown(&ledger.history, &ledger.marks)
        );
        let rest = "RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = ''";
        self.function("_current", "", "", rest, &body)
    }

    /// Up to which row a value stands elsewhere, where more such rows may come.
    fn until(&self) -> String {
        let ledger = self.ledger;
        let history = literal(&ledger.history.to_string());
        let body = format!(
            "BEGIN\n\
             \x20   RETURN coalesce((SELECT i.until_number FROM waltrail.inherited i\n\
             \x20                     WHERE i.history = {history} AND i.source_column = $1 AND i.after_number = $2), $2);\n\
             END"
        );
        let rest = "RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = ''";
        self.function("_until", "text, bigint", "text, bigint", rest, &body)
    }

    /// The values of a row that the WAL did not carry. Many short queries are not worth compiling.
    fn carried(&self) -> Option<String> {
        let query = fold::carried(self.ledger, "$1")?;
        let columns = self.ledger.columns.iter().enumerate();
        let looked_for = columns
            .filter(|(at, column)| column.unavailable.is_some() && !self.ledger.key.contains(at));
        let (mut outs, mut names) = ("bigint".to_owned(), Vec::new());
        for (at, column) in looked_for {
            outs.push_str(&format!(
                ", OUT v{at} {}, OUT known{at} boolean",
                column.kind
            ));
            names.push(format!("v{at}, known{at}"));
        }
        let body = format!(
            "#variable_conflict use_column\nBEGIN\nSELECT f.* INTO {} FROM (\n{query}\n) f;\nEND",
            names.join(", ")
        );
        let rest = "LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SET jit = off";
        Some(self.function("_carried", &outs, "bigint", rest, &body))
    }

    fn table(&self, more: &[(String, &str)]) -> String {
        let columns = self.ledger.columns.iter();
        let columns = columns.map(|column| format!("{} {}", Identifier(&column.name), column.kind));
        let more = more
            .iter()
            .map(|(name, kind)| format!("{} {kind}", Identifier(name)));
        columns.chain(more).collect::<Vec<_>>().join(", ")
    }

    /// A name for a column of an answer that no column of the table has.
    fn free(&self, name: &str) -> String {
        let mut name = name.to_owned();
        while self.ledger.columns.iter().any(|column| column.name == name) {
            name.insert(0, '_');
        }
        name
    }

    fn as_of(&self, moment: Moment) -> String {
        let kind = moment.sql();
        let bounds = Bounds {
            after: "(SELECT p.after FROM p)".to_owned(),
            upto: "(SELECT p.upto FROM p)".to_owned(),
        };
        let body = format!(
            "WITH p AS MATERIALIZED (SELECT f.after, f.upto FROM {}($1) f)\n{}",
            self.name("_position"),
            fold::whole(self.ledger, &bounds)
        );
        let rest = format!(
            "RETURNS TABLE ({}) LANGUAGE sql STABLE PARALLEL RESTRICTED",
            self.table(&[])
        );
        self.function("_as_of", kind, kind, &rest, &body)
    }

    fn versions(&self) -> String {
        let ledger = self.ledger;
        let more = ["valid_from", "valid_to", "is_current"].map(|name| self.free(name));
        let [from, to, current] = more.clone();
        let key = fold::key_list(ledger, "e");
        let (number, time) = (ledger.number(), ledger.time());
        // Times that were set back do not make a version end before it begins: it was never to be seen.
        let body = format!(
            "WITH cleared AS MATERIALIZED (\n\
             \x20   SELECT array_agg(x.n ORDER BY x.n) AS numbers, array_agg(x.t ORDER BY x.n) AS times FROM (\n\
             \x20       SELECT {number} AS n, min({time}) OVER (ORDER BY {number} DESC) AS t FROM {} h WHERE {}) x\n\
             )\n\
             SELECT {}, l.since, l.until, l.until IS NULL\n\
             \x20 FROM (SELECT s.*, least(s.since_at, s.until) AS since FROM (\n\
             \x20   SELECT s.*, CASE WHEN s.next_epoch = s.epoch THEN s.next_at\n\
             \x20           ELSE (SELECT c.times[s.epoch + 1] FROM cleared c) END AS until FROM (\n\
             \x20     SELECT e.*, min(e.t) OVER w AS since_at,\n\
             \x20            min(e.t) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS next_at,\n\
             \x20            lag(e.epoch) OVER w AS next_epoch FROM (\n\
             \x20       SELECT e.*, (SELECT coalesce(width_bucket(e.n, c.numbers), 0) FROM cleared c) AS epoch FROM (\n{}\n) e) e\n\
             \x20     WINDOW w AS (PARTITION BY {key} ORDER BY e.n DESC, e.gone)) s) s) l{}\n\
             \x20WHERE NOT l.gone AND (l.until IS NULL OR l.since < l.until) AND (SELECT {}())",
            ledger.history,
            fold::clears(ledger),
            fold::named(ledger, "l"),
            fold::events(ledger, "true"),
            fold::carrying_by_function(ledger, "l"),
            self.name("_current"),
        );
        let columns = [
            (from, "timestamptz"),
            (to, "timestamptz"),
            (current, "boolean"),
        ];
        let rest = format!(
            "RETURNS TABLE ({}) LANGUAGE sql STABLE PARALLEL RESTRICTED",
            self.table(&columns)
        );
        self.function("_versions", "", "", &rest, &body)
    }

    /// It shows a reader no more than the function, which reads the history as the reader.
    fn view(&self) -> String {
        let name = self.name("_versions");
        format!(
            "CREATE VIEW {name} AS SELECT * FROM {name}();\nGRANT SELECT ON {name} TO PUBLIC;\nCOMMENT ON VIEW {name} IS {}",
            literal(&format!("for {}, {MADE}", self.ledger.history))
        )
    }

    /// Raises where changes between two rows are missing. Says whether indexes find the rows of a key.
    fn unbroken(&self) -> String {
        let ledger = self.ledger;
        let body = format!(
            "BEGIN\n\
             \x20   IF $1 > $2 THEN\n\
             \x20       RAISE EXCEPTION 'the range ends before it begins' USING ERRCODE = 'WTR04';\n\
             \x20   END IF;\n\
             \x20   IF EXISTS (SELECT FROM {} h WHERE {} AND {} = 'GAP'::text AND {number} > $1 AND {number} <= $2) THEN\n\
             \x20       RAISE EXCEPTION 'changes of % are missing in this range: the history has a GAP there', {}\n\
             \x20           USING ERRCODE = 'WTR05';\n\
             \x20   END IF;\n\
             \x20   RETURN {};\n\
             END",
            ledger.history,
            fold::clears(ledger),
            ledger.kind(),
            literal(&ledger.source.to_string()),
            self.finds_keys(),
            number = ledger.number(),
        );
        let rest =
            "RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = ''";
        self.function("_unbroken", "bigint, bigint", "bigint, bigint", rest, &body)
    }

    /// Whether there is an index by key and, where that is in one row with the new one, by its former value: an expression.
    fn finds_keys(&self) -> String {
        let ledger = self.ledger;
        let mut of_keys = fold::indexes(ledger);
        of_keys.retain(|index| index.columns.len() > ledger.key.len());
        let is_plain = |column: &Column| column.value == ledger.own(&column.home);
        let wanted = 1 + usize::from(ledger.changes_key().is_some());
        if of_keys.len() < wanted || !ledger.key_columns().all(is_plain) {
            return "false".to_owned();
        }
        let name = literal(&ledger.history.to_string());
        let exists = of_keys.iter().map(|index| {
            let columns = index.columns.iter().map(|name| fold::text(name));
            let columns: Vec<String> = columns.collect();
            let is_whole = match index.predicate {
                Some(_) => "",
                None => " AND i.indpred IS NULL",
            };
            format!(
                "EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = pg_catalog.to_regclass({name}) AND i.indisvalid{is_whole}\n\
                 \x20       AND ARRAY(SELECT a.attname::text FROM unnest((i.indkey::int2[])[0:{}]) WITH ORDINALITY AS k (attnum, nth)\n\
                 \x20               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.nth)\n\
                 \x20           = ARRAY[{}])",
                columns.len() - 1,
                columns.join(", ")
            )
        });
        exists.collect::<Vec<_>>().join("\n        AND ")
    }

    /// The planner takes a small range for a large one, whose code would be worth compiling.
    fn changes(&self, moment: Moment) -> String {
        let kind = moment.sql();
        let ledger = self.ledger;
        let more = [
            (self.free(&ledger.number), "bigint"),
            (self.free(&ledger.change_type), "text"),
            (self.free(&ledger.time), "timestamptz"),
            (self.free("changed_columns"), "text[]"),
        ];
        let rest = format!(
            "RETURNS TABLE ({}) LANGUAGE sql STABLE PARALLEL RESTRICTED SET jit = off",
            self.table(&more)
        );
        let arguments = format!(
            "{} {kind}, {} {kind}, {} boolean DEFAULT true",
            Identifier(&self.free("from_moment")),
            Identifier(&self.free("to_moment")),
            Identifier(&self.free("net"))
        );
        let types = format!("{kind}, {kind}, boolean");
        let (position, unbroken) = (self.name("_position"), self.name("_unbroken"));
        let body = changes::query(ledger, &position, &unbroken);
        self.function("_changes", &arguments, &types, &rest, &body)
    }
}
