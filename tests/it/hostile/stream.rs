//! The stream of the source.

use super::*;

/// XLogData with this payload.
fn frame(payload: &[u8]) -> Vec<u8> {
    message(b'd', &[b"w".as_slice(), &[0; 24], payload].concat())
}

fn relation(n: u32) -> Vec<u8> {
    let oid = (n + 1_000_000).to_be_bytes();
    frame(&[b"R".as_slice(), &oid, b"public\0employees\0d\0\0"].concat())
}

#[tokio::test]
async fn a_stream_is_attacked() {
    let server = employees().await;
    let begin = frame(&[b"B".as_slice(), &u64::MAX.to_be_bytes(), &[0; 12]].concat());
    let in_transaction = |payload: &[u8]| once([begin.clone(), frame(payload)].concat());
    let unread = "the stream";
    let mut cases = sessions();
    // Between frames such a message is the end of a stream, and a row is none of it.
    cases.retain(|(name, ..)| *name != "an unknown message");
    cases.extend([
        (
            "a frame of 2 GiB",
            announced(b'd', 0x7fff_ffff),
            "a message longer than any",
        ),
        ("an empty frame", once(message(b'd', b"")), unread),
        (
            "an unknown frame",
            once(message(b'd', b"x")),
            "unknown replication frame",
        ),
        (
            "a keepalive that is cut",
            once(message(b'd', b"k\0")),
            "has the wrong length",
        ),
        ("an unknown change", once(frame(b"?")), "malformed"),
        (
            "a commit before it begins",
            once(frame(&[b"C".as_slice(), &[0; 25]].concat())),
            "out of order",
        ),
        (
            "a change of nothing",
            in_transaction(b"I\0\0\0\x01N\0\0"),
            "has not described",
        ),
        (
            "a table named twice",
            in_transaction(b"T\0\0\0\x02\0\0\0\0\x01\0\0\0\x01"),
            "has not described",
        ),
        (
            "tables without an end",
            (begin.clone(), Then::Numbered(relation)),
            "describes more than",
        ),
        (
            "data of COPY after its end",
            once([message(b'c', b""), frame(b"B")].concat()),
            "ended the stream",
        ),
    ]);
    try_within(
        Some(server.port()),
        Socket::Replication,
        Moment::After(b'W'),
        cases,
        // A million tables.
        USUAL_KIB + 3 * MORE_MAX_KIB,
    )
    .await;
}

/// The answers to keepalives do not wait in memory for a server that reads none.
#[tokio::test]
async fn keepalives_without_an_end_use_no_memory() {
    let server = employees().await;
    let keepalive = message(b'd', &[b"k".as_slice(), &[0; 16], &[1]].concat());
    let attack = Attack {
        socket: Socket::Replication,
        moment: Moment::After(b'W'),
        first: Vec::new(),
        then: Then::Again(keepalive),
    };
    let attacker = Attacker::start(Some(server.port()), attack);
    let dsn = attacker.dsn("sslmode=disable");
    let mut daemon = Daemon::spawn(&config(&dsn, None, &["public.employees"], ""));
    streaming(&mut daemon).await;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert!(daemon.is_running(), "{}", daemon.output());
        let peak = peak_kib(daemon.pid()).unwrap();
        assert!(peak < USUAL_KIB + MORE_MAX_KIB, "{peak} KiB");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}

/// Gives an integer another length, and says so in the lengths around it.
fn damaged(mut message: Vec<u8>, length: u8) -> Vec<u8> {
    const INTEGER: &[u8] = b"b\0\0\0\x04";
    let is_insert = message[0] == b'd' && message.get(30) == Some(&b'I');
    let found = message.windows(5).position(|part| part == INTEGER);
    if let (true, Some(at)) = (is_insert, found) {
        message[at + 4] = length;
        match length {
            3 => drop(message.remove(at + 5)),
            _ => message.insert(at + 5, 0),
        }
        let length = message.len() as u32 - 1;
        message[1..5].copy_from_slice(&length.to_be_bytes());
    }
    message
}

/// It is copied as it is, and the target refuses it: again and again.
#[tokio::test]
async fn a_value_whose_binary_form_is_damaged_is_not_tried_for_ever() {
    let (server, client) = server().await;
    each(&client, &[EMPLOYEES]).await;
    let insert = format!("INSERT INTO employees (name) VALUES ('{CANARY}')");
    for (length, code) in [(5, "22P03"), (3, "08P01")] {
        let attack = Attack {
            socket: Socket::Replication,
            moment: match length {
                5 => Moment::Between(|message| damaged(message, 5)),
                _ => Moment::Between(|message| damaged(message, 3)),
            },
            first: Vec::new(),
            then: Then::Wait,
        };
        let attacker = Attacker::start(Some(server.port()), attack);
        let dsn = attacker.dsn("sslmode=disable");
        let mut daemon = Daemon::spawn(&config(&dsn, None, &["public.employees"], ""));
        streaming(&mut daemon).await;
        each(&client, &[&insert]).await;
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{output}");
        for part in ["public.employees_cdc", code] {
            assert!(output.contains(part), "no {part} in:\n{output}");
        }
    }
}
