//! Whatever a server says from its first byte on, both clients understand it or refuse it.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    waltrail::walk_answers(bytes).expect("there are sockets");
    Corpus::Keep
});
