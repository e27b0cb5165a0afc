//! A client as the SDKs are: it follows streams, comes back after whatever happens and asks for what it
//! missed; and it insists that each publication follows the one before it, unless the gap was announced.

use super::cf::subscribe;
use super::past::{At, recover};
use super::swarm::{Pump, drive};
use super::traffic::{Attempt, seq_of};
use super::{Cf, Hub, ms};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Seq(usize),
    /// The server said that something is missing here.
    Gap,
}

/// Once it has subscribed, each publication is here, in its order.
#[derive(Default)]
struct Stream {
    at: Option<At>,
    is_live: bool,
    entries: Vec<Entry>,
    /// Came without an offset, by a plain `PUBLISH`.
    n_plain: usize,
}

impl Stream {
    fn take(&mut self, channel: &str, publication: &Value) {
        let at = self.at.as_mut().expect("a position");
        let Some(offset) = publication["offset"].as_u64() else { return self.n_plain += 1 };
        assert_eq!(offset, at.offset + 1, "{channel} at {at:?}: {publication}");
        at.offset = offset;
        if let Some(seq) = seq_of(channel, &publication["data"]) {
            self.entries.push(Entry::Seq(seq));
        }
    }

    fn reset(&mut self, at: At) {
        self.at = Some(at);
        self.entries.push(Entry::Gap);
    }
}

/// The numbers that were accepted, by channel, in the order of publishing.
pub struct Accepted<'a>(HashMap<&'a str, Vec<usize>>);

impl<'a> Accepted<'a> {
    pub fn of(attempts: &'a [Attempt]) -> Self {
        let mut of_channels: HashMap<_, Vec<usize>> = HashMap::new();
        for attempt in attempts.iter().filter(|attempt| attempt.accepted) {
            of_channels.entry(attempt.channel.as_str()).or_default().push(attempt.seq);
        }
        Self(of_channels)
    }
}

/// The answer to one attempt to recover one channel.
#[derive(Clone, Debug)]
pub struct Recovery {
    pub asked: Instant,
    pub at: Instant,
    pub recovered: bool,
    /// Where it stood, and where the stream did.
    pub from: At,
    pub to: At,
}

struct Asked {
    channel: String,
    at: Instant,
}

pub struct Follower {
    /// None while it is away.
    cf: Option<Cf>,
    streams: BTreeMap<String, Stream>,
    asked: HashMap<u32, Asked>,
    again: Vec<Asked>,
    pub recoveries: Vec<Recovery>,
    /// How often it was sent 2500.
    pub n_told: usize,
}

impl Follower {
    pub fn open(hub: &Hub, channels: &[impl AsRef<str>]) -> Self {
        let streams = channels.iter().map(|name| (name.as_ref().to_owned(), Stream::default()));
        let mut follower = Self {
            cf: None,
            streams: streams.collect(),
            asked: HashMap::new(),
            again: Vec::new(),
            recoveries: Vec::new(),
            n_told: 0,
        };
        follower.come_back(hub);
        follower
    }

    /// Gone without a word.
    pub fn cut(&mut self) {
        self.cf = None;
        self.asked.clear();
        self.again.clear();
        self.streams.values_mut().for_each(|stream| stream.is_live = false);
    }

    /// Gone with an RST.
    pub fn reset(&mut self) {
        if let Some(cf) = self.cf.take() {
            cf.raw.reset();
        }
        self.cut();
    }

    pub fn come_back(&mut self, hub: &Hub) {
        self.come_back_over(Cf::connect(hub));
    }

    /// On a connection of the test's own making; what it had before is dropped only then.
    pub fn come_back_over(&mut self, cf: Cf) {
        let before = self.cf.take();
        self.cut();
        self.cf = Some(cf);
        drop(before);
        let channels: Vec<String> = self.streams.keys().cloned().collect();
        self.ask(&channels);
    }

    fn ask(&mut self, channels: &[String]) {
        let command = |channel: &String| match &self.streams[channel].at {
            Some(at) => recover(channel, at),
            None => subscribe(channel),
        };
        let commands = channels.iter().map(command).collect();
        let Some(cf) = self.cf.as_mut() else { return };
        let ids = cf.send(commands);
        let asked = |channel: &String| Asked { channel: channel.clone(), at: Instant::now() };
        self.asked.extend(ids.into_iter().zip(channels.iter().map(asked)));
    }

    /// Whether it is away, or the server has ended the connection.
    pub fn is_gone(&self) -> bool {
        self.cf.as_ref().is_none_or(|cf| cf.raw.is_closed() || cf.raw.eof)
    }

    /// The close frame, if one has come.
    pub fn close_code(&mut self) -> Option<u16> {
        let close = self.cf.as_mut()?.next_close(ms(0));
        close.map(|close| close.code)
    }

    pub fn is_live(&self) -> bool {
        !self.is_gone() && self.streams.values().all(|stream| stream.is_live)
    }

    pub fn at(&self, channel: &str) -> &At {
        self.streams[channel].at.as_ref().expect("it has subscribed")
    }

    /// Whether it stands where each of its streams does.
    pub fn has_all(&self, tops: &BTreeMap<String, At>) -> bool {
        self.is_live() && self.streams.keys().all(|name| self.at(name) == &tops[name])
    }

    /// How many gaps were announced to it.
    pub fn n_gaps(&self) -> usize {
        let of = |stream: &Stream| stream.entries.iter().filter(|e| **e == Entry::Gap).count();
        self.streams.values().map(of).sum()
    }

    pub fn n_seen(&self) -> usize {
        let of = |stream: &Stream| stream.entries.iter().filter(|e| **e != Entry::Gap).count();
        self.streams.values().map(of).sum()
    }

    pub fn n_plain(&self) -> usize {
        self.streams.values().map(|stream| stream.n_plain).sum()
    }

    pub fn n_lost(&self) -> usize {
        self.recoveries.iter().filter(|recovery| !recovery.recovered).count()
    }

    fn raw(&mut self) -> &mut Cf {
        self.cf.as_mut().expect("it is there")
    }

    /// Reads at most so many bytes, once there are any.
    pub fn read_crumb(&mut self, n_bytes: usize, deadline: Duration) {
        self.raw().read_crumb(n_bytes, deadline);
        self.obey();
    }

    /// Obeys what has arrived, in its order.
    fn obey(&mut self) {
        let Some(cf) = self.cf.as_mut() else { return };
        let frames = std::mem::take(&mut cf.log);
        cf.pubs.clear();
        cf.pushes.clear();
        cf.replies.clear();
        cf.reply_order.clear();
        for frame in frames {
            for line in frame.text.lines().filter(|line| *line != "{}") {
                self.on_line(&serde_json::from_str(line).expect("JSON"));
            }
        }
    }

    /// Asks again what was refused for now.
    pub fn try_again(&mut self) {
        let due = |asked: &Asked| asked.at.elapsed() > ms(100);
        if self.again.iter().any(due) {
            let channels: Vec<String> = self.again.drain(..).map(|asked| asked.channel).collect();
            self.ask(&channels);
        }
    }

    fn on_line(&mut self, line: &Value) {
        let push = &line["push"];
        let channel = push["channel"].as_str().unwrap_or_default();
        if let Some(id) = line["id"].as_u64() {
            self.on_reply(id as u32, line);
        } else if push["pub"].is_object() {
            let stream = self.streams.get_mut(channel).expect("its own channel");
            assert!(stream.is_live, "not subscribed: {line}");
            stream.take(channel, &push["pub"]);
        } else if push["unsubscribe"].is_object() {
            assert_eq!(push["unsubscribe"]["code"], 2500, "{line}");
            self.n_told += 1;
            self.streams.get_mut(channel).expect("its own channel").is_live = false;
            self.ask(&[channel.to_owned()]);
        }
    }

    fn on_reply(&mut self, id: u32, line: &Value) {
        let Some(asked) = self.asked.remove(&id) else { return };
        let reply = &line["subscribe"];
        if line["error"].is_object() {
            assert_eq!(line["error"]["code"], 100, "{line}");
            self.again.push(Asked { at: Instant::now(), ..asked });
            return;
        }
        let stream = self.streams.get_mut(&asked.channel).expect("its own channel");
        let top = At {
            offset: reply["offset"].as_u64().unwrap_or(0),
            epoch: reply["epoch"].as_str().expect("an epoch").to_owned(),
        };
        stream.is_live = true;
        let Some(at) = stream.at.clone() else { return stream.at = Some(top) };
        let recovered = reply["recovered"] == true;
        let (from, to) = (at.clone(), top.clone());
        let now = Instant::now();
        self.recoveries.push(Recovery { asked: asked.at, at: now, recovered, from, to });
        let missed = reply["publications"].as_array().map_or(&[][..], Vec::as_slice);
        if recovered {
            assert_eq!(top, at, "its own position comes back");
            missed.iter().for_each(|publication| stream.take(&asked.channel, publication));
        } else {
            assert!(missed.is_empty(), "lost, and yet some: {line}");
            stream.reset(top);
        }
    }

    /// All that was accepted on its channels since its first was seen, or an announced gap instead; in
    /// the order of publishing.
    pub fn assert_complete(&self, accepted: &Accepted<'_>) {
        for (channel, stream) in &self.streams {
            let of_channel = accepted.0.get(&**channel).map(Vec::as_slice).unwrap_or_default();
            let mut due = of_channel.iter().copied().peekable();
            let (mut last, mut may_miss) = (None, true);
            for entry in &stream.entries {
                let Entry::Seq(seq) = *entry else {
                    may_miss = true;
                    continue;
                };
                assert!(last < Some(seq), "{channel}: {seq} after {last:?}");
                while let Some(missing) = due.next_if(|due| *due < seq) {
                    assert!(may_miss, "{channel}: {missing} went missing before {seq}, untold");
                }
                let _ = due.next_if_eq(&seq);
                (last, may_miss) = (Some(seq), false);
            }
            let rest = due.count();
            assert!(rest == 0 || may_miss, "{channel}: the last {rest} are missing, untold");
        }
    }
}

impl Pump for Follower {
    fn fd(&self) -> RawFd {
        self.cf.as_ref().map_or(-1, Pump::fd)
    }

    fn pump(&mut self) -> bool {
        let open = self.cf.as_mut().is_some_and(Cf::pump);
        self.obey();
        open
    }
}

/// Lets all follow until each is done, or the deadline passes. True if all are done.
pub fn follow(
    followers: &mut [Follower],
    deadline: Duration,
    done: impl Fn(&Follower) -> bool,
) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if drive(followers, left.min(ms(50)), &done) || left.is_zero() {
            return followers.iter().all(done);
        }
        followers.iter_mut().for_each(Follower::try_again);
    }
}

/// Where the streams stand, as this node sees it.
pub fn tops(hub: &Hub, channels: &[String]) -> BTreeMap<String, At> {
    let top = |channel: &String| (channel.clone(), At::of(&super::past::history(hub, channel)));
    channels.iter().map(top).collect()
}
