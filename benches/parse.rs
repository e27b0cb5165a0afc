//! From bytes of a client to its messages: unmasked, checked, in the shard's own read buffer.
//!
//! The naive way copies every payload to a buffer of its own and unmasks it byte by byte.

mod common;

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::shard::reader::{FRAGMENTS_MAX, Flow, Input, Limits, Reader};

const N_FRAMES: usize = 64;
const MASK: [u8; 4] = [0x12, 0x9f, 0x33, 0xe0];
const LIMITS: Limits = Limits { message_bytes_max: 64 * 1024, fragments_max: FRAGMENTS_MAX };

fn client_frames(payload_bytes: usize) -> Vec<u8> {
    let payload = common::payload(payload_bytes);
    let mut out = Vec::new();
    for _ in 0..N_FRAMES {
        out.push(0x81);
        if payload.len() < 126 {
            out.push(0x80 | payload.len() as u8);
        } else {
            out.push(0x80 | 126);
            out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        out.extend_from_slice(&MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    out
}

fn read(bytes: &mut [u8], chunk_bytes: usize) -> usize {
    let mut reader = Reader::default();
    let mut n_bytes = 0;
    let mut sink = |input: Input<'_>| {
        if let Input::Message { bytes, .. } = input {
            n_bytes += black_box(bytes).len();
        }
        Flow::Continue
    };
    for chunk in bytes.chunks_mut(chunk_bytes) {
        assert_eq!(reader.feed(chunk, &LIMITS, &mut sink), Ok(Flow::Continue));
    }
    n_bytes
}

fn read_naively(mut bytes: &[u8]) -> usize {
    let mut n_bytes = 0;
    while let [_, second, ..] = bytes {
        let (length, head) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
            length => (usize::from(length), 2),
        };
        let mask = &bytes[head..head + 4];
        let payload = bytes[head + 4..head + 4 + length].iter();
        let payload = payload.zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        n_bytes += black_box(String::from_utf8(payload).unwrap()).len();
        bytes = &bytes[head + 4 + length..];
    }
    n_bytes
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(N_FRAMES as u64));
    for n_bytes in [40, 1024] {
        let frames = client_frames(n_bytes);
        for (name, chunk_bytes) in [("whole", usize::MAX), ("cut every 100 bytes", 100)] {
            group.bench_function(BenchmarkId::new(name, n_bytes), |bencher| {
                bencher.iter_batched_ref(
                    || frames.clone(),
                    |frames| assert_eq!(read(frames, chunk_bytes), N_FRAMES * n_bytes),
                    BatchSize::SmallInput,
                );
            });
        }
        group.bench_function(BenchmarkId::new("naive copy", n_bytes), |bencher| {
            bencher.iter_batched_ref(
                || frames.clone(),
                |frames| assert_eq!(read_naively(frames), N_FRAMES * n_bytes),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
