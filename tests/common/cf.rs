//! A Centrifuge JSON client that keeps every frame with its time, answers pings, and hands out
//! replies by id and publications in the order they came.

use super::ws::{Close, Dial, Raw};
use super::{Hub, SOON};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

pub const PATH: &str = "/connection/websocket";

#[derive(Debug, Clone)]
pub struct Pub {
    pub at: Instant,
    pub channel: String,
    /// The bytes of `data` as they stood in the frame.
    pub data: String,
    /// The whole publication, parsed.
    pub body: Value,
}

#[derive(Debug, Clone)]
pub struct Recorded {
    pub at: Instant,
    pub text: String,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    id: u32,
    #[serde(borrow)]
    push: Option<PushBody<'a>>,
}

#[derive(Deserialize)]
struct PushBody<'a> {
    #[serde(default)]
    channel: String,
    #[serde(borrow, rename = "pub")]
    publication: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PublicationBody<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

pub struct Cf {
    pub raw: Raw,
    next_id: u32,
    pub replies: HashMap<u32, Value>,
    /// Reply ids in the order of arrival.
    pub reply_order: Vec<u32>,
    pub pubs: VecDeque<Pub>,
    /// Pushes that are no publication.
    pub pushes: VecDeque<Value>,
    /// Every frame, as received.
    pub log: Vec<Recorded>,
    /// Whether `{}` is answered; on by default.
    pub answer_pings: bool,
    pub n_pings: usize,
}

impl Cf {
    /// Upgraded, nothing sent yet.
    pub fn dial(hub: &Hub) -> Self {
        Self::over(Dial::new(hub, PATH).open())
    }

    pub fn over(raw: Raw) -> Self {
        Self {
            raw,
            next_id: 1,
            replies: HashMap::new(),
            reply_order: Vec::new(),
            pubs: VecDeque::new(),
            pushes: VecDeque::new(),
            log: Vec::new(),
            answer_pings: true,
            n_pings: 0,
        }
    }

    pub fn connect(hub: &Hub) -> Self {
        let mut cf = Self::dial(hub);
        let reply = cf.command(json!({ "connect": {} }));
        assert!(reply["connect"]["client"].is_string(), "connect: {reply}");
        cf
    }

    pub fn subscribed(hub: &Hub, channels: &[&str]) -> Self {
        let mut cf = Self::connect(hub);
        channels.iter().for_each(|channel| cf.subscribe(channel));
        cf
    }

    pub fn subscribe(&mut self, channel: &str) {
        let reply = self.command(subscribe(channel));
        assert!(reply["subscribe"].is_object(), "subscribe {channel}: {reply}");
    }

    pub fn unsubscribe(&mut self, channel: &str) {
        let reply = self.command(unsubscribe(channel));
        assert!(reply["unsubscribe"].is_object(), "unsubscribe {channel}: {reply}");
    }

    /// Sends one command and waits for its reply, whatever it is.
    pub fn command(&mut self, command: Value) -> Value {
        let id = self.send(vec![command])[0];
        self.reply(id, SOON).unwrap_or_else(|| panic!("no reply to {id}; {:?}", self.last_words()))
    }

    /// All in one frame; returns their ids.
    pub fn send(&mut self, commands: Vec<Value>) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut lines = Vec::new();
        for mut command in commands {
            command["id"] = json!(self.next_id);
            ids.push(self.next_id);
            self.next_id += 1;
            lines.push(command.to_string());
        }
        self.raw.send_text(&lines.join("\n"));
        ids
    }

    pub fn reply(&mut self, id: u32, deadline: Duration) -> Option<Value> {
        self.wait(deadline, |cf| cf.replies.contains_key(&id));
        self.replies.remove(&id)
    }

    /// The error of a command that must fail.
    pub fn error(&mut self, command: Value) -> Value {
        let reply = self.command(command.clone());
        assert!(reply["error"].is_object(), "{command} is answered {reply}");
        reply["error"].clone()
    }

    pub fn next_pub(&mut self, deadline: Duration) -> Option<Pub> {
        self.wait(deadline, |cf| !cf.pubs.is_empty());
        self.pubs.pop_front()
    }

    pub fn next_push(&mut self, deadline: Duration) -> Option<Value> {
        self.wait(deadline, |cf| !cf.pushes.is_empty());
        self.pushes.pop_front()
    }

    /// Whether no publication arrives for so long, and the connection stays.
    pub fn stays_quiet(&mut self, how_long: Duration) -> bool {
        self.wait(how_long, |cf| !cf.pubs.is_empty());
        self.pubs.is_empty() && !self.raw.is_closed()
    }

    pub fn next_close(&mut self, deadline: Duration) -> Option<Close> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let close = self.raw.next_close(left.min(Duration::from_millis(20)));
            self.absorb();
            if close.is_some() || left.is_zero() || self.raw.eof {
                return close;
            }
        }
    }

    pub fn wait(&mut self, deadline: Duration, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + deadline;
        self.absorb();
        while !done(self) {
            let left = end.saturating_duration_since(Instant::now());
            match self.raw.next_data(left) {
                Some(frame) => self.raw.frames.push_front(frame),
                None => return,
            }
            self.absorb();
        }
    }

    /// Takes what the kernel has, without waiting; false once the stream has ended.
    pub fn pump(&mut self) -> bool {
        let open = self.raw.pump();
        self.absorb();
        open
    }

    /// See `Raw::read_crumb`.
    pub fn read_crumb(&mut self, n_bytes: usize, deadline: Duration) {
        self.raw.read_crumb(n_bytes, deadline);
        self.absorb();
    }

    pub fn last_words(&self) -> String {
        self.log
            .iter()
            .rev()
            .take(3)
            .map(|frame| frame.text.as_str())
            .collect::<Vec<_>>()
            .join(" | ")
    }

    fn absorb(&mut self) {
        while let Some(frame) = self.raw.frames.pop_front() {
            let text = frame.text();
            assert!(!text.trim().is_empty(), "an empty message breaks the SDKs");
            for line in text.trim_end_matches('\n').split('\n') {
                assert!(!line.trim().is_empty(), "a blank line breaks the SDKs: {text:?}");
                self.on_line(frame.at, line);
            }
            self.log.push(Recorded { at: frame.at, text: text.to_owned() });
        }
    }

    fn on_line(&mut self, at: Instant, line: &str) {
        if line == "{}" {
            self.n_pings += 1;
            if self.answer_pings {
                self.raw.send_text("{}");
            }
            return;
        }
        let envelope: Envelope = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("not an envelope ({error}): {line:?}"));
        let whole = || serde_json::from_str::<Value>(line).expect("JSON");
        match envelope.push {
            None => {
                assert_ne!(envelope.id, 0, "neither reply nor push: {line}");
                let twice = self.replies.insert(envelope.id, whole());
                assert!(twice.is_none(), "two replies to command {}", envelope.id);
                self.reply_order.push(envelope.id);
            }
            Some(PushBody { channel, publication: Some(publication) }) => {
                let body: PublicationBody = serde_json::from_str(publication.get())
                    .unwrap_or_else(|error| panic!("no data ({error}): {line:?}"));
                let data = body.data.get().to_owned();
                // Null where a number is beyond serde_json's f64; `data` has the bytes.
                let body = serde_json::from_str(publication.get()).unwrap_or_default();
                self.pubs.push_back(Pub { at, channel, data, body });
            }
            Some(_) => self.pushes.push_back(whole()),
        }
    }
}

pub fn subscribe(channel: &str) -> Value {
    json!({ "subscribe": { "channel": channel, "flag": 1 } })
}

pub fn unsubscribe(channel: &str) -> Value {
    json!({ "unsubscribe": { "channel": channel } })
}

pub fn publish(channel: &str, data: &Value) -> Value {
    json!({ "publish": { "channel": channel, "data": data } })
}
