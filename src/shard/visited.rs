//! Which sessions a turn of the ring wrote to, and how many of them the turn before wrote to too.
//!
//! Owned by a shard's walk; sans-I/O.

/// See the module. A bit for each session, by index.
#[derive(Default)]
pub struct Visited {
    now: Vec<u64>,
    before: Vec<u64>,
}

impl Visited {
    /// A session is written to in this turn.
    pub fn insert(&mut self, idx: u32) {
        let word = idx as usize / 64;
        if word >= self.now.len() {
            // Sessions come in the middle of a turn too.
            self.now.resize(word + 1, 0);
        }
        self.now[word] |= 1 << (idx % 64);
    }

    /// Ends the turn: its sessions, and the share of them that the turn before wrote to too, 0 to 1.
    pub fn end_turn(&mut self) -> (usize, f64) {
        let n_now: u32 = self.now.iter().map(|word| word.count_ones()).sum();
        let both = self.now.iter().zip(&self.before);
        let n_again: u32 = both.map(|(now, before)| (now & before).count_ones()).sum();
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.fill(0);
        (n_now as usize, f64::from(n_again) / f64::from(n_now.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(visited: &mut Visited, sessions: impl IntoIterator<Item = u32>) -> f64 {
        sessions.into_iter().for_each(|idx| visited.insert(idx));
        visited.end_turn().1
    }

    #[test]
    fn counts_who_was_written_to_in_two_turns_running() {
        let mut visited = Visited::default();
        assert_eq!(turn(&mut visited, 0..100), 0.0, "nobody before");
        assert_eq!(turn(&mut visited, 0..100), 1.0);
        (0..100).chain(0..100).for_each(|idx| visited.insert(idx));
        assert_eq!(visited.end_turn(), (100, 1.0), "each counts once");
        assert_eq!(turn(&mut visited, 50..150), 0.5);
        assert_eq!(turn(&mut visited, 150..200), 0.0);
        assert_eq!(turn(&mut visited, 0..50), 0.0, "two turns ago isn't the turn before");
        assert_eq!(turn(&mut visited, []), 0.0);
        assert_eq!(turn(&mut visited, [0, 999]), 0.0, "there is room for whoever comes");
        assert_eq!(turn(&mut visited, [999]), 1.0);
    }
}
