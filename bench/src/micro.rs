//! The way of a change inside the daemon, without servers: what `make bench-micro` takes apart, and the one figure of
//! it that the targets name.

use std::hint::black_box;
use std::time::{Duration, Instant};

use waltrail::pgoutput;
use waltrail::pipeline::Pipeline;
use waltrail::target::batch::Batch;

use crate::message::{Form, Kind, Stream};

/// Changes in one go: three quarters of a megabyte, about what the daemon hands over at once while it is behind.
pub const CHANGES: usize = 10_000;
/// How long to measure at one moment; the fastest go of each counts, since nothing makes code faster than it is. What
/// other machines do on the same processor slows it by a third for seconds at a time, so there are to be several moments.
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
    let mut messages = black_box(stream).messages();
    while let Some(message) = pipeline.accept_short(&mut messages, batch) {
        if let Err(error) = pipeline.accept(message, batch) {
            panic!("{error}");
        }
    }
}

/// Copies all messages at once: the limit.
#[inline]
pub fn copy(stream: &Stream, into: &mut [u8]) {
    into.copy_from_slice(black_box(stream.bytes()));
    black_box(&into);
}

/// Copies message by message: the limit for whoever looks at each.
#[inline]
pub fn copy_each(stream: &Stream, into: &mut Vec<u8>) {
    into.clear();
    for message in stream.messages() {
        into.extend_from_slice(black_box(message));
    }
    black_box(&into);
}

/// Decoder and row writer beside `memcpy`, in nanoseconds per change (INSERTs of about 60 bytes, binary).
#[derive(Clone, Copy, Debug)]
pub struct Micro {
    /// Decoded and written.
    pub write_ns: f64,
    /// The same messages copied at once.
    pub copy_ns: f64,
    /// The same messages copied one by one, as whoever looks at each must.
    pub copy_each_ns: f64,
}

impl Micro {
    /// The fastest of each.
    #[must_use]
    pub fn fastest(self, other: Self) -> Self {
        Self {
            write_ns: self.write_ns.min(other.write_ns),
            copy_ns: self.copy_ns.min(other.copy_ns),
            copy_each_ns: self.copy_each_ns.min(other.copy_each_ns),
        }
    }
}

/// Measures all in turn, for a fifth of a second.
#[must_use]
pub fn measure() -> Micro {
    let stream = Stream::new(Kind::Insert, Form::Binary, CHANGES);
    let mut batch = Batch::new(usize::MAX);
    let mut copied = vec![0; stream.bytes().len()];
    let mut copied_each = Vec::with_capacity(stream.bytes().len());
    let mut fastest = Micro {
        write_ns: f64::INFINITY,
        copy_ns: f64::INFINITY,
        copy_each_ns: f64::INFINITY,
    };
    let ns = |time: Duration| time.as_secs_f64() * 1e9 / stream.changes() as f64;
    let began = Instant::now();
    while began.elapsed() < MEASURE {
        let mut pipeline = stream.pipeline();
        fastest = fastest.fastest(Micro {
            write_ns: ns(timed(|| {
                decode_and_write(&mut pipeline, &stream, &mut batch);
            })),
            copy_ns: ns(timed(|| copy(&stream, &mut copied))),
            copy_each_ns: ns(timed(|| copy_each(&stream, &mut copied_each))),
        });
    }
    fastest
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}
