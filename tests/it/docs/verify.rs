//! The page about `waltrail verify`, and its units.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::set_up::{self, PATIENCE, Place, ROWS, execute};
use super::{block, document, root};
use crate::support::daemon::run_as;
use crate::support::load::Plan;
use crate::support::wait_for_value;

/// As the role that only reads and adds, which may lock a history only once it is allowed to.
#[tokio::test]
async fn a_history_is_verified_and_repaired_as_the_page_says() {
    let (cluster, app) = set_up::app().await;
    let place = Place::of(&cluster);
    execute(&app, block("roles")).await;
    let config = place.config("");
    place.set_up();
    let daemon = set_up::streaming(&config).await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada'), ('canary Bob')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 2i64, PATIENCE).await;
    // A source that rests would be waited for.
    let busy = Plan::new(cluster.dsn_socket("app"), 1)
        .statements(|_| "UPDATE employees SET salary = salary WHERE id = 2".to_owned())
        .pause(Duration::from_millis(20))
        .start();
    let printed = place.sh(block("verify"), &[]);
    assert!(
        printed.starts_with("public.employees: the history is the table: 2 rows"),
        "{printed}"
    );

    app.batch_execute("DELETE FROM employees_cdc WHERE id = 1")
        .await
        .unwrap();
    let repair = block("repair").trim();
    let path = Place::path();
    let (status, _, err) = run_as(
        "sh",
        place.folder.path(),
        &["-c", repair],
        &[("PATH", &path)],
    );
    assert_eq!(status.code(), Some(77), "{err}");
    let (_, grant) = err.split_once("as its owner: ").expect(&err);
    let (grant, _) = grant.split_once(';').unwrap();
    app.batch_execute(grant).await.unwrap();
    let printed = place.sh(repair, &[]);
    assert!(
        printed.starts_with("public.employees: repaired: 1 keys of 2 rows"),
        "{printed}"
    );
    let repaired = "SELECT count(*) FROM employees_cdc WHERE id = 1 AND change_type = 'REPAIR'";
    wait_for_value(&app, repaired, 1i64, PATIENCE).await;
    busy.stop();
    set_up::stop(daemon).await;
}

/// What systemd says of the units, with this program in the place of the installed one.
#[test]
fn systemd_takes_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let units = [
        "waltrail.service",
        "waltrail-verify.service",
        "waltrail-verify.timer",
    ];
    for unit in units {
        let text = document(&format!("config/{unit}"));
        let text = text.replace("/usr/bin/waltrail", env!("CARGO_BIN_EXE_waltrail"));
        fs::write(folder.path().join(unit), text).unwrap();
    }
    let mut analyze = Command::new("systemd-analyze");
    analyze
        .arg("verify")
        .arg("--man=no")
        .current_dir(folder.path());
    let checked = analyze.args(units.map(|unit| format!("./{unit}"))).output();
    let Ok(checked) = checked else {
        println!("not tried: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&checked.stderr);
    let of_ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("waltrail"))
        .collect();
    assert!(checked.status.success() && of_ours.is_empty(), "{said}");
    // What the comparison may do is what the daemon may.
    let rules = |unit: &str| -> Vec<&str> {
        let text = document(&format!("config/{unit}"));
        let (_, rules) = text.split_once("CapabilityBoundingSet=").unwrap();
        rules
            .lines()
            .take_while(|line| !line.starts_with('['))
            .filter(|line| !line.is_empty())
            .collect()
    };
    assert_eq!(rules(units[0]), rules(units[1]));
    assert!(root().join("config").join(units[2]).exists());
}
