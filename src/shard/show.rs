//! Publications on their way into the hub: at once, or when `max_rate` lets them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hub::Fanout;
use super::pace::{Paced, Paces};
use super::state::State;
use crate::channel::ChannelId;
use crate::publication::Publication;

/// `max_rate` holds nothing back for longer.
const HELD_MAX: Duration = Duration::from_secs(1);

impl State {
    /// Fans a publication out, unless it is too early for its channel's `max_rate`.
    pub fn show(&mut self, id: ChannelId, publication: &Arc<Publication>) -> Fanout {
        if let Paced::Held(replaced) = self.paces.offer(id, publication, Instant::now) {
            if replaced {
                self.hub.totals.conflated += self.hub.n_subscribers(id.slot) as u64;
            }
            return Fanout::default();
        }
        self.show_now(id, publication)
    }

    fn show_now(&mut self, id: ChannelId, publication: &Arc<Publication>) -> Fanout {
        let fanout = self.hub.publish(id, publication);
        self.hub.delay(id, Instant::now);
        let now_ms = self.now_ms;
        if let Some(stream) = self.stream_of(id) {
            stream.on_shown(publication, now_ms);
        }
        fanout
    }

    /// Fans out what was held until now, or, at the end, whatever is held.
    pub fn show_due(&mut self, now: Instant) {
        while let Some((id, publication)) = self.paces.release(now) {
            self.show_now(id, &publication);
        }
        self.hub.mark_due(now);
    }

    /// Whatever is held goes out now, and nothing is held any more: later nobody is there.
    pub fn show_all(&mut self, now: Instant) {
        self.show_due(now + HELD_MAX);
        self.paces = Paces::default();
        self.hub.end_delays(now);
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.paces.next_due().into_iter().chain(self.hub.next_due()).min()
    }

    pub fn take_new_due(&mut self) -> bool {
        self.paces.take_new_due() | self.hub.take_new_due()
    }

    /// What `max_rate` holds is older than a gap: shown behind it, it would pass for the newest.
    pub fn show_held(&mut self, id: ChannelId) {
        if let Some(held) = self.paces.take_held(id) {
            self.show_now(id, &held);
        }
    }
}
