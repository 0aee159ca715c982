//! Decoder and row writer in ns per change and bytes per second, beside `memcpy` of the same bytes.
//!
//! `change/s` is of row changes (each go has one Begin and one Commit per hundred), bytes are those of the messages.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use waltrail::target::batch::Batch;
use waltrail_bench::message::{Form, Kind, Stream};
use waltrail_bench::micro::{self, CHANGES};

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
}

fn stream(name: &str) -> Stream {
    let kind = match name.split(' ').next() {
        Some("insert") => Kind::Insert,
        Some("update") => Kind::Update,
        _ => Kind::Delete,
    };
    let form = match name.ends_with("text") {
        true => Form::Text,
        false => Form::Binary,
    };
    Stream::new(kind, form, CHANGES)
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

#[divan::bench(args = STREAMS)]
fn memcpy(bencher: Bencher<'_, '_>, name: &str) {
    let stream = stream(name);
    let mut into = vec![0; stream.bytes().len()];
    counted(bencher, &stream).bench_local(|| micro::copy(&stream, &mut into));
}

#[divan::bench(args = STREAMS)]
fn memcpy_each(bencher: Bencher<'_, '_>, name: &str) {
    let stream = stream(name);
    let mut into = Vec::new();
    counted(bencher, &stream).bench_local(|| micro::copy_each(&stream, &mut into));
}
