//! Finds the writer's COMMIT in the bytes that go to the target: from the Bind that moves the checkpoint to the next Sync.
//!
//! Pure: bytes come in as they were read, cut anywhere.

/// What only the statement that moves the checkpoint says.
const ADVANCE: &[u8] = b"SELECT waltrail.advance(";
/// Of a body, only this much is looked at.
const LOOKED_AT: usize = 1024;
/// Startup packets have no tag: requests for encryption, after which another one comes.
const REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The Bind that moves the checkpoint begins here.
    Begins,
    /// The Sync that commits it ends here.
    Ends,
}

/// The messages of one connection.
#[derive(Debug, Default)]
pub struct Commits {
    head: Vec<u8>,
    body: Vec<u8>,
    left: usize,
    logged_in: bool,
    /// The name of the statement.
    advance: Option<Vec<u8>>,
    /// Bound, and not yet committed.
    bound: bool,
}

impl Commits {
    /// Takes the next bytes, and gives the marks in them with their offsets.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<(usize, Mark)> {
        let mut marks = Vec::new();
        let (mut at, mut begins) = (0, 0);
        while at < bytes.len() {
            let head = if self.logged_in { 5 } else { 4 };
            if self.head.len() < head {
                if self.head.is_empty() {
                    begins = at;
                }
                self.head.push(bytes[at]);
                at += 1;
                if self.head.len() < head {
                    continue;
                }
                let length: [u8; 4] = self.head[head - 4..].try_into().unwrap();
                self.left = (u32::from_be_bytes(length) as usize).saturating_sub(4);
            }
            let here = self.left.min(bytes.len() - at);
            let room = LOOKED_AT.saturating_sub(self.body.len()).min(here);
            self.body.extend_from_slice(&bytes[at..at + room]);
            at += here;
            self.left -= here;
            if self.left == 0 {
                let mark = self.message();
                marks.extend(mark.map(|mark| match mark {
                    Mark::Begins => (begins, mark),
                    Mark::Ends => (at, mark),
                }));
                self.head.clear();
                self.body.clear();
                // Of a message that began in earlier bytes, this is the first.
                begins = at;
            }
        }
        marks
    }

    fn message(&mut self) -> Option<Mark> {
        if !self.logged_in {
            let code: [u8; 4] = self.body.get(..4)?.try_into().ok()?;
            self.logged_in = !REQUESTS.contains(&u32::from_be_bytes(code));
            return None;
        }
        let mut words = self.body.split(|&byte| byte == 0);
        match self.head[0] {
            b'P' => {
                let (name, text) = (words.next()?, words.next()?);
                let moves = text.windows(ADVANCE.len()).any(|part| part == ADVANCE);
                if moves {
                    self.advance = Some(name.to_owned());
                }
                None
            }
            b'B' => {
                let (_portal, name) = (words.next()?, words.next()?);
                let moves = self.advance.as_deref() == Some(name);
                self.bound |= moves;
                moves.then_some(Mark::Begins)
            }
            b'S' => std::mem::take(&mut self.bound).then_some(Mark::Ends),
            _ => None,
        }
    }
}

#[test]
fn a_commit_is_found_however_the_bytes_are_cut() {
    let mut stream = vec![0, 0, 0, 8, 4, 210, 22, 47];
    stream.extend([0, 0, 0, 10, 0, 3, 0, 0, b'u', 0]);
    let mut message = |tag: u8, body: &[u8]| {
        stream.push(tag);
        stream.extend((body.len() as u32 + 4).to_be_bytes());
        stream.extend(body);
        stream.len()
    };
    message(b'P', b"s7\0WITH moved SELECT waltrail.advance($1)\0\0\0");
    let first = message(b'S', b"");
    message(b'B', b"\0s7\0rest");
    message(b'E', b"\0\0\0\0\0");
    let end = message(b'S', b"");
    message(b'S', b"");
    for piece in 1..stream.len() {
        let (mut commits, mut found) = (Commits::default(), Vec::new());
        for (number, bytes) in stream.chunks(piece).enumerate() {
            let marks = commits.take(bytes);
            found.extend(
                marks
                    .into_iter()
                    .map(|(at, mark)| (number * piece + at, mark)),
            );
        }
        let [(begins, Mark::Begins), (ends, Mark::Ends)] = found[..] else {
            panic!("{found:?}");
        };
        assert!(first <= begins && begins < end, "{begins}");
        assert_eq!(ends, end);
    }
}
