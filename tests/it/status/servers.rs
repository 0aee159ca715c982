//! Servers that do not answer, and a standby as the source.

use super::*;
use crate::support::daemon::ending;
use throwaway::StopMode;

async fn two() -> Scene {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.start().await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    scene
}

#[tokio::test]
async fn without_the_source_the_target_is_shown_and_the_other_way_round() {
    let mut scene = two().await;
    holds(&scene.config, "streaming", &[]).await;

    scene.server.stop(StopMode::Fast).unwrap();
    let told = wait_until("the source is away", BOUND, async || {
        let (code, told) = ask(&scene.config).await;
        // The daemon's session in the target comes and goes.
        (code == 2 && told["verdict"]["state"] == "waiting").then_some(told)
    })
    .await;
    assert_eq!(codes(&told), ["source-down"], "{told}");
    assert!(
        told["source_error"]
            .as_str()
            .unwrap()
            .contains("could not connect to the source"),
        "{told}"
    );
    assert!(
        told["source"].is_null() && told["lag_seconds"].is_null(),
        "{told}"
    );
    assert!(told["checkpoint"]["end_lsn"].is_string(), "{told}");
    assert!(
        told["checkpoint"]["commit_age_seconds"].as_f64() >= Some(0.0),
        "{told}"
    );
    assert_eq!(told["tables"][0]["source"], "public.employees", "{told}");
    assert!(told["servers"]["target_version"].is_string(), "{told}");

    scene
        .target_server
        .as_mut()
        .unwrap()
        .stop(StopMode::Fast)
        .unwrap();
    let told = holds(
        &scene.config,
        "cannot tell",
        &["source-down", "target-down"],
    )
    .await;
    assert!(
        told["target_error"]
            .as_str()
            .unwrap()
            .contains("could not connect to the target"),
        "{told}"
    );
    assert_eq!(told["slot"], "waltrail");

    scene.server.start_again().unwrap();
    let told = holds(&scene.config, "cannot tell", &["target-down"]).await;
    assert_eq!(told["source"]["wal_status"], "reserved", "{told}");
    assert!(
        told["checkpoint"].is_null() && told["lag_bytes"].is_null(),
        "{told}"
    );
    assert_eq!(told["publication"]["tables"], 1, "{told}");

    scene.target_server.as_mut().unwrap().start_again().unwrap();
    wait_until("all is well again", BOUND, async || {
        (ask(&scene.config).await.0 == 0).then_some(())
    })
    .await;
    assert_clean(&scene.stop_complaining().await, SERVER_GONE);
}

#[tokio::test]
async fn a_server_that_is_paused_or_keeps_a_table_locked_holds_nothing_up() {
    let mut scene = two().await;
    scene.stop_complaining().await;
    let locker = scene.target_session().await;
    let lock = "SET application_name = 'report'; BEGIN; LOCK TABLE waltrail.checkpoint IN ACCESS EXCLUSIVE MODE";
    each(&locker, &[lock]).await;
    let pid: i32 = value(&locker, "SELECT pg_backend_pid()").await;
    let (_, told) = ask(&scene.config).await;
    assert_eq!(codes(&told), ["not-running", "waits"], "{told}");
    let says = format!("waiting for a lock on waltrail.checkpoint, held by pid {pid} (report)");
    assert!(
        told["target_error"].as_str().unwrap().contains(&says),
        "{told}"
    );
    assert!(told["source"]["wal_status"].is_string(), "{told}");
    each(&locker, &["COMMIT"]).await;
    for side in ["source", "target"] {
        let cluster = match side {
            "source" => &mut scene.server,
            _ => scene.target_server.as_mut().unwrap(),
        };
        cluster.pause();
        let (code, told) = ask(&scene.config).await;
        let cluster = match side {
            "source" => &mut scene.server,
            _ => scene.target_server.as_mut().unwrap(),
        };
        cluster.resume();
        assert_eq!(code, 2, "{told}");
        assert!(
            codes(&told).contains(&format!("{side}-down").as_str()),
            "{told}"
        );
    }
}

/// The configuration, not the history: as with every command.
#[tokio::test]
async fn a_login_that_both_servers_refuse_is_77_and_one_of_two_is_a_reason() {
    let scene = Scene::two(|builder| builder, |builder| builder).await;
    let wrong = scene.config.replace("user=postgres", "user=stranger");
    let mut status = Daemon::spawn_with(&wrong, &["status"], &[]);
    let (ended, output) = status.wait(BOUND).await;
    assert_eq!(ended.code(), Some(77), "{output}");
    assert_ne!(ending(&output).1, "", "{output}");
    let (source, target) = scene.config.split_once("[target]").unwrap();
    let wrong = format!(
        "{source}[target]{}",
        target.replacen("user=postgres", "user=stranger", 1)
    );
    let (_, told) = ask(&wrong).await;
    assert_eq!(codes(&told), ["target-down", "slot-missing"], "{told}");
    assert!(text(&told, "target-down").contains("stranger"), "{told}");
}

#[tokio::test]
async fn a_password_that_systemd_hands_over_can_be_given_in_another_way() {
    let (cluster, client) = server().await;
    each(&client, &[EMPLOYEES]).await;
    let config = crate::support::scene::config(&cluster.dsn_socket("postgres"), None, &TABLES, "");
    let config = config.replace(
        "[source]\n",
        "[source]\npassword_file = '/run/credentials/waltrail.service/source'\n",
    );
    for command in [&["status"][..], &["teardown", "--yes"]] {
        let mut without = Daemon::spawn_with(&config, command, &[]);
        let (ended, output) = without.wait(BOUND).await;
        assert_eq!(ended.code(), Some(78), "{output}");
        for part in [
            "WALTRAIL_SOURCE__PASSWORD_FILE",
            "LoadCredential=",
            "systemd.md",
        ] {
            assert!(output.contains(part), "{output}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("source.password");
    std::fs::write(&file, "word\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    let variable = ("WALTRAIL_SOURCE__PASSWORD_FILE", file.to_str().unwrap());
    let mut with = Daemon::spawn_with(&config, &["status"], &[variable]);
    let (ended, output) = with.wait(BOUND).await;
    assert_eq!(ended.code(), Some(2), "{output}");
    assert!(output.contains("not set up"), "{output}");
    let mut with = Daemon::spawn_with(&config, &["teardown", "--yes"], &[variable]);
    let (ended, output) = with.wait(BOUND).await;
    assert_eq!(ended.code(), Some(0), "{output}");
    assert!(
        output.contains("nothing to drop: slot waltrail and publication waltrail"),
        "{output}"
    );
}
