//! Faults in the middle.
