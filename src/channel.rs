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

/// Whether a name is for this user. What stands behind the last `#` of a name is a list of users,
/// separated by commas: nobody else has to do with the channel, and who is listed may still only do
/// what the namespace allows. The anonymous user is on no list.
pub fn is_for(name: &str, user: &str) -> bool {
    let Some((_, users)) = name.rsplit_once('#') else { return true };
    !user.is_empty() && users.split(',').any(|listed| listed == user)
}

/// The name of a user's own channel, in a namespace or (with an empty one) outside of all. `None`: a
/// name with this user in it would be another's, or another namespace's, or none at all.
pub fn personal_name(namespace: &str, user: &str, bytes_max: usize) -> Option<String> {
    let is_ambiguous = user.contains(['#', ',']) || (namespace.is_empty() && user.contains(':'));
    let colon = if namespace.is_empty() { "" } else { ":" };
    let name = format!("{namespace}{colon}#{user}");
    let is_good = !user.is_empty() && !is_ambiguous && check_name(&name, bytes_max).is_ok();
    is_good.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_users() {
        let check = |name: &str, user: &str, expected: bool| {
            assert_eq!(is_for(name, user), expected, "{name:?} {user:?}");
        };
        check("news", "", true);
        check("news", "42", true);
        for name in ["#42", "ns:#42", "ns:dialog#42,43", "ns:dialog#43,42", "a#43#42"] {
            check(name, "42", true);
            check(name, "", false);
            check(name, "4", false);
            check(name, "2", false);
            check(name, "42,43", false);
        }
        for name in ["#", "#,", "ns:x#", "#43", "a#42#43", "#42#", "# 42", "#42:x", "#*"] {
            check(name, "42", false);
            check(name, "", false);
        }
    }

    #[test]
    fn own_channels() {
        let check = |namespace: &str, user: &str, expected: Option<&str>| {
            let name = personal_name(namespace, user, 12);
            assert_eq!(name.as_deref(), expected, "{namespace:?} {user:?}");
            if let Some(name) = name {
                assert!(is_for(&name, user) && !is_for(&name, ""));
            }
        };
        check("", "42", Some("#42"));
        check("user", "42", Some("user:#42"));
        check("user", "a:b", Some("user:#a:b"));
        check("", "a:b", None);
        for user in ["", "4#2", "4,2", "4 2", "caf\u{e9}", "0123456789012"] {
            check("", user, None);
            check("user", user, None);
        }
    }

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
