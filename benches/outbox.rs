//! A log of frames: filled, read by its sessions, and trimmed behind the last of them.
//!
//! The naive way is a queue of shared frames: nothing is copied, but nothing is contiguous either, and
//! a write needs a list of slices.

mod common;

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::channel::Channel;
use hubbub::publication::Format;
use hubbub::shard::Outbox;

const N_FRAMES: usize = 64;
const N_READERS: usize = 100;

fn fill_read_trim(outbox: &mut Outbox, frame: &Bytes) {
    let start = outbox.end();
    for _ in 0..N_FRAMES {
        outbox.push(frame);
    }
    for _ in 0..N_READERS {
        let mut position = start;
        while position < outbox.end() {
            position += black_box(outbox.chunk(position)).len() as u64;
        }
    }
    outbox.trim(outbox.end());
    assert_eq!(outbox.bytes(), 0);
}

fn fill_read_trim_naively(queue: &mut VecDeque<Bytes>, frame: &Bytes) {
    for _ in 0..N_FRAMES {
        queue.push_back(frame.clone());
    }
    for _ in 0..N_READERS {
        let mut slices = [IoSlice::new(&[]); N_FRAMES];
        for (slice, frame) in slices.iter_mut().zip(queue.iter()) {
            *slice = IoSlice::new(frame);
        }
        black_box(&slices);
    }
    queue.clear();
}

fn outbox(criterion: &mut Criterion) {
    let channel = Arc::new(Channel::new("prices"));
    let mut group = criterion.benchmark_group("outbox");
    group.throughput(Throughput::Elements((N_FRAMES * N_READERS) as u64));
    // The last is over the size from which frames are shared, not copied.
    for n_bytes in [128, 4096, 32 * 1024] {
        let publication = common::publication(&channel, n_bytes);
        let frame = publication.frame(Format::Raw).unwrap();
        let mut outbox = Outbox::default();
        group.bench_function(BenchmarkId::new("log", n_bytes), |bencher| {
            bencher.iter(|| fill_read_trim(&mut outbox, frame));
        });
        let mut queue = VecDeque::new();
        group.bench_function(BenchmarkId::new("naive queue", n_bytes), |bencher| {
            bencher.iter(|| fill_read_trim_naively(&mut queue, frame));
        });
    }
    group.finish();
}

criterion_group!(benches, outbox);
criterion_main!(benches);
