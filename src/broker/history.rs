//! Reading a channel's history: what is asked, and the page that answers it.
//!
//! Plain values between the shards and both brokers. A page is shared: whoever asks the same at the
//! same time gets the same one.

use std::sync::{Arc, OnceLock};

use crate::fossil;
use crate::position::{Epoch, Position};
use crate::protocol::{JsonPayload, PubExtra, PublicationList, json_payload, json_string};
use crate::publication::{Body, Publication};

/// What of a stream is wanted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HistoryAsk {
    pub channel: Box<str>,
    /// Exclusive: forward gives what came after it, reverse what came before. `None`: from the end
    /// that the direction starts at. Its epoch, unless it is none, must be the stream's.
    pub since: Option<Position>,
    pub order: Order,
    /// Publications at the most; 0 asks for the position alone.
    pub limit: usize,
    /// The page ends behind the publication that reaches it: whoever asked has no room for more.
    pub bytes_max: usize,
}

impl HistoryAsk {
    /// What a limit on the wire means: less than 0 is all there may be.
    pub fn limit(asked: i64, most: usize) -> usize {
        usize::try_from(asked).map_or(most, |asked| asked.min(most))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Order {
    #[default]
    Forward,
    Reverse,
}

/// One publication of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub offset: u64,
    pub body: Body,
}

impl Stored {
    /// One that came live.
    pub fn of(publication: &Publication) -> Self {
        Self { offset: publication.position().offset, body: publication.body() }
    }

    /// What it is counted for, bytes: its own and what it takes to keep it.
    pub fn bytes(&self) -> usize {
        const KEPT_BYTES: usize = 128;
        KEPT_BYTES + self.body.bytes()
    }
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HistoryPage {
    /// Of the newest publication, kept or not.
    pub top: Position,
    /// In the order that was asked for; offsets follow each other without a hole.
    pub publications: Vec<Arc<Stored>>,
    /// Encoded by the first of those who share the page.
    client_json: OnceLock<Listed>,
    patched_json: OnceLock<Listed>,
}

impl HistoryPage {
    pub fn new(top: Position, publications: Vec<Arc<Stored>>) -> Self {
        Self { top, publications, client_json: OnceLock::new(), patched_json: OnceLock::new() }
    }

    /// For clients, within a bound that is the same for all of them.
    pub fn client_json(&self, bytes_max: usize) -> &Listed {
        self.client_json.get_or_init(|| self.to_json(Audience::Client, bytes_max))
    }

    /// For clients with delta.
    pub fn patched_json(&self) -> &Listed {
        self.patched_json.get_or_init(|| self.to_json(Audience::Patched, usize::MAX))
    }

    pub fn bytes(&self) -> usize {
        self.publications.iter().map(|stored| stored.bytes()).sum()
    }
}

/// Who reads a page in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Publications look as they do live.
    Client,
    /// The same for a subscriber with delta that has nothing yet: the first one whole, the others as
    /// patches against the one before where that is shorter.
    Patched,
    /// As the server API shows them: without epoch and version.
    Api,
}

/// A page's publications in JSON.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed {
    pub json: Vec<u8>,
    /// Publications that JSON can't carry: left out, as they are live.
    pub n_skipped: u64,
    /// Publications in `json`.
    pub n_listed: usize,
    /// Nothing was left out for want of room.
    pub is_whole: bool,
}

impl HistoryPage {
    /// Encodes as many publications as fit into `bytes_max`, or the first.
    pub fn to_json(&self, audience: Audience, bytes_max: usize) -> Listed {
        let (mut list, mut n_skipped, mut n_listed) = (PublicationList::default(), 0, 0);
        let mut patcher = Patcher::default();
        for stored in &self.publications {
            let position = Position { offset: stored.offset, epoch: self.top.epoch };
            let payload = json_payload(&stored.body.payload);
            let data = match &payload {
                JsonPayload::Verbatim(data) => *data,
                JsonPayload::Rewritten(data) => data,
                JsonPayload::NotUtf8 => {
                    n_skipped += 1;
                    continue;
                }
            };
            let patched;
            let (data, delta) = match audience {
                Audience::Patched => {
                    patched = patcher.next(data);
                    (&*patched.data, patched.delta)
                }
                Audience::Client | Audience::Api => (data, false),
            };
            let extra = match audience {
                Audience::Client | Audience::Patched => {
                    PubExtra { delta, version: stored.body.version, ..PubExtra::at(&position) }
                }
                Audience::Api => PubExtra { offset: stored.offset, ..PubExtra::default() },
            };
            let (info, tags) = (stored.body.info.as_deref(), stored.body.tags.as_deref());
            list.push(data, &PubExtra { info, tags, ..extra });
            n_listed += 1;
            if list.bytes() >= bytes_max {
                break;
            }
        }
        let is_whole = n_listed + n_skipped as usize == self.publications.len();
        Listed { json: list.finish(), n_skipped, n_listed, is_whole }
    }
}

/// Makes texts patches against the ones before.
#[derive(Default)]
struct Patcher {
    before: Option<String>,
}

/// A payload for a subscriber with delta.
struct Patched {
    /// A JSON string.
    data: Vec<u8>,
    delta: bool,
}

impl Patcher {
    fn next(&mut self, json: &[u8]) -> Patched {
        let text = std::str::from_utf8(json).expect("invariant: what travels in JSON is UTF-8");
        let before = self.before.replace(text.to_owned());
        let patch = before.and_then(|before| fossil::create_shorter(&before, text));
        let data = json_string(patch.as_deref().unwrap_or(text));
        Patched { data, delta: patch.is_some() }
    }
}

/// Why there is no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// Redis can't be reached, refused, or is asked too much: try again.
    #[error("the broker is unavailable")]
    Unavailable,
    /// The epoch that was named is not the stream's.
    #[error("the position is of another stream")]
    OtherEpoch,
}

/// Whether a stream of this epoch can be read from there.
pub fn check_epoch(since: Option<Position>, epoch: Epoch) -> Result<(), HistoryError> {
    match since {
        Some(since) if !since.epoch.is_none() && since.epoch != epoch => {
            Err(HistoryError::OtherEpoch)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_patched_page_is_the_page() {
        let quote = |n: u64| format!("{{\"symbol\":\"EURUSD\",\"name\":\"Euro\",\"bid\":{n}}}");
        let payloads =
            [quote(1).into_bytes(), b"\xff".to_vec(), quote(2).into_bytes(), b"text".to_vec()];
        let stored =
            |(at, payload)| Arc::new(Stored { offset: at as u64 + 1, body: Body::plain(payload) });
        let publications = payloads.into_iter().enumerate().map(stored).collect();
        let top = Position { offset: 4, epoch: Epoch::asked("kQzVbTne") };
        let page = HistoryPage::new(top, publications);
        let listed = page.to_json(Audience::Patched, usize::MAX);
        assert_eq!(listed.n_skipped, 1);
        let list: Vec<Value> = serde_json::from_slice(&listed.json).unwrap();
        let text = |at: usize| list[at]["data"].as_str().unwrap();
        assert_eq!((text(0), text(2)), (&*quote(1), "\"text\""));
        let deltas: Vec<&Value> = list.iter().map(|it| &it["delta"]).collect();
        assert_eq!(deltas, [&Value::Null, &json!(true), &Value::Null]);
        let second = fossil::apply(quote(1).as_bytes(), text(1).as_bytes()).unwrap();
        assert_eq!(second, quote(2).as_bytes());
        assert_eq!((&list[1]["offset"], &list[0]["epoch"]), (&json!(3), &json!("kQzVbTne")));
    }
}
