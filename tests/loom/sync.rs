//! What the mailbox takes from std, crossbeam and atomic-waker, in loom's terms.

use std::task::Waker;

use loom::cell::UnsafeCell;
pub use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic;
pub use loom::sync::atomic::{AtomicUsize, Ordering, fence};

/// crossbeam's ring, with the weakest orders that still hand a value over: crossbeam's own are partly `SeqCst`, and
/// the mailbox must not live on that. Several producers, one consumer.
pub struct ArrayQueue<T> {
    slots: Box<[Slot<T>]>,
    head: AtomicUsize,
    tail: AtomicUsize,
}

struct Slot<T> {
    /// The tail that may write here, or one more: what the head may read.
    stamp: AtomicUsize,
    value: UnsafeCell<Option<T>>,
}

impl<T> ArrayQueue<T> {
    pub fn new(len: usize) -> Self {
        let slot = |idx| Slot { stamp: AtomicUsize::new(idx), value: UnsafeCell::new(None) };
        let (head, tail) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // With one slot, written and writable again would be the same stamp: two steps a turn.
        Self { slots: (0..len).map(|idx| slot(2 * idx)).collect(), head, tail }
    }

    fn slot(&self, position: usize) -> &Slot<T> {
        &self.slots[position % self.slots.len()]
    }

    pub fn push(&self, value: T) -> Result<(), T> {
        loop {
            let tail = self.tail.load(Ordering::Relaxed);
            let slot = self.slot(tail);
            if slot.stamp.load(Ordering::Acquire) != 2 * tail {
                if tail >= self.head.load(Ordering::Relaxed) + self.slots.len() {
                    return Err(value);
                }
                loom::thread::yield_now();
                continue;
            }
            let order = Ordering::Relaxed;
            if self.tail.compare_exchange(tail, tail + 1, order, order).is_ok() {
                // SAFETY: the stamp said that this slot is empty, and the tail that it is ours.
                slot.value.with_mut(|place| unsafe { *place = Some(value) });
                slot.stamp.store(2 * tail + 1, Ordering::Release);
                return Ok(());
            }
        }
    }

    pub fn pop(&self) -> Option<T> {
        let head = self.head.load(Ordering::Relaxed);
        let slot = self.slot(head);
        while slot.stamp.load(Ordering::Acquire) != 2 * head + 1 {
            if self.tail.load(Ordering::Relaxed) == head {
                return None;
            }
            // A producer is between its two steps.
            loom::thread::yield_now();
        }
        // SAFETY: the stamp said that this slot is written; producers wait for the next stamp.
        let value = slot.value.with_mut(|place| unsafe { (*place).take() });
        slot.stamp.store(2 * (head + self.slots.len()), Ordering::Release);
        self.head.store(head + 1, Ordering::Relaxed);
        value
    }

    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Relaxed)
    }
}

/// atomic-waker's promise: a `wake` either takes the waker, or a later `register` sees all that came before it.
pub struct AtomicWaker(Mutex<Option<Waker>>);

impl AtomicWaker {
    pub fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub fn register(&self, waker: &Waker) {
        *self.0.lock().unwrap() = Some(waker.clone());
    }

    pub fn wake(&self) {
        let waker = self.0.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A plain store is made a swap: loom lets two stores by different threads stand in no order, so that a swap may read
/// either and a later load the older, which the memory model forbids and which would look like a lost wake-up.
pub struct AtomicU8(atomic::AtomicU8);

impl AtomicU8 {
    pub fn new(value: u8) -> Self {
        Self(atomic::AtomicU8::new(value))
    }

    pub fn load(&self, order: Ordering) -> u8 {
        self.0.load(order)
    }

    pub fn store(&self, value: u8, order: Ordering) {
        self.0.swap(value, order);
    }

    pub fn swap(&self, value: u8, order: Ordering) -> u8 {
        self.0.swap(value, order)
    }
}

/// As [`AtomicU8`].
pub struct AtomicBool(atomic::AtomicBool);

impl AtomicBool {
    pub fn new(value: bool) -> Self {
        Self(atomic::AtomicBool::new(value))
    }

    pub fn store(&self, value: bool, order: Ordering) {
        self.0.swap(value, order);
    }

    pub fn swap(&self, value: bool, order: Ordering) -> bool {
        self.0.swap(value, order)
    }
}

pub struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> std::ops::Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
