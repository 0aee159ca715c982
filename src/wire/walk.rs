//! Lets both clients read what a server says from its first byte on: what the fuzzer runs.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::startup::{Login, log_in};
use super::stream::Stream;
use super::tls::ChannelBinding;
use super::{Error, Transport, sql};

/// Questions that are asked in one session.
const QUESTIONS_MAX: usize = 64;
const GULP: usize = 4096;

/// What a client understood before something did not fit, or the server said no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Understood {
    pub logged_in: bool,
    /// Questions that were answered, with rows or an error.
    pub answers: usize,
}

/// Has `bytes` read by our own client, and by the SQL client. The server says what comes up to its next ReadyForQuery when it
/// is asked, and closes the connection at the end.
///
/// # Errors
/// There are no sockets to be had.
pub fn walk(bytes: &[u8]) -> std::io::Result<[Understood; 2]> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (transport, theirs) = pair()?;
        let ours = tokio::select! {
            ours = messages(transport) => ours,
            () = server(theirs, bytes) => Understood::default(),
        };
        let (transport, theirs) = pair()?;
        let client = tokio::select! {
            client = client(transport) => client,
            () = server(theirs, bytes) => Understood::default(),
        };
        Ok([ours, client])
    })
}

fn pair() -> std::io::Result<(Transport, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((Transport::Plain(Stream::local(ours)?), theirs))
}

/// Says all it has to say; then it is silent.
async fn server(mut socket: UnixStream, bytes: &[u8]) {
    let mut answers = answers(bytes).into_iter();
    let mut asked = vec![0; GULP];
    // The login is asked for from the start.
    let mut owed = 1;
    loop {
        for answer in answers.by_ref().take(std::mem::take(&mut owed)) {
            let _ = socket.write_all(answer).await;
        }
        if answers.len() == 0 {
            let _ = socket.shutdown().await;
            return std::future::pending().await;
        }
        let Ok(1..) = socket.read(&mut asked).await else {
            return std::future::pending().await;
        };
        // A question of ours is one `q`, one of the SQL client's a Sync.
        owed = asked
            .windows(5)
            .filter(|head| matches!(head, [b'S', 0, 0, 0, 4] | [b'Q', 0, 0, 0, 6]))
            .count();
        asked.fill(0);
    }
}

/// Each up to its ReadyForQuery; the last one is what is left.
fn answers(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut answers, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(head) = bytes.get(at..).and_then(|rest| rest.first_chunk::<5>()) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        // One that is too short is refused at its head, and nothing after it is a message.
        if length < 4 {
            break;
        }
        at += length + 1;
        if head[0] == b'Z' && at <= bytes.len() {
            answers.push(&bytes[from..at]);
            from = at;
        }
    }
    answers.push(&bytes[from..]);
    answers
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
