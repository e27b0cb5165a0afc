//! Joining a channel whose stream counts: positions, what was missed, and the look-out for gaps.
//!
//! Runs on the shard thread inside one borrow of the state; what is decided is `stream`'s. Who wants to
//! join such a channel and can't be answered at once is in its stream's `joining` until a page comes;
//! one read serves all who ask from the same position. What can't be had ends as `recovered: false`, once;
//! a read that failed as error 100, on which the client tries again; neither as a closed connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::hub::{Fanout, SessionId, Variant};
use super::session::Session;
use super::state::{Request, State};
use super::stream::{Bounds, Entry, Fate, Next, ReadKey, Stream};
use super::waiting::{Ask, Asked, is_wanted, last_ask, push_asked};
use super::welcome::Welcome;
use crate::broker::HistoryPage;
use crate::channel::ChannelId;
use crate::config::{Config, SlowConsumer};
use crate::metrics::Recovery;
use crate::position::Position;
use crate::protocol::ReplyError;
use crate::publication::{Format, Publication};

/// All streams are gone through in so many ticks.
const TICKS_PER_ROUND: usize = 100;
/// Catch-ups queued in one tick, on all shards together: this part of `HUB_OUTBOX_TOTAL_BYTES`.
const CATCH_UP_PART: usize = 8;
/// Look-ups on their way.
const CHECKS_MAX: usize = 64;

/// What a shard may queue of catch-ups in one tick, while so much is queued on all. A page is shared, what
/// is queued of it isn't: ten thousand who come back at once would take gigabytes, and be cut for it. The
/// upper half is left to live delivery.
pub fn catch_up_room(config: &Config, total_bytes: usize) -> usize {
    let free_bytes = (config.outbox_total_bytes / 2).saturating_sub(total_bytes);
    free_bytes.min(config.outbox_total_bytes / CATCH_UP_PART) / config.shards
}

impl State {
    pub fn stream(&self, slot: u32) -> Option<&Stream> {
        self.streams.get(slot as usize)?.as_deref()
    }

    pub fn stream_mut(&mut self, slot: u32) -> Option<&mut Stream> {
        self.streams.get_mut(slot as usize)?.as_deref_mut()
    }

    pub fn stream_of(&mut self, id: ChannelId) -> Option<&mut Stream> {
        self.stream_mut(id.slot).filter(|stream| stream.id == id)
    }

    /// What a namespace says counts for channels that are opened from then on.
    pub fn open_stream(&mut self, id: ChannelId, name: &str, newest: Option<&Arc<Publication>>) {
        let auth = self.auth.clone();
        let Some(namespace) = auth.namespaces().of(name) else { return };
        if namespace.slow_consumer == SlowConsumer::Conflate {
            self.hub.conflate(id.slot);
        }
        if let Some(per_second) = namespace.max_rate {
            self.paces.open(id, per_second, Instant::now());
        }
        self.hub.set_delay(id.slot, namespace.write_delay);
        let config = &self.node.config;
        // Half the outbox: a catch-up must never be what makes its client a slow one.
        let bytes_max = config.outbox_bytes_max / 2;
        let bounds = Bounds { publications_max: config.history_max, bytes_max };
        let now_ms = self.now_ms;
        let Some(mut stream) = Stream::new(id, namespace, bounds, now_ms) else { return };
        // One that history has, or had, is to be looked up: how old it is isn't known here.
        if let Some(newest) = newest.filter(|newest| newest.position().offset == 0) {
            stream.on_shown(newest, now_ms);
        }
        let at = id.slot as usize;
        if self.streams.len() <= at {
            self.streams.resize_with(at + 1, || None);
        }
        self.streams[at] = Some(Box::new(stream));
    }

    pub fn close_stream(&mut self, slot: u32) {
        if let Some(stream) = self.streams.get_mut(slot as usize) {
            *stream = None;
        }
        self.paces.close(slot);
    }

    /// Namespaces changed.
    pub fn set_delays(&mut self) {
        let auth = self.auth.clone();
        for id in self.hub.open_channels() {
            let channel = self.hub.channel(id);
            let namespace =
                channel.and_then(|channel| auth.namespaces().of(&channel.name).copied());
            self.hub.set_delay(id.slot, namespace.map_or(Duration::ZERO, |it| it.write_delay));
        }
    }

    /// Namespaces changed. Where history is kept no longer, positions stand still and would prove that
    /// nobody misses anything: those who rely on them are told, and come back to a channel without.
    pub fn end_unkept_streams(&mut self) {
        let auth = self.auth.clone();
        for id in self.hub.open_channels() {
            let is_positioned = self.stream_of(id).is_some_and(|stream| stream.is_positioned());
            let Some(channel) = self.hub.channel(id).filter(|_| is_positioned) else { continue };
            if auth.namespaces().of(&channel.name).is_some_and(|it| it.keep().is_none()) {
                self.on_gap(super::Gapped::Channel(id));
            }
        }
    }

    // --- live

    /// Fans a publication out, if it is what its stream goes on with.
    pub fn on_publication(&mut self, id: ChannelId, publication: &Arc<Publication>) -> Fanout {
        let Some(Some(stream)) = self.streams.get(id.slot as usize) else {
            return self.show(id, publication);
        };
        if stream.id != id {
            return Fanout::default();
        }
        match stream.next(publication.position()) {
            Next::Follows => {}
            Next::Repeats => {
                self.node.metrics.shards[self.idx].repeated.add(1);
                if let Some(stream) = self.stream_of(id) {
                    stream.on_repeated();
                }
                return Fanout::default();
            }
            Next::Breaks => {
                self.node.metrics.shards[self.idx].gaps_offset.add(1);
                let is_positioned = stream.is_positioned();
                self.on_gap(super::Gapped::Channel(id));
                // Nobody is left to deliver it to. Where the stream stands is to be read: a forged
                // offset, believed, would make repeats of all that come after it.
                if is_positioned {
                    return Fanout::default();
                }
            }
        }
        let now_ms = self.now_ms;
        // Gone if the gap took the last subscriber.
        let Some(stream) = self.stream_of(id) else { return Fanout::default() };
        stream.on_came(publication, now_ms);
        let fanout = self.show(id, publication);
        if self.stream_of(id).is_some_and(|stream| !stream.ahead.is_empty()) {
            self.admit_caught_up(id);
        }
        fanout
    }

    /// A channel's history was removed. What `max_rate` holds was published before, and isn't to become
    /// the newest after it.
    pub fn on_removed(&mut self, id: ChannelId) {
        self.show_held(id);
        if let Some(stream) = self.stream_of(id) {
            stream.on_removed();
        }
    }

    /// A channel lost something. True: its subscribers rely on getting all.
    pub fn lose_position(&mut self, id: ChannelId) -> bool {
        let Some(stream) = self.stream_of(id) else { return false };
        stream.on_gap();
        let is_positioned = stream.is_positioned();
        // What those who are ahead wait for may never come.
        for (session, _) in std::mem::take(&mut stream.ahead) {
            let Some(stream) = self.stream_of(id) else { break };
            let Some(asked) = stream.joining.get(&session) else { continue };
            let key = stream.read_key(last_ask(asked).recover);
            self.read_stream(id.slot, key, false);
        }
        is_positioned
    }

    // --- joining

    /// What somebody who wants to join a live channel can be told at once.
    pub fn entry(&mut self, slot: u32, ask: Ask) -> Entry {
        let now_ms = self.now_ms;
        let Some(stream) = self.stream_mut(slot) else { return Entry::Now(Welcome::default()) };
        stream.expire_newest(now_ms);
        stream.enter(ask.recover)
    }

    /// What a subscriber of a live channel is told again.
    pub fn standing(&self, slot: u32) -> Welcome {
        self.stream(slot).map(Stream::standing).unwrap_or_default()
    }

    /// Lets a session join a live channel. `None`: answered later.
    pub fn enter(
        &mut self,
        id: SessionId,
        slot: u32,
        asked: Asked,
    ) -> Result<Option<Welcome>, ReplyError> {
        let ask = last_ask(&[asked]);
        if let Some(stream) = self.stream_mut(slot)
            && stream.joining.contains_key(&id)
        {
            push_asked(&mut stream.joining, id, asked)?;
            let key = stream.read_key(ask.recover);
            self.read_stream(slot, key, false);
            return Ok(None);
        }
        match self.entry(slot, ask) {
            Entry::Now(welcome) => self.admit(id, slot, &[asked], welcome).map(Some),
            Entry::Read(key) => {
                self.add_pending(id);
                self.join(id, slot, SmallVec::from_elem(asked, 1), key);
                Ok(None)
            }
            Entry::Ahead | Entry::Unknown => Err(ReplyError::INTERNAL),
        }
    }

    /// Subscribes a session, unless it wants all or nothing and can't have all.
    pub fn admit(
        &mut self,
        id: SessionId,
        slot: u32,
        asked: &[Asked],
        mut welcome: Welcome,
    ) -> Result<Welcome, ReplyError> {
        let ask = last_ask(asked);
        if ask.variant != Variant::Plain {
            welcome.missed = std::mem::take(&mut welcome.missed).patched();
        }
        // Each of them is told: an SDK may take the first answer for that to its last wish.
        let is_subscribe = |asked: &&Asked| matches!(asked, Asked::Subscribe(_));
        let n_told = asked.iter().filter(is_subscribe).count().max(1);
        let top = self.stream(slot).and_then(Stream::position).unwrap_or_default();
        welcome.fit_into(self.room(id) / n_told, top);
        let catch_up_bytes = n_told * welcome.missed.json().len();
        self.catch_up_room = self.catch_up_room.saturating_sub(catch_up_bytes);
        self.hub.totals.skipped += welcome.missed.n_skipped();
        if welcome.was_recovering {
            let outcome = if welcome.recovered { Recovery::Recovered } else { Recovery::Lost };
            self.node.metrics.shards[self.idx].recoveries[outcome as usize].add(1);
        }
        if ask.or_nothing && welcome.was_recovering && !welcome.recovered {
            return Err(ReplyError::UNRECOVERABLE_POSITION);
        }
        self.subscribe(id, slot, ask);
        Ok(welcome)
    }

    /// What a catch-up may take: half the outbox, together with what is queued, or will be.
    fn room(&self, id: SessionId) -> usize {
        let session = self.sessions.get(id.idx as usize).and_then(Option::as_ref);
        let answer_bytes = self.answer_bytes + session.map_or(0, Session::answer_bytes);
        let queued_bytes = self.hub.queued_bytes(id) + answer_bytes;
        (self.node.config.outbox_bytes_max / 2).saturating_sub(queued_bytes)
    }

    /// Notes that a session waits for a page.
    pub fn join(&mut self, id: SessionId, slot: u32, asked: SmallVec<[Asked; 1]>, key: ReadKey) {
        let Some(stream) = self.stream_mut(slot) else { return };
        stream.joining.insert(id, asked);
        if !std::mem::replace(&mut stream.is_pinned, true) {
            self.hub.pin(slot);
        }
        self.read_stream(slot, key, false);
    }

    fn read_stream(&mut self, slot: u32, key: ReadKey, is_second: bool) {
        let Some(channel) = self.hub.channel_at(slot) else { return };
        let Some(stream) = self.stream_mut(slot) else { return };
        if !stream.try_read(key, is_second) {
            return;
        }
        let (id, ask) = (stream.id, stream.ask(&channel.name, key));
        self.read_history(ask, Request::Stream { id, key });
    }

    /// Answers those who waited for this page; `None`: it couldn't be read.
    pub fn on_stream_page(&mut self, id: ChannelId, key: ReadKey, page: Option<&Arc<HistoryPage>>) {
        let Some(channel) = self.hub.channel(id) else { return };
        let patience_ms = self.node.config.redis_timeout.as_millis() as u64;
        let (now_ms, until_ms) = (self.now_ms, self.now_ms + patience_ms);
        let Some(stream) = self.stream_of(id) else { return };
        let fate = stream.on_read(key);
        let waits = |(session, asked): (&SessionId, &SmallVec<[Asked; 1]>)| {
            (stream.read_key(last_ask(asked).recover) == key).then_some(*session)
        };
        let waiting: Vec<SessionId> = stream.joining.iter().filter_map(waits).collect();
        let page = match (fate, page) {
            (Fate::Again, Some(_)) if !waiting.is_empty() => {
                return self.read_stream(id.slot, key, true);
            }
            (Fate::Use, page) => page,
            _ => None,
        };
        if let Some(page) = page {
            stream.on_page(&channel, page, now_ms);
        }
        let takes_room = page.is_some_and(|page| !page.publications.is_empty());
        for session in waiting {
            if takes_room && self.catch_up_room == 0 {
                if !self.put_off.iter().any(|(other, of, _)| (*other, *of) == (id, key)) {
                    self.put_off.push_back((id, key, until_ms));
                }
                break;
            }
            let Some(stream) = self.stream_of(id) else { return };
            let Some(asked) = stream.joining.get(&session) else { continue };
            match stream.answer(last_ask(asked).recover, page) {
                Entry::Ahead => stream.ahead.push((session, until_ms)),
                Entry::Now(welcome) => self.admit_joining(id, session, Ok(welcome)),
                Entry::Read(_) | Entry::Unknown => {
                    self.admit_joining(id, session, Err(ReplyError::INTERNAL));
                }
            }
        }
        if self.stream_of(id).is_some_and(|stream| !stream.ahead.is_empty())
            && !self.ahead.contains(&id)
        {
            self.ahead.push(id);
        }
        self.end_joining(id);
    }

    /// Those who knew more than had been delivered here: delivery has come to where they are, or it
    /// takes too long.
    fn admit_caught_up(&mut self, id: ChannelId) {
        let now_ms = self.now_ms;
        let Some(stream) = self.stream_of(id) else { return };
        for (session, until_ms) in std::mem::take(&mut stream.ahead) {
            let Some(stream) = self.stream_of(id) else { return };
            let Some(asked) = stream.joining.get(&session) else { continue };
            match stream.enter(last_ask(asked).recover) {
                Entry::Now(welcome) => self.admit_joining(id, session, Ok(welcome)),
                _ if now_ms >= until_ms => match stream.give_up() {
                    Entry::Now(welcome) => self.admit_joining(id, session, Ok(welcome)),
                    _ => self.admit_joining(id, session, Err(ReplyError::INTERNAL)),
                },
                _ => stream.ahead.push((session, until_ms)),
            }
        }
        self.end_joining(id);
    }

    fn admit_joining(
        &mut self,
        id: ChannelId,
        session: SessionId,
        welcome: Result<Welcome, ReplyError>,
    ) {
        let Some(channel) = self.hub.channel(id) else { return };
        let Some(asked) = self.stream_of(id).and_then(|stream| stream.joining.remove(&session))
        else {
            return;
        };
        // The pin goes with the last one, but not before all of this page are answered.
        let is_wanted = is_wanted(&asked) && self.session(session).is_some();
        let outcome = match welcome {
            Ok(welcome) if is_wanted => self.admit(session, id.slot, &asked, welcome),
            outcome => outcome.map(|_| Welcome::default()),
        };
        self.settle(session, id.slot, &channel.name, asked, outcome);
    }

    fn end_joining(&mut self, id: ChannelId) {
        let Some(stream) = self.stream_of(id) else { return };
        if stream.joining.is_empty() {
            stream.forget_kept();
            // A channel that closed may come back under the same id, and a page of before say where it
            // stands.
            if stream.reads.is_empty() && std::mem::take(&mut stream.is_pinned) {
                self.hub.unpin(id.slot);
                self.release_emptied();
            }
        }
    }

    /// A raw session sees the newest publication first.
    pub fn show_newest(&mut self, id: SessionId, slot: u32) {
        let newest = self.stream(slot).and_then(|stream| stream.newest().cloned());
        let frame = newest.as_ref().and_then(|newest| newest.frame(Format::Raw));
        // Many large ones would make it a slow consumer before it could read: it goes without the rest.
        if let Some(frame) = frame
            && (self.hub.own_is_empty(id) || frame.len() <= self.room(id))
        {
            self.hub.push_own(id, frame);
        }
    }

    // --- every tick

    /// Reads again for those who weren't answered, as much as there is room for. A page that was kept for
    /// them would only grow old. Where there is none for too long, they are told to try again.
    pub fn catch_up(&mut self) {
        let total = self.node.metrics.sum(|shard| &shard.outbox_bytes) as usize;
        self.catch_up_room = catch_up_room(&self.node.config, total);
        let page_bytes_max = self.node.config.outbox_bytes_max / 2;
        for _ in 0..self.catch_up_room.div_ceil(page_bytes_max) {
            let Some((id, key, _)) = self.put_off.pop_front() else { break };
            if self.stream_of(id).is_some() {
                self.read_stream(id.slot, key, false);
            }
        }
        while self.put_off.front().is_some_and(|(.., until_ms)| self.now_ms >= *until_ms) {
            let Some((id, key, _)) = self.put_off.pop_front() else { break };
            if self.stream_of(id).is_some_and(|stream| !stream.is_read(key)) {
                self.on_stream_page(id, key, None);
            }
        }
    }

    /// Looks after those who are ahead, and up streams of which nothing was heard for long.
    pub fn check_streams(&mut self) {
        for id in std::mem::take(&mut self.ahead) {
            self.admit_caught_up(id);
            if self.stream_of(id).is_some_and(|stream| !stream.ahead.is_empty()) {
                self.ahead.push(id);
            }
        }
        let n_looked = self.streams.len().div_ceil(TICKS_PER_ROUND);
        for _ in 0..n_looked {
            self.checked_to = (self.checked_to + 1) % self.streams.len();
            self.check_stream(self.checked_to as u32);
        }
    }

    fn check_stream(&mut self, slot: u32) {
        let now_ms = self.now_ms;
        if self.n_checks >= CHECKS_MAX {
            return;
        }
        let Some(stream) = self.stream_mut(slot) else { return };
        let Some(asked_at) = stream.try_check(now_ms) else { return };
        let id = stream.id;
        let Some(channel) = self.hub.channel(id) else { return };
        let ask = Stream::top(&channel.name);
        self.n_checks += 1;
        self.node.metrics.shards[self.idx].position_checks.add(1);
        self.read_history(ask, Request::Check { id, asked_at });
    }

    /// Whether delivery has reached where the stream stands.
    pub fn on_checked(
        &mut self,
        id: ChannelId,
        asked_at: Position,
        page: Option<&Arc<HistoryPage>>,
    ) {
        self.n_checks -= 1;
        let now_ms = self.now_ms;
        let (Some(page), Some(stream)) = (page, self.stream_of(id)) else { return };
        if stream.is_level(asked_at, page.top) {
            return stream.check_again(now_ms);
        }
        self.node.metrics.shards[self.idx].gaps_behind.add(1);
        self.on_gap(super::Gapped::Channel(id));
    }
}

#[cfg(test)]
mod tests;
