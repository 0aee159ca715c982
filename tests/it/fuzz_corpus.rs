//! Everything the fuzzer ever kept is read or refused without a panic, on every run of the tests.

use std::fs;
use std::path::Path;

use waltrail::pgoutput::walk;

#[test]
fn every_file_of_the_corpus_is_read_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/pgoutput");
    let (mut read, mut refused) = (0, 0);
    for file in fs::read_dir(corpus).unwrap() {
        match walk(&fs::read(file.unwrap().path()).unwrap()) {
            Ok(()) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        read >= 18 && refused >= 7,
        "the seeds are there: {read} read, {refused} refused"
    );
}
