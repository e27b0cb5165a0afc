//! What the pub/sub link received and the broker hasn't handled yet.
//!
//! Filled by the link's push closure, emptied by the broker's loop, both on the broker thread;
//! the lock exists because the closure must be `Sync`, and is never contended.
//! **Invariant:** messages are bounded by bytes; over the bound they are dropped and counted,
//! and one [`Push::Lost`] stands where they would have been. Confirmations and link states are
//! never dropped: they are bounded by the commands that were sent.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// What one message is counted for beside its bytes.
const MESSAGE_BYTES: usize = 96;

/// Messages of other nodes that may wait, bytes: they have a bound of their own, so that a flood of
/// publications doesn't drown them.
const CONTROL_BYTES_MAX: usize = 8 << 20;

/// One thing that happened on the link, in wire order.
#[derive(Debug, PartialEq, Eq)]
pub enum Push {
    Message {
        channel: Vec<u8>,
        payload: Vec<u8>,
    },
    Subscribed {
        channel: Vec<u8>,
    },
    Unsubscribed {
        channel: Vec<u8>,
    },
    /// Redis won't let this node subscribe to it.
    Refused {
        channel: Vec<u8>,
    },
    Lost {
        n_dropped: u64,
    },
    /// What a node says to this one, or to all.
    Control {
        payload: Vec<u8>,
    },
    ControlLost {
        n_dropped: u64,
    },
    /// The link's probe came back. Counted on arrival and never queued: a node that is behind
    /// must not take its link for dead, and cut itself off, just because its inbox is full.
    Probe,
    Up,
    Down,
}

#[derive(Default)]
struct Queue {
    pushes: Vec<Push>,
    bytes: usize,
    control_bytes: usize,
    generation: u64,
    n_probes: u64,
}

pub struct Inbox {
    queue: Mutex<Queue>,
    bytes_max: usize,
    pub notify: Notify,
}

impl Inbox {
    pub fn new(bytes_max: usize) -> Self {
        Self { queue: Mutex::new(Queue::default()), bytes_max, notify: Notify::new() }
    }

    /// The link of this generation is the one: pushes of older ones are void from now on.
    pub fn start(&self, generation: u64) {
        self.queue.lock().generation = generation;
    }

    /// Adds what a link of `generation` received.
    pub fn push(&self, generation: u64, push: Push) {
        let mut queue = self.queue.lock();
        if generation != queue.generation {
            return;
        }
        if push == Push::Down {
            // Once a link: later ones of this generation are void.
            queue.generation = 0;
        }
        if push == Push::Probe {
            queue.n_probes += 1;
            return;
        }
        let was_empty = queue.pushes.is_empty();
        match push {
            Push::Message { .. } if queue.bytes > self.bytes_max => {
                if let Some(Push::Lost { n_dropped }) = queue.pushes.last_mut() {
                    *n_dropped += 1;
                } else {
                    queue.pushes.push(Push::Lost { n_dropped: 1 });
                }
            }
            Push::Control { .. } if queue.control_bytes > CONTROL_BYTES_MAX => {
                if let Some(Push::ControlLost { n_dropped }) = queue.pushes.last_mut() {
                    *n_dropped += 1;
                } else {
                    queue.pushes.push(Push::ControlLost { n_dropped: 1 });
                }
            }
            push => {
                match &push {
                    Push::Message { channel, payload } => {
                        queue.bytes += channel.len() + payload.len() + MESSAGE_BYTES;
                    }
                    Push::Control { payload } => {
                        queue.control_bytes += payload.len() + MESSAGE_BYTES;
                    }
                    _ => {}
                }
                queue.pushes.push(push);
            }
        }
        drop(queue);
        if was_empty {
            self.notify.notify_one();
        }
    }

    /// Probes that came back so far, on any link.
    pub fn n_probes(&self) -> u64 {
        self.queue.lock().n_probes
    }

    /// Bytes not yet taken.
    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Everything so far.
    pub fn take(&self) -> Vec<Push> {
        let mut queue = self.queue.lock();
        (queue.bytes, queue.control_bytes) = (0, 0);
        std::mem::take(&mut queue.pushes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Push {
        Push::Message { channel: Vec::new(), payload: vec![0; bytes] }
    }

    #[test]
    fn over_the_bound_messages_are_lost_and_counted_in_place() {
        let inbox = Inbox::new(1_000);
        inbox.start(1);
        for _ in 0..3 {
            inbox.push(1, message(1_000));
        }
        inbox.push(1, Push::Subscribed { channel: b"a".to_vec() });
        inbox.push(1, message(1));
        let lost = |n_dropped| Push::Lost { n_dropped };
        let expected =
            [message(1_000), lost(2), Push::Subscribed { channel: b"a".to_vec() }, lost(1)];
        assert_eq!(inbox.take(), expected);
        inbox.push(1, message(1));
        assert_eq!(inbox.take(), [message(1)]);
    }

    #[test]
    fn a_probe_comes_through_a_full_inbox() {
        let inbox = Inbox::new(1_000);
        inbox.start(1);
        for _ in 0..3 {
            inbox.push(1, message(1_000));
        }
        inbox.push(1, Push::Probe);
        assert_eq!(inbox.n_probes(), 1);
        inbox.push(2, Push::Probe);
        assert_eq!(inbox.n_probes(), 1);
        assert_eq!(inbox.take().len(), 2);
    }

    #[test]
    fn nodes_are_heard_over_a_full_inbox_and_bounded_too() {
        let inbox = Inbox::new(1_000);
        inbox.start(1);
        let control = |bytes| Push::Control { payload: vec![0; bytes] };
        inbox.push(1, message(1_000));
        inbox.push(1, control(CONTROL_BYTES_MAX));
        inbox.push(1, control(1));
        inbox.push(1, control(1));
        inbox.push(1, message(1));
        let lost = [Push::ControlLost { n_dropped: 2 }, Push::Lost { n_dropped: 1 }];
        assert_eq!(inbox.take()[2..], lost);
        inbox.push(1, control(1));
        assert_eq!(inbox.take(), [control(1)]);
    }

    #[test]
    fn a_replaced_link_is_not_heard_any_more() {
        let inbox = Inbox::new(1_000);
        inbox.start(1);
        inbox.push(1, Push::Down);
        inbox.push(1, Push::Down);
        inbox.start(2);
        inbox.push(1, message(1));
        inbox.push(2, Push::Up);
        assert_eq!(inbox.take(), [Push::Down, Push::Up]);
    }
}
