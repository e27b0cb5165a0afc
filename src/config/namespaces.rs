//! Namespaces: what holds for which channels, from the TOML file that `HUB_CONFIG` names.
//!
//! `[namespaces.prices]` is for the channels `prices:*`, `[namespaces.""]` for those without a `:`,
//! `[namespaces."*"]` for all the rest. A channel's namespace is the part before its first `:`, taken
//! literally; `:x` has none, so it belongs to the rest. Without a file every channel takes the
//! defaults; with one, a channel of no namespace does not exist (error 102).
//!
//! Owned by whoever holds the `Config`; a plain value, any thread, never changed once read.
//! **Invariant:** looking up a channel allocates nothing.
//! **Invariant:** a file with a mistake gives no namespaces, and every mistake at once.
//!
//! All keys of the design are read and checked; a value for which there is no code yet is refused as
//! such, since whoever writes it relies on it.

mod keys;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::{self, Refusal};
use crate::channel::{self, NameError};
use keys::{KEYS, is_zero};

/// Thousands of namespaces; a path to something endless must not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Of a namespace's name; as long as a channel's can be made.
const NAME_BYTES_MAX: usize = 4096;

/// Which clients may do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Nobody,
    /// With a subscription token.
    Token,
    /// While subscribed.
    Subscriber,
    /// Authenticated.
    User,
    Anyone,
}

/// What happens to a subscriber whose outbox is over its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumer {
    /// Close 3008.
    Disconnect,
    /// It gets the newest publication only, once its socket has room.
    Conflate,
}

/// What happens to the subscribers of a channel without positions after a gap inside the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    Count,
    /// Unsubscribe 2500; raw: close 3010.
    Resubscribe,
}

/// What a subscriber that was away gets of what it missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    Off,
    /// All of it, or the news that it can't be had. Needs history.
    Stream,
    /// The newest publication, as every new subscriber does.
    Cache,
}

/// Who is told of those who come to a channel and leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinLeave {
    Off,
    /// Subscribers that asked for it.
    On,
    /// All of them.
    Forced,
}

/// What holds for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub subscribe: Access,
    pub publish: Access,
    pub history: Access,
    pub presence_access: Access,
    pub slow_consumer: SlowConsumer,
    pub gap: Gap,
    /// Publications; 0: no history. Then `history_ttl` is zero too.
    pub history_size: usize,
    pub history_ttl: Duration,
    pub recovery: Recovery,
    /// Who is here can be asked.
    pub presence: bool,
    pub join_leave: JoinLeave,
    /// Publications of a channel a second, at the most; `None`: as they come.
    pub max_rate: Option<u32>,
    /// Publications may wait so long, whole milliseconds, so that several go out in one write.
    pub write_delay: Duration,
    /// Subscribers may ask for patches.
    pub delta: bool,
    /// The server subscribes every user to a channel of its own.
    pub personal: bool,
}

/// How much of a channel's stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Publications, at least 1.
    pub size: usize,
    /// From the newest publication on, milliseconds.
    pub ttl_ms: u64,
}

impl Namespace {
    /// `None`: no history.
    pub fn keep(&self) -> Option<Keep> {
        let ttl_ms = self.history_ttl.as_millis() as u64;
        (self.history_size > 0).then_some(Keep { size: self.history_size, ttl_ms })
    }

    /// It is noted who is here.
    pub fn has_members(&self) -> bool {
        self.presence || self.join_leave != JoinLeave::Off
    }
}

impl Default for Namespace {
    fn default() -> Namespace {
        Namespace {
            subscribe: Access::User,
            publish: Access::Nobody,
            history: Access::Nobody,
            presence_access: Access::Nobody,
            slow_consumer: SlowConsumer::Disconnect,
            gap: Gap::Count,
            history_size: 0,
            history_ttl: Duration::ZERO,
            recovery: Recovery::Off,
            presence: false,
            join_leave: JoinLeave::Off,
            max_rate: None,
            write_delay: Duration::ZERO,
            delta: false,
            personal: false,
        }
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    by_name: HashMap<Box<str>, Namespace, ahash::RandomState>,
    /// Of channels without a `:`.
    plain: Option<Namespace>,
    rest: Option<Namespace>,
    /// The names of those that are personal, in order; the empty one is that of `plain`.
    personal: Vec<Box<str>>,
}

/// Without a file.
impl Default for Namespaces {
    fn default() -> Namespaces {
        let rest = Some(Namespace::default());
        Namespaces { by_name: HashMap::default(), plain: None, rest, personal: Vec::new() }
    }
}

/// A mistake in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// From 1; `None` if no line is to blame.
    pub line: Option<usize>,
    pub complaint: String,
}

impl Namespaces {
    /// `None`: no namespace covers the channel.
    pub fn of(&self, channel: &str) -> Option<&Namespace> {
        let own = match channel.split_once(':') {
            Some((name, _)) => self.by_name.get(name),
            None => self.plain.as_ref(),
        };
        own.or(self.rest.as_ref())
    }

    fn all(&self) -> impl Iterator<Item = &Namespace> {
        self.by_name.values().chain(&self.plain).chain(&self.rest)
    }

    /// In which namespaces every user has a channel of its own; the empty name is that of channels
    /// without a colon.
    pub fn personal(&self) -> impl Iterator<Item = &str> {
        self.personal.iter().map(|name| &**name)
    }

    /// Whether a client without a user may subscribe to anything.
    pub fn let_anyone_in(&self) -> bool {
        self.all().any(|namespace| namespace.subscribe == Access::Anyone)
    }

    /// Whether it is noted anywhere who is here.
    pub fn have_members(&self) -> bool {
        self.all().any(Namespace::has_members)
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Namespaces, LoadError> {
        let mut text = String::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("more than {FILE_BYTES_MAX} bytes")).into());
        }
        Namespaces::parse(&text).map_err(LoadError::Mistakes)
    }

    /// Reads the text of a file. The mistakes are in the order of their lines.
    pub fn parse(text: &str) -> Result<Namespaces, Vec<Mistake>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut reading = Reading { text, mistakes: Vec::new() };
        for error in &errors {
            reading.blame(error.span().map(|span| span.start), error.message().to_owned());
        }
        // A half-read file would only give mistakes that follow from the first.
        let namespaces =
            if errors.is_empty() { reading.root(root.get_ref()) } else { Namespaces::default() };
        reading.mistakes.sort_by_key(|mistake| mistake.line);
        if reading.mistakes.is_empty() { Ok(namespaces) } else { Err(reading.mistakes) }
    }
}

/// Why there are no namespaces.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{} mistakes", .0.len())]
    Mistakes(Vec<Mistake>),
}

/// A file on its way.
struct Reading<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = Spanned<DeValue<'a>>;

impl Reading<'_> {
    fn blame(&mut self, at: Option<usize>, complaint: String) {
        let line =
            at.map(|at| 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count());
        self.mistakes.push(Mistake { line, complaint });
    }

    fn root(&mut self, root: &DeTable<'_>) -> Namespaces {
        let mut namespaces = Namespaces { rest: None, ..Namespaces::default() };
        for (key, value) in root {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("namespaces", DeValue::Table(tables)) => self.tables(tables, &mut namespaces),
                ("namespaces", _) => {
                    let complaint = "namespaces: expected tables such as [namespaces.prices]";
                    self.blame(Some(value.span().start), complaint.to_owned());
                }
                (unknown, _) => {
                    let complaint = format!("unknown key {}: expected namespaces", shown(unknown));
                    self.blame(Some(key.span().start), complaint);
                }
            }
        }
        namespaces
    }

    fn tables(&mut self, tables: &DeTable<'_>, into: &mut Namespaces) {
        for (key, value) in tables {
            let name = key.get_ref().as_ref();
            let DeValue::Table(table) = value.get_ref() else {
                let complaint = format!("namespaces.{}: expected a table", shown(name));
                self.blame(Some(value.span().start), complaint);
                continue;
            };
            let namespace = self.namespace(name, table);
            match name {
                // Which of all the other names it should be, it doesn't say.
                "*" if namespace.personal => self.blame(
                    Some(key.span().start),
                    r#"namespaces."*".personal: expected a namespace with a name, or """#
                        .to_owned(),
                ),
                name if namespace.personal => into.personal.push(name.into()),
                _ => {}
            }
            match name {
                "" => into.plain = Some(namespace),
                "*" => into.rest = Some(namespace),
                name => {
                    if let Err(expected) = check_name(name) {
                        let complaint = format!("namespaces.{}: expected {expected}", shown(name));
                        self.blame(Some(key.span().start), complaint);
                    }
                    into.by_name.insert(name.into(), namespace);
                }
            }
        }
        into.personal.sort_unstable();
    }

    fn namespace(&mut self, name: &str, table: &DeTable<'_>) -> Namespace {
        let mut namespace = Namespace::default();
        for (key, value) in table {
            self.entry(name, key, value, &mut namespace);
        }
        self.check_history(name, table, &namespace);
        self.check_recovery(name, table, &namespace);
        self.check_delta(name, table, &namespace);
        namespace
    }

    /// One without the other would keep nothing, or all for ever.
    fn check_history(&mut self, name: &str, table: &DeTable<'_>, namespace: &Namespace) {
        let (given, missing) = match (namespace.history_size > 0, namespace.history_ttl.is_zero()) {
            (true, true) => ("history_size", "history_ttl"),
            (false, false) => ("history_ttl", "history_size"),
            _ => return,
        };
        // A value that was refused left its default: one complaint is enough.
        if table.iter().any(|(key, value)| key.get_ref() == missing && !is_zero(value.get_ref())) {
            return;
        }
        let at = table.iter().find(|(key, _)| key.get_ref() == given);
        let complaint = format!("namespaces.{}.{given} needs {missing} too", shown(name));
        self.blame(at.map(|(_, value)| value.span().start), complaint);
    }

    /// What isn't kept can't be had again.
    fn check_recovery(&mut self, name: &str, table: &DeTable<'_>, namespace: &Namespace) {
        if namespace.recovery != Recovery::Stream {
            return;
        }
        let has = |key: &str| table.iter().find(|(given, _)| given.get_ref() == key);
        let at = has("recovery").map(|(_, value)| value.span().start);
        let path = format!("namespaces.{}.recovery = \"stream\"", shown(name));
        let is_given = has("history_size").is_some_and(|(_, value)| !is_zero(value.get_ref()));
        if namespace.history_size == 0 && !is_given {
            self.blame(at, format!("{path} needs history_size"));
        }
        // They leave publications out, which is what such a channel promises not to do.
        if namespace.slow_consumer == SlowConsumer::Conflate {
            self.blame(
                at,
                format!("{path} and slow_consumer = \"conflate\" contradict each other"),
            );
        }
        if namespace.max_rate.is_some() {
            self.blame(at, format!("{path} and max_rate contradict each other"));
        }
    }

    /// A patch is of use only to who got the publication before.
    fn check_delta(&mut self, name: &str, table: &DeTable<'_>, namespace: &Namespace) {
        let skips =
            namespace.slow_consumer == SlowConsumer::Conflate || namespace.max_rate.is_some();
        if namespace.delta && skips {
            let at = table.iter().find(|(given, _)| given.get_ref() == "delta");
            let name = shown(name);
            let complaint = format!(
                "namespaces.{name}.delta contradicts slow_consumer = \"conflate\" and max_rate"
            );
            self.blame(at.map(|(_, value)| value.span().start), complaint);
        }
    }

    fn entry(&mut self, name: &str, key: &Key<'_>, value: &Value<'_>, into: &mut Namespace) {
        let path = format!("namespaces.{}.{}", shown(name), shown(key.get_ref()));
        let Some(row) = KEYS.iter().find(|row| row.key == key.get_ref().as_ref()) else {
            let known: Vec<&str> = KEYS.iter().map(|row| row.key).collect();
            let complaint = format!("unknown key {path}: expected {}", known.join(", "));
            return self.blame(Some(key.span().start), complaint);
        };
        let complaint = match (row.set)(into, value.get_ref()) {
            Ok(()) => return,
            Err(Refusal::NotYet(what)) => {
                format!("{path} = {what} is not available in this version")
            }
            Err(Refusal::Expected(expected)) => {
                format!(
                    "{path}: {} is not valid: expected {expected}",
                    shown_value(value.get_ref())
                )
            }
        };
        self.blame(Some(value.span().start), complaint);
    }
}

/// A namespace that no channel can be in would be a rule that silently never holds.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.contains(':') {
        return Err("a name without a colon: it is what stands before a channel's first one");
    }
    match channel::check_name(&format!("{name}:"), NAME_BYTES_MAX) {
        Ok(()) => Ok(()),
        Err(NameError::Reserved) => Err("another name: this one is reserved"),
        Err(NameError::TooLong) => Err("a shorter name"),
        Err(NameError::Empty | NameError::NotPrintable) => {
            Err("a name of printable ASCII characters without spaces")
        }
    }
}

/// A key as TOML writes it, and never a raw control character.
fn shown(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !key.is_empty() && key.chars().all(is_bare) {
        values::shortened(key)
    } else {
        format!("{:?}", values::shortened(key))
    }
}

fn shown_value(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", values::shortened(text)),
        DeValue::Integer(number) => values::shortened(&number.to_string()),
        DeValue::Float(number) => values::shortened(&number.to_string()),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

#[cfg(test)]
mod tests;
