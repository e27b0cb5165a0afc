//! Epochs of channels that were read and never published to.
//!
//! **Invariant:** bounded in number: the oldest goes, and the channel's next epoch is another one.
//! Nothing is lost with it but the proof that nothing was published meanwhile.

use std::collections::VecDeque;

use ahash::HashMap;

use crate::position::Epoch;

pub struct Unused {
    names_max: usize,
    epochs: HashMap<Box<str>, Epoch>,
    /// In the order they were drawn; holds every name of `epochs`.
    order: VecDeque<Box<str>>,
}

impl Unused {
    pub fn new(names_max: usize) -> Self {
        Self { names_max, epochs: HashMap::default(), order: VecDeque::new() }
    }

    /// The channel's epoch.
    pub fn epoch(&mut self, channel: &str) -> Epoch {
        if let Some(epoch) = self.epochs.get(channel) {
            return *epoch;
        }
        while self.order.len() >= self.names_max {
            if let Some(oldest) = self.order.pop_front() {
                self.epochs.remove(&oldest);
            }
        }
        let epoch = Epoch::draw();
        self.epochs.insert(channel.into(), epoch);
        self.order.push_back(channel.into());
        epoch
    }

    /// The channel is published to: it has a stream from now on.
    pub fn take(&mut self, channel: &str) -> Epoch {
        self.epochs.remove(channel).unwrap_or_else(Epoch::draw)
    }
}
