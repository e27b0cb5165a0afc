//! Idempotency keys that were used, and what came of it.
//!
//! **Invariant:** bounded in number and age: over the number the oldest goes, counted, and its
//! publish would be done again.

use std::collections::VecDeque;

use ahash::HashMap;

use crate::position::Position;

/// How long a key is remembered, milliseconds (server API, 3).
const KEY_MS: u64 = 300_000;

pub struct Once {
    keys_max: usize,
    /// By channel and key, which no byte of a channel's name can run into.
    results: HashMap<Box<str>, Position>,
    /// In the order they were used; each stands in `results`.
    ages: VecDeque<Used>,
    n_evicted: u64,
}

struct Used {
    key: Box<str>,
    until_ms: u64,
}

impl Once {
    pub fn new(keys_max: usize) -> Self {
        Self { keys_max, results: HashMap::default(), ages: VecDeque::new(), n_evicted: 0 }
    }

    /// What came of the publish that used the key.
    pub fn result(&mut self, channel: &str, key: &str, now_ms: u64) -> Option<Position> {
        self.expire(now_ms);
        self.results.get(&*joined(channel, key)).copied()
    }

    /// Remembers a key that was not known.
    pub fn remember(&mut self, channel: &str, key: &str, result: Position, now_ms: u64) {
        while self.ages.len() >= self.keys_max {
            self.drop_oldest();
            self.n_evicted += 1;
        }
        let key = joined(channel, key);
        self.results.insert(key.clone(), result);
        self.ages.push_back(Used { key, until_ms: now_ms + KEY_MS });
    }

    pub fn expire(&mut self, now_ms: u64) {
        while self.ages.front().is_some_and(|used| used.until_ms <= now_ms) {
            self.drop_oldest();
        }
    }

    pub fn len(&self) -> usize {
        self.ages.len()
    }

    pub fn n_evicted(&self) -> u64 {
        self.n_evicted
    }

    fn drop_oldest(&mut self) {
        if let Some(used) = self.ages.pop_front() {
            self.results.remove(&used.key);
        }
    }
}

/// Channels hold no spaces.
fn joined(channel: &str, key: &str) -> Box<str> {
    format!("{channel} {key}").into()
}
