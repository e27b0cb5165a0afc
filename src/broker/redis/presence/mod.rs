//! Who is here, over all nodes: this node's clients written to Redis, those of dead nodes removed, and all
//! of them read.
//!
//! All on the broker thread. One task ([`attend`]) lives one *life* after the other, each over one command
//! link: it begins the life, moves there what Redis has of the one before, writes who comes and goes in
//! bounded batches with a pause after each, shows every [`BEAT`] that the node lives, and looks for lives
//! that are over. How Redis keeps it, and why nothing is told twice, is said in `lua/presence.lua`; what is
//! to be written, in `ledger`.
//! Reads are tasks of their own. A read first writes what this node has yet to write of the channel, so
//! that who was told that somebody came finds it so.
//! **Invariant:** what is written under a life goes over the link that it began on: what a link that was
//! given up still holds can change nothing of a later life.

mod calls;
mod ledger;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::HashSet;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;

use super::reads::{Reads, Taken, Waiting};
use super::script::Call;
use super::{Command, Finished, Redis};
use crate::broker::presence::{BOUNDS, Member, Presence, PresenceAsk, PresenceError, Wanted};
use crate::broker::survey::Asked;
use crate::channel::Channel;
use crate::protocol::Members;
use calls::{BeatReply, Calls, Line, Listed, Part, ReapReply, Reaping, Step};
use ledger::{Batch, Before, Ledger};

/// Each may hold what its asker's `bytes_max` lets it.
const READS_MAX: usize = 16;
/// How often a node shows that it lives: thrice in the time for which it is believed.
const BEAT: Duration = Duration::from_secs(10);
/// How often it looks for lives that are over, and between two steps of removing them: a thousand clients
/// of a dead node are told to have left within half a second.
const LOOK: Duration = Duration::from_secs(3);
const REAP_PAUSE: Duration = Duration::from_millis(20);
/// Between two batches: with their round trips, some ten thousand entries a second.
const WRITE_PAUSE: Duration = Duration::from_millis(2);
/// Keys live three times as long. Their channels are gone through in steps.
const KEEP_MS: u64 = 1_200_000;
const KEEP_STEP: Duration = Duration::from_secs(1);
const KEEP_STEPS: usize = (KEEP_MS / 1_000) as usize;
/// Between two looks whether what is waited for is there.
const POLL: Duration = Duration::from_millis(20);
/// Until a life that failed is followed by the next.
const RETRY: Duration = Duration::from_millis(200);
/// Lives whose entries may still have to be moved: a link that failed as often within seconds leaves what
/// it wrote at first to expire.
const BEFORE_MAX: usize = 16;

/// This node's part of it.
pub struct Attendance {
    ledger: RefCell<Ledger>,
    reads: RefCell<Reads<PresenceAsk>>,
    /// There is something to be written.
    news: Notify,
    life: RefCell<Option<Rc<Life>>>,
    /// Lives that had entries, the newest last.
    before: RefCell<Vec<String>>,
}

/// The life in use.
struct Life {
    name: String,
    command: Command,
    /// That entries are moved from, and those of which it is known that there is nothing left to move.
    before: RefCell<Vec<String>>,
}

impl Attendance {
    pub fn new() -> Self {
        Self {
            ledger: RefCell::new(Ledger::new(BOUNDS)),
            reads: RefCell::new(Reads::new(READS_MAX)),
            news: Notify::new(),
            life: RefCell::new(None),
            before: RefCell::new(Vec::new()),
        }
    }
}

// --- who comes and goes

impl Redis {
    pub fn enter(&self, shard: usize, channel: &Arc<Channel>, member: Box<Member>) {
        self.attendance.ledger.borrow_mut().enter(shard, channel, member);
        self.attendance.news.notify_one();
    }

    pub fn leave(&self, channel: &str, client: Uuid) {
        self.attendance.ledger.borrow_mut().leave(channel, client);
        self.attendance.news.notify_one();
    }

    pub fn forget_members(&self, shard: usize) {
        self.attendance.ledger.borrow_mut().forget_shard(shard);
        self.attendance.news.notify_one();
    }

    /// Clients of this node in a channel.
    pub fn n_members_in(&self, channel: &str) -> usize {
        self.attendance.ledger.borrow().n_in(channel)
    }

    pub fn n_entries(&self) -> usize {
        self.attendance.ledger.borrow().n_entries()
    }

    pub fn n_entries_refused(&self) -> u64 {
        self.attendance.ledger.borrow().n_refused()
    }
}

// --- the node's lives

/// Keeps Redis told of who is here.
pub async fn attend(redis: Rc<Redis>) {
    let mut n_lives = 0;
    loop {
        redis.until_needed().await;
        let command = redis.command.borrow().clone();
        // A Redis that runs no scripts has no presence.
        match command.filter(|command| command.link.deadline_ms().is_some()) {
            Some(command) => {
                n_lives += 1;
                redis.live(format!("{}:{n_lives}", redis.node.run_id), command).await;
                redis.attendance.life.replace(None);
                sleep(RETRY).await;
            }
            None => sleep(POLL).await,
        }
    }
}

/// When what is due next.
struct Dues {
    beat: Instant,
    look: Instant,
    keep: Instant,
}

impl Dues {
    fn next(&self) -> Instant {
        self.beat.min(self.look).min(self.keep)
    }
}

impl Redis {
    /// The command link was replaced, or is gone.
    pub fn on_command_link(&self) {
        self.attendance.news.notify_one();
    }

    fn has_members(&self) -> bool {
        self.n_entries() > 0
            || (!self.node.is_draining() && self.node.auth().namespaces().have_members())
    }

    async fn until_needed(&self) {
        while !self.has_members() {
            let _ = timeout(LOOK, self.attendance.news.notified()).await;
        }
    }

    /// Lives one life, until its link fails, it is taken for dead, or there is no need for it.
    async fn live(self: &Rc<Self>, name: String, mut command: Command) {
        let attendance = &self.attendance;
        let before = attendance.before.borrow().clone();
        let call = Calls(&self.prefix).beat(&name, Step::Begin, &before);
        let Some(begun) = self.ask(&mut command, &call).await.and_then(BeatReply::read) else {
            return;
        };
        let what = if before.is_empty() { Before::There } else { begun.before };
        tracing::debug!(life = name, ?what, "presence begins");
        if !before.is_empty() {
            self.node.metrics.presence.restarts.add(1);
        }
        attendance.ledger.borrow_mut().begin(what);
        {
            let mut lives = attendance.before.borrow_mut();
            lives.push(name.clone());
            let n_old = lives.len().saturating_sub(BEFORE_MAX);
            lives.drain(..n_old);
        }
        let life = Rc::new(Life { name, command, before: RefCell::new(before) });
        attendance.life.replace(Some(life.clone()));
        // Not all nodes at the same time.
        let part = (self.node.run_id.as_u64_pair().1 % 1_000) as u32;
        let began = Instant::now();
        let mut dues =
            Dues { beat: began + BEAT, look: began + LOOK * part / 1_000, keep: began + KEEP_STEP };
        while self.live_on(&life, &mut dues).await {
            let due = sleep_until(dues.next().into());
            tokio::select! { () = attendance.news.notified() => {} () = due => {} }
        }
    }

    /// Does what there is to do now. False: the life is over.
    async fn live_on(self: &Rc<Self>, life: &Rc<Life>, dues: &mut Dues) -> bool {
        loop {
            let batch = self.attendance.ledger.borrow_mut().take();
            let Some(batch) = batch else { break };
            if !self.write(life, batch).await {
                return false;
            }
            sleep(WRITE_PAUSE).await;
            if Instant::now() >= dues.next() {
                break;
            }
        }
        if !self.has_members() {
            self.beat(life, Step::End).await;
            self.attendance.before.borrow_mut().clear();
            return false;
        }
        let is_moved =
            self.attendance.ledger.borrow().is_settled() && !life.before.borrow().is_empty();
        let now = Instant::now();
        let mut lives_on = true;
        if is_moved || now >= dues.beat {
            dues.beat = now + BEAT;
            lives_on = self.beat(life, if is_moved { Step::Done } else { Step::Go }).await;
        }
        if lives_on && now >= dues.look {
            let has_more = self.reap(life).await;
            lives_on = has_more.is_some();
            dues.look = now + if has_more == Some(true) { REAP_PAUSE } else { LOOK };
        }
        if lives_on && now >= dues.keep {
            dues.keep = now + KEEP_STEP;
            lives_on = self.keep(life).await;
        }
        lives_on && self.is_current(&life.command)
    }

    /// Whether it is still the link in use.
    fn is_current(&self, command: &Command) -> bool {
        let current = self.command.borrow();
        current.as_ref().is_some_and(|current| Rc::ptr_eq(&current.broken, &command.broken))
    }

    /// False: it failed, or the life was taken for dead.
    async fn write(&self, life: &Life, mut batch: Batch) -> bool {
        let mut command = life.command.clone();
        let call = Calls(&self.prefix).write(&life.name, &life.before.borrow(), &mut batch);
        let written = self.ask(&mut command, &call).await.and_then(calls::read_written);
        self.attendance.ledger.borrow_mut().settle(batch, written == Some(true));
        written == Some(true)
    }

    async fn beat(&self, life: &Life, step: Step) -> bool {
        let mut command = life.command.clone();
        let call = Calls(&self.prefix).beat(&life.name, step, &life.before.borrow());
        let reply = self.ask(&mut command, &call).await.and_then(BeatReply::read);
        let is_believed = reply.is_some_and(|reply| reply.own == Before::There);
        if is_believed && step == Step::Done {
            life.before.borrow_mut().clear();
            self.attendance.before.replace(vec![life.name.clone()]);
        }
        is_believed
    }

    /// Removes a part of what dead nodes left. True: there is more.
    async fn reap(&self, life: &Life) -> Option<bool> {
        let mut command = life.command.clone();
        let call = Calls(&self.prefix).reap();
        let reply = self.ask(&mut command, &call).await.and_then(ReapReply::read)?;
        self.node.metrics.presence.reaped.add(reply.n_reaped);
        Some(reply.has_more)
    }

    /// False: it failed.
    async fn keep(&self, life: &Life) -> bool {
        let (mut command, now_ms) = (life.command.clone(), self.node.now_ms());
        let channels = {
            let mut ledger = self.attendance.ledger.borrow_mut();
            let n_looked_at = ledger.n_entries().div_ceil(KEEP_STEPS);
            ledger.take_kept(now_ms, KEEP_MS, n_looked_at)
        };
        if channels.is_empty() {
            return true;
        }
        let call = Calls(&self.prefix).keep(&life.name, channels);
        self.ask(&mut command, &call).await.is_some()
    }

    /// `None`: it failed.
    async fn ask(&self, command: &mut Command, call: &Call) -> Option<redis::Value> {
        let metrics = &self.node.metrics.presence;
        metrics.calls.add(1);
        let value = self.call(command, call).await;
        metrics.failed_calls.add(u64::from(value.is_none()));
        value
    }
}

// --- who is here?

impl Redis {
    /// Reads who is in a channel; the answer is among the finished.
    pub fn read_presence(self: &Rc<Self>, asked: Asked, ask: PresenceAsk) {
        let taken = self.attendance.reads.borrow_mut().ask(asked, ask);
        match taken {
            Taken::Queued => self.start_presence_reads(),
            Taken::Shared => self.node.metrics.presence.reads_shared.add(1),
            Taken::Refused => {
                self.finish([Finished::Presence {
                    asked,
                    result: Err(PresenceError::Unavailable),
                }]);
            }
        }
    }

    fn start_presence_reads(self: &Rc<Self>) {
        loop {
            let started = self.attendance.reads.borrow_mut().start();
            let Some((ask, Waiting { since, asked })) = started else { return };
            let redis = self.clone();
            tokio::task::spawn_local(async move {
                let left = redis.node.config.redis_timeout.saturating_sub(since.elapsed());
                let read = timeout(left, redis.presence_of(&ask)).await;
                let result = read.unwrap_or(Err(PresenceError::Unavailable)).map(Arc::new);
                redis.attendance.reads.borrow_mut().end(ask);
                let finished = asked.into_iter();
                redis.finish(
                    finished.map(|asked| Finished::Presence { asked, result: result.clone() }),
                );
                redis.start_presence_reads();
            });
        }
    }

    async fn presence_of(self: &Rc<Self>, ask: &PresenceAsk) -> Result<Presence, PresenceError> {
        let command = self.command.borrow().clone();
        let Some(mut command) = command else { return Err(PresenceError::Unavailable) };
        self.write_own(&command, &ask.channel).await?;
        let calls = Calls(&self.prefix);
        match ask.what {
            Wanted::Counts => {
                let call = calls.count(&ask.channel);
                let counts = self.ask_until_reaped(&mut command, &call, calls::read_counts).await?;
                Ok(Presence::Counts(counts))
            }
            Wanted::Members { bytes_max } => {
                let call = calls.who(&ask.channel);
                let listed = self.ask_until_reaped(&mut command, &call, calls::read_listed).await?;
                self.list(&mut command, &ask.channel, listed, bytes_max).await
            }
        }
    }

    /// The life that began on a link, once Redis has, or is about to be sent, all that it had before.
    fn whole_life(&self, command: &Command) -> Option<Rc<Life>> {
        let life = self.attendance.life.borrow().clone()?;
        let is_its = Rc::ptr_eq(&life.command.broken, &command.broken);
        (is_its && self.attendance.ledger.borrow().is_whole()).then_some(life)
    }

    /// Writes what this node has yet to write of a channel; where it has more to write, once that is done.
    async fn write_own(
        self: &Rc<Self>,
        command: &Command,
        channel: &str,
    ) -> Result<(), PresenceError> {
        let life = loop {
            match self.whole_life(command) {
                Some(life) => break life,
                None if self.n_entries() == 0 => return Ok(()),
                None => sleep(POLL).await,
            }
        };
        let batch = self.attendance.ledger.borrow_mut().take_of(channel);
        let Some(batch) = batch else { return Ok(()) };
        let redis = self.clone();
        // Not to be given up halfway: what became of it has to be settled.
        let written = tokio::task::spawn_local(async move { redis.write(&life, batch).await });
        match written.await {
            Ok(true) => Ok(()),
            _ => Err(PresenceError::Unavailable),
        }
    }

    /// What dead nodes left in the channel is removed first, in steps.
    async fn ask_until_reaped<T>(
        &self,
        command: &mut Command,
        call: &Call,
        read: impl Fn(redis::Value) -> Option<Reaping<T>>,
    ) -> Result<T, PresenceError> {
        loop {
            let reply = self.ask(command, call).await.and_then(&read);
            match reply.ok_or(PresenceError::Unavailable)? {
                Ok(answer) => return Ok(answer),
                Err(()) => sleep(WRITE_PAUSE).await,
            }
        }
    }

    async fn list(
        &self,
        command: &mut Command,
        channel: &str,
        listed: Listed,
        bytes_max: usize,
    ) -> Result<Presence, PresenceError> {
        let mut list = List { bytes_max, seen: HashSet::default(), members: Members::default() };
        let lives = match listed {
            Listed::All(lines) => {
                list.add(lines)?;
                Vec::new()
            }
            Listed::Scan(lives) => lives,
        };
        for life in lives {
            let mut cursor = b"0".to_vec();
            loop {
                let call = Calls(&self.prefix).scan(channel, &life, &cursor);
                let part = self.ask(command, &call).await.and_then(Part::read);
                let part = part.ok_or(PresenceError::Unavailable)?;
                list.add(part.lines)?;
                if part.cursor == b"0" {
                    break;
                }
                cursor = part.cursor;
            }
        }
        Ok(Presence::Members(list.members.finish()))
    }
}

/// A list that grows step by step; a step may show again what one before showed.
struct List {
    bytes_max: usize,
    seen: HashSet<Box<str>>,
    members: Members,
}

impl List {
    fn add(&mut self, lines: Vec<Line>) -> Result<(), PresenceError> {
        for Line { client, info } in lines {
            let Ok(client) = String::from_utf8(client) else { continue };
            if self.seen.contains(&*client) {
                continue;
            }
            self.members.push(&client, &info);
            self.seen.insert(client.into());
            if self.members.bytes() > self.bytes_max {
                return Err(PresenceError::TooMany);
            }
        }
        Ok(())
    }
}
