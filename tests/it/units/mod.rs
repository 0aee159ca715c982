//! Tests of single rooms that need nothing but what is public.

mod cli;
mod fault;
mod frame;
mod lsn;
mod plan;
