//! A pause that is exact to some microseconds, where tokio's timers are exact to a millisecond.

use std::io;
use std::time::Duration;

#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd, RawFd};

#[cfg(target_os = "linux")]
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Pause {
    #[cfg(target_os = "linux")]
    timer: Option<AsyncFd<Timer>>,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Timer(TimerFd);

#[cfg(target_os = "linux")]
impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
impl Pause {
    #[expect(
        deprecated,
        reason = "what it is deprecated for is a type that answers with descriptors of others; the other way is unsafe"
    )]
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = AsyncFd::new(Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))?;
        Ok(Self { timer: Some(timer) })
    }

    /// One by tokio's timers, for a simulation: their time can be paused.
    #[cfg(test)]
    pub(super) fn simulated() -> Self {
        Self { timer: None }
    }

    /// Waits for `pause`. Cancel-safe.
    pub(super) async fn wait(&self, pause: Duration) -> io::Result<()> {
        if pause.is_zero() {
            // Set to zero, the timer would never expire.
            return Ok(());
        }
        let Some(timer) = &self.timer else {
            tokio::time::sleep(pause).await;
            return Ok(());
        };
        let after = Expiration::OneShot(pause.into());
        // Setting it forgets an expiry that was not waited for.
        timer.get_ref().0.set(after, TimerSetTimeFlags::empty())?;
        timer.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Pause {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(test)]
    pub(super) fn simulated() -> Self {
        Self {}
    }

    pub(super) async fn wait(&self, pause: Duration) -> io::Result<()> {
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_pause_is_as_long_as_asked_for_each_time() {
        let pause = Pause::new().unwrap();
        for _ in 0..50 {
            let (began, asked) = (Instant::now(), Duration::from_micros(200));
            pause.wait(asked).await.unwrap();
            assert!(began.elapsed() >= asked);
        }
        let none = pause.wait(Duration::ZERO);
        let ended = tokio::time::timeout(Duration::from_secs(5), none).await;
        ended.unwrap().unwrap();
        // One that is given up has no effect on the next.
        let given_up = pause.wait(Duration::from_micros(1));
        let _ = tokio::time::timeout(Duration::ZERO, given_up).await;
        let began = Instant::now();
        pause.wait(Duration::from_millis(20)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20));
    }
}
