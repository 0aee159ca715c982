//! Which messages begin in bytes that come in pieces.
//!
//! The SQL client sends requests without waiting for the answers of those before: a statement that is dropped is closed together
//! with the next request. So a byte that comes does not mean that the last request was answered. Each request ends with Sync
//! or is a Query, and each answer ends with ReadyForQuery (manual, section 53.2).

/// Finds the heads of messages in bytes that come in pieces.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// What is here of a head: a tag and a length.
    head: Vec<u8>,
    /// So much of the last message's body is still to come.
    body: usize,
}

impl Heads {
    /// Of a connection on which nothing was said yet: the first message has no tag.
    pub(super) fn of_client() -> Self {
        Self {
            head: vec![0],
            body: 0,
        }
    }

    /// How many messages with one of these tags begin in `bytes`.
    pub(super) fn count(&mut self, mut bytes: &[u8], tags: &[u8]) -> u32 {
        let mut found = 0;
        loop {
            let passed = self.body.min(bytes.len());
            self.body -= passed;
            bytes = &bytes[passed..];
            let Some((&byte, rest)) = bytes.split_first() else {
                return found;
            };
            bytes = rest;
            self.head.push(byte);
            if let &[tag, a, b, c, d] = self.head.as_slice() {
                found += u32::from(tags.contains(&tag));
                // The length counts itself.
                self.body = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
                self.head.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for (tag, body) in [(b'Z', "I"), (b'D', "ZZZZZZZZZZ"), (b'1', ""), (b'Z', "T")] {
            bytes.push(tag);
            bytes.extend((body.len() as u32 + 4).to_be_bytes());
            bytes.extend(body.as_bytes());
        }
        for size in 1..=bytes.len() {
            let mut heads = Heads::default();
            let pieces = bytes.chunks(size);
            let found: u32 = pieces.map(|piece| heads.count(piece, b"Z")).sum();
            assert_eq!(found, 2, "in pieces of {size}");
        }
    }
}
