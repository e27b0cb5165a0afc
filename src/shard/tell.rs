//! Joins and leaves, to the subscribers that are told of them.
//!
//! Part of the hub; sans-I/O. Such a push takes the way of a publication, through the logs of the cohorts
//! whose share of the channel has it: between the publications where the broker put it, once per cohort,
//! and for nothing where nobody asked. A session whose socket is full gets it under the outbox's bound as
//! everything else; where the channel conflates it does without, since there it has no bound.

use bytes::Bytes;

use super::cohort::{Cohorts, Mark};
use super::hub::{Fanout, Hub, queue};
use crate::channel::ChannelId;
use crate::publication::Format;

impl Hub {
    /// Whether anybody here is told of a channel's joins and leaves.
    pub fn tells(&self, id: ChannelId) -> bool {
        let slot = self.cohorts.channels.get(id.slot as usize);
        slot.is_some_and(|slot| slot.generation == id.generation && slot.n_told > 0)
    }

    /// Queues a push for those who are told.
    pub fn tell(&mut self, id: ChannelId, frame: &Bytes) -> Fanout {
        if !self.tells(id) {
            return Fanout::default();
        }
        let Cohorts { cohorts, channels, spares, .. } = &mut self.cohorts;
        let slot = &channels[id.slot as usize];
        let mut fanout = Fanout::default();
        for cohort_ref in slot.cohorts.iter().filter(|cohort_ref| cohort_ref.is_told) {
            let cohort = &mut cohorts[cohort_ref.cohort as usize];
            if cohort.format != Format::Json || (cohort.is_conflating && slot.conflates) {
                continue;
            }
            queue(&self.seats, spares, cohort, Mark::NO_SLOT, frame);
            if !cohort.all_dirty {
                cohort.mark(&mut self.dirty);
            }
            fanout.queue(frame.len(), cohort.members.len());
        }
        fanout
    }
}
