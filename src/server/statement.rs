//! What kind a statement is. Pure.
//!
//! The text of another session's statement can hold values of rows and passwords. So no part of it is kept: what leaves here is
//! one of the [`KINDS`].

/// The kinds by their first words; of two that fit, the longer one comes first.
const KINDS: [&str; 66] = [
    "ALTER DATABASE",
    "ALTER INDEX",
    "ALTER PUBLICATION",
    "ALTER ROLE",
    "ALTER SEQUENCE",
    "ALTER SYSTEM",
    "ALTER TABLE",
    "ALTER TYPE",
    "ALTER",
    "ABORT",
    "ANALYZE",
    "BEGIN",
    "CALL",
    "CHECKPOINT",
    "CLOSE",
    "CLUSTER",
    "COMMENT",
    "COMMIT",
    "COPY",
    "CREATE DATABASE",
    "CREATE INDEX",
    "CREATE PUBLICATION",
    "CREATE TABLE",
    "CREATE TRIGGER",
    "CREATE UNIQUE INDEX",
    "CREATE",
    "DEALLOCATE",
    "DECLARE",
    "DELETE",
    "DISCARD",
    "DO",
    "DROP DATABASE",
    "DROP INDEX",
    "DROP PUBLICATION",
    "DROP TABLE",
    "DROP",
    "END",
    "EXECUTE",
    "EXPLAIN",
    "FETCH",
    "GRANT",
    "INSERT",
    "LISTEN",
    "LOCK TABLE",
    "LOCK",
    "MERGE",
    "MOVE",
    "NOTIFY",
    "PREPARE TRANSACTION",
    "PREPARE",
    "REFRESH MATERIALIZED VIEW",
    "REINDEX",
    "RELEASE",
    "RESET",
    "REVOKE",
    "ROLLBACK",
    "SAVEPOINT",
    "SELECT",
    "SET",
    "SHOW",
    "START TRANSACTION",
    "TABLE",
    "TRUNCATE",
    "UPDATE",
    "VACUUM",
    "WITH",
];

/// The kind of a statement; none where it begins with anything else, a comment for example.
pub(super) fn kind_of(statement: &[u8]) -> Option<&'static str> {
    let statement = String::from_utf8_lossy(statement);
    let begins = |kind: &&&str| {
        let mut rest = statement.trim_start();
        kind.split(' ').all(|word| {
            let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
            let found = &rest[..end];
            rest = rest[end..].trim_start();
            found.eq_ignore_ascii_case(word)
        })
    };
    KINDS.iter().find(begins).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_the_first_words_and_nothing_of_the_rest() {
        for (statement, kind) in [
            ("lock table t in share mode", Some("LOCK TABLE")),
            ("LOCK canary", Some("LOCK")),
            (" \n Update t SET a = 'canary'", Some("UPDATE")),
            ("ALTER\n  TABLE t ADD c int", Some("ALTER TABLE")),
            ("ALTER TABLESPACE canary", Some("ALTER")),
            ("select(1)", Some("SELECT")),
            ("/* user=canary */ SELECT 1", None),
            ("canary", None),
            ("SELECTcanary", None),
            ("'canary'", None),
            ("<insufficient privilege>", None),
            ("", None),
        ] {
            assert_eq!(kind_of(statement.as_bytes()), kind, "{statement}");
        }
    }
}
