//! What every black-box test stands on: a real redis-server, a fault proxy in front of it, hubbub
//! itself as a child process, clients at byte level, and a ledger that says what got lost.
//!
//! Everything is blocking: a test reads from top to bottom, and a client that "stops reading" is
//! simply one that nobody calls. Many clients at once go through `swarm::drive`, one `poll` loop.
//! Nothing here waits for a fixed time; tests wait for conditions and prove absence with a deadline.

// Each test binary compiles its own copy and uses part of it; and the harness has threads and locks
// of its own, which the lints of the hot path are not about.
#![allow(
    dead_code,
    unused_imports,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod balancer;
pub mod cf;
pub mod crowd;
pub mod follower;
pub mod http;
pub mod hub;
pub mod ledger;
pub mod past;
pub mod proxy;
pub mod redis;
pub mod registry;
pub mod served;
pub mod swarm;
pub mod sys;
pub mod traffic;
pub mod ws;

pub use cf::{Cf, Pub};
pub use follower::Follower;
pub use hub::Hub;
pub use ledger::{Ledger, Viewer};
pub use proxy::{Direction, Link, Proxy};
pub use redis::{Redis, Reply};
pub use swarm::{Pump, drive};
pub use traffic::{Attempt, Traffic};
pub use ws::{Close, Raw};

use std::time::{Duration, Instant};

/// How long a test waits for what must happen. Generous: the machine is shared and busy.
pub const SOON: Duration = Duration::from_secs(10);
/// How long a test watches to prove that something does not happen.
pub const QUIET: Duration = Duration::from_millis(300);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The sizes of the scenarios, or a share of them that takes seconds.
pub fn scaled(quick: usize, full: usize) -> usize {
    if std::env::var_os("HUBBUB_TEST_FULL").is_some() { full } else { quick }
}

/// A JWT, HS256.
pub fn sign(claims: &serde_json::Value, secret: &str) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("signs")
}

/// Polls a condition until it holds; false once the deadline has passed. The only pause in the
/// harness beside the delays that the proxy injects.
#[must_use]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sys::pause(ms(5));
    }
}

/// A small generator with a printed seed, so that a failing order of events can be had again.
pub struct Rng(u64);

impl Rng {
    pub fn seeded() -> Self {
        let seed = std::env::var("HUBBUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(sys::entropy);
        println!("HUBBUB_TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// For faults whose exact times no seed could bring back.
    pub fn quiet() -> Self {
        Self(sys::entropy() | 1)
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64*: spread is all that is asked of it.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}
