//! From a payload to a finished server frame: once per publication and wire format.
//!
//! The naive way reads the payload into a tree and writes it out again, as a hub does that builds its
//! pushes with serde.

mod common;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::channel::Channel;
use hubbub::frame::{Opcode, put_frame};
use hubbub::publication::{Body, Format, Publication};
use serde_json::{Value, json};

fn encode(criterion: &mut Criterion) {
    let channel = Arc::new(Channel::new("prices:EURUSD"));
    let mut group = criterion.benchmark_group("encode");
    for n_bytes in [128, 4096] {
        let payload = common::payload(n_bytes);
        group.throughput(Throughput::Elements(1));
        for (name, format) in [("json", Format::Json), ("raw", Format::Raw)] {
            group.bench_function(BenchmarkId::new(name, n_bytes), |bencher| {
                bencher.iter_with_large_drop(|| {
                    let body = Body::plain(black_box(&payload).clone());
                    let publication = Publication::new(channel.clone(), body);
                    publication.frame(format).cloned()
                });
            });
        }
        group.bench_function(BenchmarkId::new("naive tree", n_bytes), |bencher| {
            bencher.iter_with_large_drop(|| {
                let data: Value = serde_json::from_slice(black_box(&payload)).unwrap();
                let push =
                    json!({ "push": { "channel": &*channel.name, "pub": { "data": data } } });
                let mut out = Vec::new();
                put_frame(&mut out, Opcode::Text, &serde_json::to_vec(&push).unwrap());
                out
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
