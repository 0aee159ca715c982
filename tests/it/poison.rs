//! A transaction that the history never takes: it is named, and left out where a person asks for that.

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{Scene, assert_clean};
use crate::support::{BOUND, each, texts, wait_for_value};

const TABLES: [&str; 2] = ["public.people", "public.offices"];
const REFUSES: &str = "ALTER TABLE people_cdc ADD CONSTRAINT no_666 CHECK (salary <> 666)";
const ROWS: &str =
    "SELECT format('%s %s %s', change_type, id, tx_seq) FROM people_cdc ORDER BY cdc_id";
const OFFICES: &str =
    "SELECT format('%s %s %s', change_type, id, tx_seq) FROM offices_cdc ORDER BY cdc_id";

/// A daemon that is away while three transactions commit, the second of which changes both tables and cannot be recorded.
async fn behind(more: &str, poison: &str) -> Scene {
    let ddl = "CREATE TABLE people (id int PRIMARY KEY, salary numeric); CREATE TABLE offices (id int PRIMARY KEY)";
    let mut scene = Scene::with(|builder| builder, ddl, &TABLES, more).await;
    each(&scene.target, &[REFUSES]).await;
    scene.stop().await;
    each(
        &scene.source,
        &[
            "INSERT INTO people (id, salary) VALUES (1, 1)",
            poison,
            "INSERT INTO people (id, salary) VALUES (3, 3)",
        ],
    )
    .await;
    scene
}

/// What the refusal says to type last.
fn last_resort(output: &str) -> String {
    let (_, last) = ending(output);
    let (_, lsn) = last
        .split_once("waltrail run --skip-transaction ")
        .unwrap_or_else(|| panic!("no last resort in {last}"));
    lsn.split_whitespace().next().unwrap().to_owned()
}

/// The daemon refuses what the second transaction does, with the first one recorded.
async fn refused(scene: &mut Scene) -> String {
    scene.spawn();
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(output.contains("no_666"), "{output}");
    assert_eq!(
        texts(&scene.target, ROWS).await,
        [Some("INSERT 1 1".into())]
    );
    last_resort(&output)
}

fn skipping(scene: &Scene, lsn: &str) -> Daemon {
    Daemon::spawn_with(&scene.config, &["run", "--skip-transaction", lsn], &[])
}

async fn is_left_out(more: &str, poison: &str) {
    let mut scene = behind(more, poison).await;
    let lsn = refused(&mut scene).await;
    // Of another position it is not the last resort.
    let (status, output) = skipping(&scene, "0/1").wait(BOUND).await;
    assert_eq!(
        (status.code(), last_resort(&output)),
        (Some(65), lsn.clone())
    );

    let last = "SELECT count(*) FROM people_cdc WHERE id IN (3, 4)";
    let mut daemon = skipping(&scene, &lsn);
    wait_for_value(&scene.target, last, 1i64, BOUND).await;
    // As a unit that nobody edits keeps the flag: the next start leaves nothing out.
    daemon.kill9();
    let announced = "leaving out the transaction";
    assert_clean(&daemon.output(), &[announced]);
    assert_eq!(daemon.output().matches(announced).count(), 1);
    each(
        &scene.source,
        &["INSERT INTO people (id, salary) VALUES (4, 4)"],
    )
    .await;
    let mut daemon = skipping(&scene, &lsn);
    wait_for_value(&scene.target, last, 2i64, BOUND).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert!(status.success() && !output.contains(announced), "{output}");
    let rows = texts(&scene.target, ROWS).await;
    let rows: Vec<&str> = rows.iter().flatten().map(String::as_str).collect();
    assert!(
        matches!(rows[..], ["INSERT 1 1", gap, "INSERT 3 1", "INSERT 4 1"] if gap.starts_with("GAP ")),
        "{rows:?}"
    );
    let offices = texts(&scene.target, OFFICES).await;
    assert!(
        matches!(&offices[..], [Some(gap)] if gap.starts_with("GAP ")),
        "{offices:?}"
    );
    // Both rows are of the transaction that was left out.
    let placed = format!(
        "SELECT count(*) FROM (TABLE people_gaps UNION ALL TABLE offices_gaps) g WHERE commit_lsn = '{lsn}' AND xid > 0"
    );
    let views = "CREATE TEMP VIEW people_gaps AS SELECT commit_lsn, xid FROM people_cdc WHERE change_type = 'GAP';
        CREATE TEMP VIEW offices_gaps AS SELECT commit_lsn, xid FROM offices_cdc WHERE change_type = 'GAP'";
    scene.target.batch_execute(views).await.unwrap();
    wait_for_value(&scene.target, &placed, 2i64, BOUND).await;
    // It is a gap of both, up to which the histories were whole, and nothing that a start would refuse.
    let gaps = format!(
        "SELECT count(*) FROM waltrail.gap g JOIN people_cdc p ON p.change_type = 'GAP' \
          WHERE g.from_lsn = '{lsn}' AND g.to_lsn = '{lsn}' AND g.accepted_at IS NOT NULL \
            AND g.whole_at = p.change_timestamp - interval '1 us' AND g.history IN ('public.people_cdc', 'public.offices_cdc')"
    );
    wait_for_value(&scene.target, &gaps, 2i64, BOUND).await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM waltrail.gap",
        2i64,
        BOUND,
    )
    .await;
}

const SMALL: &str = "BEGIN; INSERT INTO offices VALUES (1);
    INSERT INTO people (id, salary) VALUES (2, 666); UPDATE people SET salary = 2; COMMIT";

#[tokio::test]
async fn a_transaction_that_is_refused_is_named_and_left_out_once() {
    is_left_out("", SMALL).await;
}

/// It goes in pieces, so that the refused one is not the last.
#[tokio::test]
async fn a_large_transaction_that_is_refused_is_named_and_left_out_once() {
    let poison = "BEGIN; INSERT INTO offices SELECT generate_series(1, 50);
        INSERT INTO people (id, salary) SELECT n, 600 + n FROM generate_series(50, 90) n; COMMIT";
    is_left_out("[batch]\nmax_rows = 10\n", poison).await;
}

/// As above, where the source reads the backlog by SQL.
#[tokio::test]
async fn a_transaction_of_a_backlog_that_is_refused_is_named_and_left_out_once() {
    let poison = format!(
        "{SMALL}; CREATE TABLE other AS SELECT repeat('x', 900) FROM generate_series(1, 25000)"
    );
    let more = "";
    let mut scene = behind(more, &poison).await;
    let lsn = refused(&mut scene).await;
    let mut daemon = skipping(&scene, &lsn);
    daemon
        .wait_log(BOUND, |line| line.contains("catching up"))
        .await;
    daemon
        .wait_log(BOUND, |line| line.contains("leaving out"))
        .await;
    let all = "SELECT count(*) FROM people_cdc";
    wait_for_value(&scene.target, all, 3i64, BOUND).await;
}
