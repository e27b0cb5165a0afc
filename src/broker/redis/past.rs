//! History of the Redis broker: reads in bounded steps, removals.
//!
//! On the broker thread. A read is a task that runs one step of [`super::script`] after the other on
//! the command link, so that a long one delays the publishes behind it by a step at most.
//! **Invariant:** at most [`READS_MAX`] reads run; each is refused after `HUB_REDIS_TIMEOUT` with its wait
//! and all its steps.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::timeout;

use super::link::is_of_replica;
use super::reads::{Taken, Waiting};
use super::script::{Call, StepReply, read_removed};
use super::{Command, Finished, Redis};
use crate::broker::history::{HistoryAsk, HistoryError, HistoryPage, Order};
use crate::broker::survey::Asked;
use crate::metrics::Drop;
use crate::position::Position;

/// Each may hold a page of its asker's `bytes_max`.
pub const READS_MAX: usize = 16;

impl Redis {
    /// Reads a page; the answer is among the finished.
    pub fn read_history(self: &Rc<Self>, asked: Asked, ask: HistoryAsk) {
        let metrics = &self.node.metrics.broker;
        metrics.history_reads.add(1);
        let taken = self.reads.borrow_mut().ask(asked, ask);
        match taken {
            Taken::Queued => self.start_reads(),
            Taken::Shared => metrics.history_reads_shared.add(1),
            Taken::Refused => {
                let result = Err(HistoryError::Unavailable);
                self.finish([Finished::History { asked, result }]);
            }
        }
    }

    fn start_reads(self: &Rc<Self>) {
        loop {
            let started = self.reads.borrow_mut().start();
            let Some((ask, Waiting { since, asked })) = started else { return };
            let redis = self.clone();
            tokio::task::spawn_local(async move {
                // For all of its steps, and for having waited: its asker doesn't wait for longer.
                let left = redis.node.config.redis_timeout.saturating_sub(since.elapsed());
                let read = timeout(left, redis.read(&ask)).await;
                let result = read.unwrap_or(Err(HistoryError::Unavailable)).map(Arc::new);
                redis.reads.borrow_mut().end(ask);
                let finished = asked.into_iter();
                redis.finish(
                    finished.map(|asked| Finished::History { asked, result: result.clone() }),
                );
                redis.start_reads();
            });
        }
    }

    async fn read(&self, ask: &HistoryAsk) -> Result<HistoryPage, HistoryError> {
        let command = self.command.borrow().clone();
        let Some(mut command) = command else { return Err(HistoryError::Unavailable) };
        let first = self.step(&mut command, ask, ask.since, ask.limit).await?;
        crate::broker::history::check_epoch(ask.since, first.top.epoch)?;
        let mut page = Page::new(ask, first.top);
        let mut has_more = first.has_more;
        page.add(first);
        while has_more && page.has_room() {
            let since = page.reached();
            let step = self.step(&mut command, ask, Some(since), page.left()).await?;
            // It was made anew in between: what was read so far is of no stream any more.
            if step.top.epoch != since.epoch {
                return Err(HistoryError::Unavailable);
            }
            has_more = step.has_more;
            page.add(step);
        }
        Ok(page.page)
    }

    async fn step(
        &self,
        command: &mut Command,
        ask: &HistoryAsk,
        since: Option<Position>,
        left: usize,
    ) -> Result<StepReply, HistoryError> {
        let call = Call::read(&self.prefix, ask, since, left, command.link.server());
        let reply = self.call(command, &call).await.and_then(StepReply::read);
        let reply = reply.ok_or(HistoryError::Unavailable)?;
        self.count_reset(reply.was_reset);
        self.node.metrics.broker.on_drop(Drop::BadEnvelope, reply.n_foreign);
        Ok(reply)
    }

    /// Drops a channel's publications; the answer is among the finished.
    pub fn remove_history(self: &Rc<Self>, asked: Asked, channel: &str) {
        let Some(mut command) = self.command.borrow().clone() else {
            let result = Err(HistoryError::Unavailable);
            return self.finish([Finished::HistoryRemoved { asked, result }]);
        };
        let call = Call::remove(&self.prefix, channel, command.link.server());
        let redis = self.clone();
        tokio::task::spawn_local(async move {
            let was_reset = redis.call(&mut command, &call).await.and_then(read_removed);
            let result = was_reset.map(|was_reset| redis.count_reset(was_reset));
            let result = result.ok_or(HistoryError::Unavailable);
            redis.finish([Finished::HistoryRemoved { asked, result }]);
        });
    }

    /// `None`: it failed, which is in the log.
    pub(super) async fn call(&self, command: &mut Command, call: &Call) -> Option<redis::Value> {
        match command.link.call(call).await {
            Ok(value) => Some(value),
            Err(error) => {
                self.complain("Redis refuses a script", &error);
                if error.code().is_none() || is_of_replica(&error) {
                    command.broken.notify_one();
                }
                None
            }
        }
    }
}

/// A page that grows step by step.
struct Page<'a> {
    ask: &'a HistoryAsk,
    page: HistoryPage,
    bytes: usize,
    /// What comes now doesn't follow.
    is_over: bool,
}

impl<'a> Page<'a> {
    fn new(ask: &'a HistoryAsk, top: Position) -> Self {
        Self { ask, page: HistoryPage::new(top, Vec::new()), bytes: 0, is_over: false }
    }

    /// Adds what belongs to the stream as it was at the first step. A step may find that what came
    /// right before it was trimmed away meanwhile, and somebody may have deleted from the middle: a
    /// page has no hole, so what lies before it, in offsets, is left out.
    fn add(&mut self, step: StepReply) {
        for stored in step.publications {
            if self.is_full() || stored.offset > self.page.top.offset {
                return;
            }
            let before = self.page.publications.last().map(|before| before.offset);
            match (self.ask.order, before) {
                (Order::Forward, Some(before)) if stored.offset != before + 1 => {
                    self.page.publications.clear();
                    self.bytes = 0;
                }
                (Order::Reverse, Some(before)) if stored.offset + 1 != before => {
                    self.is_over = true;
                    return;
                }
                _ => {}
            }
            self.bytes += stored.bytes();
            self.page.publications.push(Arc::new(stored));
        }
    }

    fn is_full(&self) -> bool {
        self.is_over || self.left() == 0 || self.bytes >= self.ask.bytes_max
    }

    fn has_room(&self) -> bool {
        !self.is_full() && !self.page.publications.is_empty()
    }

    fn left(&self) -> usize {
        self.ask.limit - self.page.publications.len()
    }

    fn reached(&self) -> Position {
        let offset = self.page.publications.last().map_or(0, |stored| stored.offset);
        Position { offset, epoch: self.page.top.epoch }
    }
}
