//! The answer to a subscribe, as far as the channel's stream decides it.
//!
//! Plain values of the shard thread: made by `stream`, cut to what fits by `recovery`, written by
//! `waiting`. Sans-I/O.

use std::sync::Arc;

use super::hub::Variant;
use crate::broker::{HistoryPage, Listed, Stored};
use crate::position::{Epoch, Position};
use crate::protocol::SubscribeResult;

/// What a subscriber is told of the stream that it joins.
#[derive(Clone, Default)]
pub struct Welcome {
    pub recoverable: bool,
    pub positioned: bool,
    pub was_recovering: bool,
    pub recovered: bool,
    /// The stream's; after a recovery with the offset that the client had, from which it counts on.
    pub at: Position,
    pub missed: Missed,
}

/// Publications for a subscriber alone, in JSON.
#[derive(Clone, Default)]
pub enum Missed {
    #[default]
    Nothing,
    /// Shared, and encoded once, by all who missed the same.
    Page(Arc<HistoryPage>),
    /// The same for a subscriber with delta: the first one whole, then patches.
    Patched(Arc<HistoryPage>),
}

impl Welcome {
    /// A catch-up that doesn't fit beside what is queued already isn't one: said once, instead of a
    /// client that is cut, comes back, and is cut again.
    pub fn fit_into(&mut self, room: usize, top: Position) {
        if self.missed.json().len() > room {
            (self.recovered, self.missed, self.at) = (false, Missed::Nothing, top);
        }
    }
}

impl Welcome {
    /// As a subscribe is answered.
    pub fn result(&self, variant: Variant) -> SubscribeResult<'_> {
        SubscribeResult {
            recoverable: self.recoverable,
            epoch: self.at.epoch.as_str(),
            publications: self.missed.json(),
            recovered: self.recovered,
            offset: self.at.offset,
            positioned: self.positioned,
            was_recovering: self.was_recovering,
            delta: variant != Variant::Plain,
            ..SubscribeResult::default()
        }
    }
}

impl Missed {
    /// With the epoch of each.
    pub fn publications(&self) -> impl Iterator<Item = (&Stored, Epoch)> {
        let page = match self {
            Missed::Nothing => None,
            Missed::Page(page) | Missed::Patched(page) => Some(page),
        };
        page.into_iter()
            .flat_map(|page| page.publications.iter().map(|stored| (&**stored, page.top.epoch)))
    }

    /// For a subscriber with delta.
    pub fn patched(self) -> Self {
        match self {
            Missed::Page(page) => Missed::Patched(page),
            other => other,
        }
    }

    fn listed(&self) -> Option<&Listed> {
        match self {
            Missed::Nothing => None,
            // Encoded already, within its bound, when it was seen whether it is whole.
            Missed::Page(page) => Some(page.client_json(0)),
            Missed::Patched(page) => Some(page.patched_json()),
        }
    }

    /// From a `PublicationList`; empty: nothing.
    pub fn json(&self) -> &[u8] {
        self.listed().map_or(b"", |listed| &listed.json)
    }

    /// Publications that JSON can't carry, as they are skipped live.
    pub fn n_skipped(&self) -> u64 {
        self.listed().map_or(0, |listed| listed.n_skipped)
    }
}
