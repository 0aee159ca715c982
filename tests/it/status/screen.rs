//! The screen, once and again and again, and commands that find nothing to do.

use super::*;
use nix::sys::signal::Signal;

/// Without what moves the cursor or colours.
fn plain(output: &str) -> String {
    let mut plain = String::new();
    let mut rest = output;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        rest = &after[end + 1..];
    }
    plain + rest
}

#[tokio::test]
async fn it_is_drawn_again_and_again_on_the_other_screen_of_the_terminal() {
    let scene = Scene::new(EMPLOYEES, &TABLES).await;
    for (columns, no_color) in [(80, None), (80, Some(("NO_COLOR", "1"))), (140, None)] {
        let variables: Vec<(&str, &str)> = no_color.into_iter().collect();
        let args = ["status", "--watch"];
        let mut watch = Daemon::spawn_on_terminal_with(&scene.config, &args, columns, &variables);
        let watching = &watch;
        wait_until("it is drawn three times", BOUND, async || {
            (watching.output().matches("\u{1b}[H").count() >= 3).then_some(())
        })
        .await;
        watch.signal(Signal::SIGINT);
        let (ended, output) = watch.wait(BOUND).await;
        assert_eq!(ended.code(), Some(0), "{output}");
        assert!(output.starts_with("\u{1b}[?1049h"), "{output:?}");
        assert!(output.ends_with("\u{1b}[?1049l"), "{output:?}");
        let coloured = output.contains("\u{1b}[1m\u{1b}[32m") || output.contains("\u{1b}[32m");
        assert_eq!(coloured, no_color.is_none(), "{output:?}");
        let plain = plain(&output);
        assert!(plain.contains(" GOOD  streaming "), "{plain}");
        for line in plain.lines() {
            assert!(line.trim_end().chars().count() <= columns.into(), "{line}");
        }
        let wide = plain
            .lines()
            .any(|line| line.trim_end().chars().count() > 100);
        assert_eq!(wide, columns == 140, "{plain}");
    }
    scene.end().await;
}

#[tokio::test]
async fn what_is_watched_is_one_object_a_line_where_that_is_asked_for() {
    let scene = Scene::new(EMPLOYEES, &TABLES).await;
    let mut watch = Daemon::spawn_with(&scene.config, &["status", "--watch", "--json"], &[]);
    let watching = &watch;
    wait_until("there are two lines", BOUND, async || {
        (watching.output().lines().count() >= 2).then_some(())
    })
    .await;
    watch.sigterm();
    let (ended, output) = watch.wait(BOUND).await;
    assert_eq!(ended.code(), Some(0), "{output}");
    for line in output.lines() {
        let told: Value = serde_json::from_str(line).unwrap();
        assert_eq!(told["verdict"]["level"], "good", "{told}");
    }
    scene.end().await;
}

#[tokio::test]
async fn commands_that_find_nothing_to_do_say_so() {
    let (cluster, client) = server().await;
    each(&client, &[EMPLOYEES]).await;
    let config = crate::support::scene::config(&cluster.dsn_socket("postgres"), None, &TABLES, "");
    let run = async |args: &[&str]| {
        let mut command = Daemon::spawn_with(&config, args, &[]);
        let (ended, output) = command.wait(BOUND).await;
        assert_eq!(ended.code(), Some(0), "{args:?}: {output}");
        output
    };
    let made = run(&["setup"]).await;
    assert!(!made.contains("nothing was missing"), "{made}");
    let again = run(&["setup"]).await;
    assert!(again.ends_with("nothing was missing\n"), "{again}");
    let mut asked = Daemon::spawn_on_terminal_with(&config, &["teardown"], 80, &[]);
    let asking = &asked;
    wait_until("it asks", BOUND, async || {
        asking.output().contains("[y/N]").then_some(())
    })
    .await;
    asked.answer("n\n");
    let (ended, output) = asked.wait(BOUND).await;
    assert_eq!(ended.code(), Some(0), "{output}");
    assert!(output.contains("nothing was dropped"), "{output}");
    let dropped = run(&["teardown", "--yes"]).await;
    assert!(
        dropped.contains("dropped replication slot waltrail"),
        "{dropped}"
    );
    let nothing = run(&["teardown", "--yes"]).await;
    let says = "nothing to drop: slot waltrail and publication waltrail do not exist";
    assert!(nothing.contains(says), "{nothing}");
}
