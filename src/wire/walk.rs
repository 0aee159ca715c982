//! Lets both clients read what a server says from its first byte on: what the fuzzer runs.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::startup::{Login, log_in};
use super::stream::Stream;
use super::tls::ChannelBinding;
use super::{Error, Transport, sql};

/// Questions that are asked in one session.
const QUESTIONS_MAX: usize = 64;
/// What a socket takes at once.
const BYTES_MAX: usize = 64 * 1024;
const GULP: usize = 4096;

/// What a client understood before something did not fit, or the server said no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Understood {
    pub logged_in: bool,
    /// Questions that were answered, with rows or an error.
    pub answers: usize,
}

/// Has `bytes` read by our own client, and by the SQL client.
///
/// # Errors
/// There are no sockets to be had.
pub fn walk(bytes: &[u8]) -> std::io::Result<[Understood; 2]> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (transport, _theirs) = said(bytes)?;
        let ours = messages(transport).await;
        let (transport, _theirs) = said(bytes)?;
        Ok([ours, client(transport).await])
    })
}

/// A connection on which a server has said these bytes, and closed its direction.
fn said(bytes: &[u8]) -> std::io::Result<(Transport, UnixStream)> {
    let (ours, mut theirs) = UnixStream::pair()?;
    theirs.write_all(&bytes[..bytes.len().min(BYTES_MAX)])?;
    theirs.shutdown(Shutdown::Write)?;
    ours.set_nonblocking(true)?;
    let ours = tokio::net::UnixStream::from_std(ours)?;
    Ok((Transport::Plain(Stream::local(ours)?), theirs))
}

const LOGIN: Login<'_> = Login {
    user: "u",
    dbname: "d",
    application_name: "a",
    options: "",
    password: Some(b"p"),
    channel_binding: ChannelBinding::Prefer,
};

async fn messages(transport: Transport) -> Understood {
    let mut understood = Understood::default();
    let Ok((mut channel, ..)) = log_in(transport, GULP, &LOGIN, &[]).await else {
        return understood;
    };
    understood.logged_in = true;
    while understood.answers < QUESTIONS_MAX {
        match channel.simple_query("q").await {
            Ok(_) | Err(Error::Server(_)) => understood.answers += 1,
            Err(_) => break,
        }
    }
    understood
}

async fn client(transport: Transport) -> Understood {
    let mut understood = Understood::default();
    let Ok((client, driver, _)) = sql(transport, GULP, &LOGIN).await else {
        return understood;
    };
    understood.logged_in = true;
    tokio::spawn(driver);
    while understood.answers < QUESTIONS_MAX {
        // As a session begins, and then what it asks.
        let answer = match understood.answers {
            0 => client.batch_execute("q").await,
            _ => client.query("q", &[]).await.map(drop),
        };
        if answer.is_err_and(|error| error.as_db_error().is_none()) {
            break;
        }
        understood.answers += 1;
    }
    understood
}
