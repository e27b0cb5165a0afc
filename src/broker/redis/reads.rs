//! Reads on their way to Redis, each kind in a queue of its own.
//!
//! On the broker thread. Whoever asks what is being read already waits for the next read of it, together
//! with all who do: not for this one, which may lack what happened since it began.
//! **Invariant:** at most `running_max` reads run, and [`WAITING_MAX`] different ones wait.

use std::collections::VecDeque;
use std::hash::Hash;
use std::time::Instant;

use ahash::{HashMap, HashSet};
use smallvec::SmallVec;

use crate::broker::survey::Asked;

const WAITING_MAX: usize = 4_096;

/// See the module.
pub struct Reads<Ask> {
    running_max: usize,
    /// Those of `waiting` that may run.
    order: VecDeque<Ask>,
    waiting: HashMap<Ask, Waiting>,
    running: HashSet<Ask>,
}

/// Who waits for a read.
pub struct Waiting {
    pub since: Instant,
    /// As many as their shards let ask.
    pub asked: SmallVec<[Asked; 1]>,
}

/// What becomes of a wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    Queued,
    /// Together with an equal one.
    Shared,
    /// Too many wait.
    Refused,
}

impl<Ask: Clone + Eq + Hash> Reads<Ask> {
    pub fn new(running_max: usize) -> Self {
        Self {
            running_max,
            order: VecDeque::new(),
            waiting: HashMap::default(),
            running: HashSet::default(),
        }
    }

    pub fn ask(&mut self, asked: Asked, ask: Ask) -> Taken {
        if let Some(waiting) = self.waiting.get_mut(&ask) {
            waiting.asked.push(asked);
            return Taken::Shared;
        }
        if self.waiting.len() >= WAITING_MAX {
            return Taken::Refused;
        }
        if !self.running.contains(&ask) {
            self.order.push_back(ask.clone());
        }
        let asked = SmallVec::from_elem(asked, 1);
        self.waiting.insert(ask, Waiting { since: Instant::now(), asked });
        Taken::Queued
    }

    /// The next read that may run.
    pub fn start(&mut self) -> Option<(Ask, Waiting)> {
        if self.running.len() >= self.running_max {
            return None;
        }
        let ask = self.order.pop_front()?;
        let waiting = self.waiting.remove(&ask).expect("invariant: what is in order waits");
        self.running.insert(ask.clone());
        Some((ask, waiting))
    }

    /// A read ended.
    pub fn end(&mut self, ask: Ask) {
        self.running.remove(&ask);
        if self.waiting.contains_key(&ask) {
            self.order.push_back(ask);
        }
    }
}
