//! Tests of single rooms that need nothing but what is public.

mod cli;
mod exact;
mod fault;
mod feedback;
mod frame;
mod health;
mod lsn;
mod plan;
mod transaction;
