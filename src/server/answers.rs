//! A server's answer that does not fit its question: other columns, other types, a NULL where none can be.
//!
//! The SQL client panics when such a value is taken out of a row. No server of PostgreSQL's sends one, but one that is
//! hostile or broken can, and it must not end the process. **The panic is caught where a session or a command runs.**

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::task::Poll;

use tokio::task::JoinError;

use crate::fault::{Disposition, Fault, Result};

/// How the SQL client's words begin.
const UNFIT: &str = "error retrieving column";

/// Lets such a panic print nothing: its fault says what it was. To be called once.
pub(crate) fn hush() {
    let before = take_hook();
    set_hook(Box::new(move |info| {
        if !is_unfit(info.payload()) {
            before(info);
        }
    }));
}

/// Runs `work`, whose panic of this kind is a fault. What it held is dropped.
pub(crate) async fn checked<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = Box::pin(work);
    std::future::poll_fn(move |cx| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))).unwrap_or_else(|panic| {
            match is_unfit(&*panic) {
                true => Poll::Ready(Err(unfit())),
                false => resume_unwind(panic),
            }
        })
    })
    .await
}

/// The fault of a task that did not come to its end; `what` says which, if it is a defect.
pub(crate) fn of_task(what: &'static str, error: JoinError) -> Fault {
    match error.try_into_panic() {
        Ok(panic) if is_unfit(&*panic) => unfit(),
        Ok(_) => Fault::bug(format!("{what} panicked")),
        Err(error) => Fault::bug(format!("{what} was ended")).caused_by(error),
    }
}

fn is_unfit(panic: &(dyn Any + Send)) -> bool {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .is_some_and(|words| words.starts_with(UNFIT))
}

fn unfit() -> Fault {
    let what = "a server gave an answer that does not fit its question";
    Fault::new(Disposition::RetryFew, what)
        .remedy("connect to PostgreSQL itself with source.dsn and target.dsn, and look at what stands between")
        .see("a-server-refused-a-statement")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_a_fault_and_another_panic_stays_one() {
        let unfit = checked::<()>(async {
            tokio::task::yield_now().await;
            panic!("{UNFIT} 0: canary")
        });
        let fault = unfit.await.unwrap_err();
        assert_eq!(fault.disposition(), Disposition::RetryFew);
        assert!(!fault.to_string().contains("canary"));
        let other = tokio::spawn(checked::<()>(async { panic!("other") }));
        let error = other.await.unwrap_err();
        assert_eq!(of_task("it", error).to_string(), "it panicked");
        let task = tokio::spawn(async { panic!("{UNFIT} 0: canary") });
        let fault = of_task("it", task.await.unwrap_err());
        assert_eq!(fault.disposition(), Disposition::RetryFew);
    }
}
