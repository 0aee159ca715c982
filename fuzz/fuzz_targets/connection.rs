//! Any text is a connection string or refused, and a refusal shows no password.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use waltrail::config::Environment;
use waltrail::server::{Connection, Side};

const SECRET: &str = "Kq7ZtV";

fuzz_target!(|text: &str| -> Corpus {
    // A file of this machine.
    if text.contains("service") {
        return Corpus::Reject;
    }
    let environment = Environment::empty();
    let texts = [
        text.to_owned(),
        format!("{text} password={SECRET}"),
        format!("password='{SECRET}' {text}"),
        format!("postgresql://u:{SECRET}@{text}"),
    ];
    for text in texts {
        // Of one that is accepted, what looks like a password can be the user's name.
        if let Err(fault) = Connection::resolve(Side::Source, &text, None, &environment) {
            let shown = format!("{fault} {fault:?} {:?}", fault.remedy_text());
            assert!(!shown.contains(SECRET), "{text}: {shown}");
        }
    }
    Corpus::Keep
});
