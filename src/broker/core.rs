//! The broker's loop: commands in, pushes in, events out to the shards.
//!
//! One task on the broker thread owns the interest table and the doors; the Redis links are
//! tasks beside it that talk to it through the inbox and a list of finished publishes. Nothing
//! here awaits Redis, so a frozen Redis delays no shard.

mod fleet;
mod past;
mod presence;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::chains::{self, Chains};
use super::door::ShardDoor;
use super::envelope::Letter;
use super::feed::Feed;
use super::gap_log::GapLog;
use super::interest::{Confirmed, Interest};
use super::memory::{self, Memory, Outcome};
use super::newest::{self, Newest};
use super::redis::{Finished as Answered, PublishRequest, Push, Redis, Registrar};
use super::rest::Rest;
use super::survey::{Asked, Surveys};
use super::{BrokerCommand, Publish, envelope};
use crate::channel::ChannelId;
use crate::config::{Namespace, Recovery};
use crate::mailbox::{Receiver, Sender, Unbound};
use crate::metrics::{Drop, Gap};
use crate::node::Node;
use crate::position::Position;
use crate::publication::{Body, Publication};
use crate::shard::{Gapped, LinkState, ShardEvent};

/// Delays, deadlines and probes are looked at this often.
const TICK: Duration = Duration::from_millis(50);
/// A mailbox that was full is tried again after this.
const RETRY: Duration = Duration::from_millis(1);
/// How often shards are asked to show that they run, milliseconds.
const PING_INTERVAL_MS: u64 = 500;
/// Channels of one SUBSCRIBE: Redis serves others in between.
const CHANGES_PER_COMMAND_MAX: usize = 512;
/// Command batches handled before the doors are flushed and pushes get their turn.
const BATCHES_PER_TURN_MAX: usize = 64;

/// Runs until [`BrokerCommand::Stop`].
pub async fn run(
    node: Arc<Node>,
    commands: Unbound<BrokerCommand>,
    shards: Vec<Sender<ShardEvent>>,
) {
    let commands = commands.bind();
    let mut core = Core::new(node, shards);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_full = core.flush_doors();
        if let Some(redis) = &core.redis {
            core.rest.take(&core.node.metrics, redis).await;
        }
        let retry_at = (is_full || core.changes_wait()).then_some(Instant::now() + RETRY);
        tokio::select! {
            () = std::future::poll_fn(|cx| commands.poll_wait(cx)) => {}
            () = core.redis_wakes() => {}
            _ = tick.tick() => core.on_tick(),
            () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
        }
        commands.set_awake();
        if core.on_commands(&commands).is_break() {
            return core.registrar.say_goodbye().await;
        }
        core.on_redis();
    }
}

struct Core {
    node: Arc<Node>,
    interest: Interest,
    chains: Chains,
    doors: Vec<ShardDoor>,
    /// Unused with Redis.
    memory: Memory,
    redis: Option<Rc<Redis>>,
    registrar: Registrar,
    link: LinkState,
    /// What the shards know of the link: it is up once all they had is subscribed again. Who
    /// subscribes to a channel that its shard has already is answered at once, and would miss
    /// what is published before the broker is subscribed.
    told: LinkState,
    publishes: Vec<PublishRequest>,
    newest: Newest,
    surveys: Surveys,
    feed: Option<Feed>,
    next_ping_ms: u64,
    gap_log: GapLog,
    rest: Rest,
}

impl Core {
    fn new(node: Arc<Node>, shards: Vec<Sender<ShardEvent>>) -> Self {
        let config = &node.config;
        let doors =
            shards.into_iter().map(|sender| ShardDoor::new(sender, config.mailbox_max)).collect();
        let redis = config.redis_url.is_some().then(|| Redis::start(node.clone()));
        let registrar = Registrar::new(redis.as_ref().filter(|_| config.registry));
        // With Redis, shards start with the link down; the memory broker's can't break.
        let link = if redis.is_some() { LinkState::Down } else { LinkState::Up };
        // A little less than the SDKs' patience, and than the shard's own.
        let acquire_timeout_ms = config.redis_timeout.as_millis() as u64;
        Self {
            interest: Interest::new(
                config.unsubscribe_delay.as_millis() as u64,
                acquire_timeout_ms,
            ),
            chains: Chains::new(chains::BOUNDS),
            doors,
            memory: Memory::new(memory::BOUNDS),
            redis,
            registrar,
            link,
            told: link,
            publishes: Vec::new(),
            newest: Newest::new(newest::BYTES_MAX),
            surveys: Surveys::default(),
            feed: config.dev.then(Feed::default),
            next_ping_ms: 0,
            gap_log: GapLog::default(),
            rest: Rest::new(std::time::Instant::now()),
            node,
        }
    }

    async fn redis_wakes(&self) {
        match &self.redis {
            Some(redis) => redis.wakes().await,
            None => std::future::pending().await,
        }
    }

    fn on_commands(&mut self, commands: &Receiver<BrokerCommand>) -> std::ops::ControlFlow<()> {
        for _ in 0..BATCHES_PER_TURN_MAX {
            let Some(batch) = commands.try_recv() else { break };
            for command in batch {
                match command {
                    BrokerCommand::Stop => return std::ops::ControlFlow::Break(()),
                    command => self.on_command(command),
                }
            }
        }
        self.send_publishes();
        self.send_changes();
        std::ops::ControlFlow::Continue(())
    }

    fn on_command(&mut self, command: BrokerCommand) {
        let now_ms = self.node.now_ms();
        match command {
            BrokerCommand::Acquire { shard, name } => {
                let auth = self.node.auth();
                if auth.namespaces().of(&name).is_some_and(|it| it.recovery == Recovery::Cache) {
                    self.newest.watch(&name);
                }
                let confirmed = self.interest.acquire(&name, shard, now_ms);
                if let Some(confirmed) = confirmed {
                    self.confirm(&confirmed);
                }
            }
            BrokerCommand::Release { shard, id } => {
                self.interest.release(id, shard, now_ms);
                if !self.interest.has_shards(id) {
                    self.chains.forget(id);
                }
            }
            BrokerCommand::Chain { id } => {
                if self.interest.has_shards(id) {
                    self.chains.begin(id);
                }
            }
            BrokerCommand::Publish { shard, request, publish } => {
                let asked = Asked { shard, request };
                self.publish(Some(asked), *publish);
            }
            BrokerCommand::History { shard, request, ask } => {
                self.read_history(Asked { shard, request }, *ask, now_ms);
            }
            BrokerCommand::HistoryRemove { shard, request, channel } => {
                self.remove_history(Asked { shard, request }, channel);
            }
            BrokerCommand::Control { shard, request, control } => {
                self.control(Asked { shard, request }, control);
            }
            BrokerCommand::Enter { shard, channel, member } => self.enter(shard, &channel, member),
            BrokerCommand::Leave { channel, client } => self.leave(&channel, client),
            BrokerCommand::Presence { shard, request, ask } => {
                self.read_presence(Asked { shard, request }, *ask);
            }
            BrokerCommand::Survey { shard, request, topic } => {
                self.start_survey(Asked { shard, request }, topic, now_ms);
            }
            BrokerCommand::ChannelPage { owed, page } => self.on_page(owed, page),
            BrokerCommand::Connected { shard, connected } => {
                self.registrar.on_connected(shard, *connected);
            }
            BrokerCommand::Disconnected { connection } => {
                self.registrar.on_disconnected(connection);
            }
            BrokerCommand::LookUp { shard, request, ask } => {
                self.registrar.look_up(Asked { shard, request }, *ask);
            }
            BrokerCommand::Forget { shard } => {
                self.registrar.forget_shard(shard);
                self.interest.forget_shard(shard, now_ms);
                self.chains.retain(|id| self.interest.has_shards(id));
                self.forget_members(shard);
                self.doors[shard].push(ShardEvent::Link(self.told));
            }
            BrokerCommand::Stop => {}
        }
    }

    // --- publications

    fn publish(&mut self, asked: Option<Asked>, publish: Publish) {
        if self.redis.is_some() {
            self.publishes.push(PublishRequest { asked, publish });
            return;
        }
        let position = match self.memory.publish(&publish, self.node.now_ms()) {
            Outcome::New(position) => {
                self.fan_out(publish.channel.as_bytes(), publish.body, position);
                position
            }
            Outcome::Old(position) => position,
        };
        if let Some(Asked { shard, request }) = asked {
            self.doors[shard].push(ShardEvent::Published { request, result: Ok(position) });
        }
    }

    /// The demux: one look-up, one item per interested shard.
    fn fan_out(&mut self, channel: &[u8], body: Body, position: Position) {
        self.node.metrics.broker.publications.add(1);
        let Some(target) = self.interest.target(channel) else {
            if !self.newest.is_empty() {
                self.newest.on_unheard(channel, body, position);
            }
            return;
        };
        let (id, shards): (ChannelId, _) = (target.id, target.shards);
        let mut publication = Publication::at(target.channel.clone(), body, position);
        self.chains.link(id, &mut publication);
        let publication = Arc::new(publication);
        if !self.newest.is_empty() {
            self.newest.on_publication(&target.channel.name, &publication);
        }
        for shard in shards.iter() {
            let event = ShardEvent::Publication { channel: id, publication: publication.clone() };
            if !self.doors[shard].try_push(id, event) {
                self.node.metrics.broker.on_drop(Drop::MailboxFull, 1);
                self.node.metrics.broker.on_gap(Gap::MailboxFull, 1);
            }
        }
    }

    fn send_publishes(&mut self) {
        if let Some(redis) = &self.redis
            && !self.publishes.is_empty()
        {
            redis.publish(std::mem::take(&mut self.publishes));
        }
    }

    // --- subscriptions

    fn confirm(&mut self, confirmed: &Confirmed) {
        for shard in confirmed.resumed.iter() {
            self.doors[shard].push(ShardEvent::Gap(Gapped::Channel(confirmed.id)));
        }
        for shard in confirmed.shards.iter() {
            self.doors[shard].push(ShardEvent::Acquired {
                id: confirmed.id,
                channel: confirmed.channel.clone(),
                newest: self.newest.of(&confirmed.channel.name),
            });
        }
    }

    /// There are changes, and they may be sent.
    fn changes_wait(&self) -> bool {
        let may_send =
            |redis: &Rc<Redis>| self.link == LinkState::Up && redis.may_change_subscriptions();
        self.interest.has_changes() && self.redis.as_ref().is_none_or(may_send)
    }

    /// Carries out what should change. The memory broker is its own confirmation.
    fn send_changes(&mut self) {
        while self.changes_wait() {
            let changes = self.interest.take_changes(CHANGES_PER_COMMAND_MAX, self.node.now_ms());
            if changes.is_empty() && self.interest.has_changes() {
                break; // As many as a millisecond may have.
            }
            changes.unsubscribe.iter().for_each(|name| self.newest.forget(name));
            match &self.redis {
                Some(redis) => redis.change_subscriptions(&changes),
                None => {
                    for name in changes.subscribe {
                        if let Some(confirmed) = self.interest.on_subscribed(name.as_bytes()) {
                            self.confirm(&confirmed);
                        }
                    }
                    changes
                        .unsubscribe
                        .iter()
                        .for_each(|name| self.interest.on_unsubscribed(name.as_bytes()));
                }
            }
        }
        self.node.metrics.broker.redis_subscriptions.set(self.interest.n_live() as u64);
        self.tell_link();
    }

    // --- Redis

    fn on_redis(&mut self) {
        let Some(redis) = self.redis.clone() else { return };
        for finished in redis.take_finished() {
            match finished {
                Answered::Publish { asked: Some(Asked { shard, request }), result } => {
                    self.doors[shard].push(ShardEvent::Published { request, result });
                }
                Answered::Publish { asked: None, .. } => {}
                Answered::History { asked: Asked { shard, request }, result } => {
                    self.doors[shard].push(ShardEvent::History { request, result });
                }
                Answered::Presence { asked: Asked { shard, request }, result } => {
                    self.doors[shard].push(ShardEvent::Present { request, result });
                }
                Answered::HistoryRemoved { asked: Asked { shard, request }, result } => {
                    self.doors[shard].push(ShardEvent::HistoryRemoved { request, result });
                }
                Answered::Control { asked: Asked { shard, request }, result } => {
                    self.doors[shard].push(ShardEvent::Controlled { request, result });
                }
                Answered::NodesAsked { survey, n_nodes } => self.on_asked(survey, n_nodes),
                Answered::LookedUp { asked: Asked { shard, request }, result } => {
                    self.doors[shard].push(ShardEvent::LookedUp { request, result });
                }
            }
        }
        for push in redis.take_pushes() {
            self.on_push(&redis, push);
        }
        self.send_changes();
    }

    fn on_push(&mut self, redis: &Redis, push: Push) {
        match push {
            Push::Message { channel, payload } => {
                let Some(channel) = redis.channel_of(&channel) else { return };
                if payload == envelope::REMOVED {
                    return self.on_removed(channel);
                }
                match envelope::open(payload) {
                    Ok(letter) if letter.bytes() > self.node.config.publication_bytes_max => {
                        self.node.metrics.broker.on_drop(Drop::TooLarge, 1)
                    }
                    Ok(Letter::Publication(opened)) => {
                        self.fan_out(channel, opened.body, opened.position)
                    }
                    Ok(Letter::Change { what, info }) => self.hand_out_change(channel, what, info),
                    Err(envelope::BadEnvelope) => {
                        self.node.metrics.broker.on_drop(Drop::BadEnvelope, 1)
                    }
                }
            }
            Push::Subscribed { channel } => {
                let confirmed = redis
                    .channel_of(&channel)
                    .and_then(|channel| self.interest.on_subscribed(channel));
                if let Some(confirmed) = confirmed {
                    self.confirm(&confirmed);
                }
            }
            Push::Unsubscribed { channel } => {
                if let Some(channel) = redis.channel_of(&channel) {
                    self.interest.on_unsubscribed(channel);
                }
            }
            Push::Refused { channel } => {
                self.node.metrics.broker.redis_refused.add(1);
                let refused = redis
                    .channel_of(&channel)
                    .and_then(|channel| self.interest.on_refused(channel));
                let Some((channel, shards)) = refused else { return };
                for shard in shards.iter() {
                    self.doors[shard]
                        .push(ShardEvent::AcquireFailed { name: channel.name.clone() });
                }
            }
            Push::Lost { n_dropped } => {
                // The inbox was at its bound: which channels is not known any more.
                self.node.metrics.broker.on_drop(Drop::InboxFull, n_dropped);
                self.node.metrics.broker.on_gap(Gap::InboxFull, n_dropped);
                self.newest.on_gap();
                for door in &mut self.doors {
                    door.push(ShardEvent::Gap(Gapped::All));
                }
            }
            Push::Control { payload } => self.on_message(&payload),
            Push::ControlLost { n_dropped } => {
                self.node.metrics.broker.on_drop(Drop::ControlFull, n_dropped);
            }
            Push::Probe => {}
            Push::Up => self.link = LinkState::Up,
            Push::Down => {
                let n_channels = self.interest.on_link_down();
                self.newest.on_gap();
                self.node.metrics.broker.on_gap(Gap::LinkLost, n_channels as u64);
                self.link = LinkState::Down;
            }
        }
    }

    fn tell_link(&mut self) {
        let link = if self.interest.is_restored() { self.link } else { LinkState::Down };
        if link != self.told {
            self.told = link;
            self.doors.iter_mut().for_each(|door| door.push(ShardEvent::Link(link)));
        }
    }

    // --- time

    fn on_tick(&mut self) {
        let now_ms = self.node.now_ms();
        self.node.metrics.broker.alive_ms.set(now_ms);
        self.gap_log.on_tick(self.node.metrics.broker.n_gaps(), now_ms);
        self.registrar.on_tick(now_ms);
        for (shard, door) in self.node.metrics.shards.iter().zip(&self.doors) {
            shard.mailbox_depth.set(door.depth() as u64);
        }
        self.node.metrics.listener.sockets.set(self.node.admission.n_sockets() as u64);
        if let Some(redis) = &self.redis {
            self.node.metrics.broker.inbox_bytes.set(redis.inbox_bytes() as u64);
        }
        for (channel, shard) in self.interest.on_tick(now_ms) {
            self.doors[shard].push(ShardEvent::AcquireFailed { name: channel.name.clone() });
        }
        self.memory.on_tick(now_ms);
        self.report_presence();
        let broker = &self.node.metrics.broker;
        broker.chain_bytes.set(self.chains.bytes() as u64);
        broker.chains_refused.set(self.chains.n_refused());
        broker.history_streams.set(self.memory.n_streams() as u64);
        broker.history_bytes.set(self.memory.bytes() as u64);
        broker.idempotency_keys.set(self.memory.n_keys() as u64);
        broker.history_evicted.set(self.memory.n_evicted());
        broker.newest_bytes.set(self.newest.bytes() as u64);
        broker.newest_refused.set(self.newest.n_refused());
        let interest = &self.interest;
        self.newest.sweep(now_ms, |name| interest.knows(name));
        self.end_surveys(now_ms);
        if now_ms >= self.next_ping_ms {
            self.next_ping_ms = now_ms + PING_INTERVAL_MS;
            self.doors.iter_mut().for_each(|door| door.push(ShardEvent::Ping));
        }
        if let Some(mut feed) = self.feed.take() {
            let interest = &self.interest;
            let ticks =
                feed.on_tick(now_ms, |channel| interest.target(channel.as_bytes()).is_some());
            let auth = self.node.auth();
            for mut publish in ticks {
                publish.keep = auth.namespaces().of(&publish.channel).and_then(Namespace::keep);
                self.publish(None, publish);
            }
            self.feed = Some(feed);
        }
        self.send_publishes();
        self.send_changes();
    }

    /// True: a mailbox is full, try again soon.
    fn flush_doors(&mut self) -> bool {
        let mut full = false;
        for door in &mut self.doors {
            full |= !door.flush();
        }
        full
    }
}
