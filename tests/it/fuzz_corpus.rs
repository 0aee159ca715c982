//! Everything the fuzzer ever kept, and what live servers said, is read or refused without a panic, on every run of the tests.

mod record;

use std::fs;
use std::path::{Path, PathBuf};

use waltrail::config::{Config, Environment, Flags};
use waltrail::pgoutput::walk;
use waltrail::server::{Connection, Side};
use waltrail::source::frame::Frame;
use waltrail::walk_answers;

fn corpus(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("fuzz/corpus").join(target)
}

/// Name and content of each file.
fn files(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus(target)).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// How many files are taken, and how many refused.
fn counted(target: &str, takes: impl Fn(&str, &[u8]) -> bool) -> (usize, usize) {
    let files = files(target);
    let taken = files.iter().filter(|(name, bytes)| takes(name, bytes));
    let taken = taken.count();
    println!("{target}: {taken} of {} are taken", files.len());
    (taken, files.len() - taken)
}

/// A recording of a live server has its version before its name.
fn is_recorded(name: &str) -> bool {
    name.split_once('_')
        .is_some_and(|(version, _)| version.parse::<u32>().is_ok())
}

#[test]
fn every_file_of_the_corpus_is_read_or_refused() {
    let (read, refused) = counted("pgoutput", |name, bytes| {
        let is_read = walk(bytes).is_ok();
        assert!(is_read || !is_recorded(name), "{name}");
        is_read
    });
    assert!(
        read >= 18 + 35 && refused >= 7,
        "the seeds are there: {read} read, {refused} refused"
    );
}

#[test]
fn every_frame_of_a_live_server_is_read() {
    let (read, refused) = counted("frame", |name, bytes| {
        let is_read = Frame::parse(bytes).is_ok();
        assert!(is_read || !is_recorded(name), "{name}");
        is_read
    });
    assert!(read >= 10 && refused >= 2, "{read} read, {refused} refused");
}

#[test]
fn what_live_servers_say_is_understood_by_both_clients() {
    let (read, refused) = counted("answers", |name, bytes| {
        let [ours, client] = walk_answers(bytes).unwrap();
        // The exchange of a password holds what both ends have chosen by chance.
        if is_recorded(name) && !name.ends_with("scram") && !name.ends_with("refused") {
            assert!(ours.logged_in && client.logged_in, "{name}");
            let answers = match name.split_once('_') {
                Some((_, "sql")) => client.answers,
                _ => ours.answers,
            };
            assert!(answers >= 1, "{name}: {ours:?} {client:?}");
        }
        ours.logged_in
    });
    assert!(
        read >= 15 && refused >= 10,
        "{read} read, {refused} refused"
    );
}

#[test]
fn connection_strings_are_taken_or_refused() {
    let environment = Environment::empty();
    let (taken, refused) = counted("connection", |_, bytes| {
        let text = String::from_utf8_lossy(bytes);
        Connection::resolve(Side::Source, &text, None, &environment).is_ok()
    });
    assert!(
        taken >= 5 && refused >= 5,
        "{taken} taken, {refused} refused"
    );
}

#[test]
fn configurations_are_taken_or_refused() {
    let (taken, refused) = counted("configuration", |_, bytes| {
        let text = String::from_utf8_lossy(bytes);
        let read = Config::from_toml(&text, &Flags::default(), &Environment::empty());
        if let Err(fault) = &read {
            assert!(!fault.to_string().contains(char::is_control), "{fault}");
        }
        read.is_ok()
    });
    assert!(
        taken >= 2 && refused >= 5,
        "{taken} taken, {refused} refused"
    );
}
