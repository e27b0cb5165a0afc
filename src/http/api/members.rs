//! The members of a call.

use std::fmt::Formatter;

use ahash::HashMap;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::protocol::ReplyError;

/// Of an idempotency key, and of a version's epoch.
const KEY_BYTES_MAX: usize = 255;

/// A call's members: names in lower case, the last of the same name wins, `null` counts as
/// absent but for `data` (server API, 1 and 8).
pub struct Members<'a>(HashMap<String, &'a RawValue>);

/// Why a call as a whole failed: nothing was done.
pub enum Refusal {
    /// The body isn't what the method takes: 400.
    Malformed,
    Error(ReplyError),
}

impl From<ReplyError> for Refusal {
    fn from(error: ReplyError) -> Self {
        Self::Error(error)
    }
}

impl<'a> Members<'a> {
    pub fn read(body: &'a [u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body).map_err(|_| Refusal::Malformed)
    }

    pub fn get<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, Refusal> {
        match self.0.get(name) {
            Some(value) => serde_json::from_str(value.get()).map_err(|_| Refusal::Malformed),
            None => Ok(None),
        }
    }

    /// A text; left out it is empty.
    pub fn text(&self, name: &str) -> Result<Box<str>, Refusal> {
        Ok(self.get(name)?.unwrap_or_default())
    }

    /// A payload as it was written.
    pub fn raw(&self, name: &str) -> Option<&'a [u8]> {
        self.0.get(name).map(|value| value.get().as_bytes())
    }

    /// A member that becomes part of a key or is kept; left out it is empty.
    pub fn short_text(&self, name: &str) -> Result<Box<str>, Refusal> {
        let text = self.text(name)?;
        if text.len() > KEY_BYTES_MAX { Err(ReplyError::BAD_REQUEST.into()) } else { Ok(text) }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = HashMap::default();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    members.insert(name.to_ascii_lowercase(), value);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
