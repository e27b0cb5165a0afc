//! The newest value of a channel with `recovery = "cache"`, as its stream on this shard knows it.
//!
//! Sans-I/O, a part of [`Stream`]. What comes live is the newest until `history_ttl` has passed, or
//! history is removed; then, as in the beginning, it is to be looked up.

use std::sync::Arc;

use super::{Stream, is_same_epoch};
use crate::broker::{HistoryPage, Stored};
use crate::channel::Channel;
use crate::config::Recovery;
use crate::position::Position;
use crate::publication::Publication;
use crate::shard::welcome::{Missed, Welcome};

/// What was read of a channel with `recovery = "cache"` may have expired since, or be about to: it is
/// looked up again after this, milliseconds.
const READ_HOLDS_MS: u64 = 1_000;

impl Stream {
    pub fn newest(&self) -> Option<&Arc<Publication>> {
        self.newest.as_ref()
    }

    /// Forgets the newest publication once history may have.
    pub fn expire_newest(&mut self, now_ms: u64) {
        let is_kept = |newest: &Arc<Publication>| newest.position().offset > 0;
        if now_ms >= self.newest_until_ms && self.newest.as_ref().is_some_and(is_kept) {
            self.newest = None;
        }
    }

    /// History was removed: what was newest is not to be shown any more, nor what pages that were
    /// asked for before still hold.
    pub fn on_removed(&mut self) {
        (self.newest, self.is_empty) = (None, true);
    }

    /// A publication was fanned out.
    pub fn on_shown(&mut self, publication: &Arc<Publication>, now_ms: u64) {
        if self.recovery == Recovery::Cache {
            self.newest = Some(publication.clone());
            self.newest_until_ms = now_ms + self.history_ttl_ms;
        }
    }

    /// Takes it from a page that delivery is level with.
    pub(super) fn read_newest(&mut self, channel: &Arc<Channel>, page: &HistoryPage, now_ms: u64) {
        match page.publications.iter().find(|stored| stored.offset == page.top.offset) {
            Some(stored) => {
                let publication = Publication::at(channel.clone(), stored.body.clone(), page.top);
                self.newest = Some(Arc::new(publication));
                self.newest_until_ms = now_ms + READ_HOLDS_MS.min(self.history_ttl_ms);
            }
            None => self.is_empty = true,
        }
    }

    pub(super) fn must_look(&self) -> bool {
        let is_known = self.newest.is_some() || self.is_empty;
        self.has_history && (self.position.is_none() || !is_known)
    }

    /// Client protocol, 11.5: the newest publication, unless the client has it.
    pub(super) fn welcome_newest(&self, recover: Option<Position>) -> Welcome {
        let at = self.position.unwrap_or_default();
        let welcome = Welcome {
            recoverable: true,
            positioned: self.has_history,
            was_recovering: recover.is_some(),
            at,
            ..Welcome::default()
        };
        // Another node may have shown it a newer one: what is here would be an old value as a new one.
        let has = |at: Position| {
            recover.is_some_and(|since| {
                let is_ahead = since.epoch == at.epoch && since.offset > at.offset;
                let is_there = since.offset == at.offset && is_same_epoch(since, at);
                since.offset > 0 && (is_there || (is_ahead && !at.epoch.is_none()))
            })
        };
        let Some(newest) = &self.newest else {
            return Welcome { recovered: has(at), ..welcome };
        };
        if has(newest.position()) {
            return Welcome { was_recovering: true, recovered: true, ..welcome };
        }
        let page = HistoryPage::new(at, vec![Arc::new(Stored::of(newest))]);
        if page.client_json(usize::MAX).n_listed == 0 {
            return welcome;
        }
        // The publication brings its own offset, if it has one.
        let offset = if newest.position().offset > 0 { 0 } else { at.offset };
        let (at, missed) = (Position { offset, epoch: at.epoch }, Missed::Page(Arc::new(page)));
        Welcome { was_recovering: true, recovered: true, at, missed, ..welcome }
    }
}
