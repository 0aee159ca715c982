//! Somebody else at the same tables, or a predecessor that is not gone: what is held stays held.

use std::time::{Duration, Instant};

use waltrail::lsn::Lsn;
use waltrail::schema::TableName;
use waltrail::snapshot::state;

use crate::joined::ddl;
use crate::scene::{BOUND, Scene};
use crate::support::daemon::Daemon;
use crate::support::{wait_for_value, wait_until};

const ONE: [&str; 1] = ["public.employees=public.employees_cdc(id)"];

async fn set_up(ddl: &str, tables: &[&str], more: &str) -> Scene {
    let scene = Scene::new(|builder| builder, ddl, tables, more).await;
    let mut setup = Daemon::spawn_with(&scene.config, &["setup"], &[]);
    setup.wait(BOUND).await;
    scene
}

#[tokio::test]
async fn an_attempt_that_comes_too_late_leaves_what_is_held() {
    let scene = set_up(&ddl(), &ONE, "").await;
    scene
        .source
        .batch_execute(
            "UPDATE waltrail.snapshot SET state = 'copied', consistent_point = '0/10';
             INSERT INTO waltrail.held (slot, history, lsn, copy, rows)
             VALUES ('waltrail', 'public.employees_cdc', '0/20', '', '')",
        )
        .await
        .unwrap();
    let history: TableName = "public.employees_cdc".parse().unwrap();
    let later = Lsn::from_u64(0x30);
    let time = "2026-01-01 00:00:00+00";
    let begun = state::begin(&scene.source, "waltrail", &history, later, time, (0, 0)).await;
    assert!(begun.is_err());
    let held = "SELECT count(*) FROM waltrail.held";
    wait_for_value(&scene.source, held, 1_i64, Duration::ZERO).await;
}
