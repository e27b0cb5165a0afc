//! A steady stream of numbered publishes through the API of some nodes, each with its time and its
//! answer, and what became of them at the viewers.

use super::cf::subscribe;
use super::http::Kept;
use super::{Cf, Hub, Redis, Viewer, drive, eventually, secs, sys};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A publish of `{"seq": n}`; numbers are drawn once, and rise on each channel.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub seq: usize,
    pub channel: String,
    pub began: Instant,
    pub ended: Instant,
    pub accepted: bool,
}

impl Attempt {
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// Publishers at work; ends with the test, however that ends.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Vec<Attempt>>>,
}

impl Traffic {
    /// So many publishes a second in all, by `n_workers` that each wait for their own answers. A
    /// channel belongs to one worker, a worker to one node.
    pub fn start(hubs: &[&Hub], channels: &[String], n_workers: usize, per_second: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let every = Duration::from_secs(1) * n_workers as u32 / per_second as u32;
        let workers = (0..n_workers).map(|at| {
            let own: Vec<String> = channels.iter().skip(at).step_by(n_workers).cloned().collect();
            let addr = hubs[at % hubs.len()].addr;
            let stop = Arc::clone(&stop);
            let numbers = (at..).step_by(n_workers);
            thread::spawn(move || publish(addr, &own, numbers, every, &stop))
        });
        Self { workers: workers.collect(), stop }
    }

    /// All that was tried. Panics if any answer was neither a result nor an error to be retried.
    pub fn finish(mut self) -> Vec<Attempt> {
        self.stop.store(true, SeqCst);
        let ended = self.workers.drain(..).map(|worker| worker.join().expect("answers are right"));
        let mut attempts: Vec<Attempt> = ended.flatten().collect();
        attempts.sort_by_key(|attempt| attempt.began);
        attempts
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

fn publish(
    addr: SocketAddr,
    channels: &[String],
    numbers: impl Iterator<Item = usize>,
    every: Duration,
    stop: &AtomicBool,
) -> Vec<Attempt> {
    let mut kept = Kept::open(addr).expect("the API accepts");
    let mut attempts = Vec::new();
    let mut due = Instant::now();
    for (seq, channel) in numbers.zip(channels.iter().cycle()) {
        if stop.load(SeqCst) {
            break;
        }
        // Late answers are not made up for: a flood after a stall would be another test.
        due = due.max(Instant::now().checked_sub(every).unwrap_or(due)) + every;
        sys::pause(due.saturating_duration_since(Instant::now()));
        let data = json!({ "seq": seq, "sum": checksum(channel, seq) });
        let body = json!({ "channel": channel, "data": data }).to_string();
        let began = Instant::now();
        let response = kept.post("/api/publish", &body).expect("the API answers");
        let accepted = response.is_result();
        assert!(accepted || response.is_retryable(), "{} {}", response.status, response.text());
        let channel = channel.clone();
        attempts.push(Attempt { seq, channel, began, ended: Instant::now(), accepted });
    }
    attempts
}

/// What shows damage, and a publication of some other channel.
fn checksum(channel: &str, seq: usize) -> String {
    let mut hasher = DefaultHasher::new();
    (channel, seq).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The number in a publication of `Traffic`, which must be whole; none for any other.
pub fn seq_of(channel: &str, data: &Value) -> Option<usize> {
    let seq = data["seq"].as_u64()? as usize;
    if let Some(sum) = data["sum"].as_str() {
        assert_eq!(sum, checksum(channel, seq), "{channel}: {data}");
    }
    Some(seq)
}

/// The payload of a numbered publication, filled up to `n_bytes`.
pub fn numbered(seq: usize, n_bytes: usize) -> Vec<u8> {
    let head = format!("{{\"seq\":{seq},\"pad\":\"");
    let pad = "x".repeat(n_bytes.saturating_sub(head.len() + 2));
    format!("{head}{pad}\"}}").into_bytes()
}

fn number(data: &str) -> Option<usize> {
    let rest = data.strip_prefix("{\"seq\":")?;
    rest[..rest.find([',', '}'])?].parse().ok()
}

/// Numbers that a viewer received, in order.
pub fn seqs(viewer: &Viewer) -> Vec<usize> {
    match viewer {
        Viewer::Cf { cf, .. } => cf.pubs.iter().filter_map(|p| number(&p.data)).collect(),
        Viewer::Raw { raw, .. } => raw.frames.iter().filter_map(|f| number(f.text())).collect(),
    }
}

/// When each number was seen, by the last of these that saw it.
pub fn seen_at(viewers: &[Viewer]) -> HashMap<usize, Instant> {
    let mut seen = HashMap::new();
    let mut see = |seq: Option<usize>, at: Instant| {
        if let Some(seq) = seq {
            let last = seen.entry(seq).or_insert(at);
            *last = at.max(*last);
        }
    };
    for viewer in viewers {
        match viewer {
            Viewer::Cf { cf, .. } => cf.pubs.iter().for_each(|p| see(number(&p.data), p.at)),
            Viewer::Raw { raw, .. } => raw.frames.iter().for_each(|f| see(number(f.text()), f.at)),
        }
    }
    seen
}

/// What the viewers of one node did not get, of what was accepted.
#[derive(Debug, Default)]
pub struct Losses {
    pub n_missing: usize,
    /// Per channel, how often a row of publications is missing: each needs a gap of its own.
    pub rows: BTreeMap<String, usize>,
    pub first: Option<Instant>,
    pub last: Option<Instant>,
}

impl Losses {
    pub fn n_rows(&self) -> usize {
        self.rows.values().sum()
    }
}

/// Also checks that nothing came twice or out of order.
pub fn losses(viewers: &[Viewer], attempts: &[Attempt]) -> Losses {
    let by_seq: HashMap<usize, &Attempt> = attempts.iter().map(|one| (one.seq, one)).collect();
    let mut losses = Losses::default();
    for viewer in viewers {
        let got = seqs(viewer);
        let mut last: HashMap<&str, usize> = HashMap::new();
        for seq in &got {
            let before = last.insert(&by_seq[seq].channel, *seq);
            assert!(before.is_none_or(|before| before < *seq), "{seq} after {before:?}");
        }
        let got: HashSet<usize> = got.into_iter().collect();
        let mut rows: BTreeMap<&String, Row> =
            viewer.channels().iter().map(|channel| (channel, Row::default())).collect();
        for attempt in attempts.iter().filter(|attempt| attempt.accepted) {
            let Some(row) = rows.get_mut(&attempt.channel) else { continue };
            let missing = !got.contains(&attempt.seq);
            let goes_on = std::mem::replace(&mut row.is_open, missing);
            row.n += usize::from(missing && !goes_on);
            if missing {
                losses.n_missing += 1;
                losses.first = Some(losses.first.map_or(attempt.began, |at| at.min(attempt.began)));
                losses.last = Some(losses.last.map_or(attempt.ended, |at| at.max(attempt.ended)));
            }
        }
        for (channel, row) in rows.into_iter().filter(|(_, row)| row.n > 0) {
            let most = losses.rows.entry(channel.clone()).or_default();
            *most = row.n.max(*most);
        }
    }
    losses
}

#[derive(Default)]
struct Row {
    n: usize,
    is_open: bool,
}

/// From `back` until everything works: each node takes new subscribers, on channels old and new,
/// and a publication on each channel reaches new viewers within a second, and the old ones.
pub fn healthy(
    redis: &Redis,
    hubs: &[&Hub],
    old: &mut [Viewer],
    back: Instant,
    limit: Duration,
) -> Duration {
    let left = || limit.saturating_sub(back.elapsed());
    let mut channels: BTreeSet<String> = old.iter().flat_map(Viewer::channels).cloned().collect();
    let known = channels.first().expect("somebody watches").clone();
    channels.insert("fresh".to_owned());
    let mut fresh = Vec::new();
    for hub in hubs {
        let mut cf = Cf::connect(hub);
        let both = [known.clone(), "fresh".to_owned()];
        for channel in &both {
            let subscribed =
                eventually(left(), || cf.command(subscribe(channel))["subscribe"].is_object());
            assert!(subscribed, "no new subscriber {:?} after the return", back.elapsed());
        }
        fresh.push(Viewer::Cf { cf, channels: both.to_vec() });
    }
    let mut client = redis.client();
    for round in 0.. {
        let marker = format!("\"{round}@{:016x}", sys::entropy());
        for channel in &channels {
            client.publish(channel, format!("{marker}:{channel}\"").as_bytes());
        }
        let has_all = |viewer: &Viewer| n_marked(viewer, &marker) == viewer.channels().len();
        // Those few first, and in a second; to read a crowd of old ones may take this process longer.
        if drive(&mut fresh, secs(1), has_all) && drive(old, secs(3), has_all) {
            break;
        }
        let missing: Vec<&Viewer> =
            old.iter().chain(&fresh).filter(|viewer| !has_all(viewer)).collect();
        let (n_missing, n_closed) =
            (missing.len(), missing.iter().filter(|viewer| viewer.is_closed()).count());
        assert!(
            !left().is_zero(),
            "{n_missing} viewers miss the next one {:?} on, {n_closed} of them are closed",
            back.elapsed()
        );
    }
    for hub in hubs {
        assert!(eventually(left(), || hub.ready()), "not ready again");
    }
    back.elapsed()
}

/// How many of its last publications carry the marker.
fn n_marked(viewer: &Viewer, marker: &str) -> usize {
    let n_looked_at = 4 * viewer.channels().len() + 400;
    match viewer {
        Viewer::Cf { cf, .. } => {
            let latest = cf.pubs.iter().rev().take(n_looked_at);
            latest.filter(|publication| publication.data.starts_with(marker)).count()
        }
        Viewer::Raw { raw, .. } => {
            let latest = raw.frames.iter().rev().take(n_looked_at);
            latest.filter(|frame| frame.text().starts_with(marker)).count()
        }
    }
}
