//! A disk that is full, under the history or under the target's whole server.

use std::path::PathBuf;
use std::time::Duration;

use throwaway::StopMode;

use crate::support::scene::{SERVER_GONE, Scene, assert_clean};
use crate::support::small_disk::{Mounts, SmallFileSystem, fill, mounts, small_file_system};
use crate::support::{BOUND, wait_for_value, wait_until};

/// Moves the history to a disk of so many megabytes.
async fn history_on_a_small_disk(scene: &Scene, megabytes: u32) -> (SmallFileSystem, PathBuf) {
    let parent = scene.target_server.as_ref().unwrap().folder();
    let folder = parent.join("small");
    std::fs::create_dir(&folder).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(parent).unwrap());
    let options = format!("size={megabytes}m,mode=700,uid={owner}");
    let small = small_file_system(&folder, &options);
    let target = scene.target_session().await;
    for statement in [
        &format!("CREATE TABLESPACE small LOCATION '{}'", folder.display()),
        "ALTER TABLE employees_cdc SET TABLESPACE small",
    ] {
        target.batch_execute(statement).await.unwrap();
    }
    (small, folder)
}

#[tokio::test]
async fn a_full_disk_under_the_history_is_waited_for() {
    if mounts("faults::disk::a_full_disk_under_the_history_is_waited_for") != Mounts::Here {
        return;
    }
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let (_small, folder) = history_on_a_small_disk(&scene, 24).await;
    scene.start().await;
    let load = scene.load(6);
    scene.progress().await;
    fill(&folder.join("filler"));
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("No space left on device"))
        .await;
    println!("{line}");
    assert!(line.contains("free disk space on the target"), "{line}");
    assert!(line.contains("53100"), "{line}");
    // It tries again, and again.
    let daemon = &*scene.daemon();
    wait_until("it has tried three times", BOUND, async || {
        (daemon.output().matches("No space left on device").count() >= 3).then_some(())
    })
    .await;
    load.stop();
    std::fs::remove_file(folder.join("filler")).unwrap();
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn a_full_disk_in_the_middle_of_the_snapshot_is_waited_for() {
    if mounts("faults::disk::a_full_disk_in_the_middle_of_the_snapshot_is_waited_for")
        != Mounts::Here
    {
        return;
    }
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let (_small, folder) = history_on_a_small_disk(&scene, 48).await;
    let target = scene.target_session().await;
    let source = scene.session().await;
    source
        .batch_execute(
            "INSERT INTO employees (name, department) SELECT n, repeat('d', 90) FROM generate_series(1, 60000) n",
        )
        .await
        .unwrap();
    // Room for a part of the rows.
    let filler = folder.join("filler");
    fill(&filler);
    let size = std::fs::metadata(&filler).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&filler);
    file.unwrap().set_len(size - 3 * 1024 * 1024).unwrap();
    scene.config = scene.config.replace("\"never\"", "\"initial\"");
    scene.spawn();
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("No space left on device"))
        .await;
    assert!(
        line.contains("the snapshot failed and is begun again"),
        "{line}"
    );
    assert!(
        line.contains("free disk space on the target") && line.contains("53100"),
        "{line}"
    );
    let rows = "SELECT count(*) FROM employees_cdc";
    wait_for_value(&target, rows, 0_i64, Duration::ZERO).await;
    std::fs::remove_file(&filler).unwrap();
    wait_for_value(&target, rows, 60_000_i64, BOUND).await;
    source
        .batch_execute("UPDATE employees SET salary = 1 WHERE id <= 10")
        .await
        .unwrap();
    wait_for_value(&target, rows, 60_010_i64, BOUND).await;
    scene.daemon().sigterm();
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert_clean(&output, &["the snapshot failed and is begun again"]);
}

#[tokio::test]
async fn a_full_disk_that_ends_the_target_server_is_waited_for() {
    if mounts("faults::disk::a_full_disk_that_ends_the_target_server_is_waited_for") != Mounts::Here
    {
        return;
    }
    let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let _small = small_file_system(folder.path(), "size=200m,mode=777");
    let mut scene = Scene::two(
        |builder| builder,
        |builder| {
            builder
                .parent(folder.path())
                .setting("min_wal_size", "32MB")
                .setting("max_wal_size", "64MB")
        },
    )
    .await;
    scene.start().await;
    let load = scene.load(7);
    scene.progress().await;
    fill(&folder.path().join("filler"));
    scene
        .daemon()
        .wait_log(BOUND, |line| {
            line.contains("the session failed and is started again")
        })
        .await;
    load.more(100).await;
    load.stop();
    std::fs::remove_file(folder.path().join("filler")).unwrap();
    // It may have ended by itself, when it could not write its WAL.
    let target = scene.target_server.as_mut().unwrap();
    target.stop(StopMode::Immediate).unwrap();
    target.start_again().unwrap();
    scene.finish(SERVER_GONE).await;
}
