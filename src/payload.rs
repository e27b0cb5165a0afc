//! What was published, and how it travels in JSON.
//!
//! Shared read-only by the publication and, on channels with patches, by the one after it.
//! **Invariant:** a payload is judged at most once per node, by the first shard that needs it.

use std::sync::OnceLock;

use crate::protocol::{JsonPayload, json_payload};

/// See the module.
#[derive(Debug)]
pub struct Payload {
    bytes: Vec<u8>,
    json: OnceLock<InJson>,
}

#[derive(Debug)]
enum InJson {
    Verbatim,
    Rewritten(Vec<u8>),
    NotUtf8,
}

impl Payload {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, json: OnceLock::new() }
    }

    /// As it was published.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As a JSON session gets it; `None`: no JSON session can.
    pub fn json(&self) -> Option<&[u8]> {
        let judge = || match json_payload(&self.bytes) {
            JsonPayload::Verbatim(_) => InJson::Verbatim,
            JsonPayload::Rewritten(data) => InJson::Rewritten(data),
            JsonPayload::NotUtf8 => InJson::NotUtf8,
        };
        match self.json.get_or_init(judge) {
            InJson::Verbatim => Some(&self.bytes),
            InJson::Rewritten(data) => Some(data),
            InJson::NotUtf8 => None,
        }
    }

    /// The same as text, to be patched.
    pub fn json_text(&self) -> Option<&str> {
        let json = self.json()?;
        Some(std::str::from_utf8(json).expect("invariant: what travels in JSON is UTF-8"))
    }
}
