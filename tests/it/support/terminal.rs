//! The program on a terminal with a person before it: keys are typed, and the screen is read as it looks.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::BOUND;
use super::daemon::{Daemon, assert_silent};

const POLL: Duration = Duration::from_millis(10);

/// Keys that are more than one character.
pub const DOWN: &str = "\x1b[B";
pub const PAGE_DOWN: &str = "\x1b[6~";
pub const LAST: &str = "\x1b[F";
pub const ESCAPE: &str = "\x1b";
pub const CTRL_C: &str = "\x03";

/// A running program and its screen; killed when dropped.
pub struct Typist {
    child: Child,
    master: File,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
    /// Kept open, so that its modes can be asked for when the program has ended.
    slave: File,
}

impl Typist {
    /// The program with these arguments, in a folder, on a screen of `rows` lines.
    pub fn spawn(folder: &Path, args: &[&str], (rows, columns): (u16, u16)) -> Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let lines = |number| NonZeroU16::new(number).unwrap();
        let terminal = openpty(&size, None).unwrap();
        let slave = File::from(terminal.slave);
        let child = Daemon::command()
            .args(args)
            .current_dir(folder)
            .env("TERM", "xterm")
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap())
            .spawn()
            .expect("the program should start");
        let master = File::from(terminal.master);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(
            lines(rows),
            lines(columns),
            1_000,
        )));
        let (mut output, shown) = (master.try_clone().unwrap(), Arc::clone(&screen));
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading from a terminal that no process has open is an error.
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..read]);
            }
        });
        Self {
            child,
            master,
            screen,
            reader: Some(reader),
            slave,
        }
    }

    /// Types keys.
    pub fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// The screen as it looks now.
    #[track_caller]
    pub fn screen(&self) -> String {
        let screen = self.screen.lock().unwrap().screen().contents();
        assert_silent(&screen);
        screen
    }

    /// Waits until the screen looks so, and returns it.
    pub async fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                start.elapsed() < BOUND && ended.is_none(),
                "the screen does not become what it should ({ended:?}):\n{screen}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until this stands on the screen.
    pub async fn sees(&mut self, part: &str) -> String {
        self.until(|screen| screen.contains(part)).await
    }

    /// Whether keys are shown and lines are read as a shell leaves it.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(self.slave.as_fd()).unwrap().local_flags;
        modes.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
    }

    /// Waits for the end of the program: its status, whether the terminal is as before, and the screen.
    pub async fn end(mut self) -> (ExitStatus, bool, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < BOUND, "it still runs:\n{}", self.screen());
            tokio::time::sleep(POLL).await;
        };
        let is_cooked = self.is_cooked();
        // What is still in the terminal comes before its end.
        self.slave = File::open("/dev/null").unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, is_cooked, self.screen())
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
