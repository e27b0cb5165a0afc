//! From a channel's name, as Redis sends it, to the shards that want it.
//!
//! hubbub looks the name up once, on the broker thread; shards get a slot number. The naive way sends
//! the name to every shard, and each looks it up.

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::broker::Interest;

const N_SHARDS: usize = 4;
const N_LOOK_UPS: usize = 1024;

fn name(n: usize) -> String {
    format!("prices:instrument-{n}")
}

/// Every shard wants every channel.
fn interest(n_channels: usize) -> Interest {
    let mut interest = Interest::new(1000, 3000);
    for n in 0..n_channels {
        for shard in 0..N_SHARDS {
            assert!(interest.acquire(&name(n), shard, 0).is_none());
        }
    }
    // So many a millisecond, and no more.
    for now_ms in 0.. {
        if !interest.has_changes() {
            break;
        }
        for name in interest.take_changes(n_channels, now_ms).subscribe {
            assert!(interest.on_subscribed(name.as_bytes()).is_some());
        }
    }
    interest
}

fn demux(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("demux");
    group.throughput(Throughput::Elements(N_LOOK_UPS as u64));
    for n_channels in [1, 1000, 100_000] {
        // A stride that visits all: no look-up is warm because of the one before.
        let order = (0..N_LOOK_UPS).map(|n| n * 7919 % n_channels);
        let names: Vec<String> = order.map(name).collect();
        let interest = interest(n_channels);
        let slots = vec![0u32; n_channels];
        group.bench_function(BenchmarkId::new("name once, then slots", n_channels), |bencher| {
            bencher.iter(|| {
                for name in &names {
                    let target = interest.target(name.as_bytes()).unwrap();
                    for _ in target.shards.iter() {
                        black_box(slots[target.id.slot as usize]);
                    }
                }
            });
        });
        let shards: Vec<HashMap<String, u32>> =
            (0..N_SHARDS).map(|_| (0..n_channels).map(|n| (name(n), n as u32)).collect()).collect();
        group.bench_function(BenchmarkId::new("naive name in each shard", n_channels), |bencher| {
            bencher.iter(|| {
                for name in &names {
                    for shard in &shards {
                        black_box(shard[name]);
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, demux);
criterion_main!(benches);
