//! The attackers: twelve kinds, each led by [`Attacker::step`] so many times a second.
//!
//! They run on one thread of the least priority: what they cost the client must not look like what
//! they cost the server. Who is cut comes back at the next step.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use serde::Serialize;

use crate::clock::{SECOND_NS, now_ns, sleep_until};
use crate::frame;
use crate::process;
use crate::puppet::{Dice, Ended, Puppet};

/// What a flooding attacker offers the socket in one step.
const FLOOD_BYTES: usize = 16 * 1024;
/// How seldom one who otherwise does nothing checks whether it was cut, in steps.
const SIGN_OF_LIFE_STEPS: u64 = 50;
/// The attackers' addresses: 127.1.0.1 and so on, so that limits per address see them apart.
const N_SOURCES: usize = 200;

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Subscribes to what the good ones read, and never reads.
    SlowReader,
    /// Sends half a request and waits.
    HalfHandshake,
    /// Sends a header byte by byte.
    HeaderTrickle,
    /// Announces a long body and sends a bit of it.
    HalfBody,
    /// Upgrades, then sends noise.
    GarbageFrames,
    UnmaskedFrames,
    /// Announces a frame of 2^40 bytes and begins to send it.
    GiantFrame,
    /// A message that never ends.
    EndlessFragments,
    /// Commands, as many as the socket takes.
    CommandFlood,
    /// Subscribes, each to another name.
    SubscribeFlood,
    PingFlood,
    /// Connects and resets, at once or in the middle of the upgrade.
    ConnectAndReset,
}

pub const KINDS: [Kind; 12] = [
    Kind::SlowReader,
    Kind::HalfHandshake,
    Kind::HeaderTrickle,
    Kind::HalfBody,
    Kind::GarbageFrames,
    Kind::UnmaskedFrames,
    Kind::GiantFrame,
    Kind::EndlessFragments,
    Kind::CommandFlood,
    Kind::SubscribeFlood,
    Kind::PingFlood,
    Kind::ConnectAndReset,
];

/// What one kind did and what became of it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Deeds {
    pub attackers: u64,
    pub connects: u64,
    /// By the server: refused, closed or reset.
    pub cut: u64,
    pub sent_bytes: u64,
}

pub type DeedsByKind = BTreeMap<Kind, Deeds>;

/// Whom to attack, and how.
#[derive(Clone, Debug)]
pub struct Attack {
    pub target: SocketAddr,
    pub n_attackers: usize,
    /// Steps of each attacker, a second.
    pub rate: f64,
    /// What the good ones listen to.
    pub channel: String,
}

/// Attackers at work, until [`stop`](Self::stop).
pub struct Siege {
    thread: JoinHandle<DeedsByKind>,
    stop: Arc<AtomicBool>,
}

impl Siege {
    pub fn start(attack: Attack) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("attackers".to_owned())
            .spawn(move || {
                process::be_nice();
                besiege(&attack, &stopped)
            })
            .context("a thread")?;
        Ok(Self { thread, stop })
    }

    /// All attackers are gone, by RST, when this returns.
    pub fn stop(self) -> DeedsByKind {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// Steps are spread over time: one attacker after the other, not all at once.
fn besiege(attack: &Attack, stop: &AtomicBool) -> DeedsByKind {
    let mut attackers: Vec<Attacker> = (0..attack.n_attackers).map(Attacker::new).collect();
    let interval_ns = SECOND_NS as f64 / attack.rate / attack.n_attackers as f64;
    let start_ns = now_ns();
    let mut n_steps = 0u64;
    while !stop.load(Ordering::Relaxed) {
        for attacker in &mut attackers {
            sleep_until(start_ns + (n_steps as f64 * interval_ns) as u64);
            attacker.step(attack);
            n_steps += 1;
        }
    }
    let mut deeds = DeedsByKind::new();
    for mut attacker in attackers {
        attacker.end();
        let sum = deeds.entry(attacker.kind).or_default();
        sum.attackers += 1;
        sum.connects += attacker.deeds.connects;
        sum.cut += attacker.deeds.cut;
        sum.sent_bytes += attacker.deeds.sent_bytes;
    }
    deeds
}

struct Attacker {
    kind: Kind,
    source: Ipv4Addr,
    puppet: Option<Puppet>,
    /// Since the puppet was dialed.
    n_steps: u64,
    n_names: u64,
    dice: Dice,
    deeds: Deeds,
}

impl Attacker {
    fn new(idx: usize) -> Self {
        Self {
            kind: KINDS[idx % KINDS.len()],
            source: Ipv4Addr::new(127, 1, 0, (1 + idx % N_SOURCES) as u8),
            puppet: None,
            n_steps: 0,
            n_names: 0,
            dice: Dice::new(idx as u64 + 1),
            deeds: Deeds::default(),
        }
    }

    fn step(&mut self, attack: &Attack) {
        if self.puppet.is_none() {
            let rcvbuf = (self.kind == Kind::SlowReader).then_some(4096);
            let Ok(puppet) = Puppet::dial(attack.target, self.source, rcvbuf) else {
                self.deeds.cut += 1;
                return;
            };
            self.puppet = Some(puppet);
            self.n_steps = 0;
            self.deeds.connects += 1;
            return;
        }
        self.n_steps += 1;
        if self.act(attack) == Err(Ended) {
            self.deeds.cut += 1;
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(puppet) = self.puppet.take() {
            self.deeds.sent_bytes += puppet.n_bytes_sent;
        }
    }

    fn act(&mut self, attack: &Attack) -> Result<(), Ended> {
        match self.kind {
            Kind::HalfHandshake | Kind::HeaderTrickle | Kind::HalfBody => self.act_plain(),
            Kind::ConnectAndReset => {
                let ends_at_once = self.dice.below(2) == 0;
                let Some(puppet) = &mut self.puppet else { return Ok(()) };
                if !ends_at_once && self.n_steps == 1 {
                    puppet.upgrade("localhost", "/connection/websocket")?;
                } else {
                    self.end();
                }
                Ok(())
            }
            _ => self.act_upgraded(attack),
        }
    }

    /// Never gets as far as an upgrade.
    fn act_plain(&mut self) -> Result<(), Ended> {
        let Some(puppet) = &mut self.puppet else { return Ok(()) };
        if !puppet.is_connected()? {
            return Ok(());
        }
        puppet.discard()?;
        match (self.kind, self.n_steps) {
            (Kind::HalfHandshake, 1) => {
                puppet.write(b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\n")?;
            }
            (Kind::HeaderTrickle, 1) => {
                puppet.write(b"GET /connection/websocket HTTP/1.1\r\nX-Slow: ")?;
            }
            (Kind::HeaderTrickle, _) => {
                puppet.write(b"a")?;
            }
            (Kind::HalfBody, 1) => {
                puppet.write(
                    b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: \
                      1000000\r\n\r\n{\"channel\":\"",
                )?;
            }
            _ => {}
        }
        Ok(())
    }

    fn act_upgraded(&mut self, attack: &Attack) -> Result<(), Ended> {
        let Self { puppet: Some(puppet), dice, n_steps, n_names, .. } = self else { return Ok(()) };
        if !puppet.upgrade("localhost", "/connection/websocket")? {
            *n_steps = 0;
            return Ok(());
        }
        let mut out = Vec::new();
        match self.kind {
            Kind::SlowReader => {
                if *n_steps == 1 {
                    frame::put(&mut out, frame::TEXT, subscribe(&attack.channel).as_bytes());
                } else if *n_steps % SIGN_OF_LIFE_STEPS == 0 {
                    frame::put(&mut out, frame::PONG, b"");
                }
            }
            Kind::GarbageFrames => out.extend((0..FLOOD_BYTES).map(|_| dice.roll() as u8)),
            Kind::UnmaskedFrames => out.extend_from_slice(b"\x81\x02{}"),
            Kind::GiantFrame if *n_steps == 1 => frame::put_head(&mut out, 0x81, 1 << 40),
            Kind::GiantFrame => out.resize(FLOOD_BYTES, b'a'),
            Kind::EndlessFragments => {
                frame::put_head(&mut out, u8::from(*n_steps == 1), FLOOD_BYTES as u64);
                out.resize(out.len() + FLOOD_BYTES, b'a');
            }
            Kind::CommandFlood | Kind::SubscribeFlood => {
                let mut text = String::new();
                if *n_steps == 1 {
                    text.push_str("{\"id\":1,\"connect\":{}}");
                }
                while text.len() < FLOOD_BYTES {
                    *n_names += 1;
                    text.push_str(if text.is_empty() { "" } else { "\n" });
                    put_command(&mut text, self.kind, *n_names, dice);
                }
                frame::put(&mut out, frame::TEXT, text.as_bytes());
            }
            _ => {
                while out.len() < FLOOD_BYTES {
                    frame::put(&mut out, frame::PING, &[b'a'; 100]);
                }
            }
        }
        if !out.is_empty() {
            puppet.write(&out)?;
        }
        if self.kind != Kind::SlowReader {
            puppet.discard()?;
        }
        Ok(())
    }
}

fn subscribe(channel: &str) -> String {
    format!(
        "{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"
    )
}

fn put_command(text: &mut String, kind: Kind, n: u64, dice: &mut Dice) {
    let id = n % 1_000_000 + 2;
    let _ = if kind == Kind::SubscribeFlood {
        let name = dice.roll();
        write!(text, "{{\"id\":{id},\"subscribe\":{{\"channel\":\"flood-{name:x}\"}}}}")
    } else {
        write!(text, "{{\"id\":{id},\"history\":{{\"channel\":\"flood\"}}}}")
    };
}
