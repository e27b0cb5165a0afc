//! Which sessions a turn of the ring wrote to, and how many of them the turn before wrote to too.
//!
//! Owned by a shard's walk; sans-I/O.

/// See the module. A bit for each session, by index.
#[derive(Default)]
pub struct Visited {
    now: Vec<u64>,
    before: Vec<u64>,
    n_now: usize,
    n_again: usize,
}

impl Visited {
    /// A session is written to in this turn.
    pub fn insert(&mut self, idx: u32) {
        let (word, bit) = (idx as usize / 64, 1u64 << (idx % 64));
        if word >= self.now.len() {
            // Sessions come in the middle of a turn too.
            self.now.resize(word + 1, 0);
            self.before.resize(word + 1, 0);
        }
        let is_new = self.now[word] & bit == 0;
        let is_again = is_new && self.before[word] & bit != 0;
        self.now[word] |= bit;
        self.n_now += usize::from(is_new);
        self.n_again += usize::from(is_again);
    }

    /// Sessions of this turn.
    pub fn len(&self) -> usize {
        self.n_now
    }

    /// Ends the turn. The share of its sessions that the turn before wrote to too, 0 to 1.
    pub fn end_turn(&mut self) -> f64 {
        let again = self.n_again as f64 / self.n_now.max(1) as f64;
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.fill(0);
        (self.n_now, self.n_again) = (0, 0);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(visited: &mut Visited, sessions: impl IntoIterator<Item = u32>) -> f64 {
        sessions.into_iter().for_each(|idx| visited.insert(idx));
        visited.end_turn()
    }

    #[test]
    fn counts_who_was_written_to_in_two_turns_running() {
        let mut visited = Visited::default();
        assert_eq!(turn(&mut visited, 0..100), 0.0, "nobody before");
        assert_eq!(turn(&mut visited, 0..100), 1.0);
        (0..100).for_each(|idx| visited.insert(idx));
        assert_eq!((turn(&mut visited, 0..100), visited.len()), (1.0, 0), "each counts once");
        assert_eq!(turn(&mut visited, 50..150), 0.5);
        assert_eq!(turn(&mut visited, 150..200), 0.0);
        assert_eq!(turn(&mut visited, 0..50), 0.0, "two turns ago isn't the turn before");
        assert_eq!(turn(&mut visited, []), 0.0);
        assert_eq!(turn(&mut visited, [0, 999]), 0.0, "there is room for whoever comes");
        assert_eq!(turn(&mut visited, [999]), 1.0);
    }
}
