//! `max_rate`: at most so many publications a second of a channel, the newest of each interval.
//!
//! Owned by the shard's state; runs on the shard thread. All subscribers of a channel on a shard see one
//! stream, so the rate is kept once per channel, before the fan-out: a publication that comes too early
//! is held, and a newer one takes its place until it is due. A channel without `max_rate` has no pace.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::ChannelId;
use crate::publication::Publication;

struct Pace {
    id: ChannelId,
    interval: Duration,
    /// The next publication may go out from then on.
    due: Instant,
    held: Option<Arc<Publication>>,
}

/// What becomes of a publication.
#[derive(Debug)]
pub enum Paced {
    Now,
    /// Held; true: in the place of an older one.
    Held(bool),
}

/// The paces of a shard's open channels.
#[derive(Default)]
pub struct Paces {
    by_slot: Vec<Option<Box<Pace>>>,
    /// When the held ones are due: one entry each.
    dues: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// One came to the dues since it was last asked.
    has_new_due: bool,
}

impl Paces {
    pub fn open(&mut self, id: ChannelId, per_second: u32, now: Instant) {
        let at = id.slot as usize;
        if self.by_slot.len() <= at {
            self.by_slot.resize_with(at + 1, || None);
        }
        let interval = Duration::from_secs(1) / per_second;
        self.by_slot[at] = Some(Box::new(Pace { id, interval, due: now, held: None }));
    }

    /// What is held is dropped: nobody is there to get it.
    pub fn close(&mut self, slot: u32) {
        if let Some(pace) = self.by_slot.get_mut(slot as usize) {
            *pace = None;
        }
    }

    /// Asked once for each publication of a channel; the clock is read only for those that have a pace.
    pub fn offer(
        &mut self,
        id: ChannelId,
        publication: &Arc<Publication>,
        now: impl FnOnce() -> Instant,
    ) -> Paced {
        let Some(Some(pace)) = self.by_slot.get_mut(id.slot as usize) else { return Paced::Now };
        if pace.held.is_some() {
            pace.held = Some(publication.clone());
            return Paced::Held(true);
        }
        let now = now();
        if now >= pace.due {
            pace.due = now + pace.interval;
            return Paced::Now;
        }
        pace.held = Some(publication.clone());
        self.dues.push(Reverse((pace.due, id.slot, id.generation)));
        self.has_new_due = true;
        Paced::Held(false)
    }

    /// Whether somebody has to look at [`next_due`](Self::next_due) again.
    pub fn take_new_due(&mut self) -> bool {
        std::mem::take(&mut self.has_new_due)
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.dues.peek().map(|Reverse((due, ..))| *due)
    }

    /// What is held, before it is due.
    pub fn take_held(&mut self, id: ChannelId) -> Option<Arc<Publication>> {
        let pace = self.by_slot.get_mut(id.slot as usize)?.as_mut().filter(|pace| pace.id == id)?;
        let held = pace.held.take()?;
        pace.due += pace.interval;
        Some(held)
    }

    /// The next one that is due.
    pub fn release(&mut self, now: Instant) -> Option<(ChannelId, Arc<Publication>)> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse((_, slot, generation)) = self.dues.pop()?;
            let id = ChannelId { slot, generation };
            let Some(Some(pace)) = self.by_slot.get_mut(slot as usize) else { continue };
            if let Some(held) = pace.held.take_if(|_| pace.id == id && pace.due <= now) {
                pace.due = now + pace.interval;
                return Some((id, held));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::publication::Body;

    fn publication(mark: u8) -> Arc<Publication> {
        let body = Body::plain(vec![mark]);
        Arc::new(Publication::new(Arc::new(Channel::new("a")), body))
    }

    /// What went out, and how many were replaced.
    #[test]
    fn the_newest_of_each_interval_goes_out() {
        let (id, start) = (ChannelId { slot: 3, generation: 1 }, Instant::now());
        let mut paces = Paces::default();
        assert!(matches!(paces.offer(id, &publication(0), || start), Paced::Now), "no pace");
        paces.open(id, 10, start);
        let (mut out, mut n_replaced) = (Vec::new(), 0);
        for ms in 0..1_000u64 {
            let now = start + Duration::from_millis(ms);
            while let Some((released, publication)) = paces.release(now) {
                assert_eq!(released, id);
                out.push((ms, publication.body().payload[0]));
            }
            if ms % 7 == 0 && ms < 500 {
                let mark = (ms / 7) as u8;
                match paces.offer(id, &publication(mark), || now) {
                    Paced::Now => out.push((ms, mark)),
                    Paced::Held(replaced) => n_replaced += usize::from(replaced),
                }
            }
        }
        let times: Vec<u64> = out.iter().map(|(ms, _)| *ms).collect();
        assert_eq!(times, [0, 100, 200, 300, 400, 500]);
        assert_eq!(out.last().map(|(_, mark)| *mark), Some(71), "the last one always comes");
        assert!(out.is_sorted_by_key(|(_, mark)| *mark));
        assert_eq!(out.len() + n_replaced, 72);
    }

    #[test]
    fn what_is_taken_early_counts_for_the_rate() {
        let (id, start) = (ChannelId { slot: 0, generation: 1 }, Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut paces = Paces::default();
        paces.open(id, 10, start);
        for mark in 1..3 {
            paces.offer(id, &publication(mark), || start);
        }
        assert!(paces.take_held(ChannelId { generation: 2, ..id }).is_none());
        assert_eq!(paces.take_held(id).map(|held| held.body().payload[0]), Some(2));
        assert!(paces.take_held(id).is_none());
        assert!(matches!(paces.offer(id, &publication(3), || at(50)), Paced::Held(false)));
        assert!(paces.release(at(199)).is_none(), "its due was that of the one before");
        assert!(paces.release(at(200)).is_some());
    }

    #[test]
    fn a_closed_channel_holds_nothing() {
        let (id, now) = (ChannelId { slot: 0, generation: 1 }, Instant::now());
        let mut paces = Paces::default();
        paces.open(id, 1, now);
        paces.offer(id, &publication(1), || now);
        paces.offer(id, &publication(2), || now);
        assert!(paces.next_due().is_some());
        paces.close(0);
        paces.open(ChannelId { generation: 2, ..id }, 1, now);
        assert!(paces.release(now + Duration::from_secs(9)).is_none());
        assert!(paces.next_due().is_none());
    }
}
