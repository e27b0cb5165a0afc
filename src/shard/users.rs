//! Whose sessions they are: from a named user to its sessions.
//!
//! Touched when a session signs in or ends, and by the server API: never per publication. The
//! anonymous user's sessions aren't here: who asks for them looks at all.
//! **Invariant:** there is one entry for each session of a named user, so their number is bounded
//! by that of connections. An entry is sixteen bytes: a name's hash, not the name, so who looks
//! sessions up compares the names.

use std::collections::BTreeSet;

use ahash::RandomState;

#[derive(Default)]
pub struct Users {
    entries: BTreeSet<Entry>,
    /// Drawn at random: nobody can choose names of one hash.
    keys: RandomState,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    user: u64,
    idx: u32,
}

impl Users {
    fn entry(&self, user: &str, idx: u32) -> Entry {
        Entry { user: self.keys.hash_one(user), idx }
    }

    pub fn insert(&mut self, user: &str, idx: u32) {
        self.entries.insert(self.entry(user, idx));
    }

    pub fn remove(&mut self, user: &str, idx: u32) {
        self.entries.remove(&self.entry(user, idx));
    }

    /// The first session at `from` or behind it that is this user's, or very rarely another's.
    pub fn next(&self, user: &str, from: u32) -> Option<u32> {
        let range = self.entry(user, from)..=self.entry(user, u32::MAX);
        self.entries.range(range).next().map(|entry| entry.idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(users: &Users, user: &str, expected: &[u32]) {
        let mut found = Vec::new();
        while let Some(idx) = users.next(user, found.last().map_or(0, |idx| idx + 1)) {
            found.push(idx);
        }
        assert_eq!(found, expected, "{user}");
    }

    #[test]
    fn sessions_are_found_by_user_in_order() {
        let mut users = Users::default();
        for (user, idx) in [("a", 7), ("b", 0), ("a", 0), ("a", 1_000_000)] {
            users.insert(user, idx);
        }
        check(&users, "a", &[0, 7, 1_000_000]);
        check(&users, "b", &[0]);
        check(&users, "c", &[]);
        users.remove("a", 7);
        users.remove("b", 7);
        users.remove("c", 0);
        check(&users, "a", &[0, 1_000_000]);
        check(&users, "b", &[0]);
    }
}
