//! What a history answers, in SQL: the table as it was, the versions of its rows, the net changes between two moments.
//!
//! [`ledger`] says what a history holds and where, [`fold`] writes the queries that fold it into its table, [`objects`] makes
//! functions and a view of them. A history is read in the order of the number of its rows, `cdc_id`, and in no other. Only
//! [`inherited`] asks a server.

mod changes;
pub mod fold;
pub mod inherited;
pub mod ledger;
pub mod objects;
