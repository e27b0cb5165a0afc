//! A patch against the payload before: once per publication of a channel with deltas.

use std::fmt::Write;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::fossil;

/// A list of quotes in JSON, so many bytes or a little more.
fn quotes(n_bytes: usize) -> String {
    let mut out = String::from("[");
    for n in 0.. {
        write!(out, "{{\"symbol\":\"S{n}\",\"bid\":{}.25,\"ask\":{}.75}},", n * 7919, n * 7919)
            .expect("a String takes every write");
        if out.len() >= n_bytes {
            break;
        }
    }
    out.pop();
    out + "]"
}

fn create(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fossil");
    for n_bytes in [128, 1024, 4096, 65_536] {
        let base = quotes(n_bytes);
        let one = base.replacen(".75", ".80", 1);
        let many = base.replace("1.75", "1.80");
        let rotated = format!("{}{}", &base[base.len() / 2..], &base[..base.len() / 2]);
        let other: String = base.bytes().map(|byte| char::from(byte ^ 1)).collect();
        for (name, target) in [("one", one), ("many", many), ("rotated", rotated), ("other", other)]
        {
            group.throughput(Throughput::Bytes(target.len() as u64));
            group.bench_function(BenchmarkId::new(name, n_bytes), |bencher| {
                bencher.iter(|| fossil::create(black_box(&base), black_box(&target)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, create);
criterion_main!(benches);
