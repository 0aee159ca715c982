//! What any session can be sent.

use super::*;

/// What can come instead of a login, to both of our clients.
pub fn logins() -> Vec<Case> {
    let scram = request(10, b"SCRAM-SHA-256\0\0");
    let iterations = |count: &str| {
        let first = format!("r=x,s=QUFBQQ==,i={count}");
        once([scram.clone(), request(11, first.as_bytes())].concat())
    };
    let ok = request(0, b"");
    vec![
        (
            "another protocol",
            once(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            "protocol violation",
        ),
        (
            "a length of 0",
            announced(b'R', 0),
            "a message length out of range",
        ),
        (
            "a length of 2 GiB",
            announced(b'R', 0x7fff_ffff),
            "a message longer than any",
        ),
        (
            "a length of 4 GiB",
            announced(b'R', 0xffff_ffff),
            "a message length out of range",
        ),
        (
            "a row of 1 GiB",
            announced(b'D', 0x4000_0000),
            "a message longer than any",
        ),
        (
            "an unknown message",
            once(message(b'?', b"")),
            "protocol violation",
        ),
        (
            "a key instead of a login",
            once(message(b'K', &[0; 8])),
            "unexpected message",
        ),
        (
            "an unknown way to authenticate",
            once(request(99, b"")),
            "protocol violation",
        ),
        (
            "passwords asked for without an end",
            again(request(3, b"")),
            "protocol violation",
        ),
        (
            "salts without an end",
            again(request(5, b"salt")),
            "protocol violation",
        ),
        (
            "2^31 iterations",
            iterations("2147483648"),
            "2147483648 SCRAM iterations",
        ),
        (
            "2^64 iterations",
            iterations("18446744073709551615"),
            "SCRAM iterations",
        ),
        (
            "a challenge of 60 KB",
            once([scram.clone(), request(11, &[b'a'; 60_000])].concat()),
            "password exchange failed",
        ),
        (
            "parameters without an end",
            (ok.clone(), Then::Numbered(parameter)),
            "a login without an end",
        ),
        (
            "notices without an end",
            (
                ok.clone(),
                Then::Again(message(b'N', b"SNOTICE\0C01000\0Mcanary\0\0")),
            ),
            "a login without an end",
        ),
        (
            "keys without an end",
            (ok.clone(), Then::Again(message(b'K', &[0; 8]))),
            "a login without an end",
        ),
        (
            "a notice of 2 GiB",
            {
                let (header, zeros) = announced(b'N', 0x7fff_ffff);
                ([ok.clone(), header].concat(), zeros)
            },
            "a message longer than any",
        ),
        ("an error of 200 MB", once(long_error()), "[SQLSTATE 57P03]"),
        (
            "an error with escapes",
            once(error(&["SFATAL", "C57P03", FORGED])),
            r"\r\nerror: forged\n",
        ),
        (
            "an error without fields",
            once(message(b'E', b"")),
            "could not connect",
        ),
        (
            "rows instead of the end",
            ([ok, message(b'D', &[0, 0])].concat(), Then::Wait),
            "unexpected message",
        ),
    ]
}

/// What can come to any session once it is logged in.
pub fn sessions() -> Vec<Case> {
    let notice = message(b'N', b"SNOTICE\0C01000\0Mcanary\0\0");
    vec![
        (
            "a length of 3",
            announced(b'Z', 3),
            "a message length out of range",
        ),
        (
            "an end of 2 GiB",
            announced(b'Z', 0x7fff_ffff),
            "a message longer than any",
        ),
        (
            "a row of 2 GiB",
            announced(b'D', 0x7fff_ffff),
            "a message longer than any",
        ),
        (
            "a description of 1 GiB",
            announced(b'T', 0x4000_0000),
            "a message longer than any",
        ),
        ("an unknown message", once(message(b'?', b"")), "protocol"),
        (
            "a request for a password",
            once(request(3, b"")),
            "unexpected",
        ),
        (
            "parameters without an end",
            (Vec::new(), Then::Numbered(parameter)),
            "notices and parameters without an end",
        ),
        (
            "notifications without an end",
            again(message(b'A', b"\0\0\0\0a\0b\0")),
            "protocol",
        ),
        (
            "an error of 200 MB",
            once([long_error(), message(b'Z', b"I")].concat()),
            "57P03",
        ),
        (
            "notices of 1 MB without an end",
            again([notice.clone(), message(b'N', &[b'x'; 1_000_000])].concat()),
            "",
        ),
    ]
}
