//! Any text is a configuration or refused, and a refusal is one sentence.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use waltrail::config::{Config, Environment, Flags};

fuzz_target!(|text: &str| -> Corpus {
    // A file of this machine.
    if text.contains("service") {
        return Corpus::Reject;
    }
    if let Err(fault) = Config::from_toml(text, &Flags::default(), &Environment::empty()) {
        let shown = fault.to_string();
        assert!(
            !shown.is_empty() && !shown.contains(char::is_control),
            "{shown}"
        );
    }
    Corpus::Keep
});
