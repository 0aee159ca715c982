//! COPY from one server into another, byte for byte.
//!
//! A CopyData message is the same in both directions, so that what the one sends can go to the other as it
//! stands, header and all, in pieces of whatever size a read brings: a message need not be here whole before its
//! beginning goes on, and memory is the two read buffers whatever the size of a row.

use postgres_protocol::message::frontend;

use super::channel::Channel;
use super::{Error, Message};

#[derive(Debug)]
pub(crate) enum PipeError {
    Source(Error),
    Target(Error),
    /// The end that is written did not keep every row.
    NotAll {
        sent: u64,
        taken: u64,
    },
}

/// What went through since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    /// CopyData messages, which are rows but for one that ends binary data.
    pub messages: u64,
    /// Bytes, with the messages' heads.
    pub bytes: u64,
}

/// Runs `copy_out` on `from` and `copy_in` on `to`; returns the number of rows. Neither commits anything.
///
/// **Not cancel-safe**: when it is dropped or fails, both connections must be dropped with it; a COPY that was not
/// ended has no effect.
///
/// # Errors
/// Either end failed, or they do not agree about the number of rows.
pub(crate) async fn pipe(
    from: &mut Channel,
    copy_out: &str,
    to: &mut Channel,
    copy_in: &str,
    mut flowed: impl FnMut(Flow),
) -> Result<u64, PipeError> {
    command(from, copy_out, b'H')
        .await
        .map_err(PipeError::Source)?;
    command(to, copy_in, b'G')
        .await
        .map_err(PipeError::Target)?;
    let mut left = 0;
    loop {
        let (range, messages) = from
            .copy_data_buffered(&mut left)
            .map_err(PipeError::Source)?;
        if range.is_empty() {
            if left == 0 {
                match from.skip_beside().map_err(PipeError::Source)? {
                    Some(true) => continue,
                    // What is here and is no CopyData ends it.
                    Some(false) => break,
                    None => {}
                }
            }
            from.expect_more();
            from.fill().await.map_err(PipeError::Source)?;
            continue;
        }
        flowed(Flow {
            messages,
            bytes: range.len() as u64,
        });
        let bytes = from.buffered(range);
        // What the target says before the end is an error, or says nothing.
        to.send_watching(bytes).await.map_err(PipeError::Target)?;
    }
    let sent = ended(from, true).await.map_err(PipeError::Source)?;
    let taken = async {
        frontend::copy_done(to.outgoing());
        to.flush().await?;
        ended(to, false).await
    };
    let taken = taken.await.map_err(PipeError::Target)?;
    if sent != taken {
        return Err(PipeError::NotAll { sent, taken });
    }
    Ok(sent)
}

async fn command(channel: &mut Channel, sql: &str, wanted: u8) -> Result<(), Error> {
    frontend::query(sql, channel.outgoing())?;
    channel.flush().await?;
    loop {
        let message = channel.next().await?;
        if message.tag == wanted {
            return Ok(());
        }
        beside(message)?;
    }
}

fn beside(message: Message<'_>) -> Result<(), Error> {
    match message.tag {
        b'N' | b'S' | b'A' => Ok(()),
        _ => match message.parse() {
            Err(error) => Err(error),
            Ok(_) => Err(Error::Protocol("an unexpected answer to a COPY")),
        },
    }
}

/// The rest of a COPY: CommandComplete with the number of rows, then ReadyForQuery.
async fn ended(channel: &mut Channel, sends: bool) -> Result<u64, Error> {
    let mut rows = None;
    loop {
        let message = channel.next().await?;
        match message.tag {
            b'c' if sends => {}
            b'C' => {
                let tag = String::from_utf8_lossy(message.body);
                let count = tag.trim_end_matches('\0').strip_prefix("COPY ");
                rows = count.and_then(|count| count.parse().ok());
            }
            b'Z' => return rows.ok_or(Error::Protocol("a COPY that does not say its rows")),
            _ => beside(message)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::super::stream::Stream;
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[tokio::test]
    async fn a_notice_between_two_rows_is_passed_over() {
        let (ours, mut source) = UnixStream::pair().unwrap();
        let mut from = Channel::in_session(Stream::local(ours).unwrap());
        let (ours, mut target) = UnixStream::pair().unwrap();
        let mut to = Channel::in_session(Stream::local(ours).unwrap());
        let end = [message(b'C', b"COPY 2\0"), message(b'Z', b"T")].concat();
        let rows = [message(b'd', b"one"), message(b'd', b"two")];
        let notice = message(b'N', b"SNOTICE\0\0");
        for bytes in [
            &message(b'H', b"\0\0\0"),
            &rows[0],
            &notice,
            &rows[1],
            &message(b'c', b""),
            &end,
        ] {
            source.write_all(bytes).await.unwrap();
        }
        target.write_all(&message(b'G', b"\0\0\0")).await.unwrap();
        let server = async {
            let wanted = [message(b'Q', b"in\0"), rows.concat(), message(b'c', b"")].concat();
            let mut got = vec![0; wanted.len()];
            target.read_exact(&mut got).await.unwrap();
            assert_eq!(got, wanted);
            target.write_all(&end).await.unwrap();
        };
        let piped = async { pipe(&mut from, "out", &mut to, "in", |_| {}).await };
        let (piped, ()) = tokio::join!(piped, server);
        assert_eq!(piped.unwrap(), 2);
    }
}
