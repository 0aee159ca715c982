//! Any bytes are one replication frame or refused, and what a status says is what is sent.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use waltrail::pgoutput::walk;
use waltrail::source::frame::Frame;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    match Frame::parse(bytes) {
        Ok(Frame::XLogData { payload, .. }) => {
            assert_eq!(payload.len() + 25, bytes.len());
            let _ = walk(payload);
        }
        Ok(Frame::Keepalive { .. }) => assert_eq!(bytes.len(), 18),
        Err(error) => drop(error.to_string()),
    }
    Corpus::Keep
});
