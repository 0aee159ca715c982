//! Standard output, written by a thread of its own: a reader that stalls (`| less`) must not keep the
//! demonstration from being ended.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// Texts that may wait for a slow reader.
const QUEUE_MAX: usize = 64;
/// How long the end waits for a reader to take the last lines.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// How often the other end is looked at.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Standard output.
#[derive(Debug)]
pub(super) struct Output {
    texts: mpsc::Sender<String>,
    written: oneshot::Receiver<()>,
}

impl Output {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (texts, mut queue) = mpsc::channel::<String>(QUEUE_MAX);
        let (done, written) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let mut out = io::stdout();
                while let Some(text) = queue.blocking_recv() {
                    let wrote = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                    if wrote.is_err() {
                        break;
                    }
                }
                let _ = done.send(());
            })?;
        Ok(Self { texts, written })
    }

    /// Writes, as soon as there is room. A text without a reader is dropped; see
    /// [`Output::closed`].
    pub(super) async fn write(&self, text: String) {
        let _ = self.texts.send(text).await;
    }

    /// Waits until the reader has gone.
    pub(super) async fn closed(&self) {
        tokio::select! {
            () = self.texts.closed() => {}
            () = broken() => {}
        }
    }

    /// Waits until everything is written, for a second at most.
    pub(super) async fn finish(self) {
        drop(self.texts);
        let _ = timeout(FLUSH_MAX, self.written).await;
    }
}

/// Waits until the other end of standard output is closed, without writing to it.
async fn broken() {
    let out = io::stdout();
    loop {
        // poll reports errors and hang-ups without being asked.
        let mut asked = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let polled = poll(&mut asked, PollTimeout::ZERO);
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        let [answer] = asked;
        if polled.is_ok()
            && answer
                .revents()
                .is_some_and(|events| events.intersects(gone))
        {
            return;
        }
        sleep(ASK_AGAIN).await;
    }
}
