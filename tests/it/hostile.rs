//! Can a server that is hostile or broken, or what stands before one, use up the daemon's memory, stop it, or write into its
//! log? For each kind of message that is read: what is said, and how much memory was used.

mod attacker;
mod cases;
mod http;
mod stream;
mod tls;

use std::time::{Duration, Instant};

use throwaway::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waltrail::server::{Side, sql};

use crate::support::daemon::{CANARY, Daemon, ending};
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, EMPLOYEES, each, server, source};
use attacker::{Attack, Attacker, Moment, Socket, Then};
use cases::{logins, sessions};

/// What an attack may use beside what the daemon uses anyway.
const MORE_MAX_KIB: u64 = 64 * 1024;
/// What a daemon of a test build uses while it streams a few rows.
const USUAL_KIB: u64 = 48 * 1024;
/// The answer to a question of the catalogs: see `wire/sql.rs`.
const ANSWER_MAX_KIB: u64 = 2 * 256 * 1024;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A message that announces `length` bytes and brings zeros.
fn announced(tag: u8, length: u32) -> (Vec<u8>, Then) {
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    (bytes, Then::Again(vec![0; 4096]))
}

/// An error of these fields.
fn error(fields: &[&str]) -> Vec<u8> {
    let body: Vec<u8> = fields
        .iter()
        .flat_map(|field| [field.as_bytes(), &[0]].concat())
        .chain([0])
        .collect();
    message(b'E', &body)
}

fn long_error() -> Vec<u8> {
    let words = format!("M{}", CANARY.repeat(200_000_000 / CANARY.len()));
    error(&["SERROR", "VERROR", "C57P03", &words])
}

fn parameter(n: u32) -> Vec<u8> {
    message(b'S', format!("p{n}\0{}\0", "v".repeat(1000)).as_bytes())
}

/// A request for a password: a kind, and what comes with it.
fn request(kind: u32, more: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), more].concat())
}

const FORGED: &str = "M\u{1b}[2J\u{9b}31m\r\nerror: forged\n{\"level\":\"INFO\"}\u{202e}";

const UNFIT: &str = "an answer that does not fit its question";

/// Name, what is sent first and then, what is said.
type Case = (&'static str, (Vec<u8>, Then), &'static str);

fn once(bytes: Vec<u8>) -> (Vec<u8>, Then) {
    (bytes, Then::Wait)
}

fn again(bytes: Vec<u8>) -> (Vec<u8>, Then) {
    (Vec::new(), Then::Again(bytes))
}

/// What a running daemon says when the server attacks, how it ends, and its greatest memory.
struct Seen {
    output: String,
    code: Option<i32>,
    peak_kib: u64,
}

/// The greatest memory of a process so far.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Runs until it ends by itself.
async fn ended(config: &str) -> Seen {
    let mut daemon = Daemon::spawn_with(config, &["run", "--no-retry"], &[]);
    let (mut peak, start) = (0, Instant::now());
    while daemon.is_running() {
        // Until it is a program of its own, it has the memory of this one.
        let name = std::fs::read_to_string(format!("/proc/{}/comm", daemon.pid()));
        if name.is_ok_and(|name| name.trim() == "waltrail") {
            peak = peak.max(peak_kib(daemon.pid()).unwrap_or(0));
        }
        assert!(start.elapsed() < BOUND, "it hangs:\n{}", daemon.output());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (status, output) = daemon.wait(BOUND).await;
    Seen {
        output,
        code: status.code(),
        peak_kib: peak,
    }
}

/// Tries each case, and prints the table.
async fn try_all(upstream: Option<u16>, socket: Socket, moment: Moment, cases: Vec<Case>) {
    try_within(upstream, socket, moment, cases, USUAL_KIB + MORE_MAX_KIB).await;
}

async fn try_within(
    upstream: Option<u16>,
    socket: Socket,
    moment: Moment,
    cases: Vec<Case>,
    max_kib: u64,
) {
    for (name, (first, then), said) in cases {
        let attack = Attack {
            socket,
            moment,
            first,
            then,
        };
        let attacker = Attacker::start(upstream, attack);
        let dsn = attacker.dsn(&format!("password={CANARY} sslmode=disable"));
        let seen = ended(&config(&dsn, None, &["public.employees"], "")).await;
        check(
            &format!("{socket:?} {moment:?}: {name}"),
            &seen,
            said,
            max_kib,
        );
    }
}

fn check(name: &str, seen: &Seen, said: &str, max_kib: u64) {
    let Seen {
        output,
        code,
        peak_kib,
    } = seen;
    println!(
        "| {name} | {} | {} MiB | {} |",
        code.unwrap_or(-1),
        peak_kib / 1024,
        ending(output).0
    );
    let (error, _) = ending(output);
    assert!(
        error.contains(said) || output.contains(said),
        "{name}: {said} is not in:\n{output}"
    );
    assert!(
        matches!(code, Some(65 | 75 | 77 | 78)),
        "{name}: {code:?}\n{output}"
    );
    assert!(*peak_kib < max_kib, "{name}: {peak_kib} KiB");
    assert!(*peak_kib > 0, "{name}: not measured");
    let acts = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!output.contains(acts), "{name}: {output:?}");
    let is_ours = |line: &str| {
        ["{", "error: ", "hint: "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    for line in output.lines() {
        assert!(
            is_ours(line) && !line.starts_with("error: forged"),
            "{name}: {line}"
        );
        assert!(
            line.len() < 16_000,
            "{name}: a line of {} bytes",
            line.len()
        );
    }
}

/// A server with the tables.
async fn employees() -> Cluster {
    let (cluster, client) = server().await;
    each(&client, &[EMPLOYEES]).await;
    cluster
}

#[tokio::test]
async fn a_login_of_the_sql_client_is_attacked() {
    let server = employees().await;
    try_all(Some(server.port()), Socket::Sql, Moment::Login, logins()).await;
}

#[tokio::test]
async fn a_login_of_the_replication_is_attacked() {
    let server = employees().await;
    try_all(
        Some(server.port()),
        Socket::Replication,
        Moment::Login,
        logins(),
    )
    .await;
}

#[tokio::test]
async fn a_login_of_the_writer_is_attacked() {
    let server = employees().await;
    try_all(Some(server.port()), Socket::Writer, Moment::Login, logins()).await;
}

#[tokio::test]
async fn a_session_of_the_sql_client_is_attacked() {
    let server = employees().await;
    let mut cases = sessions();
    // A warning ends such a session, and an error that nothing asked for is the server's farewell.
    cases.retain(|(name, ..)| !name.starts_with("an error of"));
    let after = Moment::After(b'Z');
    try_all(Some(server.port()), Socket::Sql, after, cases).await;
    let unknown = {
        let mut column = b"c\0".to_vec();
        column.extend([0; 6]);
        column.extend(99_999u32.to_be_bytes());
        column.extend([0; 8]);
        message(b'T', &[&[0, 1], &column[..]].concat())
    };
    let cases = vec![(
        "a type of its own",
        once(unknown),
        "of a type that was not asked for",
    )];
    try_all(
        Some(server.port()),
        Socket::Sql,
        Moment::Instead(b'T'),
        cases,
    )
    .await;
    // Rows with as many columns as the question has.
    let cases: Vec<Case> = vec![
        (
            "other columns",
            once(message(b'D', &[0, 0])),
            "does not match the number of columns",
        ),
        (
            "a value longer than the row",
            once(message(b'D', &[0, 1, 0, 0, 0, 9, 7])),
            "unexpected EOF",
        ),
        ("a NULL", (Vec::new(), Then::Values(&[255; 4])), UNFIT),
        (
            "a value that is too short",
            (Vec::new(), Then::Values(&[0, 0, 0, 0])),
            UNFIT,
        ),
        (
            "a value that is too long",
            (
                Vec::new(),
                Then::Values(&[0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 255]),
            ),
            UNFIT,
        ),
    ];
    try_all(
        Some(server.port()),
        Socket::Sql,
        Moment::Instead(b'D'),
        cases,
    )
    .await;
    let cases = vec![(
        "rows without an end",
        (Vec::new(), Then::Same),
        "unexpected number of rows",
    )];
    try_all(
        Some(server.port()),
        Socket::Sql,
        Moment::Instead(b'D'),
        cases,
    )
    .await;
}

/// A question to which any number of rows is an answer.
#[tokio::test]
async fn rows_of_a_list_have_an_end() {
    let server = employees().await;
    let attack = Attack {
        socket: Socket::Sql,
        moment: Moment::Instead(b'D'),
        first: Vec::new(),
        then: Then::Same,
    };
    let attacker = Attacker::start(Some(server.port()), attack);
    let connection = source(&attacker.dsn("sslmode=disable")).connection;
    let client = sql(&connection, Side::Source).await.unwrap();
    let before = peak_kib(std::process::id()).unwrap();
    let start = Instant::now();
    let answer = client.query("SELECT 1::int8", &[]).await;
    assert!(answer.is_err());
    let more = peak_kib(std::process::id()).unwrap() - before;
    println!(
        "| a list without an end | {} MiB after {:?} |",
        more / 1024,
        start.elapsed()
    );
    assert!(more < ANSWER_MAX_KIB, "{more} KiB");
}

#[tokio::test]
async fn a_session_of_the_writer_is_attacked() {
    let server = employees().await;
    let port = Some(server.port());
    try_all(port, Socket::Writer, Moment::After(b'Z'), sessions()).await;
    let cases = vec![(
        "rows without an end",
        (Vec::new(), Then::Same),
        "an answer longer than any",
    )];
    try_all(port, Socket::Writer, Moment::Instead(b'D'), cases).await;
}

#[tokio::test]
async fn a_session_of_the_replication_is_attacked() {
    let server = employees().await;
    let port = Some(server.port());
    try_all(port, Socket::Replication, Moment::After(b'Z'), sessions()).await;
    let cases = vec![(
        "rows without an end",
        (Vec::new(), Then::Same),
        "an answer longer than any",
    )];
    try_all(port, Socket::Replication, Moment::Instead(b'D'), cases).await;
}
