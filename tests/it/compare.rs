//! Does the comparison with the oracle see what it is there to see, and does the oracle tell the truth?

use std::collections::BTreeSet;

use crate::support::compare::{
    Difference, ExpectedRow, ExpectedTx, HistoryRow, Row, Snapshot, Wrong, compare, fold,
};
use crate::support::load::Plan;
use crate::support::oracle::{Oracle, read_history, read_table};
use crate::support::{DESIGN, connect, server};
use throwaway::StopMode;
use tokio_postgres::Client;

fn row(id: i64, name: &str) -> Row {
    Row::from([
        ("id".to_owned(), Some(id.to_string())),
        ("name".to_owned(), Some(name.to_owned())),
    ])
}

fn insert(tx_seq: i64, id: i64, name: &str) -> ExpectedRow {
    ExpectedRow {
        change_type: "INSERT".to_owned(),
        tx_seq,
        values: row(id, name),
        ..ExpectedRow::default()
    }
}

/// Three transactions, one after the other, the second with three rows.
fn expected() -> Vec<ExpectedTx> {
    let tx = |xid: u64, rows: Vec<ExpectedRow>| ExpectedTx {
        xid,
        commit_time: i64::try_from(xid).unwrap() * 1_000,
        saw: Snapshot {
            xmax: xid,
            running: BTreeSet::new(),
        },
        rows,
    };
    vec![
        tx(10, vec![insert(1, 1, "a")]),
        tx(
            11,
            vec![insert(1, 2, "b"), insert(2, 3, "c"), insert(3, 4, "d")],
        ),
        tx(12, vec![insert(1, 5, "e")]),
    ]
}

/// The history that is right, with or without the columns that are not needed.
fn history(expected: &[ExpectedTx], plain: bool) -> Vec<HistoryRow> {
    let mut rows = Vec::new();
    for tx in expected {
        for wanted in &tx.rows {
            let extra = |value: i64| (!plain).then_some(value);
            rows.push(HistoryRow {
                cdc_id: i64::try_from(rows.len()).unwrap() + 1,
                change_type: wanted.change_type.clone(),
                change_timestamp: Some(tx.commit_time),
                values: wanted.values.clone(),
                commit_lsn: extra(tx.commit_time * 8),
                tx_seq: extra(wanted.tx_seq),
                xid: extra(tx.xid.cast_signed()),
                unavailable: (!plain).then(BTreeSet::new),
            });
        }
    }
    rows
}

/// What the comparison says of a history that was right before `spoil`, plain and with all columns.
fn after(spoil: impl Fn(&mut Vec<HistoryRow>)) -> [Difference; 2] {
    [true, false].map(|plain| {
        let mut rows = history(&expected(), plain);
        spoil(&mut rows);
        compare(&expected(), &rows).expect_err("the comparison should see it")
    })
}

fn assert_wrong(differences: [Difference; 2], wrong: Wrong, counts: (usize, usize, usize)) {
    for difference in differences {
        assert_eq!(difference.wrong, wrong, "{difference}");
        assert_eq!(
            (
                difference.missing,
                difference.duplicate,
                difference.unexpected
            ),
            counts,
            "{difference}"
        );
    }
}

#[test]
fn a_right_history_is_right() {
    for plain in [true, false] {
        let summary = compare(&expected(), &history(&expected(), plain)).unwrap();
        assert_eq!((summary.transactions, summary.rows), (3, 5));
    }
    compare(&[], &[]).unwrap();
}

#[test]
fn a_missing_row_is_seen_wherever_it_is() {
    for index in 0..5 {
        let differences = after(|rows| {
            rows.remove(index);
        });
        assert_wrong(differences, Wrong::Missing, (1, 0, 0));
    }
}

#[test]
fn a_missing_transaction_is_seen() {
    let differences = after(|rows| {
        rows.drain(1..4);
    });
    assert_wrong(differences, Wrong::Missing, (3, 0, 0));
}

#[test]
fn an_empty_history_is_seen() {
    assert_wrong(after(Vec::clear), Wrong::Missing, (5, 0, 0));
}

#[test]
fn a_duplicate_row_is_seen_wherever_it_is() {
    for index in 0..5 {
        let differences = after(|rows| rows.insert(index, rows[index].clone()));
        assert_wrong(differences, Wrong::Duplicate, (0, 1, 0));
        let differences = after(|rows| rows.push(rows[index].clone()));
        assert_wrong(differences, Wrong::Duplicate, (0, 1, 0));
    }
}

#[test]
fn a_repeated_transaction_is_seen() {
    let differences = after(|rows| {
        let again = rows[1..4].to_vec();
        rows.extend(again);
    });
    assert_wrong(differences, Wrong::Duplicate, (0, 3, 0));
}

#[test]
fn two_swapped_rows_of_a_transaction_are_seen() {
    for (one, other) in [(1, 2), (2, 3), (1, 3)] {
        assert_wrong(
            after(|rows| rows.swap(one, other)),
            Wrong::OrderOfRows,
            (0, 0, 0),
        );
    }
}

#[test]
fn a_wrong_value_is_seen() {
    for index in 0..5 {
        let differences = after(|rows| {
            rows[index]
                .values
                .insert("name".to_owned(), Some("x".to_owned()));
        });
        assert_wrong(differences, Wrong::Value, (1, 0, 1));
        let differences = after(|rows| {
            rows[index].values.insert("name".to_owned(), None);
        });
        assert_wrong(differences, Wrong::Value, (1, 0, 1));
        let differences = after(|rows| rows[index].change_type = "UPDATE".to_owned());
        assert_wrong(differences, Wrong::Value, (1, 0, 1));
    }
}

#[test]
fn a_wrong_order_of_transactions_is_seen() {
    let differences = after(|rows| rows.swap(0, 4));
    // The rows of 12 and 10 changed places.
    assert_wrong(differences, Wrong::OrderOfTransactions, (0, 0, 0));
    let differences = after(|rows| rows.rotate_left(1));
    assert_wrong(differences, Wrong::OrderOfTransactions, (0, 0, 0));
}

#[test]
fn transactions_that_ran_side_by_side_may_have_either_order() {
    let mut both = expected();
    both[2].saw.running.insert(10);
    both[2].saw.running.insert(11);
    both[1].saw.running.insert(10);
    let mut rows = history(&both, true);
    compare(&both, &rows).unwrap();
    rows.rotate_left(1);
    compare(&both, &rows).unwrap();
}

#[test]
fn transactions_of_the_same_microsecond_may_have_either_order() {
    let mut tie = expected();
    for tx in &mut tie {
        tx.commit_time = 7;
        tx.saw.running = BTreeSet::from([10, 11, 12]);
    }
    let mut rows = history(&tie, true);
    compare(&tie, &rows).unwrap();
    rows.rotate_left(1);
    compare(&tie, &rows).unwrap();
    rows.swap(0, 1);
    compare(&tie, &rows).unwrap_err();
}

#[test]
fn a_torn_transaction_is_seen() {
    // The row of 12 stands between those of 11.
    for difference in after(|rows| rows[2..].rotate_right(1)) {
        assert_eq!(difference.wrong, Wrong::Missing, "{difference}");
    }
}

#[test]
fn a_wrong_timestamp_is_seen() {
    for index in [0, 4] {
        let differences = after(|rows| rows[index].change_timestamp = Some(10_001));
        assert_wrong(differences, Wrong::Timestamp, (1, 0, 1));
        let differences = after(|rows| rows[index].change_timestamp = None);
        assert_wrong(differences, Wrong::Timestamp, (1, 0, 1));
    }
    let differences = after(|rows| rows[2].change_timestamp = Some(11_001));
    assert_wrong(differences, Wrong::Timestamp, (1, 0, 1));
}

#[test]
fn wrong_positions_are_seen() {
    let spoiled = |spoil: &dyn Fn(&mut Vec<HistoryRow>)| {
        let mut rows = history(&expected(), false);
        spoil(&mut rows);
        compare(&expected(), &rows).unwrap_err().wrong
    };
    assert_eq!(spoiled(&|rows| rows[2].xid = Some(12)), Wrong::Xid);
    assert_eq!(spoiled(&|rows| rows[2].tx_seq = Some(1)), Wrong::TxSeq);
    assert_eq!(
        spoiled(&|rows| rows[2].commit_lsn = Some(1)),
        Wrong::CommitLsn
    );
    assert_eq!(
        spoiled(&|rows| rows[4].commit_lsn = rows[3].commit_lsn),
        Wrong::CommitLsn
    );
}

#[test]
fn a_value_may_only_be_missing_where_the_wal_has_none_and_the_row_says_so() {
    let mut large = expected();
    large[0].rows[0].maybe_unavailable.insert("name".to_owned());
    let mut rows = history(&large, false);
    compare(&large, &rows).unwrap();
    rows[0].values.insert("name".to_owned(), None);
    assert_eq!(compare(&large, &rows).unwrap_err().wrong, Wrong::Value);
    rows[0].unavailable = Some(BTreeSet::from(["name".to_owned()]));
    assert_eq!(compare(&large, &rows).unwrap().unavailable, 1);
    rows[1].values.insert("name".to_owned(), None);
    rows[1].unavailable = Some(BTreeSet::from(["name".to_owned()]));
    assert_eq!(compare(&large, &rows).unwrap_err().wrong, Wrong::Value);
}

/// A second trigger that does what the daemon should: it fills the plain history. Times are not known to
/// it, so they are put right afterwards.
const STAND_IN: &str = "
    CREATE TABLE plain (LIKE employees_cdc INCLUDING ALL);
    ALTER TABLE employees_cdc ADD xid bigint, ADD tx_seq bigint;
    CREATE FUNCTION stand_in() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND OLD.id = NEW.id THEN
            INSERT INTO employees_cdc (change_type, id, name, department, salary, xid)
            SELECT TG_OP, NEW.*, pg_current_xact_id()::text::bigint;
        ELSIF TG_OP = 'UPDATE' THEN
            INSERT INTO employees_cdc (change_type, id, xid)
            SELECT 'DELETE', OLD.id, pg_current_xact_id()::text::bigint;
            INSERT INTO employees_cdc (change_type, id, name, department, salary, xid)
            SELECT 'INSERT', NEW.*, pg_current_xact_id()::text::bigint;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO employees_cdc (change_type, id, xid)
            SELECT 'DELETE', OLD.id, pg_current_xact_id()::text::bigint;
        ELSE
            INSERT INTO employees_cdc (change_type, xid)
            SELECT TG_OP, pg_current_xact_id()::text::bigint;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER stand_in AFTER INSERT OR UPDATE OR DELETE ON employees
        FOR EACH ROW EXECUTE FUNCTION stand_in();
    CREATE TRIGGER stand_in_truncate AFTER TRUNCATE ON employees
        FOR EACH STATEMENT EXECUTE FUNCTION stand_in();";

/// The order of commits as the WAL has it: the xids of pgoutput's Begin messages.
const WITNESS_OF_ORDER: &str = "
    CREATE TABLE commit_order AS
    SELECT n, ('x' || encode(substr(data, 18, 4), 'hex'))::bit(32)::int AS xid
    FROM pg_logical_slot_get_binary_changes(
        'witness', NULL, NULL, 'proto_version', '1', 'publication_names', 'witness')
        WITH ORDINALITY AS message (lsn, decoded, data, n)
    WHERE get_byte(data, 0) = ascii('B');";

/// The stand-in's rows as the history must have them.
const IN_COMMIT_ORDER: &str = "
    TRUNCATE plain;
    INSERT INTO plain (change_type, id, name, department, salary, change_timestamp)
    SELECT change_type, id, name, department, salary,
           pg_xact_commit_timestamp(xid::text::xid) AT TIME ZONE 'UTC'
    FROM employees_cdc JOIN commit_order USING (xid) ORDER BY n, cdc_id;";

#[tokio::test]
async fn the_oracle_agrees_with_a_second_witness_of_a_load_through_crashes() {
    let (mut cluster, client) = server().await;
    client
        .batch_execute(&format!("{DESIGN}{STAND_IN}"))
        .await
        .unwrap();
    let oracle = Oracle::install(&client, &["public.employees"]).await;
    for sql in [
        "CREATE PUBLICATION witness FOR TABLE employees",
        "SELECT pg_create_logical_replication_slot('witness', 'pgoutput')",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    let load = Plan::new(cluster.dsn_tcp("postgres"), 7).start();
    load.more(150).await;
    drop(client);
    cluster.restart(StopMode::Immediate).unwrap();
    load.more(150).await;
    cluster.kill9();
    cluster.start_again().unwrap();
    load.more(100).await;
    let done = load.stop();
    println!("{done:?}");
    assert!(done.connections >= 12, "{done:?}");
    assert!(done.rolled_back > 0, "{done:?}");

    let client = connect(&cluster.dsn_tcp("postgres")).await;
    client
        .batch_execute("TRUNCATE employees; INSERT INTO employees VALUES (1, 'last')")
        .await
        .unwrap();
    client.batch_execute(WITNESS_OF_ORDER).await.unwrap();
    client.batch_execute(IN_COMMIT_ORDER).await.unwrap();
    let compared = || oracle.compare(&client, "public.employees", &client, "plain");
    let summary = compared().await.unwrap();
    assert!(summary.rows > 500, "{summary:?}");
    let columns = ["id", "name", "department", "salary"].map(String::from);
    let rows = read_history(&client, "plain", &columns).await;
    let folded: Vec<Row> = fold(&rows, &["id"]).into_values().collect();
    assert_eq!(folded, read_table(&client, "employees").await);

    // All even xids first: later transactions come before ones that they saw.
    client
        .batch_execute(&IN_COMMIT_ORDER.replace("ORDER BY n", "ORDER BY xid % 2, n"))
        .await
        .unwrap();
    let difference = compared().await.unwrap_err();
    assert_eq!(difference.wrong, Wrong::OrderOfTransactions);
    for spoil in [
        "DELETE FROM plain WHERE cdc_id = (SELECT min(cdc_id) + 299 FROM plain)",
        "UPDATE plain SET change_timestamp = change_timestamp + interval '1 microsecond' WHERE cdc_id = (SELECT min(cdc_id) + 299 FROM plain)",
        "UPDATE plain SET id = -1 WHERE cdc_id = (SELECT min(cdc_id) + 299 FROM plain)",
    ] {
        client.batch_execute(IN_COMMIT_ORDER).await.unwrap();
        client.batch_execute(spoil).await.unwrap();
        let difference = compared().await.expect_err(spoil);
        assert_ne!(difference.wrong, Wrong::OrderOfTransactions, "{spoil}");
    }
}

/// What the oracle asks for, row by row: type, tx_seq and the values that are not NULL.
async fn asked_for(oracle: Oracle, client: &Client, table: &str, history: &str) -> Vec<String> {
    let transactions = oracle.expected(client, table, client, history).await;
    let rows = transactions.iter().flat_map(|tx| &tx.rows);
    rows.map(|row| {
        let mut text = format!("{} {}", row.tx_seq, row.change_type);
        for (column, value) in &row.values {
            if let Some(value) = value {
                let short: String = value.chars().take(8).collect();
                text.push_str(&format!(" {column}={short}"));
            }
        }
        for (mark, columns) in [('!', &row.unavailable), ('?', &row.maybe_unavailable)] {
            for column in columns {
                text.push_str(&format!(" {mark}{column}"));
            }
        }
        text
    })
    .collect()
}

#[tokio::test]
async fn the_oracle_asks_for_what_the_replica_identity_and_the_history_allow() {
    let (_cluster, client) = server().await;
    client
        .batch_execute(
            "CREATE TABLE one (id int PRIMARY KEY, note text, big text);
             CREATE TABLE two (id int PRIMARY KEY);
             CREATE TABLE plain (cdc_id serial, change_type text, change_timestamp timestamp,
                 id int, note text, big text);
             CREATE TABLE full_blown (cdc_id serial, change_type text, change_timestamp timestamptz,
                 id int, note text, big text, old_id int, unavailable_columns text[]);",
        )
        .await
        .unwrap();
    let oracle = Oracle::install(&client, &["public.one", "public.two"]).await;
    let workload = "
        BEGIN;
        INSERT INTO one VALUES (1, 'a', NULL);
        INSERT INTO two VALUES (1);
        SAVEPOINT s; INSERT INTO one VALUES (9); ROLLBACK TO s;
        UPDATE one SET note = 'b';
        UPDATE one SET id = 2;
        DELETE FROM one;
        COMMIT;
        INSERT INTO one VALUES (3, 'c', repeat('x', 5000));
        UPDATE one SET note = 'd';
        TRUNCATE one, two;";
    client.batch_execute(workload).await.unwrap();

    let transaction = |middle: &[&str]| -> Vec<String> {
        let mut rows = vec!["1 INSERT id=1 note=a"];
        rows.extend(middle);
        rows.iter().map(|row| (*row).to_owned()).collect()
    };
    // The whole string is one implicit transaction after its COMMIT.
    let plain = transaction(&[
        "3 UPDATE id=1 note=b",
        "4 DELETE id=1 !big !note",
        "4 INSERT id=2 note=b",
        "5 DELETE id=2 !big !note",
        "1 INSERT big=xxxxxxxx id=3 note=c",
        "2 UPDATE big=xxxxxxxx id=3 note=d ?big",
        "3 TRUNCATE",
    ]);
    assert_eq!(
        asked_for(oracle, &client, "public.one", "plain").await,
        plain
    );
    let with_old = transaction(&[
        "3 UPDATE id=1 note=b old_id=1",
        "4 UPDATE id=2 note=b old_id=1",
        "5 DELETE id=2 old_id=2 !big !note",
        "1 INSERT big=xxxxxxxx id=3 note=c",
        "2 UPDATE big=xxxxxxxx id=3 note=d old_id=3 ?big",
        "3 TRUNCATE",
    ]);
    assert_eq!(
        asked_for(oracle, &client, "public.one", "full_blown").await,
        with_old
    );
    assert_eq!(
        asked_for(oracle, &client, "public.two", "plain").await,
        ["2 INSERT id=1", "4 TRUNCATE"]
    );

    oracle.forget(&client).await;
    client
        .batch_execute("ALTER TABLE one REPLICA IDENTITY FULL")
        .await
        .unwrap();
    client
        .batch_execute("INSERT INTO one VALUES (4, 'e'); UPDATE one SET id = 5; DELETE FROM one")
        .await
        .unwrap();
    assert_eq!(
        asked_for(oracle, &client, "public.one", "plain").await,
        [
            "1 INSERT id=4 note=e",
            "2 DELETE id=4 note=e",
            "2 INSERT id=5 note=e",
            "3 DELETE id=5 note=e"
        ]
    );
}
