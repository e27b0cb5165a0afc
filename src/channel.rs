//! Channels: their names, and the numbers that stand for them on the hot path.
//!
//! Owned by no thread: plain values. The broker thread draws the numbers; shards use them.
//! **Invariant:** one rule for names, [`check_name`], at every entry point (client protocol,
//! raw transport, server API); a name is always taken literally, never as a pattern.

use crate::protocol::PushTemplate;

/// A channel's dense number on this node, and the generation of its slot.
///
/// A stale id (the slot has been given to another channel since) matches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChannelId {
    pub slot: u32,
    pub generation: u32,
}

/// What of a channel is shared by the broker and all shards: immutable.
#[derive(Debug)]
pub struct Channel {
    pub name: Box<str>,
    /// The JSON push up to its data, encoded once per channel.
    pub template: PushTemplate,
}

impl Channel {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), template: PushTemplate::new(name) }
    }
}

/// Why a channel name was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    #[error("channel is empty")]
    Empty,
    #[error("channel name is too long")]
    TooLong,
    #[error("channel name holds a byte that is not printable ASCII")]
    NotPrintable,
    #[error("channel name is reserved")]
    Reserved,
}

/// Names that are hubbub's own or Redis's own.
const RESERVED: [&str; 5] = ["ws:", "__keyspace@", "__keyevent@", "__sentinel__:", "__redis__:"];

/// The one rule for channel names: 1 to `bytes_max` bytes of printable ASCII without spaces
/// (0x21 to 0x7e), not under a reserved prefix. `*`, `?`, `[`, `\` and braces are ordinary
/// characters: hubbub never subscribes to a pattern. Other bytes are refused because two forms
/// of one accented letter, or an invisible mark, would be two channels that look the same.
pub fn check_name(name: &str, bytes_max: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > bytes_max {
        return Err(NameError::TooLong);
    }
    if !name.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
        return Err(NameError::NotPrintable);
    }
    if RESERVED.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |name: &str, expected: Result<(), NameError>| {
            assert_eq!(check_name(name, 10), expected, "{name:?}");
        };
        check("prices", Ok(()));
        check("a:b:c", Ok(()));
        check("*", Ok(()));
        check("[a-z]\\{t}", Ok(()));
        check("0123456789", Ok(()));
        check("", Err(NameError::Empty));
        check("01234567890", Err(NameError::TooLong));
        check("a b", Err(NameError::NotPrintable));
        check("a\r\nb", Err(NameError::NotPrintable));
        check("nul\0", Err(NameError::NotPrintable));
        check("caf\u{e9}", Err(NameError::NotPrintable));
        check("ws:x", Err(NameError::Reserved));
        assert_eq!(check_name("__keyspace@0__:x", 255), Err(NameError::Reserved));
        assert_eq!(check_name("__redis__:invalidate", 255), Err(NameError::Reserved));
    }
}
