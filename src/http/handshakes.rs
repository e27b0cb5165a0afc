//! A shard's connections that aren't upgraded: handshakes in progress, API and page clients.
//!
//! Owned by one shard thread. They are bounded (`HUB_HANDSHAKES_MAX` over all shards): at the
//! bound the oldest that isn't in the middle of a request goes, so that sockets which say
//! nothing can't keep out those that do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

/// One connection before its upgrade.
#[derive(Default)]
pub struct Handshake {
    /// A whole request head has come and isn't answered yet.
    busy: Cell<bool>,
    leave: Notify,
}

impl Handshake {
    pub fn set_busy(&self, busy: bool) {
        self.busy.set(busy);
    }

    /// Resolves when the connection has to go.
    pub async fn told_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// See the module.
pub struct Handshakes {
    /// By age.
    open: RefCell<BTreeMap<u64, Rc<Handshake>>>,
    next: Cell<u64>,
    n_max: usize,
}

impl Handshakes {
    pub fn new(n_max: usize) -> Self {
        Self { open: RefCell::default(), next: Cell::new(0), n_max: n_max.max(1) }
    }

    pub fn n_open(&self) -> usize {
        self.open.borrow().len()
    }

    /// Adds a connection; it leaves by [`Handshakes::leave`]. Returns how many were told to go.
    pub fn enter(&self, crowded: bool) -> (u64, Rc<Handshake>, usize) {
        let mut open = self.open.borrow_mut();
        let n_over = (open.len() + 1).saturating_sub(self.n_max).max(usize::from(crowded));
        let idle = open.iter().filter(|(_, handshake)| !handshake.busy.get());
        let mut going: Vec<u64> = idle.take(n_over).map(|(key, _)| *key).collect();
        if going.is_empty() && open.len() >= 2 * self.n_max {
            going.extend(open.keys().next()); // All are busy: the oldest has had its time.
        }
        for key in &going {
            if let Some(handshake) = open.remove(key) {
                handshake.leave.notify_one();
            }
        }
        let key = self.next.replace(self.next.get() + 1);
        let handshake = Rc::<Handshake>::default();
        open.insert(key, handshake.clone());
        (key, handshake, going.len())
    }

    pub fn leave(&self, key: u64) {
        self.open.borrow_mut().remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_told(handshake: &Handshake) -> bool {
        tokio::select! {
            biased;
            () = handshake.told_to_leave() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn the_oldest_idle_one_goes_first() {
        let handshakes = Handshakes::new(2);
        let (_, first, n) = handshakes.enter(false);
        first.set_busy(true);
        let (_, second, m) = handshakes.enter(false);
        assert_eq!((n, m), (0, 0));
        let (key, third, n) = handshakes.enter(false);
        assert_eq!((n, handshakes.n_open()), (1, 2));
        assert!(!is_told(&first).await, "in the middle of a request");
        assert!(is_told(&second).await);
        handshakes.leave(key);
        let (_, fourth, n) = handshakes.enter(false);
        assert_eq!((n, handshakes.n_open()), (0, 2));
        let (.., n) = handshakes.enter(true);
        assert_eq!(n, 1, "no room in the whole node");
        assert!(is_told(&fourth).await && !is_told(&third).await);
    }

    #[tokio::test]
    async fn busy_ones_are_bounded_too() {
        let handshakes = Handshakes::new(2);
        let all: Vec<_> = (0..100).map(|_| handshakes.enter(false).1).collect();
        all.iter().for_each(|handshake| handshake.set_busy(true));
        let more: Vec<_> = (0..100).map(|_| handshakes.enter(false).1).collect();
        more.iter().for_each(|handshake| handshake.set_busy(true));
        assert!(handshakes.n_open() <= 4, "{}", handshakes.n_open());
    }
}
