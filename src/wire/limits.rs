//! What a server may say: how long each kind of message is at the most, and how many may come where none is awaited.
//!
//! A server, or what stands between, is not trusted: **memory is bounded by what is kept here, not by the lengths that it
//! announces.** A report that is too long is shortened, anything else that is too long ends the connection. Pure.

use postgres_types::Type;

use super::Error;
use super::read_buffer::HEADER;

/// The longest message that is kept whole, unless it is a row or describes one. A report that is longer loses its words.
pub(super) const KEPT_MAX: usize = 64 * 1024;
/// Descriptions of rows, parameters and COPY have at most 65,535 entries; PostgreSQL's own rows 1,664.
const DESCRIPTION_MAX: usize = 1024 * 1024;
/// PostgreSQL allocates no more for one message (`MaxAllocSize`).
const ROW_MAX: usize = 1 << 30;
/// A login is some twenty messages of some bytes.
const LOGIN_BYTES_MAX: usize = 1024 * 1024;
const LOGIN_MESSAGES_MAX: usize = 1_000;
/// Notices and changed parameters without anything between them.
const BESIDE_MAX: usize = 10_000;
/// Messages without a row between them, and without an end of the answer: a batch has some for each table.
const WITHOUT_ROW_MAX: usize = 1_000_000;
/// Counted for each row of an answer beside its bytes.
const ROW_COST: usize = 128;
/// What a server can make us compute before it has proved anything; its own default is 4,096.
pub(super) const ITERATIONS_MAX: u32 = 100_000;

/// What can be done with a message by its tag and length, before it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Only its beginning counts: see [`shortened`].
    Shorten,
}

/// What has come so far.
#[derive(Debug)]
pub(super) struct Limits {
    logged_in: bool,
    login_bytes: usize,
    login_messages: usize,
    beside: usize,
    without_row: usize,
    /// Of the rows of this answer.
    answer: usize,
    answer_max: usize,
}

impl Limits {
    /// `answer_max`: bytes that the rows of one answer may take, if they are kept.
    pub(super) fn new(answer_max: usize) -> Self {
        Self {
            logged_in: false,
            login_bytes: 0,
            login_messages: 0,
            beside: 0,
            without_row: 0,
            answer: 0,
            answer_max,
        }
    }

    /// Judges a message of `length` bytes, its header included, that is longer than [`KEPT_MAX`].
    #[cold]
    pub(super) fn judge(&self, tag: u8, length: usize) -> Result<Verdict, Error> {
        let max = match tag {
            // It ends the login anyway, and what is still to come is not read.
            b'E' if length <= ROW_MAX => return Ok(Verdict::Shorten),
            b'N' | b'S' | b'A' if !self.logged_in => LOGIN_BYTES_MAX,
            b'E' | b'N' | b'S' | b'A' => ROW_MAX,
            b'd' | b'D' if self.logged_in => ROW_MAX.min(self.answer_max),
            b'T' | b't' | b'G' | b'H' | b'W' if self.logged_in => DESCRIPTION_MAX,
            _ => KEPT_MAX,
        };
        match (length - HEADER <= max, tag) {
            (true, b'N' | b'S' | b'A') => Ok(Verdict::Shorten),
            (true, _) => Ok(Verdict::Keep),
            (false, _) => Err(Error::Protocol("a message longer than any of its kind")),
        }
    }

    /// Notes a message that is taken, of `length` bytes with its header.
    #[inline]
    pub(super) fn note(&mut self, tag: u8, body: &[u8]) -> Result<(), Error> {
        // Rows of a COPY and the stream, of which there are many.
        if tag == b'd' && self.logged_in {
            self.beside = 0;
            self.without_row = 0;
            return Ok(());
        }
        self.note_other(tag, body)
    }

    fn note_other(&mut self, tag: u8, body: &[u8]) -> Result<(), Error> {
        if !self.logged_in {
            self.note_login(tag, body)?;
        }
        self.without_row += 1;
        self.beside += 1;
        match tag {
            b'N' | b'S' | b'A' if self.beside > BESIDE_MAX => {
                return Err(Error::Protocol("notices and parameters without an end"));
            }
            b'N' | b'S' | b'A' => {}
            b'D' => {
                self.answer += ROW_COST + body.len();
                (self.beside, self.without_row) = (0, 0);
            }
            b'Z' => (self.beside, self.without_row, self.answer) = (0, 0, 0),
            _ => self.beside = 0,
        }
        if self.answer > self.answer_max {
            return Err(Error::Protocol("an answer without an end"));
        }
        if self.without_row > WITHOUT_ROW_MAX {
            return Err(Error::Protocol("messages without an end"));
        }
        Ok(())
    }

    fn note_login(&mut self, tag: u8, body: &[u8]) -> Result<(), Error> {
        self.login_messages += 1;
        self.login_bytes += HEADER + body.len();
        if self.login_messages > LOGIN_MESSAGES_MAX || self.login_bytes > LOGIN_BYTES_MAX {
            return Err(Error::Protocol("a login without an end"));
        }
        match tag {
            b'R' => check_iterations(body),
            b'Z' => {
                self.logged_in = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// AuthenticationSASLContinue of SCRAM: `r=...,s=...,i=...` (RFC 5802).
fn check_iterations(body: &[u8]) -> Result<(), Error> {
    let Some(text) = body.strip_prefix(&11u32.to_be_bytes()) else {
        return Ok(());
    };
    let count = text.split(|byte| *byte == b',').find_map(|part| {
        let digits = std::str::from_utf8(part.strip_prefix(b"i=")?).ok()?;
        digits.parse::<u64>().ok()
    });
    match count {
        Some(count) if count > u64::from(ITERATIONS_MAX) => Err(Error::Iterations(count)),
        _ => Ok(()),
    }
}

/// A message of the same kind instead of one that is too long, of which `beginning` is known. Of an error or a notice the
/// condition is kept. Its context is foreign, so that nothing else counts: what stood at its end is not known.
pub(super) fn shortened(tag: u8, beginning: &[u8], length: usize) -> Vec<u8> {
    let mut body = Vec::new();
    match tag {
        b'S' => body.extend_from_slice(b"\0\0"),
        b'A' => body.extend_from_slice(b"\0\0\0\0\0\0"),
        _ => {
            let severity: &[u8] = if tag == b'E' { b"ERROR" } else { b"WARNING" };
            let words = format!("a report of {length} bytes");
            let fields: [(u8, &[u8]); 4] = [
                (b'S', severity),
                (b'C', code_of(beginning)),
                (b'M', words.as_bytes()),
                (b'W', b"not kept"),
            ];
            for (name, value) in fields {
                body.push(name);
                body.extend_from_slice(value);
                body.push(0);
            }
            body.push(0);
        }
    }
    let mut message = vec![tag];
    // Some bytes.
    message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

/// The SQLSTATE of a report, which stands before its words.
fn code_of(fields: &[u8]) -> &[u8] {
    fields
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"C"))
        .filter(|code| code.len() == 5)
        .unwrap_or(b"XX000")
}

/// Whether a report (`E`, `N`) is one that the SQL client can read. Its words need not be UTF-8.
pub(super) fn whole_report(body: &[u8]) -> bool {
    const SEVERITIES: [&[u8]; 8] = [
        b"PANIC", b"FATAL", b"ERROR", b"WARNING", b"NOTICE", b"DEBUG", b"INFO", b"LOG",
    ];
    let Some(fields) = body.strip_suffix(b"\0\0") else {
        return false;
    };
    let is_number = |value: &[u8]| {
        let digits = std::str::from_utf8(value).ok();
        digits.is_some_and(|digits| digits.parse::<u32>().is_ok())
    };
    let mut found = Vec::new();
    for field in fields.split(|byte| *byte == 0) {
        let fits = match field.split_first() {
            None => false,
            Some((b'P' | b'p' | b'L', value)) => is_number(value),
            Some((b'V', value)) => SEVERITIES.contains(&value),
            Some(_) => true,
        };
        if !fits {
            return false;
        }
        found.push(field[0]);
    }
    b"SCM".iter().all(|kind| found.contains(kind))
}

/// Whether a description of columns (`T`) or parameters (`t`) names only types that the SQL client knows. It would ask for
/// others, and for what they consist of, as deep as the server likes; no question of ours has such types.
pub(super) fn known_types(tag: u8, body: &[u8]) -> bool {
    let Some((_, mut rest)) = body.split_first_chunk::<2>() else {
        return false;
    };
    while !rest.is_empty() {
        let Some(oid) = next_type(tag, &mut rest) else {
            return false;
        };
        if Type::from_oid(oid).is_none() {
            return false;
        }
    }
    true
}

fn next_type(tag: u8, rest: &mut &[u8]) -> Option<u32> {
    if tag == b't' {
        let (oid, after) = rest.split_first_chunk::<4>()?;
        *rest = after;
        return Some(u32::from_be_bytes(*oid));
    }
    let name = rest.iter().position(|byte| *byte == 0)?;
    // Table, column, type, length, modifier, format.
    let (column, after) = rest.get(name + 1..)?.split_first_chunk::<18>()?;
    *rest = after;
    let oid = column[6..].first_chunk::<4>()?;
    Some(u32::from_be_bytes(*oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_session(answer_max: usize) -> Limits {
        let mut limits = Limits::new(answer_max);
        limits.note(b'Z', b"I").unwrap();
        limits
    }

    #[test]
    fn nothing_of_a_login_is_long() {
        let limits = Limits::new(usize::MAX);
        for tag in (0..=255).filter(|tag| !b"ENSA".contains(tag)) {
            assert!(limits.judge(tag, KEPT_MAX + HEADER + 1).is_err(), "{tag}");
        }
        for tag in *b"NSA" {
            let longest = LOGIN_BYTES_MAX + HEADER;
            assert_eq!(limits.judge(tag, longest).unwrap(), Verdict::Shorten);
            assert!(limits.judge(tag, longest + 1).is_err(), "{tag}");
        }
        assert_eq!(limits.judge(b'E', ROW_MAX).unwrap(), Verdict::Shorten);
        assert!(limits.judge(b'E', i32::MAX as usize).is_err());
    }

    #[test]
    fn a_row_is_as_long_as_postgresql_allows_and_nothing_else_is() {
        let limits = in_session(usize::MAX);
        for tag in *b"dD" {
            assert_eq!(limits.judge(tag, ROW_MAX + HEADER).unwrap(), Verdict::Keep);
            assert!(limits.judge(tag, ROW_MAX + HEADER + 1).is_err());
        }
        for tag in *b"TtGHW" {
            assert!(limits.judge(tag, DESCRIPTION_MAX + HEADER).is_ok());
            assert!(limits.judge(tag, DESCRIPTION_MAX + HEADER + 1).is_err());
        }
        for tag in *b"RKvZ123CcnsIX" {
            assert!(limits.judge(tag, KEPT_MAX + HEADER + 1).is_err());
        }
        for tag in *b"ENSA" {
            assert_eq!(limits.judge(tag, ROW_MAX).unwrap(), Verdict::Shorten);
            assert!(limits.judge(tag, i32::MAX as usize).is_err(), "{tag}");
        }
        assert!(in_session(100).judge(b'D', KEPT_MAX + HEADER + 1).is_err());
    }

    #[test]
    fn a_login_has_an_end() {
        let until = |tag, body: &[u8]| {
            let mut limits = Limits::new(usize::MAX);
            (1..).find(|_| limits.note(tag, body).is_err()).unwrap()
        };
        assert_eq!(until(b'S', b"a\0b\0"), LOGIN_MESSAGES_MAX + 1);
        assert_eq!(until(b'R', &[0, 0, 0, 3]), LOGIN_MESSAGES_MAX + 1);
        assert_eq!(until(b'N', &[0; KEPT_MAX - HEADER]), 17);
    }

    #[test]
    fn what_comes_unasked_has_an_end_and_a_row_between_begins_anew() {
        let mut limits = in_session(usize::MAX);
        for _ in 0..3 {
            for tag in *b"NSA" {
                for _ in 0..BESIDE_MAX / 3 {
                    limits.note(tag, b"").unwrap();
                }
            }
            limits.note(b'd', b"").unwrap();
        }
        for _ in 0..BESIDE_MAX {
            limits.note(b'S', b"").unwrap();
        }
        assert!(limits.note(b'S', b"").is_err());
    }

    #[test]
    fn an_answer_has_an_end_and_a_copy_needs_none() {
        let mut limits = in_session(10 * ROW_COST);
        for _ in 0..3 {
            for _ in 0..10 {
                limits.note(b'D', b"").unwrap();
            }
            limits.note(b'Z', b"I").unwrap();
        }
        for _ in 0..10 {
            limits.note(b'D', b"").unwrap();
        }
        assert!(limits.note(b'D', b"").is_err());
        let mut limits = in_session(0);
        for _ in 0..2 * WITHOUT_ROW_MAX {
            limits.note(b'd', b"").unwrap();
        }
        for _ in 0..WITHOUT_ROW_MAX {
            limits.note(b'1', b"").unwrap();
        }
        assert!(limits.note(b'1', b"").is_err());
    }

    #[test]
    fn iterations_have_a_maximum() {
        let asked = |count: &str| {
            let body = [&[0, 0, 0, 11], format!("r=a,s=b,i={count}").as_bytes()].concat();
            Limits::new(0).note(b'R', &body)
        };
        assert!(asked("4096").is_ok());
        assert!(asked("100000").is_ok());
        for count in ["100001", "2147483647", "4294967295", "99999999999"] {
            assert!(matches!(asked(count), Err(Error::Iterations(_))), "{count}");
        }
    }

    #[test]
    fn of_a_long_error_the_condition_is_kept() {
        let long = b"SERROR\0VERROR\0C22003\0Mcanary";
        let message = shortened(b'E', long, 200_000_000);
        let text = String::from_utf8_lossy(&message);
        assert!(
            text.contains("C22003\0") && !text.contains("canary"),
            "{text}"
        );
        let message = shortened(b'E', b"C", 200_000_000);
        assert!(String::from_utf8_lossy(&message).contains("CXX000\0"));
    }

    #[test]
    fn a_report_that_the_client_cannot_read_is_known() {
        for report in [
            &b"SERROR\0C22003\0M\xff\0\0"[..],
            b"SX\0VFATAL\0P12\0C\0M\0Z\0\0",
        ] {
            assert!(whole_report(report), "{report:?}");
        }
        for broken in [
            &b""[..],
            b"\0",
            b"SE\0C1\0\0",
            b"SE\0C1\0M\0",
            b"SE\0C1\0M\0Px\0\0",
            b"SE\0C1\0M\0Vx\0\0",
            b"SE\0\0C1\0M\0\0",
        ] {
            assert!(!whole_report(broken), "{broken:?}");
        }
        assert!(whole_report(&shortened(b'E', b"", 1 << 20)[HEADER..]));
    }

    #[test]
    fn types_that_are_not_the_servers_own_are_not_asked_for() {
        let columns = |oid: u32| {
            let column = [b"c\0".as_slice(), &[0; 6], &oid.to_be_bytes(), &[0; 8]].concat();
            [&[0, 2], &column[..], &column[..]].concat()
        };
        assert!(known_types(b'T', &columns(25)));
        assert!(known_types(b'T', &[0, 0]));
        assert!(!known_types(b'T', &columns(16_384)));
        assert!(!known_types(b'T', &columns(25)[..30]));
        assert!(!known_types(b'T', b""));
        assert!(known_types(b't', &[0, 1, 0, 0, 0, 25]));
        assert!(!known_types(b't', &[0, 1, 0, 0, 0x40, 0]));
    }
}
