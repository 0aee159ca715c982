//! All tests that are not beside their code, in one program: a module for each kind of question.

#![allow(
    unreachable_pub,
    reason = "a module's items are public for the other modules of this program"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot do its own work must stop, and say where"
)]

mod alerts;
mod answers;
mod bloat;
mod chaos;
mod check;
mod cli;
mod cluster;
mod compare;
mod config;
mod context;
mod demo;
mod docs;
mod end_to_end;
mod failover;
mod faults;
mod fidelity;
mod fuzz_corpus;
mod hostile;
mod lasting;
mod life;
mod many;
mod metrics;
mod one_writer;
mod pgoutput;
mod pipeline;
mod poison;
mod records;
mod refusals;
mod security;
mod snapshot;
mod soak;
mod status;
mod support;
mod take_over;
mod tidy;
mod tls;
mod undo;
mod unfit;
mod units;
mod values;
mod verify;
mod waits;
mod watchdog;
