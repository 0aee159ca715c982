//! The HTTP port: who may read what, over which connections, at what price for the stream, and what a person sees.

mod attack;
mod browser;
mod page;
mod token;

use crate::support::EMPLOYEES;
use crate::support::daemon::{Daemon, run};
use crate::support::http::{address, ask, ask_with};
use crate::support::scene::{Scene, assert_clean, config, streaming};
use crate::support::{BOUND, each, server, wait_until};

const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

/// A daemon that follows `employees` and serves HTTP.
async fn scene() -> (Scene, String) {
    let mut scene = Scene::with(|builder| builder, EMPLOYEES, &["public.employees"], LISTEN).await;
    let address = address(scene.daemon()).await;
    (scene, address)
}

/// What the page gets once the servers have been asked.
async fn live(address: &str) -> serde_json::Value {
    wait_until("the servers have been asked", BOUND, async || {
        let answer = ask_with(address, "GET /api/live", "").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let live = answer.json();
        (!live["status"].is_null()).then_some(live)
    })
    .await
}

#[tokio::test]
async fn the_page_is_served_and_a_browser_may_do_nothing_else_with_it() {
    let (_scene, address) = scene().await;
    let page = ask_with(&address, "GET /", "").await;
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(page.body.starts_with("<!doctype html>"));
    for path in ["/", "/livez", "/api/live", "/nothing"] {
        let answer = ask_with(&address, &format!("GET {path}"), "").await;
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-resource-policy", "same-origin"),
            ("connection", "close"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}: {name}");
        }
    }
}

#[tokio::test]
async fn nothing_but_reading_is_answered() {
    let (_scene, address) = scene().await;
    for path in [
        "/",
        "/metrics",
        "/livez",
        "/readyz",
        "/api/status",
        "/api/live",
    ] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            let answer = ask_with(&address, &format!("{method} {path}"), "").await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET,HEAD"));
        }
        let (status, body) = ask(&address, &format!("HEAD {path}")).await;
        assert!(
            matches!(status, 200 | 503) && body.is_empty(),
            "{path}: {status}"
        );
    }
    for path in [
        "/index.html",
        "/api",
        "/api/",
        "//",
        "/../etc/passwd",
        "/metrics/x",
    ] {
        let (status, body) = ask(&address, &format!("GET {path}")).await;
        assert_eq!(status, 404, "{path}: {body}");
    }
}

#[tokio::test]
async fn the_page_is_told_the_state_the_figures_and_the_last_events() {
    let (scene, address) = scene().await;
    let insert = "INSERT INTO employees (name) SELECT n::text FROM generate_series(1, 70) n";
    each(&scene.source, &[insert]).await;
    scene.check().await;
    let live = wait_until("the rows are in a chart", BOUND, async || {
        let live = live(&address).await;
        let rates = live["series"]["rows_per_second"].as_array().unwrap();
        let drawn = rates.iter().any(|rate| rate.as_f64() > Some(0.0));
        drawn.then_some(live)
    })
    .await;
    assert_eq!(live["streaming"], true);
    assert_eq!(live["rows"], 70);
    assert_eq!(live["transactions"], 1);
    assert_eq!(live["tables"], 1);
    assert_eq!(live["status"]["tables"][0]["source"], "public.employees");
    let messages = live["events"].as_array().unwrap().iter();
    let messages: Vec<_> = messages
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    for message in ["started", "metrics and health are served", "streaming"] {
        assert!(messages.contains(&message), "{messages:?}");
    }
    assert!(!messages.contains(&"summary"), "{messages:?}");
    let (at, started) = (live["at"].as_u64().unwrap(), live["started"].as_u64());
    assert!(started > Some(at - 600_000) && started <= Some(at));
}

#[tokio::test]
async fn api_status_is_what_the_command_prints_as_json() {
    let (mut scene, address) = scene().await;
    live(&address).await;
    let served = ask_with(&address, "GET /api/status", "").await;
    assert_eq!(
        (served.status, served.header("content-type")),
        (200, Some("application/json"))
    );
    let file = scene.daemon().config_file();
    let args = ["--config", file.to_str().unwrap(), "status", "--json"];
    let (_, printed, _) = run(std::path::Path::new("/"), &args, &[]);
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(shape(&served.json()), shape(&printed));
    assert_eq!(served.json()["slot"], printed["slot"]);
    assert_eq!(
        served.json()["verdict"]["state"],
        printed["verdict"]["state"]
    );
}

/// The names of all fields; what a field holds differs from moment to moment.
fn shape(value: &serde_json::Value) -> serde_json::Value {
    let serde_json::Value::Object(fields) = value else {
        return serde_json::Value::Null;
    };
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| match name.as_str() {
        // There or not, as the moment has it.
        "rate" | "daemon" | "spill" | "source_snapshot" | "oldest_transaction" | "waits" => {
            (name.clone(), serde_json::Value::Null)
        }
        _ => (name.clone(), shape(value)),
    });
    serde_json::Value::Object(fields.collect())
}

#[tokio::test]
async fn a_listener_that_is_open_to_the_network_says_so() {
    let (server, client) = server().await;
    client.batch_execute(EMPLOYEES).await.unwrap();
    let warning = "metrics and status are open to the network";
    for (listen, warns) in [("0.0.0.0:0", true), ("[::1]:0", false)] {
        let more = format!("[http]\nlisten = \"{listen}\"\n");
        let config = config(
            &server.dsn_socket("postgres"),
            None,
            &["public.employees"],
            &more,
        );
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        daemon.sigterm();
        let (_, output) = daemon.wait(BOUND).await;
        assert_eq!(output.contains(warning), warns, "{listen}: {output}");
        assert_clean(&output, &[warning]);
    }
}
