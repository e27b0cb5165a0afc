//! `loadtest churn`: clients that come, subscribe to new names, and go in every way there is; does
//! anything stay behind?
//!
//! After each round the server gets time to come to rest, and descriptors, connections and Redis'
//! channels must be back where they were. Memory is shown; from the first rest to the last it must
//! not grow by more than a little, as an allocator keeps some of the first round for good.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::cli::{self, ChurnArgs};
use crate::clock::{SECOND_NS, now_ns, seconds, sleep_until};
use crate::frame;
use crate::process::{self, Memory};
use crate::protocol::Tokens;
use crate::puppet::{Dice, Ended, Puppet};
use crate::report::{Environment, Table, write_json};
use crate::server::Target;
use crate::verdict::Verdict;

const OTHER_FDS: usize = 64;
const N_SOURCES: usize = 50;
/// From rest to rest.
const GROWTH_MAX: f64 = 1.05;
const GROWTH_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, Serialize)]
pub struct ChurnReport {
    pub environment: Environment,
    /// Before anything, after a first visit of every kind.
    pub base: Look,
    pub looks: Vec<Look>,
    /// After each round.
    pub rests: Vec<Look>,
    pub visits: Visits,
    pub verdict: Verdict,
}

/// What the server holds at a time.
#[derive(Clone, Debug, Serialize)]
pub struct Look {
    pub at_s: f64,
    pub memory: Memory,
    pub fds: usize,
    /// Redis' channels with a subscriber; `None` without Redis.
    pub redis_channels: Option<u64>,
    pub connections: Option<f64>,
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Visits {
    pub begun: u64,
    /// Got as far as being upgraded.
    pub upgraded: u64,
    pub names: u64,
    /// Ended by the server.
    pub cut: u64,
}

pub fn command(args: &ChurnArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    process::raise_fd_limit(args.visitors + OTHER_FDS)?;
    let target = args.target.open(true)?;
    if target.pids.is_empty() {
        bail!("--pid or --server: whose memory and descriptors are to be watched?");
    }
    let report = churn(args, &target, command_line)?;
    table(&report).print();
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(report.verdict)
}

fn churn(
    args: &ChurnArgs,
    target: &Target,
    command_line: &[String],
) -> anyhow::Result<ChurnReport> {
    let start_ns = now_ns();
    let mut crowd = Crowd::new(args, target)?;
    // What a first of everything makes the server allocate for good belongs to the base.
    crowd.visit_for(SECOND_NS, |_| Ok(()))?;
    let base = rest(target, None, start_ns)?;
    tell("base", &base);
    let mut report = ChurnReport {
        environment: Environment::here(command_line),
        base,
        looks: Vec::new(),
        rests: Vec::new(),
        visits: Visits::default(),
        verdict: Verdict::Failed,
    };
    for round in 1..=args.rounds {
        let mut next_look_ns = now_ns() + (args.every * SECOND_NS as f64) as u64;
        crowd.visit_for((args.seconds * SECOND_NS as f64) as u64, |now| {
            if now >= next_look_ns {
                next_look_ns = now + (args.every * SECOND_NS as f64) as u64;
                let look = Look::take(target, start_ns)?;
                tell(&format!("round {round}"), &look);
                report.looks.push(look);
            }
            Ok(())
        })?;
        let look = rest(target, Some(&report.base), start_ns)?;
        tell(&format!("rest {round}"), &look);
        report.rests.push(look);
    }
    report.visits = crowd.visits;
    report.verdict = is_clean(&report.base, &report.rests).into();
    Ok(report)
}

fn is_clean(base: &Look, rests: &[Look]) -> bool {
    let [first, .., last] = rests else {
        return rests.iter().all(|look| look.is_back_at(base));
    };
    let allowed = memory_allowed(first.memory.anon);
    rests.iter().all(|look| look.is_back_at(base)) && last.memory.anon <= allowed
}

/// What private memory may come to if it is this at first.
pub fn memory_allowed(anon_bytes: u64) -> u64 {
    (anon_bytes as f64 * GROWTH_MAX) as u64 + GROWTH_BYTES_MAX
}

impl Look {
    fn take(target: &Target, start_ns: u64) -> anyhow::Result<Self> {
        Ok(Self {
            at_s: seconds(now_ns() - start_ns),
            memory: Memory::of(&target.pids),
            fds: process::n_fds(&target.pids),
            redis_channels: target.redis.map(redis_channels).transpose()?,
            connections: target.metric("hubbub_connections"),
        })
    }

    /// All but memory.
    fn is_back_at(&self, base: &Self) -> bool {
        self.fds <= base.fds
            && self.redis_channels <= base.redis_channels
            && self.connections <= base.connections
    }
}

/// Waits until everything is back at the base (without one: until two looks are alike); looks for
/// 30 s at most.
fn rest(target: &Target, base: Option<&Look>, start_ns: u64) -> anyhow::Result<Look> {
    let deadline_ns = now_ns() + 30 * SECOND_NS;
    let mut look = Look::take(target, start_ns)?;
    loop {
        // Longer than the hub keeps an abandoned subscription at Redis.
        sleep_until(now_ns() + 3 * SECOND_NS / 2);
        let next = Look::take(target, start_ns)?;
        let is_at_rest = match base {
            Some(base) => next.is_back_at(base),
            None => next.is_back_at(&look) && look.is_back_at(&next),
        };
        if is_at_rest || now_ns() > deadline_ns {
            return Ok(next);
        }
        look = next;
    }
}

fn tell(what: &str, look: &Look) {
    eprintln!("{}", line(what, look));
}

fn line(what: &str, look: &Look) -> String {
    let mut line = format!(
        "{what:<10} {:>6.0} s  RSS {:.1} MB  anon {:.1} MB  fds {}",
        look.at_s,
        look.memory.rss as f64 / 1e6,
        look.memory.anon as f64 / 1e6,
        look.fds
    );
    if let Some(channels) = look.redis_channels {
        let _ = write!(line, "  Redis channels {channels}");
    }
    if let Some(connections) = look.connections {
        let _ = write!(line, "  connections {connections}");
    }
    line
}

fn table(report: &ChurnReport) -> Table {
    let mut table = Table::default();
    let visits = report.visits;
    table.row("", line("base", &report.base));
    for (look, nth) in report.rests.iter().zip(1..) {
        table.row("", line(&format!("rest {nth}"), look));
    }
    table.row(
        "visits",
        format!(
            "{}, of them upgraded {}; {} channel names; cut by the server {}",
            visits.begun, visits.upgraded, visits.names, visits.cut
        ),
    );
    table.verdict(
        report.verdict,
        "descriptors, connections and Redis' channels back at the base, memory steady",
    );
    table
}

/// From `INFO stats`: channels with a subscriber.
fn redis_channels(address: SocketAddr) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address).context("Redis")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"INFO stats\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    let length: usize = head.trim_start_matches('$').trim().parse().context("INFO's length")?;
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let count = text.lines().find_map(|line| line.strip_prefix("pubsub_channels:"));
    count.and_then(|count| count.trim().parse().ok()).context("INFO has no pubsub_channels")
}

/// The visitors, on the calling thread.
struct Crowd<'a> {
    args: &'a ChurnArgs,
    target: &'a Target,
    host: String,
    tokens: Option<Tokens>,
    visitors: Vec<Visitor>,
    visits: Visits,
    dice: Dice,
}

struct Visitor {
    source: Ipv4Addr,
    puppet: Option<Puppet>,
    plan: Plan,
    /// Since the upgrade.
    n_steps: u64,
}

/// How far a visit goes, and how it ends.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Connects and says nothing, or half a request.
    HalfHandshake,
    /// Is upgraded and goes without a word.
    Silent,
    /// Subscribes to new names; goes after so many steps, in this way.
    Session { n_steps: u64, end: End },
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum End {
    Reset,
    Fin,
    Close,
}

impl Plan {
    fn draw(dice: &mut Dice) -> Self {
        match dice.below(10) {
            0 => Self::HalfHandshake,
            1 => Self::Silent,
            _ => Self::Session {
                n_steps: 2 + dice.below(6),
                end: [End::Reset, End::Fin, End::Close][dice.below(3) as usize],
            },
        }
    }
}

impl<'a> Crowd<'a> {
    fn new(args: &'a ChurnArgs, target: &'a Target) -> anyhow::Result<Self> {
        let visitor = |idx: usize| Visitor {
            source: Ipv4Addr::new(127, 2, 0, (1 + idx % N_SOURCES) as u8),
            puppet: None,
            plan: Plan::HalfHandshake,
            n_steps: 0,
        };
        Ok(Self {
            args,
            target,
            host: target.address.to_string(),
            tokens: cli::tokens()?,
            visitors: (0..args.visitors).map(visitor).collect(),
            visits: Visits::default(),
            dice: Dice::new(1),
        })
    }

    /// All are gone at the end.
    fn visit_for(
        &mut self,
        duration_ns: u64,
        mut between: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let start_ns = now_ns();
        let interval_ns = SECOND_NS as f64 / self.args.rate;
        let mut n_steps = 0u64;
        while now_ns() < start_ns + duration_ns {
            let idx = n_steps as usize % self.visitors.len();
            sleep_until(start_ns + (n_steps as f64 * interval_ns) as u64);
            self.step(idx)?;
            n_steps += 1;
            between(now_ns())?;
        }
        self.visitors.iter_mut().for_each(|visitor| visitor.puppet = None);
        Ok(())
    }

    fn step(&mut self, idx: usize) -> anyhow::Result<()> {
        let visitor = &mut self.visitors[idx];
        if visitor.puppet.is_none() {
            visitor.plan = Plan::draw(&mut self.dice);
            visitor.n_steps = 0;
            let puppet = Puppet::dial(self.target.address, visitor.source, None);
            visitor.puppet = Some(puppet.context("connecting")?);
            self.visits.begun += 1;
            return Ok(());
        }
        match self.act(idx) {
            Ok(false) => {}
            Ok(true) => self.visitors[idx].puppet = None,
            Err(Ended) => {
                self.visits.cut += 1;
                self.visitors[idx].puppet = None;
            }
        }
        Ok(())
    }

    /// Whether the visit is over.
    fn act(&mut self, idx: usize) -> Result<bool, Ended> {
        let visitor = &mut self.visitors[idx];
        let Some(puppet) = &mut visitor.puppet else { return Ok(true) };
        if visitor.plan == Plan::HalfHandshake {
            puppet.write(b"GET /connection/websocket HTTP/1.1\r\nHos")?;
            visitor.n_steps += 1;
            return Ok(visitor.n_steps > 2);
        }
        if !puppet.upgrade(&self.host, "/connection/websocket")? {
            return Ok(false);
        }
        visitor.n_steps += 1;
        if visitor.n_steps == 1 {
            self.visits.upgraded += 1;
        }
        let Plan::Session { n_steps, end } = visitor.plan else { return Ok(true) };
        puppet.discard()?;
        let mut out = Vec::new();
        if visitor.n_steps == 1 {
            let token = self.tokens.as_ref().and_then(|it| it.make(&format!("visitor-{idx}")).ok());
            let greeting = greeting(token.as_deref(), &mut self.visits.names);
            frame::put(&mut out, frame::TEXT, greeting.as_bytes());
        } else if visitor.n_steps < n_steps {
            let turn = turn(visitor.n_steps, &mut self.visits.names);
            frame::put(&mut out, frame::TEXT, turn.as_bytes());
        } else {
            if end == End::Close {
                frame::put(&mut out, frame::CLOSE, &1000u16.to_be_bytes());
                puppet.write(&out)?;
            }
            if end != End::Reset
                && let Some(puppet) = visitor.puppet.take()
            {
                puppet.leave();
            }
            return Ok(true);
        }
        puppet.write(&out)?;
        Ok(false)
    }
}

/// Connect, and subscribe to three names never used before.
fn greeting(token: Option<&str>, n_names: &mut u64) -> String {
    let connect = serde_json::json!({ "token": token.unwrap_or_default() });
    let mut text = format!("{{\"id\":1,\"connect\":{connect}}}");
    for id in 2..5 {
        *n_names += 1;
        let name = *n_names;
        let _ = write!(text, "\n{{\"id\":{id},\"subscribe\":{{\"channel\":\"churn-{name}\"}}}}");
    }
    text
}

/// One more name, and on every other step away from it at once.
fn turn(n_step: u64, n_names: &mut u64) -> String {
    *n_names += 1;
    let (id, name) = (10 + 2 * n_step, *n_names);
    let subscribe = format!("{{\"id\":{id},\"subscribe\":{{\"channel\":\"churn-{name}\"}}}}");
    if n_step.is_multiple_of(2) {
        return subscribe;
    }
    let id = id + 1;
    format!("{subscribe}\n{{\"id\":{id},\"unsubscribe\":{{\"channel\":\"churn-{name}\"}}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(fds: usize, redis_channels: u64, anon: u64) -> Look {
        let memory = Memory { rss: anon, anon };
        Look {
            at_s: 0.0,
            memory,
            fds,
            redis_channels: Some(redis_channels),
            connections: Some(0.0),
        }
    }

    #[test]
    fn what_stays_behind_fails() {
        let base = look(20, 2, 10 << 20);
        let is_clean = |rests: &[Look]| is_clean(&base, rests);
        assert!(is_clean(&[look(20, 2, 30 << 20), look(19, 2, 31 << 20)]));
        assert!(!is_clean(&[look(21, 2, 0)]), "a descriptor");
        assert!(!is_clean(&[look(20, 3, 0)]), "a Redis channel");
        assert!(!is_clean(&[look(20, 2, 30 << 20), look(20, 2, 35 << 20)]), "memory");
    }
}
