//! Decoder and row writer alone, without servers: what `make bench-micro` takes apart, and the one figure of it that
//! the report compares with its target.

use std::hint::black_box;
use std::time::{Duration, Instant};

use waltrail::history::batch::Batch;
use waltrail::pgoutput;
use waltrail::pipeline::Pipeline;

use crate::message::{Form, Operation, Stream};

/// Changes in one go: three quarters of a megabyte, about what the daemon hands over at once while it is behind.
pub const CHANGES: usize = 10_000;
/// What decoding and writing an INSERT of about 60 bytes may take, in nanoseconds per change.
pub const WRITE_NS_MAX: f64 = 40.0;
/// How long to measure at one moment. The fastest go counts: other machines on the same processor slow it by a third
/// for seconds at a time, and nothing makes it faster than it is.
const MEASURE: Duration = Duration::from_millis(200);

/// Reads every message to its end.
///
/// # Panics
/// On a message that the decoder refuses.
#[inline]
pub fn decode(stream: &Stream) {
    for message in stream.messages() {
        if let Err(error) = pgoutput::walk(black_box(message)) {
            panic!("{error}");
        }
    }
}

/// Decodes every message and writes its row for COPY.
///
/// # Panics
/// On a message that the pipeline refuses.
#[inline]
pub fn decode_and_write(pipeline: &mut Pipeline, stream: &Stream, batch: &mut Batch) {
    batch.clear();
    for message in black_box(stream).messages() {
        if let Err(error) = pipeline.accept(message, batch) {
            panic!("{error}");
        }
    }
}

/// Decodes and writes INSERTs of about 60 bytes in binary; the fastest go, in nanoseconds per change.
#[must_use]
pub fn write_ns() -> f64 {
    let stream = Stream::new(Operation::Insert, Form::Binary, CHANGES);
    let mut batch = Batch::new(usize::MAX);
    let mut fastest = Duration::MAX;
    let began = Instant::now();
    while began.elapsed() < MEASURE {
        let mut pipeline = stream.pipeline();
        let began = Instant::now();
        decode_and_write(&mut pipeline, &stream, &mut batch);
        fastest = fastest.min(began.elapsed());
    }
    fastest.as_secs_f64() * 1e9 / stream.changes() as f64
}
