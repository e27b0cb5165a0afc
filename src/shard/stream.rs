//! A channel's stream as this shard follows it: what a new subscriber is told, and what one that was
//! away gets.
//!
//! Sans-I/O; owned by the shard's state, one for each open channel whose namespace has `recovery`.
//! All subscribers of a channel on a shard see the same publications in the same order, so the position
//! is the channel's, not each subscriber's, and the live check (client protocol, 11.4) is one comparison
//! per publication.
//!
//! How "recovered" is proven: a client that names an epoch and an offset has recovered only if all
//! publications from the next offset to the one that live delivery has reached here are at hand, each
//! offset one more than the one before: from a page that was read after the client asked and, behind
//! its end, from what came live since. Page, client and live delivery must be of one epoch; the brokers
//! begin a new one whenever a stream may lack something (`broker/redis/lua/stream.lua`,
//! `broker/memory`), so one epoch is one stream. From then on the live check sees that the next
//! publication follows, and the periodic one that none stayed away.
//!
//! **Invariant:** `position` is that of the last publication that was delivered here, or the stream's
//! as it was before the first; `None` after a gap, until the next publication or page.
//! **Invariant:** a page that was asked for before a gap never says where delivery stands.
//! **Invariant:** while somebody joins, `kept` holds what was delivered since the oldest read began,
//! or a run that doesn't reach back so far: then nothing is claimed.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use super::hub::SessionId;
use super::waiting::Waiters;
use super::welcome::{Missed, Welcome};
use crate::broker::{HistoryAsk, HistoryPage, Order, Stored};
use crate::channel::{Channel, ChannelId};
use crate::config::{Namespace, Recovery};
use crate::position::{Epoch, Position};
use crate::publication::Publication;

/// A stream of which nothing was heard for so long is looked up, milliseconds; at most a quarter more.
const QUIET_MS: u64 = 40_000;
/// What was seen to be ahead of delivery is looked up again after this, milliseconds.
pub const AGAIN_MS: u64 = 2_000;

/// Streams that fell quiet together aren't looked up together.
fn quiet_ms(id: ChannelId) -> u64 {
    QUIET_MS + u64::from(id.slot) % (QUIET_MS / 4)
}

/// How a publication stands to what was delivered before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Follows,
    /// It was delivered already.
    Repeats,
    /// Something is missing, or another stream begins.
    Breaks,
}

/// From where a read was asked; `None`: only where the stream stands, or its newest publication.
pub type ReadKey = Option<Position>;

/// A read on its way.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    key: ReadKey,
    /// Something was lost since it was asked: where it finds the stream may be before that.
    is_stale: bool,
    /// The one before it was stale.
    is_second: bool,
}

/// What becomes of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Use,
    /// It says nothing: it has to be read anew.
    Again,
    /// It says nothing, the second time.
    Drop,
}

/// What one page, and what is kept beside it, may hold at the most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub publications_max: usize,
    pub bytes_max: usize,
}

/// What can be said to somebody who wants to join.
pub enum Entry {
    Now(Welcome),
    /// Once this was read.
    Read(ReadKey),
    /// Its client knows more than has been delivered here: once that has caught up.
    Ahead,
    /// Where the stream stands can't be found out.
    Unknown,
}

/// See the module.
pub struct Stream {
    pub id: ChannelId,
    recovery: Recovery,
    has_history: bool,
    history_ttl_ms: u64,
    bounds: Bounds,
    position: Option<Position>,
    /// With [`Recovery::Cache`]: the newest publication, if it is known.
    newest: Option<Arc<Publication>>,
    /// When that is no longer known, if it is history's, milliseconds.
    newest_until_ms: u64,
    /// There is no newest one to be read.
    is_empty: bool,
    /// Who waits for a read, and what each asked.
    pub joining: Waiters,
    /// The channel is kept open for them.
    pub is_pinned: bool,
    /// On their way.
    pub reads: SmallVec<[Read; 1]>,
    /// Who is ahead, and until when it waits, milliseconds.
    pub ahead: Vec<(SessionId, u64)>,
    kept: VecDeque<Arc<Publication>>,
    kept_bytes: usize,
    /// When it is to be looked up where the stream stands, milliseconds.
    check_at_ms: u64,
    /// The stream is there, and live delivery wasn't yet when that was read.
    suspect: Option<Position>,
}

impl Stream {
    /// `None`: the namespace has no recovery.
    pub fn new(id: ChannelId, namespace: &Namespace, bounds: Bounds, now_ms: u64) -> Option<Self> {
        (namespace.recovery != Recovery::Off).then(|| Self {
            id,
            recovery: namespace.recovery,
            has_history: namespace.keep().is_some(),
            history_ttl_ms: namespace.keep().map_or(0, |keep| keep.ttl_ms),
            bounds,
            position: None,
            newest: None,
            newest_until_ms: 0,
            is_empty: false,
            joining: Waiters::default(),
            is_pinned: false,
            reads: SmallVec::new(),
            ahead: Vec::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            check_at_ms: now_ms + quiet_ms(id),
            suspect: None,
        })
    }

    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether its subscribers rely on getting every publication.
    pub fn is_positioned(&self) -> bool {
        self.has_history
    }

    // --- live

    /// The live check. A publication without a position passes.
    pub fn next(&self, at: Position) -> Next {
        match self.position {
            Some(before) if at.offset > 0 => {
                if at.epoch != before.epoch || at.offset > before.offset.saturating_add(1) {
                    Next::Breaks
                } else if at.offset <= before.offset {
                    Next::Repeats
                } else {
                    Next::Follows
                }
            }
            _ => Next::Follows,
        }
    }

    /// A publication came, to be fanned out.
    pub fn on_came(&mut self, publication: &Arc<Publication>, now_ms: u64) {
        if publication.position().offset == 0 {
            return;
        }
        self.position = Some(publication.position());
        self.check_at_ms = now_ms + quiet_ms(self.id);
        if !self.joining.is_empty() {
            self.keep(publication);
        }
    }

    /// The oldest go at the bound: who needed them has lost too much.
    fn keep(&mut self, publication: &Arc<Publication>) {
        self.kept_bytes += publication.payload_bytes();
        self.kept.push_back(publication.clone());
        while self.kept.len() > self.bounds.publications_max
            || self.kept_bytes > self.bounds.bytes_max
        {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.payload_bytes();
        }
    }

    /// Nobody joins any more, or what is kept is of a time before a gap.
    pub fn forget_kept(&mut self) {
        (self.kept, self.kept_bytes) = (VecDeque::new(), 0);
    }

    /// Something may be missing: what is known holds no longer.
    pub fn on_gap(&mut self) {
        (self.position, self.newest, self.suspect) = (None, None, None);
        self.is_empty = false;
        self.forget_kept();
        self.reads.iter_mut().for_each(|read| read.is_stale = true);
    }

    /// Something came that is behind what was delivered. Mostly a page had been ahead; but a Redis that
    /// lost its newest part unnoticed looks the same, and the periodic check tells them apart.
    pub fn on_repeated(&mut self) {
        self.check_at_ms = 0;
    }

    // --- joining

    /// What somebody can be told who wants to join now; `recover` is what its client knows.
    pub fn enter(&self, recover: Option<Position>) -> Entry {
        match self.recovery {
            Recovery::Cache if self.must_look() => Entry::Read(None),
            Recovery::Cache => Entry::Now(self.welcome_newest(recover)),
            _ => match (self.position, recover) {
                (None, key) => Entry::Read(key),
                (Some(at), None) => Entry::Now(self.welcome(at)),
                (Some(at), Some(since)) if !is_same_epoch(since, at) => Entry::Now(self.lost(at)),
                (Some(at), Some(since)) if since.offset == at.offset => {
                    Entry::Now(self.recovered(at, since, Missed::Nothing))
                }
                (Some(_), Some(since)) => Entry::Read(Some(since)),
            },
        }
    }

    /// What a subscriber is told again.
    pub fn standing(&self) -> Welcome {
        let positioned = self.recovery == Recovery::Stream || self.has_history;
        Welcome { positioned, ..self.welcome(self.position.unwrap_or_default()) }
    }

    /// Notes a read. False: one that answers the same is on its way.
    pub fn try_read(&mut self, key: ReadKey, is_second: bool) -> bool {
        let is_new = !self.is_read(key);
        if is_new {
            self.reads.push(Read { key, is_stale: false, is_second });
        }
        is_new
    }

    pub fn is_read(&self, key: ReadKey) -> bool {
        self.reads.iter().any(|read| read.key == key)
    }

    /// A read ended. Pages of before a gap still prove what they hold where delivery has gone on since.
    pub fn on_read(&mut self, key: ReadKey) -> Fate {
        let at = self.reads.iter().position(|read| read.key == key);
        match at.map(|at| self.reads.swap_remove(at)) {
            Some(read) if read.is_stale && self.position.is_none() => {
                if read.is_second {
                    Fate::Drop
                } else {
                    Fate::Again
                }
            }
            _ => Fate::Use,
        }
    }

    /// Which read answers somebody who asked for this.
    pub fn read_key(&self, recover: Option<Position>) -> ReadKey {
        recover.filter(|_| self.recovery == Recovery::Stream)
    }

    /// Asks only where a stream stands.
    pub fn top(channel: &str) -> HistoryAsk {
        HistoryAsk {
            channel: channel.into(),
            since: None,
            order: Order::Forward,
            limit: 0,
            bytes_max: 0,
        }
    }

    /// What is to be read for a key.
    pub fn ask(&self, channel: &str, key: ReadKey) -> HistoryAsk {
        let (order, limit) = match key {
            Some(_) => (Order::Forward, self.bounds.publications_max),
            None if self.recovery == Recovery::Cache => (Order::Reverse, 1),
            None => return Self::top(channel),
        };
        // Of whatever epoch: where the stream stands is to be told in any case.
        let since = key.map(|since| Position { offset: since.offset, epoch: Epoch::NONE });
        let bytes_max = self.bounds.bytes_max;
        HistoryAsk { channel: channel.into(), since, order, limit, bytes_max }
    }

    /// A page came.
    pub fn on_page(&mut self, channel: &Arc<Channel>, page: &HistoryPage, now_ms: u64) {
        let is_first = self.position.is_none();
        let at = *self.position.get_or_insert(page.top);
        if self.recovery == Recovery::Cache && self.newest.is_none() && !self.is_empty {
            if is_first || at == page.top {
                self.read_newest(channel, page, now_ms);
            } else {
                self.is_empty = true;
            }
        }
    }

    /// What somebody who waited for a page can be told; without one it couldn't be read.
    pub fn answer(&self, recover: Option<Position>, page: Option<&Arc<HistoryPage>>) -> Entry {
        let Some(at) = self.position.or((!self.has_history).then(Position::default)) else {
            return Entry::Unknown;
        };
        if self.recovery == Recovery::Cache {
            return Entry::Now(self.welcome_newest(recover));
        }
        let Some(since) = recover else { return Entry::Now(self.welcome(at)) };
        if is_same_epoch(since, at) && since.offset == at.offset {
            return Entry::Now(self.recovered(at, since, Missed::Nothing));
        }
        if !is_same_epoch(since, at) {
            return Entry::Now(self.lost(at));
        }
        // Nothing is said of what couldn't be looked up: the client tries again, from where it stands.
        let Some(page) = page else { return Entry::Unknown };
        if page.top.epoch != at.epoch {
            return Entry::Now(self.lost(at));
        }
        if since.offset > at.offset {
            let is_real = since.offset <= page.top.offset;
            return if is_real { Entry::Ahead } else { Entry::Now(self.lost(at)) };
        }
        match self.missed(since, at, page) {
            Some(missed) => Entry::Now(self.recovered(at, since, missed)),
            None => Entry::Now(self.lost(at)),
        }
    }

    /// What somebody can be told for whom it takes too long.
    pub fn give_up(&self) -> Entry {
        self.position.map_or(Entry::Unknown, |at| Entry::Now(self.lost(at)))
    }

    /// Everything after `since`, up to `at`; `None` if that isn't at hand.
    fn missed(&self, since: Position, at: Position, page: &Arc<HistoryPage>) -> Option<Missed> {
        let from_page =
            page.publications.iter().take_while(|stored| stored.offset <= at.offset).count();
        let mut reached = since.offset;
        let mut follows = |offset: u64| {
            let follows = reached.checked_add(1) == Some(offset);
            reached = offset;
            follows
        };
        if !page.publications[..from_page].iter().all(|stored| follows(stored.offset)) {
            return None;
        }
        let end_of_page =
            page.publications[..from_page].last().map_or(since.offset, |it| it.offset);
        let is_behind = |it: &&Arc<Publication>| it.position().offset > end_of_page;
        let kept: Vec<&Arc<Publication>> = self.kept.iter().filter(is_behind).collect();
        if !kept.iter().all(|publication| follows(publication.position().offset))
            || reached != at.offset
        {
            return None;
        }
        let bytes_max = self.bounds.bytes_max;
        if kept.is_empty() && from_page == page.publications.len() {
            return page.client_json(bytes_max).is_whole.then(|| Missed::Page(page.clone()));
        }
        let kept = kept.into_iter().map(|publication| Arc::new(Stored::of(publication)));
        let all = page.publications[..from_page].iter().cloned().chain(kept).collect();
        let page = HistoryPage::new(at, all);
        page.client_json(bytes_max).is_whole.then(|| Missed::Page(Arc::new(page)))
    }

    fn welcome(&self, at: Position) -> Welcome {
        Welcome { recoverable: true, positioned: true, at, ..Welcome::default() }
    }

    fn lost(&self, at: Position) -> Welcome {
        Welcome { was_recovering: true, ..self.welcome(at) }
    }

    fn recovered(&self, at: Position, since: Position, missed: Missed) -> Welcome {
        let at = Position { offset: since.offset, epoch: at.epoch };
        Welcome { was_recovering: true, recovered: true, missed, ..self.welcome(at) }
    }

    // --- the periodic check

    /// From where on delivery is to be compared with the stream, if that is due.
    pub fn try_check(&mut self, now_ms: u64) -> Option<Position> {
        let at = self.position.filter(|_| self.has_history && now_ms >= self.check_at_ms)?;
        self.check_at_ms = now_ms + quiet_ms(self.id);
        Some(at)
    }

    /// Compares with where the stream stood when delivery had reached `asked_at`. False: something
    /// stayed away. What is only further may be on its way: true, until it is seen again.
    pub fn is_level(&mut self, asked_at: Position, top: Position) -> bool {
        let Some(at) = self.position else { return true };
        if top.epoch != at.epoch {
            // A new stream whose first publication is on its way is told from one that lost it by the
            // same patience.
            return !self.is_still(top);
        }
        if top.epoch == asked_at.epoch && top.offset < asked_at.offset {
            return false;
        }
        if top.offset <= at.offset {
            self.suspect = None;
            return true;
        }
        !self.is_still(top)
    }

    /// Whether that had been seen before, and live delivery still isn't there.
    fn is_still(&mut self, top: Position) -> bool {
        let before = self.suspect.replace(top);
        before.is_some_and(|before| {
            before.epoch == top.epoch
                && self
                    .position
                    .is_some_and(|at| at.epoch != top.epoch || at.offset < before.offset)
        })
    }

    /// What was ahead is looked up again: it has its time to arrive.
    pub fn check_again(&mut self, now_ms: u64) {
        if self.suspect.is_some() {
            self.check_at_ms = now_ms + AGAIN_MS;
        }
    }
}

/// A client that names no epoch means whatever stream there is.
fn is_same_epoch(since: Position, at: Position) -> bool {
    since.epoch.is_none() || since.epoch == at.epoch
}

mod newest;
#[cfg(test)]
mod tests;
