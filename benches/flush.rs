//! From the logs to the kernel: real TCP sockets over loopback, everything that is pending for a
//! session in one `send`. Only the sends are timed; the peers read in between.
//!
//! The naive way is a `send` a frame.

mod common;

use std::io::{ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubbub::channel::Channel;
use hubbub::publication::{Format, Publication};
use hubbub::shard::hub::Sent;
use hubbub::shard::send;

use common::Crowd;

const N_SOCKETS: usize = 100;

struct Peers {
    ours: Vec<TcpStream>,
    theirs: Vec<TcpStream>,
}

impl Peers {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..N_SOCKETS {
            theirs.push(TcpStream::connect(address).unwrap());
            ours.push(listener.accept().unwrap().0);
        }
        theirs.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
        ours.iter().for_each(|stream| stream.set_nodelay(true).unwrap());
        Self { ours, theirs }
    }

    /// Reads until everyone has got so much.
    fn read(&mut self, n_bytes_each: usize) {
        let mut buffer = [0; 64 * 1024];
        for stream in &mut self.theirs {
            let mut n_left = n_bytes_each;
            while n_left > 0 {
                match stream.read(&mut buffer) {
                    Ok(n_bytes) if n_bytes > 0 => n_left -= n_bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// How long the sends took, `n` times.
fn timed(
    n: u64,
    peers: &mut Peers,
    n_bytes_each: usize,
    mut sends: impl FnMut(&Peers),
) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..n {
        let start = Instant::now();
        sends(peers);
        took += start.elapsed();
        peers.read(n_bytes_each);
    }
    took
}

fn flush(criterion: &mut Criterion) {
    let publication: Arc<Publication> =
        common::publication(&Arc::new(Channel::new("prices:0")), 128);
    let frame = publication.frame(Format::Raw).unwrap();
    let mut peers = Peers::new();
    let fds: Vec<i32> = peers.ours.iter().map(|stream| stream.as_raw_fd()).collect();
    let mut crowd = Crowd::new(N_SOCKETS, 1, |n| fds[n]);
    let mut group = criterion.benchmark_group("flush");
    for n_frames in [1, 4, 16] {
        let n_bytes_each = n_frames * frame.len();
        group.throughput(Throughput::Elements((n_frames * N_SOCKETS) as u64));
        group.bench_function(BenchmarkId::new("one send a session", n_frames), |bencher| {
            bencher.iter_custom(|n| {
                timed(n, &mut peers, n_bytes_each, |_| {
                    for _ in 0..n_frames {
                        crowd.hub.publish(crowd.channels[0].0, &publication);
                    }
                    crowd.flush(&mut send);
                })
            });
        });
        group.bench_function(
            BenchmarkId::new("one send a session, in a run", n_frames),
            |bencher| {
                bencher.iter_custom(|n| {
                    timed(n, &mut peers, n_bytes_each, |_| {
                        for _ in 0..n_frames {
                            crowd.hub.publish(crowd.channels[0].0, &publication);
                        }
                        crowd.flush_run(&mut |fd, slice| send(fd, &[slice]));
                    })
                });
            },
        );
        group.bench_function(BenchmarkId::new("naive send a frame", n_frames), |bencher| {
            bencher.iter_custom(|n| {
                timed(n, &mut peers, n_bytes_each, |peers| {
                    for stream in &peers.ours {
                        for _ in 0..n_frames {
                            let sent = send(stream.as_raw_fd(), &[frame]);
                            assert_eq!(sent, Sent::Bytes(frame.len()));
                        }
                    }
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, flush);
criterion_main!(benches);
