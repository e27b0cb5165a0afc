//! The broker's side of one shard's mailbox: batches what a turn has for it.
//!
//! **Invariant:** only publications and control commands are ever dropped here; everything else waits until the
//! mailbox has room. What waits is bounded: replies by the commands that shards sent, sockets
//! don't pass here, and publications by `mailbox_max`.
//! **Invariant:** a channel of which a publication was dropped is announced as gapped before its
//! next publication passes, and within a flush of the mailbox having room again.

use ahash::HashSet;

use crate::channel::ChannelId;
use crate::mailbox::{Sender, Urgency, Weigh};
use crate::shard::{Gapped, ShardEvent};

/// Items of one batch at the most, so that a shard's turns stay short.
const BATCH_ITEMS_MAX: usize = 256;

pub struct ShardDoor {
    sender: Sender<ShardEvent>,
    waiting: Vec<ShardEvent>,
    waiting_weight: usize,
    urgency: Urgency,
    mailbox_max: usize,
    /// Channels of which something was dropped since the shard was last told.
    gapped: HashSet<ChannelId>,
}

impl ShardDoor {
    pub fn new(sender: Sender<ShardEvent>, mailbox_max: usize) -> Self {
        Self {
            sender,
            waiting: Vec::new(),
            waiting_weight: 0,
            urgency: Urgency::Relaxed,
            mailbox_max,
            gapped: HashSet::default(),
        }
    }

    /// Weight that the shard hasn't taken yet.
    pub fn depth(&self) -> usize {
        self.sender.depth() + self.waiting_weight
    }

    /// Adds something that must arrive.
    pub fn push(&mut self, event: ShardEvent) {
        self.urgency = Urgency::Prompt;
        self.waiting_weight += event.weight();
        self.waiting.push(event);
    }

    /// Adds a publication, or refuses it because the mailbox is at its bound: a gap. A shard
    /// that far behind is better served by newer publications than by a growing queue.
    #[must_use]
    pub fn try_push(&mut self, channel: ChannelId, publication: ShardEvent) -> bool {
        if self.depth() >= self.mailbox_max {
            self.gapped.insert(channel);
            return false;
        }
        if !self.gapped.is_empty() && self.gapped.remove(&channel) {
            self.push(ShardEvent::Gap(Gapped::Channel(channel)));
        }
        self.waiting_weight += publication.weight();
        self.waiting.push(publication);
        if self.waiting.len() >= BATCH_ITEMS_MAX {
            self.flush();
        }
        true
    }

    /// Adds a command of the server API, or refuses it because the mailbox is at its bound: nobody
    /// knows how many nodes ask how much, and a shard that far behind gets no better by it.
    #[must_use]
    pub fn try_push_control(&mut self, control: ShardEvent) -> bool {
        let has_room = self.depth() < self.mailbox_max;
        if has_room {
            self.push(control);
        }
        has_room
    }

    /// Hands the batch over. False: the ring is full, flush again soon.
    pub fn flush(&mut self) -> bool {
        if !self.gapped.is_empty() && self.depth() < self.mailbox_max {
            for channel in std::mem::take(&mut self.gapped) {
                self.push(ShardEvent::Gap(Gapped::Channel(channel)));
            }
        }
        if self.waiting.is_empty() {
            return true;
        }
        match self.sender.try_send(std::mem::take(&mut self.waiting), self.urgency) {
            Ok(()) => {
                self.waiting_weight = 0;
                self.urgency = Urgency::Relaxed;
                true
            }
            Err(batch) => {
                self.waiting = batch;
                false
            }
        }
    }
}
