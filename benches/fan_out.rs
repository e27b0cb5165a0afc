//! From one publication to what every subscriber has to get, and until all of it was taken: no
//! sockets, the write function takes everything.
//!
//! Two naive ways: a copy of the frame to each subscriber's own buffer, and a queue of shared frames
//! for each subscriber, which costs an atomic count and a queue's slot for every delivery.

mod common;

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::channel::Channel;
use hubbub::publication::{Format, Publication};
use hubbub::shard::hub::Sent;

use common::Crowd;

/// Publications between two writes: what gathers while a shard is busy.
const GROUP: usize = 4;
const PAYLOAD_BYTES: usize = 128;

fn take_all(_: i32, parts: &[&[u8]]) -> Sent {
    Sent::Bytes(parts.iter().map(|part| black_box(*part).len()).sum())
}

fn one_channel(criterion: &mut Criterion) {
    let publication = common::publication(&Arc::new(Channel::new("prices:0")), PAYLOAD_BYTES);
    let frame = publication.frame(Format::Raw).unwrap();
    let mut group = criterion.benchmark_group("fan_out, one channel");
    for n_subscribers in [1, 100, 10_000] {
        group.throughput(Throughput::Elements((GROUP * n_subscribers) as u64));
        let mut crowd = Crowd::new(n_subscribers, 1, |_| 0);
        group.bench_function(BenchmarkId::new("cohort log", n_subscribers), |bencher| {
            bencher.iter(|| {
                for _ in 0..GROUP {
                    crowd.hub.publish(crowd.channels[0].0, &publication);
                }
                crowd.flush(&mut take_all);
            });
        });
        let mut buffers = vec![Vec::new(); n_subscribers];
        group.bench_function(BenchmarkId::new("naive copy each", n_subscribers), |bencher| {
            bencher.iter(|| copy_each(&mut buffers, frame));
        });
        let mut queues = vec![VecDeque::new(); n_subscribers];
        group.bench_function(BenchmarkId::new("naive queue each", n_subscribers), |bencher| {
            bencher.iter(|| queue_each(&mut queues, frame));
        });
    }
    group.finish();
}

fn copy_each(buffers: &mut [Vec<u8>], frame: &Bytes) {
    for _ in 0..GROUP {
        buffers.iter_mut().for_each(|buffer| buffer.extend_from_slice(frame));
    }
    for buffer in buffers {
        take_all(0, &[buffer]);
        buffer.clear();
    }
}

fn queue_each(queues: &mut [VecDeque<Bytes>], frame: &Bytes) {
    for _ in 0..GROUP {
        queues.iter_mut().for_each(|queue| queue.push_back(frame.clone()));
    }
    for queue in queues {
        while let Some(frame) = queue.pop_front() {
            take_all(0, &[&frame]);
        }
    }
}

/// 10,000 sessions over so many channels: each publication goes to few.
fn many_channels(criterion: &mut Criterion) {
    const N_SESSIONS: usize = 10_000;
    let mut group = criterion.benchmark_group("fan_out, 10000 sessions over");
    for n_channels in [10, 1000, 10_000] {
        let mut crowd = Crowd::new(N_SESSIONS, n_channels, |_| 0);
        let publications: Vec<Arc<Publication>> = crowd
            .channels
            .iter()
            .map(|(_, channel)| common::publication(channel, PAYLOAD_BYTES))
            .collect();
        group.throughput(Throughput::Elements(N_SESSIONS as u64));
        group.bench_function(BenchmarkId::from_parameter(n_channels), |bencher| {
            bencher.iter(|| {
                for ((id, _), publication) in crowd.channels.iter().zip(&publications) {
                    crowd.hub.publish(*id, publication);
                }
                crowd.flush(&mut take_all);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_channel, many_channels);
criterion_main!(benches);
