//! Does `waltrail health` say what the daemon that runs says of itself?

use std::path::Path;

use throwaway::StopMode;

use crate::support::daemon::run;
use crate::support::http::address;
use crate::support::scene::Scene;
use crate::support::{BOUND, EMPLOYEES, wait_until};

const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

/// Exit code and output.
fn health(args: &[&str]) -> (Option<i32>, String) {
    let args = [&["health"], args].concat();
    let (status, stdout, stderr) = run(Path::new("/"), &args, &[]);
    (status.code(), stdout + &stderr)
}

#[tokio::test]
async fn health_says_what_the_daemon_says_of_itself() {
    let mut scene = Scene::with(|builder| builder, EMPLOYEES, &["public.employees"], LISTEN).await;
    let address = address(scene.daemon()).await;
    let url = format!("http://{address}");
    wait_until("it is ready", BOUND, async || {
        (health(&["--url", &url]) == (Some(0), "ready\n".to_owned())).then_some(())
    })
    .await;
    // The same by the configuration.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waltrail.toml");
    let config = scene.config.replace("127.0.0.1:0", &address);
    std::fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(health(&["--config", file]), (Some(0), "ready\n".to_owned()));

    scene.server.stop(StopMode::Fast).unwrap();
    wait_until("it is not ready", BOUND, async || {
        (health(&["--url", &url]) == (Some(1), "not streaming\n".to_owned())).then_some(())
    })
    .await;
    assert_eq!(
        health(&["--url", &url, "--live"]),
        (Some(0), "alive\n".to_owned())
    );
    scene.daemon().kill9();
    let (code, said) = health(&["--config", file]);
    assert_eq!(code, Some(1), "{said}");
    let line = format!("{address} does not answer: ");
    assert!(said.starts_with(&line), "{said}");
}

#[tokio::test]
async fn health_waits_for_a_daemon_that_hangs_for_some_seconds_only() {
    // It accepts, by the kernel, and nothing reads.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (code, said) = health(&["--url", &address]);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said, format!("{address} has not answered for 4 s\n"));
}

#[tokio::test]
async fn health_needs_to_know_where_to_ask() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waltrail.toml");
    std::fs::write(&file, "source.dsn = 'host=db user=u dbname=d'\n").unwrap();
    let (code, said) = health(&["--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("`http.listen` is not set"), "{said}");
    let (code, said) = health(&["--url", "https://user:canary@db:9464"]);
    assert_eq!(code, Some(64), "{said}");
}
