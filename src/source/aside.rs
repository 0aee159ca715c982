//! On which core this thread runs while it reads what piles up behind a walsender of the same machine.
//!
//! Over a Unix-domain socket the walsender sets the time of a drain, and it needs a core for itself. Linux does not see
//! to that: whoever wakes up while most cores are busy stays where he slept, and that can be the walsender's core
//! while another has nothing to do. So this thread looks from time to time, and steps over to another core. It is
//! not bound to that one: where else it had better run, the scheduler knows.
//!
//! The process has to be what it claims to be, a child of the one that listens behind the socket: process ids of another
//! container mean somebody else here. Where it cannot be seen, or where there is no other core, nothing is done.

use std::time::{Duration, Instant};

use walsender::Walsender;

/// How often is looked where the walsender runs; it takes some 20 microseconds.
const LOOK: Duration = Duration::from_millis(5);
/// A stream is behind for so long before it counts: where single changes come, the walsender's core is the shorter way,
/// and whoever left it does not soon return.
const PATIENCE: Duration = Duration::from_millis(100);
/// So long without a pause, it was not behind.
const BREAK: Duration = Duration::from_millis(20);

/// Keeps the thread that uses it off a walsender's core.
#[derive(Debug)]
pub struct Aside {
    walsender: Option<Walsender>,
    /// When it was last called, and when it looks next.
    times: Option<(Instant, Instant)>,
}

impl Aside {
    /// For whoever may run anywhere.
    pub const NEVER: Self = Self {
        walsender: None,
        times: None,
    };

    /// Keeps off the core of the process `walsender`, which has to be a child of `listener`.
    #[must_use]
    pub fn of(walsender: i32, listener: i32) -> Self {
        Self {
            walsender: Walsender::find(walsender, listener),
            times: None,
        }
    }

    /// Leaves the walsender's core if this thread runs there too. To be called at each pause: it seldom looks.
    pub fn step(&mut self, now: Instant) {
        let Some(walsender) = &self.walsender else {
            return;
        };
        let due = match self.times {
            Some((called, due)) if now < called + BREAK => due,
            _ => now + PATIENCE,
        };
        self.times = Some((now, if now < due { due } else { now + LOOK }));
        if now >= due && walsender.leave_to_itself().is_none() {
            // It is gone, or this thread may not choose: neither will be otherwise next time.
            self.walsender = None;
        }
    }
}

#[cfg(target_os = "linux")]
mod walsender {
    use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use nix::unistd::Pid;
    use procfs::process::Process;

    /// sched_setaffinity(2): the calling thread.
    const THIS_THREAD: Pid = Pid::from_raw(0);

    #[derive(Debug)]
    pub(super) struct Walsender(Process);

    impl Walsender {
        pub(super) fn find(pid: i32, parent: i32) -> Option<Self> {
            let process = Process::new(pid).ok()?;
            let is_child = process.stat().ok()?.ppid == parent;
            is_child.then_some(Self(process))
        }

        /// `None` where that cannot be done.
        pub(super) fn leave_to_itself(&self) -> Option<()> {
            let core = usize::try_from(self.0.stat().ok()?.processor?).ok()?;
            if sched_getcpu().ok()? != core {
                return Some(());
            }
            let allowed = sched_getaffinity(THIS_THREAD).ok()?;
            let mut others = allowed;
            others.unset(core).ok()?;
            if others == CpuSet::new() {
                return None;
            }
            // The first moves this thread, the second lets it be moved again.
            sched_setaffinity(THIS_THREAD, &others).ok()?;
            sched_setaffinity(THIS_THREAD, &allowed).ok()
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod walsender {
    #[derive(Debug)]
    pub(super) struct Walsender;

    impl Walsender {
        pub(super) fn find(_: i32, _: i32) -> Option<Self> {
            None
        }

        pub(super) fn leave_to_itself(&self) -> Option<()> {
            None
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use nix::unistd::Pid;

    use super::*;

    /// A process that is always busy, on one core.
    struct Busy(Child);

    impl Busy {
        fn start() -> Self {
            Self(
                Command::new("sh")
                    .args(["-c", "while :; do :; done"])
                    .spawn()
                    .unwrap(),
            )
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }

        fn move_to(&self, core: usize) {
            sched_setaffinity(Pid::from_raw(self.pid()), &only(core)).unwrap();
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn only(core: usize) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(core).unwrap();
        set
    }

    fn allowed() -> CpuSet {
        sched_getaffinity(Pid::from_raw(0)).unwrap()
    }

    fn cores() -> Vec<usize> {
        let allowed = allowed();
        (0..CpuSet::count())
            .filter(|core| allowed.is_set(*core).unwrap())
            .collect()
    }

    /// Runs on one core, and may run on all of `set`.
    fn run_on(core: usize, set: &CpuSet) {
        sched_setaffinity(Pid::from_raw(0), &only(core)).unwrap();
        sched_setaffinity(Pid::from_raw(0), set).unwrap();
    }

    fn me() -> i32 {
        std::process::id().cast_signed()
    }

    /// Of ten times that it stood on the core of `busy`, how often it left.
    fn left(busy: &Busy, aside: &mut Aside) -> usize {
        let set = allowed();
        let mut now = behind(aside, Instant::now());
        let mut left = 0;
        for core in cores().into_iter().cycle().take(10) {
            busy.move_to(core);
            run_on(core, &set);
            now += LOOK;
            aside.step(now);
            left += usize::from(sched_getcpu().unwrap() != core);
            assert_eq!(allowed(), set);
        }
        left
    }

    /// Pauses from `now` on, until it is about to look.
    fn behind(aside: &mut Aside, mut now: Instant) -> Instant {
        let end = now + PATIENCE - LOOK;
        while now < end {
            aside.step(now);
            now += LOOK;
        }
        aside.step(end);
        end
    }

    #[test]
    fn a_thread_stays_until_the_stream_was_behind_for_long() {
        let gone = || {
            let busy = Busy::start();
            Aside::of(busy.pid(), me())
        };
        // It would see that there is none.
        let (mut aside, began) = (gone(), Instant::now());
        let end = behind(&mut aside, began);
        assert!(aside.walsender.is_some());
        aside.step(end + BREAK);
        assert!(aside.walsender.is_some());
        let end = behind(&mut aside, end + BREAK);
        assert!(aside.walsender.is_some());
        aside.step(end + LOOK);
        assert!(aside.walsender.is_none());
    }

    #[test]
    fn a_thread_leaves_the_core_of_the_walsender_and_may_run_anywhere() {
        let busy = Busy::start();
        let expected = if cores().len() > 1 { 8..=10 } else { 0..=0 };
        let left = left(&busy, &mut Aside::of(busy.pid(), me()));
        assert!(expected.contains(&left), "{left}");
    }

    #[test]
    fn a_thread_stays_where_it_is_beside_a_process_that_is_no_child_of_the_listener() {
        let busy = Busy::start();
        assert!(Aside::of(busy.pid(), 1).walsender.is_none());
        assert!(Aside::of(busy.pid(), me()).walsender.is_some());
    }

    #[test]
    fn a_walsender_that_is_gone_is_let_alone() {
        let busy = Busy::start();
        let mut aside = Aside::of(busy.pid(), me());
        drop(busy);
        let end = behind(&mut aside, Instant::now());
        aside.step(end + LOOK);
        assert!(aside.walsender.is_none());
    }
}
