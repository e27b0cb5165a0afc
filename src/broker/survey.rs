//! Questions to all shards: which channels, how many subscribers.
//!
//! Owned by the broker thread. A survey is answered when all shards have, or after
//! [`TIMEOUT_MS`] with what there is, marked partial.

use ahash::HashMap;

use super::SurveyResult;

/// A survey waits this long for a shard, milliseconds: its users are told within a second.
const TIMEOUT_MS: u64 = 800;
/// Surveys in flight; more are answered empty and partial at once.
const SURVEYS_MAX: usize = 64;

struct Survey {
    asked_by: Asked,
    missing: usize,
    due_ms: u64,
    channels: HashMap<Box<str>, u32>,
}

/// Who gets the result.
#[derive(Clone, Copy)]
pub struct Asked {
    pub shard: usize,
    pub request: u32,
}

/// A finished survey.
pub struct Finished {
    pub asked_by: Asked,
    pub result: SurveyResult,
}

#[derive(Default)]
pub struct Surveys {
    open: HashMap<u32, Survey>,
    next: u32,
}

impl Surveys {
    /// Starts one; `None`: too many are open.
    pub fn start(&mut self, asked_by: Asked, n_shards: usize, now_ms: u64) -> Option<u32> {
        if self.open.len() >= SURVEYS_MAX {
            return None;
        }
        self.next = self.next.wrapping_add(1);
        let survey = Survey {
            asked_by,
            missing: n_shards,
            due_ms: now_ms + TIMEOUT_MS,
            channels: HashMap::default(),
        };
        self.open.insert(self.next, survey);
        Some(self.next)
    }

    /// One shard's part. `Some` if it was the last.
    pub fn on_part(&mut self, id: u32, channels: Vec<(Box<str>, u32)>) -> Option<Finished> {
        let survey = self.open.get_mut(&id)?;
        for (name, n) in channels {
            *survey.channels.entry(name).or_default() += n;
        }
        survey.missing -= 1;
        if survey.missing > 0 {
            return None;
        }
        self.open.remove(&id).map(finish)
    }

    /// Those whose time is over.
    pub fn on_tick(&mut self, now_ms: u64) -> Vec<Finished> {
        let due: Vec<u32> = self
            .open
            .iter()
            .filter(|(_, survey)| survey.due_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().filter_map(|id| self.open.remove(&id)).map(finish).collect()
    }
}

fn finish(survey: Survey) -> Finished {
    let mut channels: Vec<_> = survey.channels.into_iter().collect();
    channels.sort();
    Finished {
        asked_by: survey.asked_by,
        result: SurveyResult { channels, partial: survey.missing > 0 },
    }
}
