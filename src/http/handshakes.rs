//! A shard's connections that aren't upgraded: handshakes in progress, API and page clients.
//!
//! Owned by one shard thread. They are bounded (`HUB_HANDSHAKES_MAX` over all shards): at the
//! bound one that isn't in the middle of a request goes, so that sockets which say nothing can't
//! keep out those that do. It is the oldest of those that were never answered: a storm of new ones
//! doesn't cut off a publisher that keeps its connection for the next request. Only where those that
//! are kept have more than half of the room, the one of them that has rested the longest goes, so
//! that they can't keep out new ones either.

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
    /// When it came, or was answered last, by count.
    key: Cell<u64>,
}

impl Handshake {
    pub fn set_busy(&self) {
        self.busy.set(true);
    }

    /// Resolves when the connection has to go.
    pub async fn told_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// By key: the one that has rested the longest comes first.
type ByRest = BTreeMap<u64, Rc<Handshake>>;

/// Each is in one of them.
#[derive(Default)]
struct Open {
    /// Never answered.
    fresh: ByRest,
    /// Answered, and kept for the next request.
    kept: ByRest,
}

impl Open {
    fn len(&self) -> usize {
        self.fresh.len() + self.kept.len()
    }

    fn remove(&mut self, key: u64) -> Option<Rc<Handshake>> {
        self.fresh.remove(&key).or_else(|| self.kept.remove(&key))
    }

    /// The one to make room.
    fn find_idle(&self, n_max: usize) -> Option<u64> {
        let idle_of = |open: &ByRest| {
            let idle = open.iter().find(|(_, handshake)| !handshake.busy.get());
            idle.map(|(key, _)| *key)
        };
        let (first, then) = if self.kept.len() > n_max / 2 {
            (&self.kept, &self.fresh)
        } else {
            (&self.fresh, &self.kept)
        };
        idle_of(first).or_else(|| idle_of(then))
    }

    /// Where all are busy: the oldest has had its time.
    fn oldest(&self) -> Option<u64> {
        self.fresh.keys().chain(self.kept.keys()).next().copied()
    }
}

/// See the module.
pub struct Handshakes {
    open: RefCell<Open>,
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

    fn next_key(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Adds a connection; it leaves by [`Handshakes::leave`]. Returns how many were told to go.
    pub fn enter(&self, crowded: bool) -> (Rc<Handshake>, usize) {
        let mut open = self.open.borrow_mut();
        let n_over = (open.len() + 1).saturating_sub(self.n_max).max(usize::from(crowded));
        let mut n_going = 0;
        while n_going < n_over {
            let has_had_its_time = n_going == 0 && open.len() >= 2 * self.n_max;
            let key = open.find_idle(self.n_max);
            let Some(key) = key.or_else(|| open.oldest().filter(|_| has_had_its_time)) else {
                break;
            };
            if let Some(handshake) = open.remove(key) {
                handshake.leave.notify_one();
            }
            n_going += 1;
        }
        let handshake = Rc::<Handshake>::default();
        handshake.key.set(self.next_key());
        open.fresh.insert(handshake.key.get(), handshake.clone());
        (handshake, n_going)
    }

    /// Its request is answered, and it rests. Not to be called once it was upgraded: it is about to
    /// leave.
    pub fn on_answered(&self, handshake: &Handshake) {
        handshake.busy.set(false);
        let mut open = self.open.borrow_mut();
        // One that was told to go has no place any more.
        if let Some(own) = open.remove(handshake.key.get()) {
            handshake.key.set(self.next_key());
            open.kept.insert(handshake.key.get(), own);
        }
    }

    pub fn leave(&self, handshake: &Handshake) {
        self.open.borrow_mut().remove(handshake.key.get());
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
        let (first, n) = handshakes.enter(false);
        first.set_busy();
        let (second, m) = handshakes.enter(false);
        assert_eq!((n, m), (0, 0));
        let (third, n) = handshakes.enter(false);
        assert_eq!((n, handshakes.n_open()), (1, 2));
        assert!(!is_told(&first).await, "in the middle of a request");
        assert!(is_told(&second).await);
        handshakes.leave(&third);
        let (fourth, n) = handshakes.enter(false);
        assert_eq!((n, handshakes.n_open()), (0, 2));
        let (_, n) = handshakes.enter(true);
        assert_eq!(n, 1, "no room in the whole node");
        assert!(is_told(&fourth).await && !is_told(&third).await);
    }

    #[tokio::test]
    async fn those_that_are_kept_stay_as_long_as_they_are_few() {
        let handshakes = Handshakes::new(4);
        let kept: Vec<_> = (0..3).map(|_| handshakes.enter(false).0).collect();
        kept.iter().for_each(|handshake| handshake.set_busy());
        kept[..2].iter().for_each(|handshake| handshakes.on_answered(handshake));
        let mut fresh: Vec<_> = (0..100).map(|_| handshakes.enter(false).0).collect();
        let last = fresh.pop().expect("a hundred came");
        for handshake in &fresh {
            assert!(is_told(handshake).await, "they come and go");
        }
        assert!(!is_told(&last).await && !is_told(&kept[0]).await && !is_told(&kept[1]).await);
        // Three are more than half: the one that has rested the longest goes.
        handshakes.on_answered(&kept[2]);
        kept[0].set_busy();
        handshakes.on_answered(&kept[0]);
        let (_, n) = handshakes.enter(false);
        assert_eq!((n, handshakes.n_open()), (1, 4));
        assert!(is_told(&kept[1]).await && !is_told(&kept[0]).await && !is_told(&last).await);
        // It has no place to come back to.
        handshakes.on_answered(&kept[1]);
        handshakes.leave(&kept[1]);
        assert_eq!(handshakes.n_open(), 4);
    }

    #[tokio::test]
    async fn busy_ones_are_bounded_too() {
        let handshakes = Handshakes::new(2);
        let all: Vec<_> = (0..100).map(|_| handshakes.enter(false).0).collect();
        all.iter().for_each(|handshake| handshake.set_busy());
        let more: Vec<_> = (0..100).map(|_| handshakes.enter(false).0).collect();
        more.iter().for_each(|handshake| handshake.set_busy());
        assert!(handshakes.n_open() <= 4, "{}", handshakes.n_open());
    }
}
