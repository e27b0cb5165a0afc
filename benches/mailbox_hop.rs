//! From one thread to another: publications through a shard's mailbox, until all have arrived.
//!
//! The naive way is a channel with one item a send.

mod common;

use std::future::poll_fn;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::channel::{Channel, ChannelId};
use hubbub::mailbox::{Urgency, mailbox};
use hubbub::publication::Publication;
use hubbub::shard::ShardEvent;

const N_ITEMS: usize = 16_384;
const BATCHES_MAX: usize = 256;

fn event(publication: &Arc<Publication>) -> ShardEvent {
    let channel = ChannelId { slot: 0, generation: 0 };
    ShardEvent::Publication { channel, publication: publication.clone() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Both ends of one barrier for two.
fn barriers() -> (Arc<Barrier>, Arc<Barrier>) {
    let barrier = Arc::new(Barrier::new(2));
    (barrier.clone(), barrier)
}

/// From the first send until the receiver has all; its thread runs by then.
fn hop(publication: &Arc<Publication>, batch_items: usize) -> Duration {
    let (sender, unbound) = mailbox(BATCHES_MAX);
    let (both, ready) = barriers();
    let receiver = std::thread::spawn(move || {
        let receiver = unbound.bind();
        ready.wait();
        let mut n_items = 0;
        block_on(async {
            while n_items < N_ITEMS {
                poll_fn(|cx| receiver.poll_wait(cx)).await;
                receiver.set_awake();
                while let Some(batch) = receiver.try_recv() {
                    n_items += batch.len();
                }
            }
        });
        Instant::now()
    });
    both.wait();
    let start = Instant::now();
    for _ in 0..N_ITEMS / batch_items {
        let mut batch = (0..batch_items).map(|_| event(publication)).collect();
        while let Err(back) = sender.try_send(batch, Urgency::Relaxed) {
            batch = back;
            std::thread::yield_now();
        }
    }
    receiver.join().unwrap() - start
}

fn hop_naively(publication: &Arc<Publication>) -> Duration {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(BATCHES_MAX);
    let (both, ready) = barriers();
    let receiver = std::thread::spawn(move || {
        ready.wait();
        block_on(async {
            let mut n_items = 0;
            while n_items < N_ITEMS && receiver.recv().await.is_some() {
                n_items += 1;
            }
        });
        Instant::now()
    });
    both.wait();
    let start = Instant::now();
    for _ in 0..N_ITEMS {
        sender.blocking_send(event(publication)).unwrap();
    }
    receiver.join().unwrap() - start
}

fn mailbox_hop(criterion: &mut Criterion) {
    let publication = Arc::new(common::publication(&Arc::new(Channel::new("prices")), 128));
    let mut group = criterion.benchmark_group("mailbox_hop");
    group.throughput(Throughput::Elements(N_ITEMS as u64));
    for batch_items in [1, 16, 256] {
        group.bench_function(BenchmarkId::new("batches", batch_items), |bencher| {
            bencher.iter_custom(|n| (0..n).map(|_| hop(&publication, batch_items)).sum());
        });
    }
    group.bench_function("naive channel", |bencher| {
        bencher.iter_custom(|n| (0..n).map(|_| hop_naively(&publication)).sum());
    });
    group.finish();
}

criterion_group!(benches, mailbox_hop);
criterion_main!(benches);
