//! A fuzzer for tests, small enough to need no crate: makes inputs, mutates the ones worth keeping, and shrinks what
//! breaks a property.
//!
//! `HUBBUB_FUZZ_SECONDS` says for how long each target runs; without it a plain `cargo test` gets one second.
//! `HUBBUB_FUZZ_SEED` repeats a run. Built with `-C instrument-coverage --cfg fuzz_coverage` (`tests/run` does), an
//! input is worth keeping if it reached code, or a loop count, that none before it did. Without, every input is made
//! from scratch and mutated a little.
//!
//! bolero needs a cargo subcommand to be installed and every dependency to be built a second time; proptest never learns
//! from what an input reached.
//!
//! **Invariant:** a check sees nothing but its input, so the input alone repeats a failure.
//! **Invariant:** one target to a process when coverage counts: the counters are the process's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longer ones find nothing more and cost time.
const INPUT_BYTES_MAX: usize = 1024;
/// So many inputs from scratch are there to be mutated before any proved worth it.
const MADE_FIRST: usize = 256;
const CORPUS_MAX: usize = 20_000;
const MUTATIONS_MAX: usize = 4;
const SHRINK_TRIES_MAX: usize = 20_000;
/// Bytes at which parsers change their mind.
const EDGE_BYTES: &[u8] =
    b"\x00\x01\x7d\x7e\x7f\x80\x81\x88\xbf\xc0\xc3\xe2\xf0\xfe\xff\"\\{}[],:-+.0e \r\nu";

/// What is fuzzed.
pub struct Target {
    pub name: &'static str,
    /// An input from scratch.
    pub make: fn(&mut Rng) -> Vec<u8>,
    /// One of the pieces that inputs are made of: a frame, a token.
    pub make_piece: fn(&mut Rng) -> Vec<u8>,
    /// Where the pieces of an input begin.
    pub pieces: fn(&[u8]) -> Vec<usize>,
    /// Panics if a property does not hold.
    pub check: fn(&[u8]),
}

/// SplitMix64: any seed will do, and a test needs no better.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Runs `target` until its time is over. Panics with the smallest input that still breaks it.
pub fn run(target: &Target) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let time = Duration::from_secs(number("HUBBUB_FUZZ_SECONDS").unwrap_or(1));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("HUBBUB_FUZZ_SEED").unwrap_or_else(clock);
    let mut rng = Rng::new(seed);
    let mut corpus: Vec<Vec<u8>> = (0..MADE_FIRST).map(|_| (target.make)(&mut rng)).collect();
    let mut coverage = Coverage::default();
    let mut n_runs = 0u64;
    let began = Instant::now();
    while began.elapsed() < time {
        // Several per look at the clock: an input takes a few µs.
        for _ in 0..16 {
            let input = next_input(target, &corpus, &mut rng);
            if !holds(target, &input, &mut coverage) {
                fail(target, input, seed);
            }
            n_runs += 1;
            if coverage.has_news && corpus.len() < CORPUS_MAX {
                corpus.push(input);
            }
        }
    }
    println!(
        "fuzz {}: {n_runs} inputs in {} s, seed {seed}, {} kept, {}",
        target.name,
        began.elapsed().as_secs(),
        corpus.len(),
        coverage.summary(),
    );
}

fn next_input(target: &Target, corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = (target.make)(rng);
    if Coverage::IS_ON && !rng.one_in(4) {
        // Half the time one of the newest: they stand where the coverage grows.
        let newest = corpus.len().saturating_sub(32);
        let from = if rng.one_in(2) { newest } else { 0 };
        let mut any = || &corpus[rng.within(from..=corpus.len() - 1)];
        // The shorter of two: it is tried faster.
        input = std::cmp::min_by_key(any(), any(), |input| input.len()).clone();
    }
    for _ in 0..rng.below(MUTATIONS_MAX + 1) {
        mutate(target, &mut input, corpus, rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn mutate(target: &Target, input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    let len = input.len();
    if rng.one_in(2) {
        return mutate_pieces(target, input, corpus, rng);
    }
    if len == 0 {
        return input.push(rng.pick(EDGE_BYTES));
    }
    let at = rng.below(len);
    match rng.below(7) {
        0 => input[at] ^= 1 << rng.below(8),
        1 => input[at] = rng.pick(EDGE_BYTES),
        2 => input[at] = rng.next() as u8,
        3 => input[at] = input[at].wrapping_add(rng.pick(&[1, 0xFF])),
        4 => input.insert(at, rng.pick(EDGE_BYTES)),
        5 => drop(input.drain(at..len.min(at + rng.within(1..=8)))),
        _ => input.truncate(at),
    }
}

fn mutate_pieces(target: &Target, input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    let run = run_of_pieces(target, input, rng);
    match rng.below(6) {
        0 => drop(input.drain(run)),
        1 => {
            let copy = input[run.clone()].to_vec();
            let n_copies = if rng.one_in(8) { rng.within(2..=140) } else { 1 };
            let n_copies = n_copies.min(INPUT_BYTES_MAX / copy.len().max(1));
            input.splice(run.end..run.end, copy.repeat(n_copies));
        }
        2 => {
            let moved: Vec<u8> = input.drain(run).collect();
            let to = run_of_pieces(target, input, rng).start;
            input.splice(to..to, moved);
        }
        3 => drop(input.splice(run.start..run.start, (target.make_piece)(rng))),
        4 => drop(input.splice(run, (target.make_piece)(rng))),
        _ => {
            let other = &corpus[rng.below(corpus.len())];
            let theirs = run_of_pieces(target, other, rng);
            input.splice(run, other[theirs].iter().copied());
        }
    }
}

fn run_of_pieces(target: &Target, input: &[u8], rng: &mut Rng) -> std::ops::Range<usize> {
    let mut starts = (target.pieces)(input);
    starts.push(input.len());
    let first = rng.below(starts.len());
    let last = starts.len().min(first + rng.within(1..=4)) - 1;
    starts[first]..starts[last]
}

/// Whether the check passes; collects what it reached.
fn holds(target: &Target, input: &[u8], coverage: &mut Coverage) -> bool {
    coverage.begin();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    coverage.end();
    outcome.is_ok()
}

fn fail(target: &Target, input: Vec<u8>, seed: u64) -> ! {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let input = shrink(target, input);
    std::panic::set_hook(hook);
    println!("fuzz {}: seed {seed}: this fails: b\"{}\"", target.name, input.escape_ascii());
    (target.check)(&input);
    unreachable!("it failed a moment ago");
}

/// Leaves out whatever it can, long runs first, then makes the bytes plain.
fn shrink(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let fails = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| (target.check)(input))).is_err();
    let mut n_tries = 0;
    let mut run_len = input.len().next_power_of_two();
    while run_len > 0 && n_tries < SHRINK_TRIES_MAX {
        let mut at = 0;
        let mut is_smaller = false;
        while at < input.len() {
            let mut without = input.clone();
            without.drain(at..input.len().min(at + run_len));
            n_tries += 1;
            if fails(&without) {
                input = without;
                is_smaller = true;
            } else {
                at += run_len;
            }
        }
        if !is_smaller {
            run_len = run_len * 3 / 4;
        }
    }
    for at in 0..input.len() {
        for plain in [0, b'0', b'a'] {
            let before = input[at];
            if before == plain {
                break;
            }
            input[at] = plain;
            if fails(&input) {
                break;
            }
            input[at] = before;
        }
    }
    input
}

/// Which counters of the instrumented code were ever at 1, 2, 3, 4 to 7, … 128 or more in one run.
#[derive(Default)]
struct Coverage {
    /// A bit per such class, for each counter.
    seen: Vec<u8>,
    now: Vec<u64>,
    has_news: bool,
}

impl Coverage {
    const IS_ON: bool = cfg!(fuzz_coverage);

    fn begin(&mut self) {
        counters::reset();
    }

    fn end(&mut self) {
        counters::copy(&mut self.now);
        self.seen.resize(self.now.len(), 0);
        self.has_news = false;
        for (seen, &count) in self.seen.iter_mut().zip(&self.now) {
            if count != 0 {
                let class = Self::class(count);
                self.has_news |= *seen & class == 0;
                *seen |= class;
            }
        }
    }

    fn class(count: u64) -> u8 {
        match count {
            1..4 => 1 << (count - 1),
            4..8 => 1 << 3,
            8..16 => 1 << 4,
            16..32 => 1 << 5,
            32..128 => 1 << 6,
            _ => 1 << 7,
        }
    }

    fn summary(&self) -> String {
        if !Self::IS_ON {
            return "coverage off".to_owned();
        }
        let n_reached = self.seen.iter().filter(|&&seen| seen != 0).count();
        let n_classes: u32 = self.seen.iter().map(|seen| seen.count_ones()).sum();
        format!("{n_reached} code regions reached in {n_classes} classes of counts")
    }
}

/// What `-C instrument-coverage` counts, where the linker put it.
#[cfg(fuzz_coverage)]
mod counters {
    unsafe extern "C" {
        #[link_name = "__start___llvm_prf_cnts"]
        static mut FIRST: u64;
        #[link_name = "__stop___llvm_prf_cnts"]
        static mut END: u64;
    }

    fn len() -> usize {
        (&raw const END as usize - &raw const FIRST as usize) / size_of::<u64>()
    }

    pub(super) fn reset() {
        // SAFETY: the linker's bounds of the counters' section; nothing holds a reference into it.
        unsafe { std::ptr::write_bytes(&raw mut FIRST, 0, len()) };
    }

    pub(super) fn copy(into: &mut Vec<u64>) {
        into.resize(len(), 0);
        // SAFETY: as above, and `into` has room for all of them.
        unsafe { std::ptr::copy_nonoverlapping(&raw const FIRST, into.as_mut_ptr(), len()) };
    }
}

#[cfg(not(fuzz_coverage))]
mod counters {
    pub(super) fn reset() {}
    pub(super) fn copy(_: &mut Vec<u64>) {}
}

#[test]
fn what_fails_is_shrunk_to_what_makes_it_fail() {
    let target = Target {
        name: "shrink",
        make: |rng| rng.bytes(40),
        make_piece: |rng| rng.bytes(1),
        pieces: |input| (0..input.len()).collect(),
        check: |input| assert!(!(input.contains(&b'[') && input.ends_with(b"!"))),
    };
    let input = shrink(&target, b"some [text] of \xff bytes, and [more!".to_vec());
    assert_eq!(input, b"[!");
}
