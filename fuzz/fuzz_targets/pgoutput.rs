//! Any bytes are one message or refused, and a message has exactly one end.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use waltrail::pgoutput::walk;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if walk(bytes).is_ok() {
        let shorter = bytes.split_last().map_or(bytes, |(_, shorter)| shorter);
        assert!(walk(shorter).is_err(), "also right without its last byte");
        assert!(
            walk(&[bytes, &[0]].concat()).is_err(),
            "also right with one byte more"
        );
    }
    Corpus::Keep
});
