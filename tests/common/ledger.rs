//! Who should have received what. The ledger keeps every payload per channel in the order of
//! publishing; a viewer keeps what arrived; the check counts missing, repeated, misordered and
//! damaged publications per viewer and channel.

use super::cf::Recorded;
use super::swarm::{Pump, drive};
use super::{Cf, Close, Hub, Raw};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;
use std::time::Duration;

/// What kind of bytes a publication is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// JSON with spaces, escapes and a number that rounding would change.
    Json,
    /// UTF-8 that is no JSON, with line ends and what looks like RESP.
    Text,
    /// Not UTF-8: JSON sessions do not get it.
    Binary,
    /// No byte at all.
    Empty,
}

pub const KINDS: [Kind; 4] = [Kind::Json, Kind::Text, Kind::Binary, Kind::Empty];

/// A payload that names its channel and number, filled up to about `n_bytes`.
pub fn payload(channel: &str, seq: usize, kind: Kind, n_bytes: usize) -> Vec<u8> {
    let tag = format!("<{channel}#{seq}>");
    let fill = "abcdefghij\u{e9}".repeat(n_bytes.saturating_sub(tag.len()) / 12);
    match kind {
        Kind::Json => format!(
            r#"{{ "tag" : "{tag}","n":0.1000000000000000055511151231257827, "esc":"\u00e9\n\"\/","pad":"{fill}" }}"#
        )
        .into_bytes(),
        Kind::Text => format!("{tag}\r\n$3\r\nfoo\r\n*1\r\n\t\"{fill}").into_bytes(),
        Kind::Binary => [&[0xC3, 0x28, 0x00, 0x0D, 0x0A], tag.as_bytes(), fill.as_bytes()].concat(),
        Kind::Empty => Vec::new(),
    }
}

/// The channel a payload names; empty for the empty payload.
fn channel_in(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let tag = text.split_once('<').and_then(|(_, rest)| rest.split_once('#'));
    tag.map(|(channel, _)| channel.to_owned()).unwrap_or_default()
}

/// A publication as one transport shows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Seen {
    /// Raw: type of frame and bytes.
    Frame { text: bool, bytes: Vec<u8> },
    /// `data` that is a JSON string, decoded: how it was escaped is free.
    Text(String),
    /// Any other `data`, byte for byte.
    Json(String),
}

impl Seen {
    fn on_raw(payload: &[u8]) -> Self {
        Self::Frame { text: std::str::from_utf8(payload).is_ok(), bytes: payload.to_vec() }
    }

    fn on_json(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
            // Line ends can only stand between tokens; there they may become spaces.
            Some(Self::in_data(text.trim().replace(['\r', '\n'], " ").as_str()))
        } else {
            Some(Self::Text(text.to_owned()))
        }
    }

    fn in_data(data: &str) -> Self {
        match serde_json::from_str::<String>(data) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Json(data.to_owned()),
        }
    }
}

#[derive(Default)]
pub struct Ledger {
    sent: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Ledger {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the channel's next payload and books it.
    pub fn next(&mut self, channel: &str, kind: Kind, n_bytes: usize) -> Vec<u8> {
        let booked = self.sent.entry(channel.to_owned()).or_default();
        let bytes = payload(channel, booked.len(), kind, n_bytes);
        booked.push(bytes.clone());
        bytes
    }

    /// Books a payload of the test's own making; on raw viewers of one channel only, as it has no tag.
    pub fn book(&mut self, channel: &str, bytes: Vec<u8>) {
        self.sent.entry(channel.to_owned()).or_default().push(bytes);
    }

    /// Reads until every viewer has as much as it is due; false on the deadline.
    pub fn read_all<'a>(&self, viewers: &'a mut [Viewer], deadline: Duration) -> bool {
        let due = |viewer: &'a mut Viewer| Due { n_due: self.n_expected(viewer), viewer };
        let mut due: Vec<Due> = viewers.iter_mut().map(due).collect();
        drive(&mut due, deadline, |due| due.viewer.n_received() >= due.n_due)
    }

    pub fn n_sent(&self, channel: &str) -> usize {
        self.sent.get(channel).map_or(0, Vec::len)
    }

    /// How many publications this viewer is due.
    pub fn n_expected(&self, viewer: &Viewer) -> usize {
        self.expected(viewer).values().map(Vec::len).sum()
    }

    pub fn check(&self, viewer: &Viewer) -> Verdict {
        let got = viewer.received();
        let mut verdict = Verdict::default();
        let expected = self.expected(viewer);
        for (channel, expected) in &expected {
            let empty = Vec::new();
            verdict.add(expected, got.get(channel).unwrap_or(&empty));
        }
        let strays = got.iter().filter(|(channel, _)| !expected.contains_key(*channel));
        verdict.damaged += strays.map(|(_, seen)| seen.len()).sum::<usize>();
        verdict
    }

    /// Panics with the sums unless every viewer got everything, once, in order, undamaged.
    pub fn assert_complete(&self, viewers: &[Viewer]) {
        let mut n_bad = 0;
        let mut sum = Verdict::default();
        for viewer in viewers {
            let verdict = self.check(viewer);
            n_bad += usize::from(!verdict.is_perfect());
            sum.merge(verdict);
        }
        assert!(sum.is_perfect(), "{n_bad} of {} viewers: {sum:?}", viewers.len());
    }

    fn expected(&self, viewer: &Viewer) -> HashMap<String, Vec<Seen>> {
        let mut expected: HashMap<String, Vec<Seen>> = HashMap::new();
        for channel in viewer.channels() {
            for payload in self.sent.get(channel).into_iter().flatten() {
                match viewer {
                    Viewer::Cf { .. } => {
                        let due = expected.entry(channel.clone()).or_default();
                        due.extend(Seen::on_json(payload));
                    }
                    // A raw frame does not say its channel: empty ones can only be counted.
                    Viewer::Raw { .. } => {
                        let named = channel_in(payload);
                        expected.entry(named).or_default().push(Seen::on_raw(payload));
                    }
                }
            }
        }
        expected
    }
}

struct Due<'a> {
    viewer: &'a mut Viewer,
    n_due: usize,
}

impl Pump for Due<'_> {
    fn fd(&self) -> RawFd {
        self.viewer.fd()
    }

    fn pump(&mut self) -> bool {
        self.viewer.pump()
    }
}

#[derive(Default, Debug)]
pub struct Verdict {
    pub n_got: usize,
    pub missing: usize,
    pub repeated: usize,
    pub misordered: usize,
    pub damaged: usize,
}

impl Verdict {
    pub fn is_perfect(&self) -> bool {
        self.missing + self.repeated + self.misordered + self.damaged == 0
    }

    fn merge(&mut self, other: Verdict) {
        self.n_got += other.n_got;
        self.missing += other.missing;
        self.repeated += other.repeated;
        self.misordered += other.misordered;
        self.damaged += other.damaged;
    }

    fn add(&mut self, expected: &[Seen], got: &[Seen]) {
        self.n_got += got.len();
        if expected == got {
            return;
        }
        let mut due: HashMap<&Seen, isize> = HashMap::new();
        expected.iter().for_each(|seen| *due.entry(seen).or_default() += 1);
        let mut accepted = Vec::new();
        for seen in got {
            match due.get_mut(seen) {
                None => self.damaged += 1,
                Some(left) if *left <= 0 => self.repeated += 1,
                Some(left) => {
                    *left -= 1;
                    accepted.push(seen);
                }
            }
        }
        self.missing += due.values().sum::<isize>() as usize;
        // Walks the expected order; what is not found ahead came too late.
        let mut rest = expected.iter();
        for seen in accepted {
            let mut ahead = rest.clone();
            if ahead.any(|due| due == seen) {
                rest = ahead;
            } else {
                self.misordered += 1;
            }
        }
    }
}

/// A client together with what it asked for.
pub enum Viewer {
    Cf { cf: Cf, channels: Vec<String> },
    Raw { raw: Raw, channels: Vec<String> },
}

impl Viewer {
    pub fn cf(hub: &Hub, channels: &[&str]) -> Self {
        let cf = Cf::subscribed(hub, channels);
        Self::Cf { cf, channels: owned(channels) }
    }

    pub fn raw(hub: &Hub, channels: &[&str]) -> Self {
        let raw = Raw::open(hub, channels);
        Self::Raw { raw, channels: owned(channels) }
    }

    pub fn channels(&self) -> &[String] {
        match self {
            Self::Cf { channels, .. } | Self::Raw { channels, .. } => channels,
        }
    }

    pub fn n_received(&self) -> usize {
        match self {
            Self::Cf { cf, .. } => cf.pubs.len(),
            Self::Raw { raw, .. } => raw.frames.len(),
        }
    }

    pub fn is_closed(&self) -> bool {
        match self {
            Self::Cf { cf, .. } => cf.raw.is_closed(),
            Self::Raw { raw, .. } => raw.is_closed(),
        }
    }

    /// Reads at most so many bytes once there are any: a window that opens a crack.
    pub fn read_crumb(&mut self, n_bytes: usize, deadline: Duration) {
        match self {
            Self::Cf { cf, .. } => cf.read_crumb(n_bytes, deadline),
            Self::Raw { raw, .. } => _ = raw.read_crumb(n_bytes, deadline),
        }
    }

    /// Takes what arrived, with its time.
    pub fn take_texts(&mut self) -> Vec<Recorded> {
        match self {
            Self::Cf { cf, .. } => {
                let taken = cf.pubs.drain(..);
                taken.map(|p| Recorded { at: p.at, text: p.data }).collect()
            }
            Self::Raw { raw, .. } => {
                let taken = raw.frames.drain(..);
                taken.map(|f| Recorded { at: f.at, text: f.text().to_owned() }).collect()
            }
        }
    }

    /// The close frame, if it has come.
    pub fn close(&mut self) -> Option<Close> {
        match self {
            Self::Cf { cf, .. } => cf.next_close(Duration::ZERO),
            Self::Raw { raw, .. } => raw.next_close(Duration::ZERO),
        }
    }

    pub fn fd(&self) -> RawFd {
        match self {
            Self::Cf { cf, .. } => cf.raw.fd(),
            Self::Raw { raw, .. } => raw.fd(),
        }
    }

    pub fn pump(&mut self) -> bool {
        match self {
            Self::Cf { cf, .. } => cf.pump(),
            Self::Raw { raw, .. } => raw.pump(),
        }
    }

    fn received(&self) -> HashMap<String, Vec<Seen>> {
        let mut received: HashMap<String, Vec<Seen>> = HashMap::new();
        match self {
            Self::Cf { cf, .. } => {
                for publication in &cf.pubs {
                    let seen = Seen::in_data(&publication.data);
                    received.entry(publication.channel.clone()).or_default().push(seen);
                }
            }
            Self::Raw { raw, .. } => {
                for frame in &raw.frames {
                    let (text, bytes) = (frame.opcode == super::ws::TEXT, frame.payload.clone());
                    let seen = Seen::Frame { text, bytes };
                    received.entry(channel_in(&frame.payload)).or_default().push(seen);
                }
            }
        }
        received
    }
}

fn owned(channels: &[&str]) -> Vec<String> {
    channels.iter().map(|channel| (*channel).to_owned()).collect()
}
