//! How it ended: passed, failed, or nobody can tell.
//!
//! What was lost, repeated, cut or left behind is certain, whoever was slow. A comparison of latencies
//! is not, if the client was the bottleneck: then it is its own queue that was measured.

use std::process::ExitCode;

use serde::Serialize;

use crate::report::ClientReport;

#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    Failed,
    /// Nothing certain is wrong, and the comparison means nothing.
    Inconclusive,
}

/// What a verdict rests on besides certainties.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub holds: bool,
    /// See [`is_client_bound`].
    pub is_client_bound: bool,
}

impl From<bool> for Verdict {
    /// Of certainties.
    fn from(is_good: bool) -> Self {
        if is_good { Self::Passed } else { Self::Failed }
    }
}

impl Verdict {
    /// A certain failure stays one.
    pub fn and(self, comparison: Comparison) -> Self {
        match (self, comparison) {
            (Self::Failed, _) => Self::Failed,
            (_, Comparison { is_client_bound: true, .. }) => Self::Inconclusive,
            (_, Comparison { holds: false, .. }) => Self::Failed,
            _ => self,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "PASSED",
            Self::Failed => "FAILED",
            Self::Inconclusive => "INCONCLUSIVE",
        }
    }
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(match verdict {
            Verdict::Passed => 0,
            Verdict::Failed => 1,
            Verdict::Inconclusive => 2,
        })
    }
}

/// Whether the client was the bottleneck in half of the windows or more, so that it decides their
/// median.
pub fn is_client_bound<'a>(windows: impl Iterator<Item = &'a ClientReport>) -> bool {
    let (mut n_windows, mut n_bound) = (0, 0);
    for window in windows {
        n_windows += 1;
        n_bound += usize::from(!window.bottlenecks.is_empty());
    }
    n_bound > 0 && 2 * n_bound >= n_windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_certain_and_a_comparison_only_if_the_client_was_idle_enough() {
        use Verdict::*;
        let check = |is_good: bool, holds, is_client_bound, verdict| {
            let comparison = Comparison { holds, is_client_bound };
            assert_eq!(Verdict::from(is_good).and(comparison), verdict, "{is_good} {comparison:?}");
        };
        check(true, true, false, Passed);
        check(true, false, false, Failed);
        check(true, true, true, Inconclusive);
        check(true, false, true, Inconclusive);
        for (holds, is_client_bound) in [(true, false), (false, false), (true, true), (false, true)]
        {
            check(false, holds, is_client_bound, Failed);
        }
    }

    #[test]
    fn half_of_the_windows_decide_a_median() {
        let client = |is_bound: bool| ClientReport {
            bottlenecks: if is_bound { vec![String::new()] } else { Vec::new() },
            ..ClientReport::default()
        };
        let bound = |windows: &[bool]| {
            let windows: Vec<ClientReport> = windows.iter().map(|it| client(*it)).collect();
            is_client_bound(windows.iter())
        };
        assert!(!bound(&[]) && !bound(&[false]) && !bound(&[true, false, false]));
        assert!(bound(&[true]) && bound(&[true, false]) && bound(&[true, true, false]));
    }
}
