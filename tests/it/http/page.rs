//! What a person sees of each state, in a real browser, of real daemons and servers. Each leaves its pictures in `target/page`.

use std::net::TcpListener;

use serde_json::json;
use throwaway::StopMode;

use super::browser::Browser;
use super::*;
use crate::support::daemon::assert_silent;
use crate::support::{connect, value};

/// Names as others may choose them.
const NAMES: &str = r#"
    CREATE TABLE employees (id int PRIMARY KEY, name text);
    CREATE TABLE "<script>alert(1)</script><b>" (id int PRIMARY KEY);
    CREATE TABLE a_table_with_a_name_that_is_as_long_as_postgresql_allows_it_abc (id int PRIMARY KEY);
"#;
const NAMED: [&str; 3] = [
    "public.employees",
    "public.\"<script>alert(1)</script><b>\"",
    "public.a_table_with_a_name_that_is_as_long_as_postgresql_allows_it_abc=public.long_cdc",
];

const WORD: &str = "document.getElementById('word').textContent";

/// A browser that shows the page at `address`; none where there is no browser.
async fn open(address: &str) -> Option<Browser> {
    let mut browser = Browser::start().await?;
    browser.open(&format!("http://{address}/")).await;
    Some(browser)
}

impl Browser {
    async fn text(&mut self) -> String {
        let text = self.value("document.body.innerText").await;
        let text = text.as_str().unwrap().to_owned();
        assert_silent(&text);
        text
    }

    async fn until_says(&mut self, word: &str) {
        let says = format!("{WORD} === '{word}'");
        self.until(&format!("it says {word}"), &says).await;
    }

    async fn until_shows(&mut self, text: &str) {
        let shows = format!("document.body.innerText.includes({})", json!(text));
        self.until(&format!("it shows {text:?}"), &shows).await;
    }

    #[track_caller]
    fn assert_content(&self) {
        assert!(self.complaints.is_empty(), "{:#?}", self.complaints);
    }
}

#[tokio::test]
async fn a_person_sees_that_it_streams_and_that_it_has_ended() {
    let (server, source) = server().await;
    each(&source, &[NAMES]).await;
    let config = config(&server.dsn_socket("postgres"), None, &NAMED, LISTEN);
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let address = address(&mut daemon).await;
    let Some(mut browser) = open(&address).await else {
        return;
    };
    browser.until_says("Streaming").await;
    for n in 0..40 {
        let insert = format!(
            "INSERT INTO employees SELECT n, 'canary' FROM generate_series({}, {}) n",
            n * 100,
            n * 100 + 99
        );
        each(&source, &[&insert]).await;
    }
    browser.until_shows("4,000 since the start").await;
    // The servers are asked every few seconds.
    browser.until_shows("Last recorded commit").await;
    let drawn = "[...document.querySelectorAll('path.line')].every(path => path.getAttribute('d').length > 20)";
    browser.until("the charts have lines", drawn).await;
    browser.pictures("streaming").await;
    let text = browser.text().await;
    for shown in [
        "<script>alert(1)</script><b>",
        "a_table_with_a_name_that_is_as_long",
        "Every committed change is recorded as it comes.",
        "Last recorded commit",
        "PostgreSQL",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert_eq!(browser.value("document.scripts.length").await, 1);
    assert_eq!(
        browser.value("document.title").await,
        "Streaming · waltrail"
    );
    browser.assert_content();
    daemon.kill9();
    browser.until_says("waltrail does not answer").await;
    browser.until_shows("No answer since").await;
    browser.pictures("gone").await;
    browser.assert_content();
}

/// A browser that shows the page of a daemon that streams.
async fn shown(scene: &mut Scene) -> Option<Browser> {
    scene.config.push_str(LISTEN);
    let address = address(scene.start().await).await;
    let mut browser = open(&address).await?;
    browser.until_says("Streaming").await;
    Some(browser)
}

#[tokio::test]
async fn a_person_sees_that_the_history_lags_and_that_the_target_is_down() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let Some(mut browser) = shown(&mut scene).await else {
        return;
    };
    let mut other = scene.target_session().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK employees_cdc").await.unwrap();
    let insert = "INSERT INTO employees (name) SELECT n::text FROM generate_series(1, 1000) n";
    each(&scene.source, &[insert]).await;
    // The wait, and the session that holds the lock, are among the reasons after some seconds.
    let told = "document.querySelectorAll('#reasons li').length > 0";
    browser.until("it says what is wrong", told).await;
    assert_ne!(browser.value(WORD).await, "Streaming");
    browser.pictures("lagging").await;
    locked.rollback().await.unwrap();
    browser.until_says("Streaming").await;
    let target = scene.target_server.as_mut().unwrap();
    target.stop(StopMode::Immediate).unwrap();
    browser.until_shows("not reachable").await;
    browser.until("it says what is wrong", told).await;
    browser.pictures("target-down").await;
    browser.text().await;
    scene.target_server.as_mut().unwrap().start_again().unwrap();
    browser.until_says("Streaming").await;
    browser.assert_content();
}

/// The history takes its rows one after the other, slowly.
const SLOW: &str = "
    CREATE TABLE employees (id int PRIMARY KEY, name text);
    CREATE TABLE offices (id int PRIMARY KEY);
    INSERT INTO employees SELECT n, repeat('canary', 100) FROM generate_series(1, 60000) n;
    INSERT INTO offices SELECT n FROM generate_series(1, 10) n;
    ANALYZE;";
const SLEEP: &str = "
    CREATE FUNCTION slow() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_catalog.pg_sleep(0.001); RETURN 1;
    END $$;
    ALTER TABLE employees_cdc ADD slow int DEFAULT slow();";

#[tokio::test]
async fn a_person_sees_how_far_the_existing_rows_are_recorded() {
    let tables = ["public.employees(id)", "public.offices(id)"];
    let mut scene = Scene::existing(|builder| builder, SLOW, &tables, LISTEN).await;
    scene.set_up().await;
    each(&scene.target, &[SLEEP]).await;
    let address = address(scene.spawn()).await;
    let Some(mut browser) = open(&address).await else {
        return;
    };
    let bar = "document.querySelector('[role=progressbar][aria-valuenow]')?.getAttribute('aria-valuenow')";
    browser.until("there is a bar", &format!("{bar} > 0")).await;
    let (_, before) = (browser.text().await, browser.value(bar).await);
    browser
        .until("it moves", &format!("{bar} !== {before}"))
        .await;
    browser.pictures("snapshot").await;
    let text = browser.text().await;
    assert!(text.contains("of about 60,000 existing rows"), "{text}");
    browser.assert_content();
}

#[tokio::test]
async fn a_person_sees_when_the_slot_will_be_lost() {
    let small = |builder: throwaway::Builder| {
        builder
            .setting("max_slot_wal_keep_size", "256MB")
            .setting("max_wal_size", "64MB")
    };
    let mut scene = Scene::two(small, |builder| builder).await;
    let Some(mut browser) = shown(&mut scene).await else {
        return;
    };
    let mut other = scene.target_session().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK employees_cdc").await.unwrap();
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    let writer = connect(&scene.server.dsn_socket("postgres")).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        // About two megabytes a second, of another table's.
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let message = "SELECT pg_logical_emit_message(false, 'other', repeat('x', 400000))";
            each(&writer, &[message]).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    let shown = "!document.getElementById('danger').hidden";
    browser.until("it says how long it lasts", shown).await;
    browser.until_shows("The slot is lost in").await;
    browser.until_shows("max_slot_wal_keep_size is 256MB").await;
    browser.pictures("slot-in-danger").await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writing.await.unwrap();
    locked.rollback().await.unwrap();
    browser.until_says("Streaming").await;
    browser.assert_content();
    assert_eq!(
        value::<i64>(&scene.target, "SELECT count(*) FROM employees_cdc").await,
        1
    );
}

#[tokio::test]
async fn a_person_sees_that_it_starts_and_that_the_source_does_not_answer() {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let dsn = format!("host=127.0.0.1 port={port} user=u dbname=d connect_timeout=5");
    let config = config(&dsn, None, &["public.employees"], LISTEN);
    let mut daemon = Daemon::spawn(&config);
    let address = address(&mut daemon).await;
    let Some(mut browser) = open(&address).await else {
        return;
    };
    // Servers that were not asked yet are not described.
    let rows = "[...document.querySelectorAll('#servers dt')].map(name => name.textContent).join()";
    let names = "'Rows since the start,Transactions since then,Runs for'";
    let nothing = format!(
        "{WORD} === 'Starting' && document.body.innerText.includes('Not known yet.') && {rows} === {names}"
    );
    browser
        .until("it says nothing of the servers", &nothing)
        .await;
    browser.pictures("starting").await;
    let told = "document.querySelectorAll('#reasons li').length > 0";
    browser.until("it says what is wrong", told).await;
    browser.pictures("source-silent").await;
    browser.assert_content();
}

const TOKEN: &str = "canary-of-the-token-0123";

#[tokio::test]
async fn a_person_gives_the_token_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    let section = format!("{LISTEN}token_file = '{}'\n", file.display());
    let mut scene = Scene::with(
        |builder| builder,
        EMPLOYEES,
        &["public.employees"],
        &section,
    )
    .await;
    let address = address(scene.daemon()).await;
    let Some(mut browser) = open(&address).await else {
        return;
    };
    let asks = "!document.getElementById('door').hidden";
    browser.until("it asks", asks).await;
    browser.pictures("token").await;
    let refused = "!document.getElementById('refused').hidden";
    for (token, then) in [
        ("wrong", refused),
        (TOKEN, "!document.getElementById('all').hidden"),
    ] {
        let give = format!(
            "document.getElementById('token').value = '{token}';
             document.getElementById('keep').checked = true;
             document.querySelector('#door button').click(); true"
        );
        browser.value(&give).await;
        browser.until("it has asked", then).await;
    }
    browser.until_says("Streaming").await;
    // It is kept, and in no address.
    browser.open(&format!("http://{address}/")).await;
    browser.until_says("Streaming").await;
    let place = browser.value("location.href").await;
    assert_eq!(place, format!("http://{address}/"));
    browser.assert_content();
}
