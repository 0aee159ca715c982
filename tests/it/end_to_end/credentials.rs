//! Is the password asked for at each connect, wherever it is, and kept from everyone else?

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;
use throwaway::Builder;
use tokio_postgres::Client;

use crate::support::daemon::Daemon;
use crate::support::scene::{SERVER_GONE, Scene, streaming};
use crate::support::{BOUND, each, server_with, wait_until};

const REFUSED: &str = "the server refuses the login; the password is read again at each attempt";
const REFUSED_SETTING: &str = "the server refuses the login; it is tried again";
const UNREADABLE: &str = "the password cannot be read; it is read again at each attempt";

/// The roles that have to give a password, over TCP and over the socket.
const ROLES: &str = "\"app-source\",\"app-target\"";

fn guarded(builder: Builder) -> Builder {
    builder
        .hba(format!("local all {ROLES} scram-sha-256"))
        .hba(format!("host all {ROLES} 127.0.0.1/32 scram-sha-256"))
}

async fn create(client: &Client, role: &str, password: &str) {
    let create = format!("CREATE ROLE \"{role}\" LOGIN SUPERUSER PASSWORD '{password}'");
    each(client, &[&create]).await;
}

async fn change(client: &Client, role: &str, password: &str) {
    let change = format!("ALTER ROLE \"{role}\" PASSWORD '{password}'");
    each(client, &[&change]).await;
}

async fn cut(client: &Client, role: &str) {
    let cut = format!(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    each(client, &[&cut]).await;
}

/// As an operator replaces it: never half written.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

async fn waits_with(daemon: &mut Daemon, headline: &str) {
    daemon
        .wait_log(BOUND, |line| {
            line.contains(headline)
                && line.contains("WARN")
                && line.contains("retry_in_ms")
                && line.contains("remedy")
        })
        .await;
    assert!(daemon.is_running());
}

/// Waits until the daemon says this once more.
async fn again(daemon: &mut Daemon, says: &str) {
    let count = |output: &str| output.matches(says).count();
    let (start, before) = (Instant::now(), count(&daemon.output()));
    while count(&daemon.output()) == before {
        let output = daemon.output();
        assert!(
            daemon.is_running() && start.elapsed() < BOUND,
            "not again: {says}\n{output}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where a password is, and how a new one gets there.
struct Kept {
    folder: TempDir,
    /// What the password is surrounded by in its file.
    form: fn(&str) -> String,
}

impl Kept {
    fn new(form: fn(&str) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, form }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    fn put(&self, password: &str) {
        write(&self.path(), &(self.form)(password));
    }
}

/// A source and a target with a role each that has to give a password, and a daemon that is about to log in by them.
/// `source` and `target` follow the connection strings in the configuration.
async fn scene(source: &str, target: &str) -> Scene {
    let mut scene = Scene::two(guarded, guarded).await;
    create(&scene.source, "app-source", "canary-1").await;
    create(&scene.target, "app-target", "canary-1").await;
    let mut sides = [("app-source", source), ("app-target", target)].into_iter();
    let lines: Vec<String> = scene
        .config
        .lines()
        .map(|line| match line.strip_suffix('\'') {
            Some(dsn) if line.starts_with("dsn = ") => {
                let (role, more) = sides.next().unwrap();
                let dsn = dsn.replace("user=postgres", &format!("user={role}"));
                match more.strip_prefix(' ') {
                    // Part of the connection string.
                    Some(_) => format!("{dsn}{more}'"),
                    None => format!("{dsn}'\n{more}"),
                }
            }
            _ => line.to_owned(),
        })
        .collect();
    scene.config = lines.join("\n") + "\n";
    scene
}

/// Changes a password on its server first, and in its place only when the daemon has been refused, while rows keep coming.
async fn rotate(scene: &mut Scene, role: &str, kept: &Kept, password: &str) {
    let load = scene.load(password.len() as u64);
    scene.progress().await;
    let server = match role {
        "app-source" => scene.session().await,
        _ => scene.target_session().await,
    };
    change(&server, role, password).await;
    cut(&server, role).await;
    again(scene.daemon(), REFUSED).await;
    kept.put(password);
    scene.progress().await;
    load.stop();
}

const ALLOWED: &[&str] = &[
    REFUSED,
    UNREADABLE,
    SERVER_GONE[0],
    SERVER_GONE[1],
    SERVER_GONE[2],
    SERVER_GONE[3],
];

#[tokio::test]
async fn a_password_that_is_changed_in_its_file_is_used_without_a_restart() {
    let source = Kept::new(|password| format!("{password}\n"));
    let target = Kept::new(|password| format!("127.0.0.1:*:postgres:app-target:{password}\n"));
    source.put("canary-1");
    target.put("canary-1");
    let mut scene = scene(
        &format!("password_file = '{}'", source.path().display()),
        &format!(" passfile={}", target.path().display()),
    )
    .await;
    scene.start().await;
    rotate(&mut scene, "app-source", &source, "canary-source-2").await;
    rotate(&mut scene, "app-target", &target, "canary-target-22").await;
    // While a secret is being replaced, there is none for a moment.
    fs::remove_file(source.path()).unwrap();
    cut(&scene.source, "app-source").await;
    waits_with(scene.daemon(), UNREADABLE).await;
    let load = scene.load(3);
    source.put("canary-source-2");
    scene.progress().await;
    load.stop();
    scene.finish(ALLOWED).await;
}

#[tokio::test]
async fn a_password_command_is_run_at_each_connect() {
    let [source, target] = [(), ()].map(|()| Kept::new(|password| format!("{password}\n")));
    let [read_source, read_target] = [&source, &target].map(|kept| {
        kept.put("canary-1");
        format!("cat {}", kept.path().display())
    });
    let mut scene = scene(
        &format!("password_command = 'echo canary >&2; {read_source}'"),
        &format!("password_command = '{read_target}'"),
    )
    .await;
    scene.start().await;
    rotate(&mut scene, "app-source", &source, "canary-2").await;
    rotate(&mut scene, "app-target", &target, "canary-2").await;
    let load = scene.load(5);
    // One that fails is no reason to end, either.
    fs::remove_file(source.path()).unwrap();
    cut(&scene.source, "app-source").await;
    waits_with(scene.daemon(), UNREADABLE).await;
    source.put("canary-2");
    scene.progress().await;
    load.stop();
    scene.finish(ALLOWED).await;
}

#[tokio::test]
async fn a_login_that_is_refused_later_is_tried_again_and_a_reload_brings_another_password() {
    let password = " password=canary-1";
    let mut scene = scene(password, password).await;
    scene.start().await;
    // Not a matter of the password.
    each(&scene.source, &["ALTER ROLE \"app-source\" NOLOGIN"]).await;
    cut(&scene.source, "app-source").await;
    waits_with(scene.daemon(), REFUSED_SETTING).await;
    each(&scene.source, &["ALTER ROLE \"app-source\" LOGIN"]).await;
    let load = scene.load(7);
    scene.progress().await;

    change(&scene.target, "app-target", "canary-2").await;
    cut(&scene.target, "app-target").await;
    let wrong = |line: &str| line.contains("28P01") && line.contains(REFUSED_SETTING);
    scene.daemon().wait_log(BOUND, wrong).await;
    // A mistake of the operator is no reason to end, either.
    for (password, says) in [("canary-3", REFUSED_SETTING), ("canary-2", "\"streaming\"")] {
        let daemon = scene.daemon();
        let config = fs::read_to_string(daemon.config_file()).unwrap();
        let (head, target) = config.split_once("[target]").unwrap();
        let old = target.split_once("password=").unwrap().1;
        let old = old.split_once('\'').unwrap().0;
        let target = target.replace(old, password);
        fs::write(daemon.config_file(), format!("{head}[target]{target}")).unwrap();
        daemon.signal(Signal::SIGHUP);
        again(daemon, says).await;
    }
    scene.progress().await;
    load.stop();
    let allowed = [ALLOWED, &[REFUSED_SETTING]].concat();
    scene.finish(&allowed).await;
}

/// A server whose role has to give a password, and the configuration for it, with this way to the password.
async fn one(way: &str) -> (throwaway::Cluster, String) {
    let (cluster, client) = server_with(guarded).await;
    each(&client, &[crate::support::EMPLOYEES]).await;
    create(&client, "app-source", "canary-1").await;
    let dsn = cluster.dsn_tcp("postgres");
    let dsn = dsn.replace("user=postgres", "user=app-source");
    let more = format!("{way}\n[log]\nformat = 'json'\n[[table]]\nsource = 'public.employees'\n");
    (cluster, format!("[source]\ndsn = '{dsn}'\n{more}"))
}

async fn ends_with(config: &str, command: &str, variables: &[(&str, &str)]) -> (i32, String) {
    let mut process = Daemon::spawn_with(config, &[command], variables);
    let (status, output) = process.wait(BOUND).await;
    (status.code().unwrap(), output)
}

#[tokio::test]
async fn a_password_command_that_gives_no_password_is_named_and_neither_it_nor_its_output_is_shown()
{
    let (_cluster, config) = one("password_command = '''COMMAND'''").await;
    let long = "yes canary";
    for (command, exit, says) in [
        (
            "echo canary; echo canary >&2; exit 3",
            75,
            "ended with exit status 3",
        ),
        ("kill -9 $$ # canary", 75, "was ended by signal 9"),
        ("/canary/does/not/exist", 78, "ended with exit status 127"),
        ("true canary", 78, "printed no password"),
        ("echo; echo canary", 78, "printed no password"),
        (
            r"printf 'canary\377\n'",
            78,
            "printed something that is not UTF-8",
        ),
        (r"printf 'can\000ary\n'", 78, "printed a control character"),
        (long, 78, "printed more than 64 KiB"),
        ("echo canary-wrong", 77, "28P01"),
    ] {
        let config = config.replace("COMMAND", command);
        let (code, output) = ends_with(&config, "accept-gap", &[]).await;
        assert_eq!(code, exit, "{command}: {output}");
        assert!(output.contains(says), "{command}: {output}");
        assert!(
            output.contains("source.password_command"),
            "{command}: {output}"
        );
        assert!(output.contains("hint: "), "{command}: {output}");
    }
    for command in ["setup", "run"] {
        let config = config.replace("COMMAND", "true canary");
        let (code, output) = ends_with(&config, command, &[]).await;
        assert_eq!(code, 78, "{command}: {output}");
    }
    let config = config.replace("COMMAND", r"printf 'canary-1\r\nlogin: canary\n'");
    for (arguments, code) in [
        (&["setup"][..], 0),
        // It looks, and no daemon runs.
        (&["status"], 2),
        (&["teardown", "--yes"], 0),
    ] {
        let mut process = Daemon::spawn_with(&config, arguments, &[]);
        let (status, output) = process.wait(BOUND).await;
        assert_eq!(status.code(), Some(code), "{arguments:?}: {output}");
    }
}

/// The processes whose ids a command has written into a folder: the shell's and its child's.
async fn started(folder: &Path) -> [Pid; 2] {
    let pid = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        let id = text.strip_suffix('\n')?.parse().unwrap();
        Some(Pid::from_raw(id))
    };
    wait_until("the command runs", BOUND, async || {
        Some([pid("shell")?, pid("child")?])
    })
    .await
}

async fn gone(processes: [Pid; 2]) {
    wait_until("the command and its child are gone", BOUND, async || {
        processes.iter().all(|pid| ended(*pid)).then_some(())
    })
    .await;
}

/// An orphan may wait for its new parent to notice.
fn ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    kill(pid, None).is_err()
        || stat.is_ok_and(|stat| stat.rsplit(") ").next().unwrap().starts_with('Z'))
}

#[tokio::test]
async fn a_password_command_that_hangs_is_killed_with_all_that_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().display();
    let hang = format!(
        "password_command = 'sleep 3600 & echo $! > {shown}/child; echo $$ > {shown}/shell; wait'"
    );
    let (_cluster, config) = one(&hang).await;
    // By its time limit.
    let start = Instant::now();
    let mut status = Daemon::spawn_with(&config, &["accept-gap"], &[]);
    let processes = started(folder.path()).await;
    let (ended, output) = status.wait(BOUND).await;
    let took = start.elapsed();
    assert_eq!(ended.code(), Some(75), "{output}");
    let says = "source.password_command took longer than 10 s and was killed";
    assert!(output.contains(says), "{output}");
    assert!(took >= Duration::from_secs(10), "{took:?}");
    gone(processes).await;
    // By a signal to the daemon, which does not wait for it.
    for name in ["shell", "child"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    let mut daemon = Daemon::spawn(&config);
    let processes = started(folder.path()).await;
    daemon.sigterm();
    let (ended, output) = daemon.wait(BOUND).await;
    assert_eq!(ended.code(), Some(0), "{output}");
    gone(processes).await;
}

/// Runs what the hint says between backticks, as an operator does.
fn do_as_hinted(output: &str) {
    let hint = output.split_once("hint: ").expect(output).1;
    let command = hint.split('`').nth(1).expect(hint);
    let done = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

#[tokio::test]
async fn a_password_file_that_others_may_read_is_refused_until_its_mode_is_as_hinted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it's the secret");
    let passfile = folder.path().join("pgpass");
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    let own = format!("password_file = \"{}\"", path.display());
    let [path, passfile] = [&path, &passfile].map(|path| path.to_str().unwrap());
    let in_home = home.join(".pgpass");
    let ways = [
        (own.as_str(), path, vec![]),
        ("", passfile, vec![("PGPASSFILE", passfile)]),
        (
            "",
            in_home.to_str().unwrap(),
            vec![("HOME", home.to_str().unwrap())],
        ),
    ];
    let (_cluster, config) = one("(way)").await;
    for (way, path, variables) in ways {
        let config = config.replace("(way)", way);
        let text = match way {
            "" => "*:*:*:*:canary-1\n",
            _ => "canary-1\n",
        };
        for mode in [0o640, 0o604] {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            let (code, output) = ends_with(&config, "setup", &variables).await;
            assert_eq!(code, 78, "{output}");
            let says = format!("has group or world access (mode {mode:04o})");
            assert!(output.contains(&says), "{output}");
            do_as_hinted(&output);
            let (code, output) = ends_with(&config, "setup", &variables).await;
            assert_eq!(code, 0, "{output}");
        }
    }
}

#[tokio::test]
async fn a_password_file_without_a_password_is_78_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let (_cluster, config) = one(&format!("password_file = '{}'", path.display())).await;
    let (code, output) = ends_with(&config, "run", &[]).await;
    assert_eq!(code, 78, "{output}");
    assert!(output.contains("which does not exist"), "{output}");
    for text in ["", "\n", "canary-1\ncanary\n", "canary\0\n"] {
        write(&path, text);
        let (code, output) = ends_with(&config, "run", &[]).await;
        assert_eq!(code, 78, "{output}");
        assert!(
            output.contains("does not hold one line with a password"),
            "{output}"
        );
    }
}

#[tokio::test]
async fn one_that_waits_for_another_waltrail_survives_a_rotation_too() {
    let secret = Kept::new(|password| format!("{password}\n"));
    secret.put("canary-1");
    let (cluster, config) = one(&format!("password_file = '{}'", secret.path().display())).await;
    let client = crate::support::connect(&cluster.dsn_socket("postgres")).await;
    let mut first = Daemon::spawn(&config);
    streaming(&mut first).await;
    let mut second = Daemon::spawn(&config);
    let waits = |line: &str| line.contains("another waltrail writes for this slot");
    second.wait_log(BOUND, waits).await;
    change(&client, "app-source", "canary-2").await;
    cut(&client, "app-source").await;
    for daemon in [&mut first, &mut second] {
        waits_with(daemon, REFUSED).await;
    }
    secret.put("canary-2");
    first.kill9();
    streaming(&mut second).await;
}

#[tokio::test]
async fn a_password_file_that_does_not_answer_stops_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("secret");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let (_cluster, config) = one(&format!("password_file = '{}'", pipe.display())).await;
    let (code, output) = ends_with(&config, "accept-gap", &[]).await;
    assert_eq!(code, 75, "{output}");
    assert!(output.contains("within 10 s"), "{output}");
    // Meanwhile signals are served.
    let start = Instant::now();
    let mut daemon = Daemon::spawn(&config);
    daemon
        .wait_log(BOUND, |line| line.contains("\"started\""))
        .await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(start.elapsed() < Duration::from_secs(9), "{output}");
}

/// In the form of a volume of Kubernetes: on a file system in memory, by symbolic links, mode 0644 and owned by another user,
/// which only root can make.
#[tokio::test]
async fn a_mounted_secret_is_taken_with_its_mode_and_its_next_version_is_found() {
    if !geteuid().is_root() {
        println!("not tried: only root can give a file to another user");
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let version = |name: &str, password: &str| {
        let version = folder.path().join(name);
        fs::create_dir(&version).unwrap();
        let file = version.join("password");
        fs::write(&file, password).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        chown(&file, Some(65_534), None).unwrap();
        let link = folder.path().join("..data_tmp");
        symlink(name, &link).unwrap();
        fs::rename(link, folder.path().join("..data")).unwrap();
    };
    version("..2026_11_28_17_00_00.1", "canary-1");
    let path = folder.path().join("password");
    symlink("..data/password", &path).unwrap();
    let (cluster, config) = one(&format!("password_file = '{}'", path.display())).await;
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let client = crate::support::connect(&cluster.dsn_socket("postgres")).await;
    change(&client, "app-source", "canary-2").await;
    cut(&client, "app-source").await;
    waits_with(&mut daemon, REFUSED).await;
    version("..2026_11_28_18_00_00.2", "canary-2");
    again(&mut daemon, "\"streaming\"").await;
}
