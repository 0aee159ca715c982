//! Are rows that existed before a table was followed in its history, joined to its changes without a gap and without a
//! double?
//!
//! Existing rows are recorded as `SNAPSHOT`, so that they can be told from changes. The history folded must be the table,
//! and the fold refuses a history that adds a row twice or changes one that is not there. Changes are compared
//! with what the trigger-kept oracle says: none may be missing that a recorded one was seen by.

mod faults;
mod joined;
mod load;
mod overtaken;
mod refusals;
pub mod told;
