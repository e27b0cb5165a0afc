//! The scripts of presence: the arguments they take, what they answer. Sans-I/O.

use redis::Value;

use super::ledger::{Batch, Before};
use crate::broker::presence::Counts;
use crate::broker::redis::script::{Call, Items, Script};

/// How long a life is believed of which nothing is heard, milliseconds.
const BELIEVED_MS: u64 = 30_000;
/// How long it is remembered that one was taken for dead.
const REMEMBERED_MS: u64 = 3_600_000;
/// Entries of dead lives that one call removes: each is a PUBLISH, and Redis serves others in between.
const REAPED_MAX: u64 = 100;
/// Clients that are listed in one step.
const LISTED_MAX: u64 = 512;

/// What a beat says of the lives before this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// This life begins: they are believed until its entries are moved.
    Begin,
    Go,
    /// They are moved.
    Done,
    End,
}

/// Makes calls for one prefix.
pub struct Calls<'a>(pub &'a [u8]);

impl Calls<'_> {
    fn call(&self, script: Script, args: impl IntoIterator<Item = Vec<u8>>) -> Call {
        let runs = [self.0, b"ws:presence-runs"].concat();
        let prefix = std::iter::once(self.0.to_vec());
        Call { script, keys: vec![runs], args: prefix.chain(args).collect() }
    }

    pub fn beat(&self, life: &str, step: Step, before: &[String]) -> Call {
        let step = match step {
            Step::Begin => "begin",
            Step::Go => "go",
            Step::Done => "done",
            Step::End => "end",
        };
        let believed = BELIEVED_MS.to_string();
        let args = [&*believed, life, step].into_iter().chain(before.iter().map(String::as_str));
        self.call(Script::PresenceBeat, args.map(|arg| arg.as_bytes().to_vec()))
    }

    pub fn write(&self, life: &str, before: &[String], batch: &mut Batch) -> Call {
        let n_before = before.len().to_string();
        let lives = [life, &n_before].into_iter().chain(before.iter().map(String::as_str));
        let lives = lives.map(|arg| arg.as_bytes().to_vec());
        self.call(Script::PresenceWrite, lives.chain(std::mem::take(&mut batch.args)))
    }

    pub fn keep(&self, life: &str, channels: Vec<Vec<u8>>) -> Call {
        let life = std::iter::once(life.as_bytes().to_vec());
        self.call(Script::PresenceKeep, life.chain(channels))
    }

    pub fn reap(&self) -> Call {
        let numbers = [REAPED_MAX, REMEMBERED_MS];
        self.call(Script::PresenceReap, numbers.map(|number| number.to_string().into_bytes()))
    }

    pub fn count(&self, channel: &str) -> Call {
        let most = REAPED_MAX.to_string().into_bytes();
        self.call(Script::PresenceCount, [channel.as_bytes().to_vec(), most])
    }

    pub fn who(&self, channel: &str) -> Call {
        let numbers = [REAPED_MAX, LISTED_MAX].map(|number| number.to_string().into_bytes());
        let channel = std::iter::once(channel.as_bytes().to_vec());
        self.call(Script::PresenceWho, channel.chain(numbers))
    }

    pub fn scan(&self, channel: &str, life: &[u8], cursor: &[u8]) -> Call {
        let count = LISTED_MAX.to_string().into_bytes();
        let args = [channel.as_bytes().to_vec(), life.to_vec(), cursor.to_vec(), count];
        self.call(Script::PresenceScan, args)
    }
}

/// What a beat found.
pub struct BeatReply {
    /// The life is believed; else what became of it.
    pub own: Before,
    pub before: Before,
}

impl BeatReply {
    pub fn read(value: Value) -> Option<Self> {
        let mut items = Items::of(value)?;
        items.number()?;
        let mut state = || {
            Some(match items.number()? {
                0 => Before::Lost,
                1 => Before::There,
                _ => Before::Reaped,
            })
        };
        Some(Self { own: state()?, before: state()? })
    }
}

/// Whether changes were written; if not the life was taken for dead.
pub fn read_written(value: Value) -> Option<bool> {
    let mut items = Items::of(value)?;
    items.number()?;
    Some(items.number()? != 0)
}

/// What is left of dead lives.
pub struct ReapReply {
    pub has_more: bool,
    pub n_reaped: u64,
}

impl ReapReply {
    pub fn read(value: Value) -> Option<Self> {
        let mut items = Items::of(value)?;
        items.number()?;
        Some(Self { has_more: items.number()? != 0, n_reaped: items.number()? })
    }
}

/// `Err`: there is more to be removed first.
pub type Reaping<T> = Result<T, ()>;

pub fn read_counts(value: Value) -> Option<Reaping<Counts>> {
    let mut items = Items::of(value)?;
    items.number()?;
    let has_more = items.number()? != 0;
    let counts = Counts { n_clients: items.number()?, n_users: items.number()? };
    Some(if has_more { Err(()) } else { Ok(counts) })
}

/// Who is in a channel.
pub enum Listed {
    All(Vec<Line>),
    /// Too many for one step: they are under these lives.
    Scan(Vec<Vec<u8>>),
}

/// One client, and its ClientInfo.
pub struct Line {
    pub client: Vec<u8>,
    pub info: Vec<u8>,
}

pub fn read_listed(value: Value) -> Option<Reaping<Listed>> {
    let mut items = Items::of(value)?;
    items.number()?;
    let (has_more, is_listed) = (items.number()? != 0, items.number()? != 0);
    if has_more {
        return Some(Err(()));
    }
    if is_listed {
        return Some(Ok(Listed::All(read_lines(&mut items)?)));
    }
    let mut lives = Vec::new();
    while items.len() > 0 {
        lives.push(items.bytes()?);
    }
    Some(Ok(Listed::Scan(lives)))
}

/// A part of a scan.
pub struct Part {
    /// `0`: the last one.
    pub cursor: Vec<u8>,
    pub lines: Vec<Line>,
}

impl Part {
    pub fn read(value: Value) -> Option<Self> {
        let mut items = Items::of(value)?;
        items.number()?;
        Some(Self { cursor: items.bytes()?, lines: read_lines(&mut items)? })
    }
}

/// What isn't a value of ours is left out.
fn read_lines(items: &mut Items) -> Option<Vec<Line>> {
    let mut lines = Vec::new();
    while items.len() > 0 {
        let (client, mut info) = (items.bytes()?, items.bytes()?);
        if matches!(info.first(), Some(b'0' | b'1')) {
            info.remove(0);
            lines.push(Line { client, info });
        }
    }
    Some(lines)
}
