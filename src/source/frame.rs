//! What travels inside CopyBoth: XLogData, keepalives, status updates
//! (manual, section 53.4, "Streaming Replication Protocol").
//!
//! Pure: bytes in, values out.

use bytes::{BufMut, BytesMut};

use crate::lsn::Lsn;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    XLogData {
        /// The server's clock when it sent the frame: microseconds since 2000-01-01 UTC.
        sent_at: i64,
        payload: &'a [u8],
    },
    /// A sign of life, and how far the server has read its WAL.
    Keepalive {
        /// The end of the last record that the walsender has processed, over all databases. Every
        /// transaction that committed before it has been sent.
        processed: Lsn,
        /// The server wants a status update now.
        reply_wanted: bool,
    },
}

/// A frame that is not what the protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is none that this version of the protocol knows.
    #[error("unknown replication frame of type {0:#04x}")]
    Unknown(u8),
    /// The frame ends before its fields do, or goes on after them.
    #[error("a replication frame of type {0:#04x} has the wrong length")]
    Length(u8),
    /// A row of a backlog that is not one value.
    #[error("a row of the backlog is not one binary value")]
    Row,
}

impl<'a> Frame<'a> {
    /// Reads the payload of one CopyData message.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let u64_at = |at: usize| {
            bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk::<8>())
                .map(|raw| u64::from_be_bytes(*raw))
        };
        match bytes.first() {
            Some(b'w') => {
                let sent_at = u64_at(17).ok_or(FrameError::Length(b'w'))?;
                Ok(Self::XLogData {
                    sent_at: sent_at.cast_signed(),
                    payload: &bytes[25..],
                })
            }
            Some(b'k') if bytes.len() == 18 => {
                let processed = u64_at(1).ok_or(FrameError::Length(b'k'))?;
                Ok(Self::Keepalive {
                    processed: Lsn::from_u64(processed),
                    reply_wanted: bytes[17] != 0,
                })
            }
            Some(b'k') => Err(FrameError::Length(b'k')),
            Some(&tag) => Err(FrameError::Unknown(tag)),
            None => Err(FrameError::Length(0)),
        }
    }
}

/// A standby status update (`r`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Everything up to here has been received.
    pub received: Lsn,
    /// Everything up to here is durable in the target: the only field that moves the slot.
    pub flushed: Lsn,
    /// Whether the server shall answer with a keepalive at once.
    pub reply_wanted: bool,
}

impl Status {
    /// Appends the update as a complete CopyData message. `now`: microseconds since 2000-01-01 UTC.
    pub fn write(&self, now: i64, out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.received.as_u64());
        out.put_u64(self.flushed.as_u64());
        out.put_u64(self.flushed.as_u64());
        out.put_i64(now);
        out.put_u8(u8::from(self.reply_wanted));
    }
}
