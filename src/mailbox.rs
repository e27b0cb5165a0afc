//! The cross-thread queue: how anything reaches a shard or the broker.
//!
//! Owns a bounded ring of batches, a depth in weight, and the receiver's sleep state.
//! Any thread may hold a [`Sender`]; the [`Receiver`] is bound to one thread by type.
//! A batch crosses as one `Vec`, so the ring's atomics, and the wake-up, are paid once per
//! batch: `Vec` batches cost 40 to 60 ns an item where single items cost 80 to 110 ns.
//!
//! **Invariant:** what one sender sent in order is received in that order.
//! **Invariant:** a receiver that went to sleep while the queue held a batch is woken.
//! **Invariant:** `depth` is the weight of all that was sent and not yet received.
//!
//! Deliberately absent: locks, unbounded growth, per-item wake-ups. A full queue hands the
//! batch back; what then happens (keep it, or drop and mark a gap) is the sender's policy.

use std::marker::PhantomData;
use std::task::{Context, Poll};

#[cfg(loom)]
use crate::sync;
use sync::{
    Arc, ArrayQueue, AtomicBool, AtomicU8, AtomicUsize, AtomicWaker, CachePadded, Ordering, fence,
};

/// The model in tests/loom, whose crate includes this file, has its own.
#[cfg(not(loom))]
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};

    pub(super) use atomic_waker::AtomicWaker;
    pub(super) use crossbeam::queue::ArrayQueue;
    pub(super) use crossbeam::utils::CachePadded;
}

/// The receiver runs, and will look at the queue before it sleeps.
const AWAKE: u8 = 0;
/// The receiver waits for anything at all.
const SLEEPING: u8 = 1;
/// The receiver pauses between two writes: only prompt batches may wake it.
const PAUSED: u8 = 2;

/// Whether a batch may wait until a pause of the receiver ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Wakes the receiver out of a pause: sockets, replies, commands.
    Prompt,
    /// Lies until the pause ends: publications, which a paused shard wouldn't write anyway.
    /// Saves the producer a wake-up (3 to 20 µs) per batch under load.
    Relaxed,
}

/// What an item counts against a mailbox's bound.
pub trait Weigh {
    /// 1 for an item of no size to speak of; one more per KiB that it keeps alive.
    fn weight(&self) -> usize {
        1
    }
}

fn weight<T: Weigh>(batch: &[T]) -> usize {
    batch.iter().map(Weigh::weight).sum()
}

struct Shared<T> {
    queue: ArrayQueue<Vec<T>>,
    depth: CachePadded<AtomicUsize>,
    state: CachePadded<AtomicU8>,
    prompt: AtomicBool,
    waker: AtomicWaker,
}

/// Makes a mailbox of at most `batches_max` batches.
pub fn mailbox<T>(batches_max: usize) -> (Sender<T>, Unbound<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(batches_max.max(1)),
        depth: CachePadded::new(AtomicUsize::new(0)),
        state: CachePadded::new(AtomicU8::new(AWAKE)),
        prompt: AtomicBool::new(false),
        waker: AtomicWaker::new(),
    });
    (Sender(shared.clone()), Unbound(shared))
}

/// The sending end. Cheap to clone, any thread.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Weigh> Sender<T> {
    /// Weight that is sent and not yet received: what a sender compares with its bound before
    /// it sends something that may be dropped.
    pub fn depth(&self) -> usize {
        self.0.depth.load(Ordering::Relaxed)
    }

    /// Hands over a batch, or gives it back when the ring is full. Never blocks.
    pub fn try_send(&self, batch: Vec<T>, urgency: Urgency) -> Result<(), Vec<T>> {
        if batch.is_empty() {
            return Ok(());
        }
        let weight = weight(&batch);
        // Before the push: the receiver must never subtract what wasn't added.
        self.0.depth.fetch_add(weight, Ordering::Relaxed);
        if let Err(batch) = self.0.queue.push(batch) {
            self.0.depth.fetch_sub(weight, Ordering::Relaxed);
            return Err(batch);
        }
        if urgency == Urgency::Prompt {
            // Release, and Acquire where it is taken: whoever sees the flag sees the batch.
            self.0.prompt.store(true, Ordering::Release);
        }
        // Pairs with the fence in `poll_state`: either we see the sleeper, or it sees the batch.
        fence(Ordering::SeqCst);
        match self.0.state.load(Ordering::Relaxed) {
            AWAKE => {}
            PAUSED if urgency == Urgency::Relaxed => {}
            _ => {
                if self.0.state.swap(AWAKE, Ordering::AcqRel) != AWAKE {
                    self.0.waker.wake();
                }
            }
        }
        Ok(())
    }
}

/// The receiving end before it has a thread: may travel, can't receive.
pub struct Unbound<T>(Arc<Shared<T>>);

impl<T> Unbound<T> {
    /// Pins the receiving end to the calling thread.
    pub fn bind(self) -> Receiver<T> {
        Receiver { shared: self.0, _bound: PhantomData }
    }
}

/// The receiving end. `!Send`: it stays on the thread that bound it.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    _bound: PhantomData<*const ()>,
}

impl<T: Weigh> Receiver<T> {
    /// The oldest batch. Free when empty: one load.
    pub fn try_recv(&self) -> Option<Vec<T>> {
        let batch = self.shared.queue.pop()?;
        self.shared.depth.fetch_sub(weight(&batch), Ordering::Relaxed);
        Some(batch)
    }

    /// Ready once a batch lies there. Registers the task's waker.
    pub fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_state(cx, SLEEPING)
    }

    /// Ready once a *prompt* batch was sent since the last [`Receiver::poll_paused`] that was.
    pub fn poll_paused(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_state(cx, PAUSED)
    }

    fn poll_state(&self, cx: &mut Context<'_>, state: u8) -> Poll<()> {
        self.shared.waker.register(cx.waker());
        self.shared.state.store(state, Ordering::Relaxed);
        // Pairs with the fence in `try_send`.
        fence(Ordering::SeqCst);
        let ready = if state == SLEEPING {
            !self.shared.queue.is_empty()
        } else {
            self.shared.prompt.swap(false, Ordering::Acquire)
        };
        if ready {
            self.set_awake();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Says that the receiver runs again for a reason of its own (a timer), so that senders
    /// save their wake-ups.
    pub fn set_awake(&self) {
        self.shared.state.store(AWAKE, Ordering::Relaxed);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;

    impl Weigh for u32 {}
    impl Weigh for (u8, u32) {}

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counting() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (count.clone(), Waker::from(count))
    }

    #[test]
    fn a_full_ring_hands_the_batch_back_and_counts_nothing() {
        let (sender, unbound) = mailbox::<u32>(1);
        assert_eq!(sender.try_send(vec![1, 2], Urgency::Prompt), Ok(()));
        assert_eq!(sender.try_send(vec![3], Urgency::Prompt), Err(vec![3]));
        assert_eq!(sender.depth(), 2);
        let receiver = unbound.bind();
        assert_eq!(receiver.try_recv(), Some(vec![1, 2]));
        assert_eq!(receiver.try_recv(), None);
        assert_eq!(sender.depth(), 0);
    }

    #[test]
    fn a_sleeper_is_woken_once_and_a_paused_one_only_by_prompt_batches() {
        let (sender, unbound) = mailbox::<u32>(8);
        let receiver = unbound.bind();
        let (count, waker) = counting();
        let mut cx = Context::from_waker(&waker);
        let woken = || count.0.load(Ordering::SeqCst);

        assert!(receiver.poll_wait(&mut cx).is_pending());
        sender.try_send(vec![1], Urgency::Relaxed).unwrap();
        sender.try_send(vec![2], Urgency::Relaxed).unwrap();
        assert_eq!(woken(), 1);
        assert!(receiver.poll_wait(&mut cx).is_ready());

        assert!(receiver.poll_paused(&mut cx).is_pending());
        sender.try_send(vec![3], Urgency::Relaxed).unwrap();
        assert_eq!(woken(), 1);
        sender.try_send(vec![4], Urgency::Prompt).unwrap();
        assert_eq!(woken(), 2);
        assert!(receiver.poll_paused(&mut cx).is_ready());
        assert!(receiver.poll_paused(&mut cx).is_pending());
    }

    #[test]
    fn two_threads_lose_nothing_and_keep_each_senders_order() {
        let (sender, unbound) = mailbox::<(u8, u32)>(4);
        let threads: Vec<_> = (0..2u8)
            .map(|who| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for n in 0..10_000u32 {
                        let mut batch = vec![(who, n)];
                        while let Err(back) = sender.try_send(batch, Urgency::Relaxed) {
                            batch = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let receiver = unbound.bind();
        let mut next = [0u32; 2];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            while next != [10_000, 10_000] {
                std::future::poll_fn(|cx| receiver.poll_wait(cx)).await;
                while let Some(batch) = receiver.try_recv() {
                    for (who, n) in batch {
                        assert_eq!(n, next[who as usize]);
                        next[who as usize] += 1;
                    }
                }
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(sender.depth(), 0);
    }
}
