//! What is spoken over the WebSocket. A protocol is a small trait; add one here.

use anyhow::{Context as _, bail};
use memchr::memmem::Finder;
use serde_json::{Value, json};

/// What a message, or a part of it, means.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// The payload as it came.
    Publication(&'a [u8]),
    /// A command succeeded.
    Accepted,
    /// A command failed, with the server's words.
    Refused(String),
    /// To be answered with this message.
    Ping(&'static [u8]),
    /// The server ended a subscription, with its words.
    Unsubscribed(String),
    Other,
}

/// A client's side of a protocol. One value serves all connections.
pub trait Protocol {
    /// Path and query of the upgrade.
    fn path(&self, channels: &[&str], token: Option<&str>) -> String;

    /// What to send once connected, and how many [`Event::Accepted`] make the connection ready.
    fn greeting(&self, channels: &[&str], token: Option<&str>) -> Option<Greeting>;

    /// Takes one message apart.
    fn read<'a>(&self, message: &'a [u8], on_event: &mut dyn FnMut(Event<'a>));
}

pub struct Greeting {
    pub message: String,
    pub n_accepted: u32,
}

#[derive(
    Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ProtocolName {
    /// Centrifuge JSON: hubbub, Centrifugo
    Centrifuge,
    /// A message is a payload
    Raw,
}

/// Each message is one payload.
pub struct Raw {
    /// Instead of `/ws?channel=…`.
    pub path: Option<String>,
    pub first_message: Option<String>,
}

impl Protocol for Raw {
    fn path(&self, channels: &[&str], token: Option<&str>) -> String {
        if let Some(path) = &self.path {
            return path.clone();
        }
        let token = token.map(|token| format!("token={token}"));
        let query: Vec<String> =
            channels.iter().map(|channel| format!("channel={channel}")).chain(token).collect();
        format!("/ws?{}", query.join("&"))
    }

    fn greeting(&self, _: &[&str], _: Option<&str>) -> Option<Greeting> {
        let message = self.first_message.clone()?;
        Some(Greeting { message, n_accepted: 0 })
    }

    fn read<'a>(&self, message: &'a [u8], on_event: &mut dyn FnMut(Event<'a>)) {
        on_event(Event::Publication(message));
    }
}

/// Centrifuge over JSON: commands and pushes, one a line.
pub struct Centrifuge {
    path: String,
    payload_bytes: usize,
    data: Finder<'static>,
}

impl Centrifuge {
    /// `payload_bytes`: how long every publication is, which spares a JSON parser per delivery.
    pub fn new(path: Option<String>, payload_bytes: usize) -> Self {
        let path = path.unwrap_or_else(|| "/connection/websocket".to_owned());
        Self { path, payload_bytes, data: Finder::new("\"pub\":{\"data\":") }
    }

    /// The payload in a push: what follows the key, as long as it must be. If nothing fitting
    /// follows, a byte is missing or there's one too many: handed out in the wrong length, so that
    /// it counts as damaged.
    fn payload<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let start = self.data.find(line)? + self.data.needle().len();
        let rest = &line[start..];
        match rest.get(self.payload_bytes) {
            Some(b'}' | b',') => Some(&rest[..self.payload_bytes]),
            _ => Some(rest),
        }
    }

    fn read_line<'a>(&self, line: &'a [u8]) -> Event<'a> {
        if line.starts_with(b"{\"push\":")
            && let Some(payload) = self.payload(line)
        {
            return Event::Publication(payload);
        }
        if line == b"{}" {
            return Event::Ping(b"{}");
        }
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return Event::Refused(format!("not JSON: {}", String::from_utf8_lossy(line)));
        };
        if let Some(error) = value.get("error") {
            Event::Refused(error.to_string())
        } else if value.get("id").is_some() {
            Event::Accepted
        } else if let Some(ended) = value["push"].get("unsubscribe") {
            Event::Unsubscribed(ended.to_string())
        } else {
            Event::Other
        }
    }
}

impl Protocol for Centrifuge {
    fn path(&self, _: &[&str], _: Option<&str>) -> String {
        self.path.clone()
    }

    fn greeting(&self, channels: &[&str], token: Option<&str>) -> Option<Greeting> {
        let connect = match token {
            Some(token) => json!({ "id": 1, "connect": { "token": token } }),
            None => json!({ "id": 1, "connect": {} }),
        };
        let subscribes = channels.iter().zip(2..).map(
            |(channel, id): (_, u32)| json!({ "id": id, "subscribe": { "channel": channel } }),
        );
        let lines: Vec<String> =
            std::iter::once(connect).chain(subscribes).map(|command| command.to_string()).collect();
        Some(Greeting { message: lines.join("\n"), n_accepted: lines.len() as u32 })
    }

    fn read<'a>(&self, message: &'a [u8], on_event: &mut dyn FnMut(Event<'a>)) {
        let mut rest = message;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            on_event(self.read_line(&rest[..end]));
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            on_event(self.read_line(rest));
        }
    }
}

/// Signs connection tokens (HS256).
pub struct Tokens {
    key: jsonwebtoken::EncodingKey,
    expires_unix_s: u64,
}

impl Tokens {
    /// Good for a day.
    pub fn new(secret: &str) -> anyhow::Result<Self> {
        if secret.is_empty() {
            bail!("the token secret is empty");
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        Ok(Self { key, expires_unix_s: now.as_secs() + 86_400 })
    }

    pub fn make(&self, user: &str) -> anyhow::Result<String> {
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        let claims = json!({ "sub": user, "exp": self.expires_unix_s });
        jsonwebtoken::encode(&header, &claims, &self.key).context("signing a token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(payload_bytes: usize, message: &'a str) -> Vec<Event<'a>> {
        let mut events = Vec::new();
        Centrifuge::new(None, payload_bytes)
            .read(message.as_bytes(), &mut |event| events.push(event));
        events
    }

    #[test]
    fn takes_a_centrifuge_message_apart() {
        let message = "{\"id\":1,\"connect\":{}}\n{\"push\":{\"channel\":\"a\",\"pub\":{\"data\":\
                       [1,2]}}}\n{}\n{\"id\":2,\"error\":{\"code\":103}}";
        assert_eq!(
            read(5, message),
            [
                Event::Accepted,
                Event::Publication(b"[1,2]"),
                Event::Ping(b"{}"),
                Event::Refused("{\"code\":103}".to_owned()),
            ]
        );
        let with_offset = "{\"push\":{\"channel\":\"a\",\"pub\":{\"data\":[1,2],\"offset\":9}}}";
        assert_eq!(read(5, with_offset), [Event::Publication(b"[1,2]")]);
    }

    #[test]
    fn a_payload_of_another_length_is_not_cut_to_fit() {
        let longer = "{\"push\":{\"channel\":\"a\",\"pub\":{\"data\":[1,2,3]}}}";
        let Event::Publication(payload) = read(5, longer)[0] else { panic!() };
        assert_ne!(payload.len(), 5);
    }

    #[test]
    fn an_ended_subscription_shows() {
        let push = "{\"push\":{\"channel\":\"a\",\"unsubscribe\":{\"code\":2500}}}";
        assert_eq!(read(5, push), [Event::Unsubscribed("{\"code\":2500}".to_owned())]);
    }
}
