//! Does a stream that is behind cost its source as little as it can?

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::daemon::Daemon;
use crate::support::scene::{Scene, config, streaming};
use crate::support::{BOUND, EMPLOYEES, each, server, value, wait_for_value};

/// How many sockets of a process somebody waits for bytes from: those of its epolls.
fn waited_for(pid: u32) -> usize {
    const EPOLLIN: u32 = 1;
    let of = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
    let mut sockets = BTreeSet::new();
    for entry in of("fdinfo").read_dir().unwrap().flatten() {
        // It may be closed by now.
        let info = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for line in info.lines() {
            let Some(watched) = line.strip_prefix("tfd:") else {
                continue;
            };
            let mut fields = watched.split_whitespace();
            let (fd, events) = (fields.next().unwrap(), fields.nth(1).unwrap());
            let link = std::fs::read_link(of("fd").join(fd)).unwrap_or_default();
            if u32::from_str_radix(events, 16).unwrap() & EPOLLIN != 0
                && link.to_string_lossy().starts_with("socket:")
            {
                sockets.insert(fd.to_owned());
            }
        }
    }
    sockets.len()
}

/// A statement that inserts so many rows, a hundred at a time.
fn load(rows: i64) -> String {
    format!(
        "DO $$ BEGIN FOR n IN 1..{} LOOP
             INSERT INTO employees (name) SELECT 'behind' FROM generate_series(1, 100); COMMIT;
         END LOOP; END $$",
        rows / 100
    )
}

/// Whether a stopped process was about to sleep for a time that it chose, as the daemon does in a pause and nowhere else.
fn pauses(pid: u32) -> bool {
    let of = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    while !of("status").contains("State:\tT") {}
    let syscall = of("syscall");
    let number = syscall.split_whitespace().next().unwrap();
    number.parse() == Ok(nix::libc::SYS_clock_nanosleep)
}

#[tokio::test]
async fn while_the_stream_is_behind_its_source_has_nobody_to_wake() {
    const ROWS: i64 = 40_000;
    const COUNT: &str = "SELECT count(*) FROM employees_cdc";
    let mut scene = Scene::new(EMPLOYEES, &["public.employees"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('at rest')"],
    )
    .await;
    scene.check().await;
    let pid = scene.daemon().pid();
    let at_rest = waited_for(pid);
    scene.daemon().signal(Signal::SIGSTOP);
    let load = load(ROWS);
    each(&scene.source, &[&load]).await;
    scene.daemon().signal(Signal::SIGCONT);
    let (mut looks, mut fewer) = (0, 0);
    let mut count = 0;
    while count <= ROWS {
        count = value(&scene.target, COUNT).await;
        // It has begun, and is not at its end. Where the walsender does not run, the daemon waits for it.
        if (2..ROWS).contains(&count) {
            scene.daemon().signal(Signal::SIGSTOP);
            if pauses(pid) {
                looks += 1;
                fewer += usize::from(waited_for(pid) == at_rest - 1);
            }
            scene.daemon().signal(Signal::SIGCONT);
        }
    }
    println!("{fewer} of {looks} looks found one socket less than the {at_rest} at rest");
    assert!(looks >= 10 && fewer == looks, "{fewer} of {looks}");
    scene.end().await;
}

#[tokio::test]
async fn while_the_stream_is_behind_its_walsenders_core_is_looked_for() {
    let mut scene = Scene::new(EMPLOYEES, &["public.employees"]).await;
    let pid = "SELECT active_pid::bigint FROM pg_replication_slots WHERE slot_name = 'waltrail'";
    let walsender: i64 = value(&scene.source, pid).await;
    let daemon = scene.daemon().pid();
    let seen = PathBuf::from(format!("/proc/{walsender}"));
    // For as long as there is a use in looking, the walsender's folder is open.
    let looks = || {
        let files = PathBuf::from(format!("/proc/{daemon}/fd")).read_dir();
        let mut links = files.unwrap().flatten().map(|fd| fd.path().read_link());
        links.any(|link| link.is_ok_and(|link| link == seen))
    };
    assert!(looks());
    // With one core for both there is no use.
    let one = {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let core = (0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap());
        let mut one = CpuSet::new();
        one.set(core.unwrap()).unwrap();
        one
    };
    for pid in [daemon.cast_signed(), walsender.try_into().unwrap()] {
        sched_setaffinity(Pid::from_raw(pid), &one).unwrap();
    }
    scene.check().await;
    assert!(looks());
    scene.daemon().signal(Signal::SIGSTOP);
    each(&scene.source, &[&load(30_000)]).await;
    scene.daemon().signal(Signal::SIGCONT);
    let count = "SELECT count(*) FROM employees_cdc";
    while value::<i64>(&scene.target, count).await < 30_000 {}
    assert!(!looks());
    scene.end().await;
}

#[tokio::test]
async fn wide_rows_over_tcp_are_not_read_a_small_window_at_a_time() {
    let (cluster, client) = server().await;
    each(
        &client,
        &["CREATE TABLE t (id integer PRIMARY KEY, wide text)"],
    )
    .await;
    let dsn = cluster.dsn_tcp("postgres");
    let mut daemon = Daemon::spawn(&config(&dsn, None, &["public.t"], ""));
    streaming(&mut daemon).await;
    each(
        &client,
        &["INSERT INTO t SELECT n, repeat('x', 1000000) FROM generate_series(1, 100) n"],
    )
    .await;
    let began = Instant::now();
    wait_for_value(&client, "SELECT count(*) FROM t_cdc", 100_i64, BOUND).await;
    // With a pause for each window it takes eight seconds.
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}
