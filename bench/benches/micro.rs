//! Decoder and row writer, in nanoseconds per change and bytes per second.
//!
//! `change/s` counts row changes (there is one Begin and one Commit per hundred), bytes are those of the messages. The
//! last line is the figure that has a target.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use waltrail::history::batch::Batch;
use waltrail_bench::message::{Form, Operation, Stream};
use waltrail_bench::micro::{self, CHANGES, WRITE_NS_MAX};

const STREAMS: [&str; 6] = [
    "insert binary",
    "update binary",
    "delete binary",
    "insert text",
    "update text",
    "delete text",
];

fn main() {
    divan::main();
    let fastest = (0..5).map(|_| micro::write_ns()).fold(f64::MAX, f64::min);
    let met = match fastest <= WRITE_NS_MAX {
        true => "met",
        false => "missed",
    };
    println!(
        "decode and write, INSERT of about 60 bytes, binary: {fastest:.1} ns per change; at most {WRITE_NS_MAX:.0}: {met}"
    );
}

fn stream(name: &str) -> Stream {
    let operation = match name.split(' ').next() {
        Some("insert") => Operation::Insert,
        Some("update") => Operation::Update,
        _ => Operation::Delete,
    };
    let form = match name.ends_with("text") {
        true => Form::Text,
        false => Form::Binary,
    };
    Stream::new(operation, form, CHANGES)
}

fn counted<'a, 'b>(bencher: Bencher<'a, 'b>, stream: &Stream) -> Bencher<'a, 'b> {
    bencher
        .counter(ItemsCount::new(stream.changes()))
        .counter(BytesCount::new(stream.bytes().len()))
}

#[divan::bench(args = STREAMS)]
fn decode(bencher: Bencher<'_, '_>, name: &str) {
    let stream = stream(name);
    counted(bencher, &stream).bench_local(|| micro::decode(&stream));
}

#[divan::bench(args = STREAMS)]
fn decode_and_write(bencher: Bencher<'_, '_>, name: &str) {
    let stream = stream(name);
    let mut batch = Batch::new(usize::MAX);
    counted(bencher, &stream)
        .with_inputs(|| stream.pipeline())
        .bench_local_refs(|pipeline| {
            micro::decode_and_write(pipeline, &stream, &mut batch);
        });
}
