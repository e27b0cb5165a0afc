//! Judges what subscribers receive: who is lost, repeated, out of order, damaged, late.
//!
//! Sans-I/O. One [`Flow`] per connection and channel, in 16 bytes; one [`Tally`] per group of
//! connections.

use hdrhistogram::Histogram;
use std::ops::Range;

use crate::payload::{self, Stamp};

/// How many of the latest numbers a flow remembers one by one.
pub const WINDOW: u32 = 64;

/// One channel as one connection sees it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub channel: u32,
    /// One past the highest number received.
    next: u32,
    /// Bit n: number `next - 1 - n` was received.
    seen: u64,
}

/// What one publication was to its flow.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    InOrder,
    /// After a higher number, but for the first time.
    Misordered,
    Duplicated,
    /// More than [`WINDOW`] behind: misordered or duplicated, nobody remembers. Counted as
    /// misordered and, as if it never came, as lost: never in the server's favour.
    TooOld,
}

impl Flow {
    pub fn new(channel: u32) -> Self {
        Self { channel, next: 0, seen: 0 }
    }

    /// How many there are up to the highest number received.
    pub fn n_reached(&self) -> u64 {
        self.next.into()
    }

    #[inline]
    pub fn take(&mut self, seq: u32) -> Verdict {
        if seq >= self.next {
            let step = seq - self.next + 1;
            self.seen = self.seen.checked_shl(step).unwrap_or(0) | 1;
            self.next = seq + 1;
            return Verdict::InOrder;
        }
        let back = self.next - 1 - seq;
        if back >= WINDOW {
            return Verdict::TooOld;
        }
        let bit = 1 << back;
        if self.seen & bit != 0 {
            return Verdict::Duplicated;
        }
        self.seen |= bit;
        Verdict::Misordered
    }
}

/// What a run's publications have in common.
#[derive(Clone, Debug)]
pub struct Expected {
    pub run: u16,
    pub payload_bytes: usize,
    /// When [`Stamp::intended_ns`] is 0, on the clock.
    pub epoch_ns: u64,
    /// Latency counts for publications intended in here, on the clock.
    pub window_ns: Range<u64>,
}

/// Sums over a group of connections.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Undamaged publications of ours, repeated ones too.
    pub received: u64,
    /// Each publication once per subscriber.
    pub unique: u64,
    pub duplicated: u64,
    pub misordered: u64,
    /// Not what was published, by a byte or in length.
    pub damaged: u64,
    /// Of a channel that the connection did not subscribe to, or of another run.
    pub stray: u64,
    /// Of unique ones intended in the window, in microseconds from the intended time.
    pub latency_us: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            received: 0,
            unique: 0,
            duplicated: 0,
            misordered: 0,
            damaged: 0,
            stray: 0,
            latency_us: histogram(),
        }
    }
}

/// Microseconds up to ten minutes, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("invariant: valid bounds")
}

impl Tally {
    /// Judges one payload that came at `now_ns`. `flows` are the connection's, `hint` where the
    /// next one probably is.
    #[inline]
    pub fn take(
        &mut self,
        expected: &Expected,
        flows: &mut [Flow],
        hint: &mut usize,
        payload: &[u8],
        now_ns: u64,
    ) {
        let stamp = match payload::get(payload) {
            Some(stamp) if payload.len() == expected.payload_bytes => stamp,
            _ => {
                self.damaged += 1;
                return;
            }
        };
        let flow = find(flows, hint, stamp.channel);
        let Some(flow) = flow.filter(|_| stamp.run == expected.run) else {
            self.stray += 1;
            return;
        };
        self.received += 1;
        match flow.take(stamp.seq) {
            Verdict::InOrder => {}
            Verdict::Misordered => self.misordered += 1,
            Verdict::TooOld => {
                self.misordered += 1;
                return;
            }
            Verdict::Duplicated => {
                self.duplicated += 1;
                return;
            }
        }
        self.unique += 1;
        self.time(expected, stamp, now_ns);
    }

    fn time(&mut self, expected: &Expected, stamp: Stamp, now_ns: u64) {
        let intended = expected.epoch_ns + stamp.intended_ns;
        if expected.window_ns.contains(&intended) {
            self.latency_us.saturating_record(now_ns.saturating_sub(intended) / 1000);
        }
    }
}

/// Flows usually take turns: the one after the last is tried first.
fn find<'a>(flows: &'a mut [Flow], hint: &mut usize, channel: u32) -> Option<&'a mut Flow> {
    let n_flows = flows.len();
    if flows.get(*hint).is_none_or(|flow| flow.channel != channel) {
        *hint = flows.iter().position(|flow| flow.channel == channel)?;
    }
    let flow = *hint;
    *hint = if flow + 1 == n_flows { 0 } else { flow + 1 };
    Some(&mut flows[flow])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(seqs: &[u32]) -> Vec<Verdict> {
        let mut flow = Flow::new(0);
        seqs.iter().map(|&seq| flow.take(seq)).collect()
    }

    #[test]
    fn tells_repeats_from_latecomers() {
        use Verdict::*;
        assert_eq!(verdicts(&[0, 1, 2]), [InOrder; 3]);
        assert_eq!(verdicts(&[0, 2, 1, 1]), [InOrder, InOrder, Misordered, Duplicated]);
        assert_eq!(verdicts(&[5, 5, 4]), [InOrder, Duplicated, Misordered]);
        assert_eq!(verdicts(&[64, 1, 0]), [InOrder, Misordered, TooOld]);
        assert_eq!(verdicts(&[0, 1000, 0]), [InOrder, InOrder, TooOld]);
        assert_eq!(verdicts(&[63, 0, 63, 64]), [InOrder, Misordered, Duplicated, InOrder]);
    }

    fn expected() -> Expected {
        Expected {
            run: 7,
            payload_bytes: 128,
            epoch_ns: 1_000_000,
            window_ns: 2_000_000..4_000_000,
        }
    }

    fn payload(run: u16, channel: u32, seq: u32, intended_ns: u64) -> Vec<u8> {
        let mut out = Vec::new();
        payload::put(&mut out, Stamp { run, channel, seq, intended_ns }, 128);
        out
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_in_the_window_only() {
        let mut tally = Tally::default();
        let mut flows = [Flow::new(3)];
        let mut take = |seq, intended, at| {
            tally.take(&expected(), &mut flows, &mut 0, &payload(7, 3, seq, intended), at);
        };
        take(0, 900_000, 2_500_000); // intended before the window
        take(1, 1_000_000, 2_500_000); // its first instant: 0.5 ms
        take(2, 2_999_999, 9_999_999); // its last: 6 ms, though it came after the window
        take(3, 3_000_000, 4_000_001); // after it
        assert_eq!(tally.unique, 4);
        assert_eq!(tally.latency_us.len(), 2);
        assert_eq!(tally.latency_us.min(), 500);
        assert!((5_995..=6_005).contains(&tally.latency_us.max()));
    }

    #[test]
    fn strays_and_damage_are_told_apart() {
        let mut tally = Tally::default();
        let mut flows = [Flow::new(3), Flow::new(4)];
        let mut hint = 0;
        let mut take = |payload: &[u8]| tally.take(&expected(), &mut flows, &mut hint, payload, 0);
        take(&payload(7, 4, 0, 0));
        take(&payload(7, 3, 0, 0));
        take(&payload(7, 5, 0, 0)); // another channel
        take(&payload(8, 3, 1, 0)); // another run
        take(&payload(7, 3, 1, 0)[..127]);
        let mut longer = Vec::new();
        payload::put(&mut longer, Stamp { run: 7, channel: 3, seq: 1, intended_ns: 0 }, 129);
        take(&longer);
        take(&payload(7, 3, 0, 0));
        let sums = [tally.received, tally.unique, tally.stray, tally.damaged, tally.duplicated];
        assert_eq!(sums, [3, 2, 2, 2, 1]);
    }
}
