//! Are rows that existed before a table was followed in its history, joined to its changes without a gap and without a
//! double?
//!
//! Existing rows are recorded as `SNAPSHOT`, so that they can be told from changes. The history folded must be the table,
//! and the fold refuses a history that adds a row twice or changes one that is not there. Changes are compared
//! with what the trigger-kept oracle says: none may be missing that a recorded one was seen by.

#![allow(
    unreachable_pub,
    reason = "a module's items are public for the other modules of this binary"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot do its own work must stop, and say where"
)]

mod support;

#[path = "snapshot/faults.rs"]
mod faults;
#[path = "snapshot/joined.rs"]
mod joined;
#[path = "snapshot/load.rs"]
mod load;
#[path = "snapshot/overtaken.rs"]
mod overtaken;
#[path = "snapshot/refusals.rs"]
mod refusals;
#[path = "snapshot/scene.rs"]
mod scene;
#[path = "snapshot/told.rs"]
mod told;
