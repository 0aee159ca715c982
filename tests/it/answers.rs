//! What a history answers: the table as it was, versions, net changes.

mod at_random;
mod functions;
