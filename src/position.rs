//! Where a publication stands in its channel's stream: plain values, any thread.
//!
//! A stream counts its publications from 1 and never skips or repeats a number under one epoch.
//! Whatever may have broken that (a flush, an eviction, a Redis that came back with less than it had)
//! starts a new epoch, so that equal positions mean equal histories.

/// Letters that name one life of a stream (client protocol, 11.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch([u8; Epoch::BYTES]);

/// Where a publication, or the newest one, stands in its channel's stream; offset 0 is before the
/// first. The default is that of a publication without history: no offset, no epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position {
    pub offset: u64,
    pub epoch: Epoch,
}

impl Epoch {
    pub const BYTES: usize = 8;
    pub const NONE: Epoch = Epoch([0; Epoch::BYTES]);
    /// What somebody asks for that can't be the epoch of any stream: equal to none of them.
    pub const FOREIGN: Epoch = Epoch([b'-'; Epoch::BYTES]);

    /// One that no other stream has.
    pub fn draw() -> Self {
        // Six bits of a version-4 UUID are fixed, all of them in bytes 6 and 8.
        let random = uuid::Uuid::new_v4().into_bytes();
        let picked = [0, 1, 2, 3, 4, 5, 10, 11];
        Self(picked.map(|at| {
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[usize::from(random[at]) % 52]
        }))
    }

    /// What was drawn; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let letters: [u8; Epoch::BYTES] = bytes.try_into().ok()?;
        letters.iter().all(u8::is_ascii_alphabetic).then_some(Self(letters))
    }

    /// What a peer says that it knows; empty is nothing.
    pub fn asked(text: &str) -> Self {
        if text.is_empty() {
            Self::NONE
        } else {
            Self::parse(text.as_bytes()).unwrap_or(Self::FOREIGN)
        }
    }

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Empty for none.
    pub fn as_str(&self) -> &str {
        if self.is_none() { "" } else { std::str::from_utf8(&self.0).unwrap_or_default() }
    }
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_eight_letters_and_differ() {
        let drawn: std::collections::HashSet<Epoch> = (0..1_000).map(|_| Epoch::draw()).collect();
        assert_eq!(drawn.len(), 1_000);
        for epoch in drawn {
            assert_eq!(Epoch::parse(epoch.as_str().as_bytes()), Some(epoch));
            assert_eq!(Epoch::asked(epoch.as_str()), epoch);
        }
    }

    #[test]
    fn what_is_no_epoch_equals_none() {
        assert_eq!(Epoch::asked(""), Epoch::NONE);
        assert_eq!(Epoch::NONE.as_str(), "");
        for text in ["x", "abcdefg1", "abcdefghi", "--------", "\0\0\0\0\0\0\0\0", "éééé"] {
            assert_eq!(Epoch::parse(text.as_bytes()), None, "{text:?}");
            assert_eq!(Epoch::asked(text), Epoch::FOREIGN, "{text:?}");
        }
    }
}
