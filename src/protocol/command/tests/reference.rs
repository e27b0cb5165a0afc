//! RFC 8259 and the table of commands, read once more and plainly: what the decoder is compared with.
//!
//! A tree of our own rather than `serde_json::Value`, which forgets repeated keys and what a number looked like, and
//! refuses lone surrogates, numbers over f64 and a depth of 128. Where it has no such scruple the two are compared.

use std::borrow::Cow;

use serde_json::Value;

use super::super::*;

/// A value and the bytes it came from.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    pub(super) raw: &'a str,
    pub(super) tree: Tree<'a>,
}

#[derive(Clone, Debug)]
pub(super) enum Tree<'a> {
    Null,
    Bool(bool),
    Number,
    /// `None` if an escape is half of a surrogate pair.
    Text(Option<String>),
    List(Vec<Node<'a>>),
    Object(Vec<Member<'a>>),
}

#[derive(Clone, Debug)]
pub(super) struct Member<'a> {
    pub(super) name: Option<String>,
    pub(super) value: Node<'a>,
}

/// The JSON text in `text` if it is one, at most `DEPTH_MAX` deep.
pub(super) fn parse(text: &str) -> Option<Node<'_>> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let node = parser.value()?;
    parser.space();
    (parser.at == text.len()).then_some(node)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, wanted: &str) -> Option<()> {
        let is_there = self.text.as_bytes()[self.at..].starts_with(wanted.as_bytes());
        is_there.then(|| self.at += wanted.len())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Option<Node<'a>> {
        self.space();
        let start = self.at;
        let tree = match self.peek()? {
            b'n' => self.take("null").map(|()| Tree::Null)?,
            b't' => self.take("true").map(|()| Tree::Bool(true))?,
            b'f' => self.take("false").map(|()| Tree::Bool(false))?,
            b'"' => Tree::Text(self.string()?),
            b'[' => Tree::List(self.nested("[", "]", Self::value)?),
            b'{' => Tree::Object(self.nested("{", "}", Self::member)?),
            _ => self.number()?,
        };
        Some(Node { raw: &self.text[start..self.at], tree })
    }

    fn nested<T>(
        &mut self,
        open: &str,
        close: &str,
        item: impl Fn(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.take(open)?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        let mut items = Vec::new();
        self.space();
        if self.take(close).is_none() {
            loop {
                items.push(item(self)?);
                self.space();
                if self.take(",").is_none() {
                    break;
                }
            }
            self.take(close)?;
        }
        self.depth -= 1;
        Some(items)
    }

    fn member(&mut self) -> Option<Member<'a>> {
        self.space();
        let name = self.string()?;
        self.space();
        self.take(":")?;
        Some(Member { name, value: self.value()? })
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn number(&mut self) -> Option<Tree<'a>> {
        let _ = self.take("-");
        if self.take("0").is_none() {
            self.digits()?;
        }
        if self.take(".").is_some() {
            self.digits()?;
        }
        if self.take("e").or_else(|| self.take("E")).is_some() {
            let _ = self.take("+").or_else(|| self.take("-"));
            self.digits()?;
        }
        Some(Tree::Number)
    }

    /// The outer `None`: no string. The inner: one that no UTF-8 can hold.
    fn string(&mut self) -> Option<Option<String>> {
        self.take("\"")?;
        let mut units: Vec<u16> = Vec::new();
        loop {
            let c = self.text[self.at..].chars().next()?;
            self.at += c.len_utf8();
            match c {
                '"' => return Some(String::from_utf16(&units).ok()),
                '\0'..='\x1f' => return None,
                '\\' => units.push(self.escape()?),
                c => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
            }
        }
    }

    fn escape(&mut self) -> Option<u16> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'"' | b'\\' | b'/' => u16::from(byte),
            b'b' => 8,
            b'f' => 12,
            b'n' => 10,
            b'r' => 13,
            b't' => 9,
            b'u' => {
                let hex = self.text.get(self.at..self.at + 4)?;
                self.at += 4;
                hex.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
                u16::from_str_radix(hex, 16).ok()?
            }
            _ => return None,
        })
    }
}

/// How deep the brackets nest, those in strings left out, whatever else the text is.
pub(super) fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0usize, 0, false, false);
    for byte in text {
        match (byte, in_string) {
            (_, true) if is_escaped => is_escaped = false,
            (b'\\', true) => is_escaped = true,
            (b'"', _) => in_string = !in_string,
            (b'[' | b'{', false) => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (b']' | b'}', false) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl Node<'_> {
    /// Whether `Value` can hold it.
    pub(super) fn is_plain(&self) -> bool {
        match &self.tree {
            Tree::Null | Tree::Bool(_) => true,
            Tree::Number => self.raw.parse::<f64>().is_ok_and(f64::is_finite),
            Tree::Text(text) => text.is_some(),
            Tree::List(items) => items.iter().all(Self::is_plain),
            Tree::Object(members) => {
                members.iter().all(|member| member.name.is_some() && member.value.is_plain())
            }
        }
    }

    pub(super) fn equals(&self, value: &Value) -> bool {
        match (&self.tree, value) {
            (Tree::Null, Value::Null) => true,
            (Tree::Bool(ours), Value::Bool(theirs)) => ours == theirs,
            (Tree::Number, Value::Number(theirs)) => self.is_number(theirs),
            (Tree::Text(Some(ours)), Value::String(theirs)) => ours == theirs,
            (Tree::List(ours), Value::Array(theirs)) => {
                ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| a.equals(b))
            }
            (Tree::Object(ours), Value::Object(theirs)) => {
                // Of a repeated key `Value` keeps the last.
                let last = |name: &str| {
                    ours.iter().rev().find(|member| member.name.as_deref() == Some(name))
                };
                let is_known = |member: &Member<'_>| {
                    member.name.as_ref().is_some_and(|name| theirs.contains_key(name))
                };
                ours.iter().all(is_known)
                    && theirs.iter().all(|(name, value)| {
                        last(name).is_some_and(|member| member.value.equals(value))
                    })
            }
            _ => false,
        }
    }

    fn is_number(&self, theirs: &serde_json::Number) -> bool {
        if let Some(ours) = self.integer::<u64>() {
            return theirs.as_u64() == Some(ours);
        }
        if let Some(ours) = self.integer::<i64>() {
            return theirs.as_i64() == Some(ours);
        }
        // Without its feature `float_roundtrip` serde_json's last bits may be off.
        let (ours, theirs) = (self.raw.parse::<f64>().unwrap(), theirs.as_f64().unwrap());
        (ours - theirs).abs() <= ours.abs() * 4.0 * f64::EPSILON + f64::MIN_POSITIVE
    }

    /// A number without fraction and exponent that fits. `-0` is none to serde_json, and no SDK writes it.
    fn integer<T: std::str::FromStr>(&self) -> Option<T> {
        let is_number = matches!(self.tree, Tree::Number) && self.raw != "-0";
        is_number.then(|| self.raw.parse().ok()).flatten()
    }
}

/// The members of an object, none of the names we know twice.
struct Fields<'n, 'a>(&'n [Member<'a>]);

impl<'n, 'a> Fields<'n, 'a> {
    /// `None`: not an object, or one that names a known field twice or has a name that is no text.
    fn of(node: &'n Node<'a>, known: &[&str]) -> Option<Self> {
        let Tree::Object(members) = &node.tree else { return None };
        let count = |name: &str| members.iter().filter(|m| m.name.as_deref() == Some(name)).count();
        let is_sound = members.iter().all(|member| member.name.is_some())
            && known.iter().all(|name| count(name) < 2);
        is_sound.then_some(Self(members))
    }

    fn get(&self, name: &str) -> Option<&'n Node<'a>> {
        let member = self.0.iter().find(|member| member.name.as_deref() == Some(name))?;
        Some(&member.value)
    }

    /// As [`Self::get`], and `null` is as good as missing.
    fn get_some(&self, name: &str) -> Option<&'n Node<'a>> {
        self.get(name).filter(|node| !matches!(node.tree, Tree::Null))
    }

    fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        match self.get_some(name).map(|node| &node.tree) {
            None => Some(Cow::default()),
            Some(Tree::Text(Some(text))) => Some(Cow::Owned(text.clone())),
            _ => None,
        }
    }

    fn bool(&self, name: &str) -> Option<bool> {
        match self.get_some(name).map(|node| &node.tree) {
            None => Some(false),
            Some(Tree::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    fn integer<T: std::str::FromStr + Default>(&self, name: &str) -> Option<T> {
        self.get_some(name).map_or(Some(T::default()), |node| node.integer())
    }

    fn delta(&self) -> Option<Delta> {
        match &*self.text("delta")? {
            "" => Some(Delta::Off),
            "fossil" => Some(Delta::Fossil),
            _ => None,
        }
    }

    fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.get(name).map(|node| node.raw.as_bytes())
    }
}

/// What [`decode`] has to say to this line.
pub(super) fn command(line: &[u8]) -> Result<Command<'_>, Malformed> {
    let text = std::str::from_utf8(line).map_err(|_| Malformed::NotUtf8)?;
    if depth(line) > DEPTH_MAX {
        return Err(Malformed::TooDeep);
    }
    let node = parse(text).ok_or(Malformed::NotACommand)?;
    let fields = Fields::of(&node, &["id"]).ok_or(Malformed::NotACommand)?;
    let id = match fields.get("id") {
        None => 0,
        Some(id) => id.integer().ok_or(Malformed::NotACommand)?,
    };
    let mut kinds = Vec::new();
    for member in fields.0 {
        let name = member.name.as_deref().expect("checked");
        if let Some(kind) = kind(name, &member.value) {
            kinds.push(kind.ok_or(Malformed::NotACommand)?);
        }
    }
    let kind = match kinds.len() {
        0 if id == 0 => Kind::Pong,
        0 => return Err(Malformed::NoKind),
        1 => kinds.pop().expect("there is one"),
        _ => return Err(Malformed::TwoKinds),
    };
    if id == 0 && !matches!(kind, Kind::Send { .. } | Kind::Pong) {
        return Err(Malformed::NoId);
    }
    let channel = match &kind {
        Kind::Subscribe(subscribe) => Some(&subscribe.channel),
        Kind::Publish(publish) => Some(&publish.channel),
        Kind::History(history) => Some(&history.channel),
        Kind::Unsubscribe { channel }
        | Kind::Presence { channel }
        | Kind::PresenceStats { channel } => Some(channel),
        _ => None,
    };
    if channel.is_some_and(|channel| channel.is_empty()) {
        return Err(Malformed::NoChannel);
    }
    if matches!(&kind, Kind::Refresh { token } if token.is_empty()) {
        return Err(Malformed::NoToken);
    }
    Ok(Command { id, kind })
}

/// `None`: no kind has this name. `Some(None)`: its value is malformed.
fn kind<'a>(name: &str, node: &Node<'a>) -> Option<Option<Kind<'a>>> {
    let known = fields_of(name)?;
    Some(Fields::of(node, &known).and_then(|fields| kind_of(name, &fields)))
}

/// The fields of a kind.
pub(super) fn fields_of(kind: &str) -> Option<Vec<&'static str>> {
    let fields = match kind {
        "connect" => "token data subs name version flag",
        "subscribe" => {
            "channel token recover epoch offset data positioned recoverable join_leave delta tf flag type"
        }
        "unsubscribe" | "presence" | "presence_stats" => "channel",
        "publish" => "channel data type",
        "history" => "channel limit since reverse",
        "rpc" => "method data",
        "send" => "data",
        "refresh" => "token",
        "sub_refresh" => "channel token type",
        "ping" => "",
        _ => return None,
    };
    Some(fields.split_whitespace().collect())
}

fn kind_of<'a>(name: &str, fields: &Fields<'_, 'a>) -> Option<Kind<'a>> {
    Some(match name {
        "connect" => Kind::Connect(Connect {
            token: fields.text("token")?,
            data: fields.bytes("data"),
            subs: fields.get_some("subs").map_or(Some(Vec::new()), wanted)?,
            name: fields.text("name")?,
            version: fields.text("version")?,
            flag: fields.integer("flag")?,
        }),
        "subscribe" => Kind::Subscribe(Subscribe {
            channel: fields.text("channel")?,
            token: fields.text("token")?,
            recover: fields.bool("recover")?,
            epoch: fields.text("epoch")?,
            offset: fields.integer("offset")?,
            data: fields.bytes("data"),
            positioned: fields.bool("positioned")?,
            recoverable: fields.bool("recoverable")?,
            join_leave: fields.bool("join_leave")?,
            delta: fields.delta()?,
            tags_filter: fields.bytes("tf"),
            flag: fields.integer("flag")?,
            sub_type: fields.integer("type")?,
        }),
        "unsubscribe" => Kind::Unsubscribe { channel: fields.text("channel")? },
        "presence" => Kind::Presence { channel: fields.text("channel")? },
        "presence_stats" => Kind::PresenceStats { channel: fields.text("channel")? },
        "publish" => Kind::Publish(Publish {
            channel: fields.text("channel")?,
            data: fields.bytes("data"),
            pub_type: fields.integer("type")?,
        }),
        "history" => Kind::History(History {
            channel: fields.text("channel")?,
            limit: fields.integer("limit")?,
            since: match fields.get_some("since") {
                None => None,
                Some(since) => Some(position(since)?),
            },
            reverse: fields.bool("reverse")?,
        }),
        "rpc" => Kind::Rpc(Rpc { method: fields.text("method")?, data: fields.bytes("data") }),
        "send" => Kind::Send { data: fields.bytes("data") },
        "refresh" => Kind::Refresh { token: fields.text("token")? },
        "sub_refresh" => Kind::SubRefresh(SubRefresh {
            channel: fields.text("channel")?,
            token: fields.text("token")?,
            refresh_type: fields.integer("type")?,
        }),
        _ => Kind::Ping,
    })
}

fn position<'a>(since: &Node<'a>) -> Option<Since<'a>> {
    let fields = Fields::of(since, &["offset", "epoch"])?;
    Some(Since { offset: fields.integer("offset")?, epoch: fields.text("epoch")? })
}

fn wanted<'a>(subs: &Node<'a>) -> Option<Vec<WantedSub<'a>>> {
    let subs = Fields::of(subs, &[])?;
    let each = subs.0.iter().map(|member| {
        let fields = Fields::of(&member.value, &["recover", "offset", "epoch", "delta"])?;
        Some(WantedSub {
            channel: Cow::Owned(member.name.clone()?),
            recover: fields.bool("recover")?,
            offset: fields.integer("offset")?,
            epoch: fields.text("epoch")?,
            delta: fields.delta()?,
        })
    });
    each.collect()
}
