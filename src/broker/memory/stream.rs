//! One channel's stream in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::META_MS;
use crate::broker::history::{Order, Stored};
use crate::broker::{Publish, Version};
use crate::config::Keep;
use crate::position::{Epoch, Position};

pub struct Stream {
    channel: Box<str>,
    epoch: Epoch,
    /// The newest offset that was given out.
    top: u64,
    /// The newest ones: their offsets end at `top` and follow each other.
    kept: VecDeque<Arc<Stored>>,
    bytes: usize,
    /// When they go, milliseconds.
    due_ms: u64,
    /// The newest versioned publication's.
    version: Option<Version>,
    pub touched_ms: u64,
}

impl Stream {
    pub fn new(channel: &str, epoch: Epoch) -> Self {
        Self {
            channel: channel.into(),
            epoch,
            top: 0,
            kept: VecDeque::new(),
            bytes: 0,
            due_ms: 0,
            version: None,
            touched_ms: 0,
        }
    }

    pub fn channel(&self) -> &str {
        &self.channel
    }

    pub fn top(&self) -> Position {
        Position { offset: self.top, epoch: self.epoch }
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a publish is unversioned, of another version epoch, or newer.
    pub fn accepts(&self, publish: &Publish) -> bool {
        match (&publish.version, &self.version) {
            (Some(new), Some(old)) => new.epoch != old.epoch || new.number > old.number,
            _ => true,
        }
    }

    pub fn append(&mut self, publish: &Publish, keep: Keep, now_ms: u64) -> Position {
        self.top += 1;
        let stored = Stored { offset: self.top, body: publish.body.clone() };
        self.bytes += stored.bytes();
        self.kept.push_back(Arc::new(stored));
        while self.kept.len() > keep.size {
            self.drop_oldest();
        }
        self.due_ms = now_ms + keep.ttl_ms;
        if let Some(version) = &publish.version {
            self.version = Some(version.clone());
        }
        self.top()
    }

    /// Returns its bytes.
    pub fn drop_oldest(&mut self) -> usize {
        let bytes = self.kept.pop_front().map_or(0, |stored| stored.bytes());
        self.bytes -= bytes;
        bytes
    }

    /// What came after, or in reverse before, an offset.
    pub fn range(
        &self,
        since: Option<u64>,
        order: Order,
    ) -> Box<dyn Iterator<Item = &Arc<Stored>> + '_> {
        let first = self.top - self.kept.len() as u64 + 1;
        let end = self.kept.len();
        match order {
            Order::Forward => {
                let skipped =
                    since.map_or(0, |since| since.saturating_add(1).saturating_sub(first));
                Box::new(self.kept.range((skipped as usize).min(end)..))
            }
            Order::Reverse => {
                let n = since.map_or(end as u64, |since| since.saturating_sub(first));
                Box::new(self.kept.range(..(n as usize).min(end)).rev())
            }
        }
    }

    /// Returns the bytes that went.
    pub fn clear(&mut self) -> usize {
        self.kept = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }

    /// Returns the bytes that went.
    pub fn expire(&mut self, now_ms: u64) -> usize {
        if now_ms < self.due_ms { 0 } else { self.clear() }
    }

    /// Whether even epoch and top offset are over.
    pub fn is_forgotten(&self, now_ms: u64) -> bool {
        now_ms >= self.due_ms.max(self.touched_ms) + META_MS
    }
}
