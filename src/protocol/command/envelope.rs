//! How serde reads a command: the object around it, and the fields' small tolerances.
//!
//! Derived structs also take JSON arrays, by position; [`Object`] does not, so `"subscribe":["a"]`
//! is refused.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Delta, Kind, WantedSub};

/// A command before it is judged.
pub(super) struct Envelope<'a> {
    pub(super) id: u32,
    /// The first one.
    pub(super) kind: Option<Kind<'a>>,
    pub(super) n_kinds: usize,
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Id,
    Connect,
    Subscribe,
    Unsubscribe,
    Publish,
    Presence,
    PresenceStats,
    History,
    Rpc,
    Send,
    Refresh,
    SubRefresh,
    Ping,
    #[serde(other)]
    Unknown,
}

#[derive(serde::Deserialize)]
struct ChannelField<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    channel: Cow<'a, str>,
}

#[derive(serde::Deserialize)]
struct TokenField<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    token: Cow<'a, str>,
}

#[derive(serde::Deserialize)]
struct DataField<'a> {
    #[serde(borrow, default, deserialize_with = "json_bytes")]
    data: Option<&'a [u8]>,
}

#[derive(serde::Deserialize)]
struct NoFields {}

impl<'de> Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut id = None;
        let mut kind = None;
        let mut n_kinds = 0;
        while let Some(key) = map.next_key()? {
            match key {
                Key::Id if id.is_some() => return Err(de::Error::duplicate_field("id")),
                Key::Id => id = Some(map.next_value()?),
                Key::Unknown => drop(map.next_value::<IgnoredAny>()?),
                key => {
                    n_kinds += 1;
                    let value = kind_value(key, &mut map)?;
                    kind = kind.or(value);
                }
            }
        }
        Ok(Envelope { id: id.unwrap_or(0), kind, n_kinds })
    }
}

/// Reads the value under a kind's key; `None` for keys that are no kind.
fn kind_value<'de, A: MapAccess<'de>>(
    key: Key,
    map: &mut A,
) -> Result<Option<Kind<'de>>, A::Error> {
    Ok(Some(match key {
        Key::Id | Key::Unknown => return Ok(None),
        Key::Connect => Kind::Connect(object(map)?),
        Key::Subscribe => Kind::Subscribe(object(map)?),
        Key::Unsubscribe => {
            Kind::Unsubscribe { channel: object::<ChannelField<'_>, A>(map)?.channel }
        }
        Key::Publish => Kind::Publish(object(map)?),
        Key::Presence => Kind::Presence { channel: object::<ChannelField<'_>, A>(map)?.channel },
        Key::PresenceStats => {
            Kind::PresenceStats { channel: object::<ChannelField<'_>, A>(map)?.channel }
        }
        Key::History => Kind::History(object(map)?),
        Key::Rpc => Kind::Rpc(object(map)?),
        Key::Send => Kind::Send { data: object::<DataField<'_>, A>(map)?.data },
        Key::Refresh => Kind::Refresh { token: object::<TokenField<'_>, A>(map)?.token },
        Key::SubRefresh => Kind::SubRefresh(object(map)?),
        Key::Ping => {
            let NoFields {} = object(map)?;
            Kind::Ping
        }
    }))
}

fn object<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: &mut A) -> Result<T, A::Error> {
    Ok(map.next_value::<Object<T>>()?.0)
}

/// A `T` that is a JSON object and nothing else.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// A string, borrowed where it has no escapes; `null` is the empty one.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    deserializer.deserialize_option(TextVisitor)
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }

    // serde_json gives an Option's null as unit or none, depending on the deserializer.
    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// A number or bool where `null` is the default.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A word; `null` is none. A derived enum would also take `{"fossil":null}`.
pub(super) fn delta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Delta, D::Error> {
    match &*text(deserializer)? {
        "" => Ok(Delta::Off),
        "fossil" => Ok(Delta::Fossil),
        word => Err(de::Error::unknown_variant(word, &["", "fossil"])),
    }
}

/// An object; `null` is none.
pub(super) fn object_or_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// The bytes of any JSON value, `null` included; bytes because protobuf's payloads are bytes too.
pub(super) fn json_bytes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de [u8]>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(|raw| Some(raw.get().as_bytes()))
}

/// `{"channel":{…},…}`; `null` is none. Bounded by the size of a message.
pub(super) fn wanted_subs<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<WantedSub<'de>>, D::Error> {
    Option::<WantedSubs<'de>>::deserialize(deserializer)
        .map(|subs| subs.map_or_else(Vec::new, |subs| subs.0))
}

struct WantedSubs<'a>(Vec<WantedSub<'a>>);

impl<'de> Deserialize<'de> for WantedSubs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WantedSubsVisitor)
    }
}

struct WantedSubsVisitor;

impl<'de> Visitor<'de> for WantedSubsVisitor {
    type Value = WantedSubs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of subscriptions")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut subs = Vec::new();
        while let Some(Name(channel)) = map.next_key()? {
            let sub: WantedSub<'de> = object(&mut map)?;
            subs.push(WantedSub { channel, ..sub });
        }
        Ok(WantedSubs(subs))
    }
}

struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor).map(Name)
    }
}
