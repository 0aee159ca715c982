//! The handshake of TLS.

use super::*;

/// A request for TLS, and what follows an agreement.
#[tokio::test]
async fn a_handshake_is_attacked() {
    let record = |kind: u8, length: u16, more: &[u8]| {
        [&[kind, 3, 3], &length.to_be_bytes()[..], more].concat()
    };
    // Handshake messages in records that are as long as they may be: the first says that 16 MiB come.
    let fragment = record(
        22,
        16_384,
        &[&[2, 255, 255, 255][..], &[0; 16_380]].concat(),
    );
    let cases: Vec<Case> = vec![
        (
            "an error of 200 MB",
            once(long_error()),
            "an error when asked for TLS",
        ),
        (
            "neither yes nor no",
            once(b"X".to_vec()),
            "an error when asked for TLS",
        ),
        ("no", once(b"N".to_vec()), "does not support TLS"),
        (
            "yes, and more at once",
            once(b"SS".to_vec()),
            "unencrypted data",
        ),
        ("bytes without an end", again(vec![b'S'; 4096]), ""),
    ];
    for mode in ["require", "verify-full"] {
        for (name, (first, then), said) in cases.clone() {
            handshake(&format!("{mode}: {name}"), mode, first, then, said).await;
        }
    }
    for (name, then) in [
        ("garbage", Then::Again(vec![0; 4096])),
        ("an endless message", Then::Again(fragment)),
        ("empty records", Then::Again(record(22, 0, b""))),
        ("changes of the cipher", Then::Again(record(20, 1, &[1]))),
        ("alerts", Then::Again(record(21, 2, &[1, 0]))),
        (
            "a record of 64 KiB",
            Then::Again(record(22, 65_535, &[0; 65_535])),
        ),
    ] {
        handshake(name, "direct", Vec::new(), then, "TLS").await;
    }
}

async fn handshake(name: &str, mode: &str, first: Vec<u8>, then: Then, said: &str) {
    let (moment, more) = match mode {
        "direct" => (Moment::Connected, "sslmode=require sslnegotiation=direct"),
        "require" => (Moment::Tls, "sslmode=require"),
        _ => (Moment::Tls, "sslmode=verify-full sslrootcert=system"),
    };
    let attack = Attack {
        socket: Socket::Sql,
        moment,
        first,
        then,
    };
    let attacker = Attacker::start(None, attack);
    let seen = ended(&config(
        &attacker.dsn(more),
        None,
        &["public.employees"],
        "",
    ))
    .await;
    check(name, &seen, said, USUAL_KIB + MORE_MAX_KIB);
}
