//! Fossil deltas: a text as a patch against the one before, in the format of the Fossil SCM, which
//! the SDKs apply.
//!
//! Plain functions, any thread. A patch is the length of its target and `\n`; then copies from the
//! base (`LEN@FROM,`) and literals (`LEN:` and the text); then the target's checksum and `;`.
//! Numbers are base 64 in Fossil's own digits.
//!
//! What the texts have in common at both ends is found first: most updates change a number or two
//! in between, and then there is little left to look for. For the rest the base's blocks of
//! [`BLOCK`] bytes are found by hash.
//!
//! Our own, because the crate there is (`fossil-delta` 0.2) panics on a patch that is cut short,
//! reads through `unsafe`, splits characters, and takes a hundred times as long for a MiB of zeros.
//!
//! **Invariant:** a patch is UTF-8: copies begin and end between characters of the target, so
//! literals do too.
//! **Invariant:** time grows with the texts' lengths, whatever is in them: each place of the target
//! is compared with at most [`CANDIDATES_MAX`] blocks, and a comparison that runs on for long is one
//! that ends in a copy as long. Memory is eight bytes a block of the base.

/// Bytes that a match has at least, unless it is at one of the ends.
const BLOCK: usize = 16;
/// Blocks with one hash that are looked at; the base's last ones.
const CANDIDATES_MAX: usize = 8;
const NO_BLOCK: u32 = u32::MAX;

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/// The patch that makes `target` of `base`. It may be longer than the target.
pub fn create(base: &str, target: &str) -> String {
    let mut patch = Patch::new(target);
    let (from, to) = (base.as_bytes(), target.as_bytes());
    let head = floor(target, common_head(from, to));
    let tail = common_tail(&from[head..], &to[head..]);
    let tail = to.len() - ceil(target, to.len() - tail);
    patch.copy(Match { from: 0, at: 0, len: head });
    // A literal in between could be no shorter if it were searched for matches.
    if to.len() - head - tail >= BLOCK {
        patch.search(from, to.len() - tail);
    }
    patch.copy(Match { from: from.len() - tail, at: to.len() - tail, len: tail });
    patch.finish()
}

/// The same, if it is shorter than the target.
pub fn create_shorter(base: &str, target: &str) -> Option<String> {
    Some(create(base, target)).filter(|patch| patch.len() < target.len())
}

/// Why a patch can't be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPatch {
    #[error("the patch is cut short or not a patch")]
    Malformed,
    #[error("the patch is for another base")]
    OtherBase,
}

/// What a client does with a patch.
pub fn apply(base: &[u8], patch: &[u8]) -> Result<Vec<u8>, BadPatch> {
    let mut rest = patch;
    let size = take_number(&mut rest)?;
    take_byte(&mut rest, b'\n')?;
    let mut target = Vec::new();
    loop {
        let number = take_number(&mut rest)?;
        let (kind, behind) = rest.split_first().ok_or(BadPatch::Malformed)?;
        rest = behind;
        let part = match kind {
            b'@' => {
                let from = take_number(&mut rest)?;
                take_byte(&mut rest, b',')?;
                let end = from.checked_add(number).ok_or(BadPatch::Malformed)?;
                base.get(from..end).ok_or(BadPatch::OtherBase)?
            }
            b':' => {
                let (literal, behind) = rest.split_at_checked(number).ok_or(BadPatch::Malformed)?;
                rest = behind;
                literal
            }
            b';' if !rest.is_empty() || target.len() != size => return Err(BadPatch::Malformed),
            b';' if number != checksum(&target) as usize => return Err(BadPatch::OtherBase),
            b';' => return Ok(target),
            _ => return Err(BadPatch::Malformed),
        };
        if part.len() > size - target.len() {
            return Err(BadPatch::Malformed);
        }
        target.extend_from_slice(part);
    }
}

/// The same bytes in both texts.
#[derive(Clone, Copy)]
struct Match {
    /// In the base.
    from: usize,
    /// In the target.
    at: usize,
    len: usize,
}

/// A patch being written; what hasn't been copied becomes a literal.
struct Patch<'a> {
    target: &'a str,
    out: String,
    /// So much of the target is written.
    done: usize,
}

impl<'a> Patch<'a> {
    fn new(target: &'a str) -> Self {
        let mut out = String::new();
        put_number(&mut out, target.len() as u32);
        out.push('\n');
        Self { target, out, done: 0 }
    }

    /// Copies a match, unless its bytes are the shorter text.
    fn copy(&mut self, found: Match) {
        if found.len <= n_digits(found.len) + n_digits(found.from) + 2 {
            return;
        }
        self.put_literal(found.at);
        put_number(&mut self.out, found.len as u32);
        self.out.push('@');
        put_number(&mut self.out, found.from as u32);
        self.out.push(',');
        self.done = found.at + found.len;
    }

    fn put_literal(&mut self, end: usize) {
        if self.done < end {
            put_number(&mut self.out, (end - self.done) as u32);
            self.out.push(':');
            self.out.push_str(&self.target[self.done..end]);
            self.done = end;
        }
    }

    /// Copies what can be found of the target up to `end`.
    fn search(&mut self, base: &[u8], end: usize) {
        let blocks = Blocks::new(base);
        let to = &self.target.as_bytes()[..end];
        let mut at = self.done;
        while let Some(window) = to.get(at..at + BLOCK) {
            let mut hash = Rolling::new(window);
            let found = loop {
                let found = self.longest(&blocks, hash, to, at);
                if found.is_some() || at + BLOCK >= end {
                    break found;
                }
                hash.roll(to[at], to[at + BLOCK]);
                at += 1;
            };
            let Some(found) = found else { return };
            let done = self.done;
            self.copy(found);
            at = if self.done > done { self.done } else { at + 1 };
        }
    }

    /// The longest match around the block at `at` that leaves what is done as it is.
    fn longest(&self, blocks: &Blocks<'_>, hash: Rolling, to: &[u8], at: usize) -> Option<Match> {
        let mut longest: Option<Match> = None;
        for from in blocks.candidates(hash) {
            let len = common_head(&blocks.base[from..], &to[at..]);
            if len < BLOCK {
                continue;
            }
            let before = common_tail(&blocks.base[..from], &to[self.done..at]);
            if longest.is_none_or(|longest| longest.len < before + len) {
                longest = Some(Match { from: from - before, at: at - before, len: before + len });
            }
        }
        longest.map(|Match { from, at, len }| {
            let (start, end) = (ceil(self.target, at), floor(self.target, at + len));
            Match { from: from + (start - at), at: start, len: end.saturating_sub(start) }
        })
    }

    fn finish(mut self) -> String {
        self.put_literal(self.target.len());
        put_number(&mut self.out, checksum(self.target.as_bytes()));
        self.out.push(';');
        self.out
    }
}

/// The base's blocks, by hash.
struct Blocks<'a> {
    base: &'a [u8],
    /// The last block of each hash.
    last: Vec<u32>,
    /// For each block the one before with its hash.
    before: Vec<u32>,
}

impl<'a> Blocks<'a> {
    fn new(base: &'a [u8]) -> Self {
        let n_blocks = base.len() / BLOCK;
        let n_hashes = n_blocks.next_power_of_two();
        let mut blocks =
            Self { base, last: vec![NO_BLOCK; n_hashes], before: vec![NO_BLOCK; n_blocks] };
        for (idx, block) in base.chunks_exact(BLOCK).enumerate() {
            let last = &mut blocks.last[Rolling::new(block).bucket(n_hashes)];
            blocks.before[idx] = std::mem::replace(last, idx as u32);
        }
        blocks
    }

    /// Where blocks of this hash begin.
    fn candidates(&self, hash: Rolling) -> impl Iterator<Item = usize> {
        let known = |idx: u32| (idx != NO_BLOCK).then_some(idx);
        let last = known(self.last[hash.bucket(self.last.len())]);
        std::iter::successors(last, move |idx| known(self.before[*idx as usize]))
            .take(CANDIDATES_MAX)
            .map(|idx| idx as usize * BLOCK)
    }
}

/// The hash of a block, moved on byte by byte.
#[derive(Clone, Copy)]
struct Rolling(u32);

impl Rolling {
    const FACTOR: u32 = 0x0100_0193;
    /// What the oldest byte is worth.
    const OLDEST: u32 = Self::FACTOR.wrapping_pow(BLOCK as u32 - 1);

    fn new(block: &[u8]) -> Self {
        let add =
            |hash: u32, byte: &u8| hash.wrapping_mul(Self::FACTOR).wrapping_add((*byte).into());
        Self(block.iter().fold(0, add))
    }

    fn roll(&mut self, out: u8, into: u8) {
        let rest = self.0.wrapping_sub(Self::OLDEST.wrapping_mul(out.into()));
        self.0 = rest.wrapping_mul(Self::FACTOR).wrapping_add(into.into());
    }

    /// `n` is a power of two.
    fn bucket(self, n: usize) -> usize {
        (self.0.wrapping_mul(0x9e37_79b1) >> 8) as usize & (n - 1)
    }
}

fn common_head(a: &[u8], b: &[u8]) -> usize {
    let words = a.chunks_exact(8).zip(b.chunks_exact(8));
    let n = 8 * words.take_while(|(a, b)| a == b).count();
    n + a[n..].iter().zip(&b[n..]).take_while(|(a, b)| a == b).count()
}

fn common_tail(a: &[u8], b: &[u8]) -> usize {
    let words = a.rchunks_exact(8).zip(b.rchunks_exact(8));
    let n = 8 * words.take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - n], &b[..b.len() - n]);
    n + a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// The last place between two characters that isn't behind `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The first one that isn't before it.
fn ceil(text: &str, at: usize) -> usize {
    (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

fn n_digits(number: usize) -> usize {
    (usize::BITS - number.leading_zeros()).div_ceil(6).max(1) as usize
}

fn put_number(out: &mut String, number: u32) {
    for place in (0..n_digits(number as usize)).rev() {
        out.push(DIGITS[(number >> (6 * place)) as usize & 63].into());
    }
}

fn take_number(rest: &mut &[u8]) -> Result<usize, BadPatch> {
    let digit = |byte: &u8| DIGITS.iter().position(|digit| digit == byte);
    let n = rest.iter().take_while(|byte| digit(byte).is_some()).count();
    let (digits, behind) = rest.split_at(n);
    *rest = behind;
    let add = |number: u32, digit: usize| number.checked_mul(64)?.checked_add(digit as u32);
    let number = digits.iter().filter_map(digit).try_fold(0, add);
    number.filter(|_| n > 0).map(|number| number as usize).ok_or(BadPatch::Malformed)
}

fn take_byte(rest: &mut &[u8], byte: u8) -> Result<(), BadPatch> {
    *rest = rest.strip_prefix(&[byte]).ok_or(BadPatch::Malformed)?;
    Ok(())
}

/// The sum of the big-endian words, the last one padded with zeros.
fn checksum(text: &[u8]) -> u32 {
    let words = text.chunks(4).map(|word| {
        let mut padded = [0; 4];
        padded[..word.len()].copy_from_slice(word);
        u32::from_be_bytes(padded)
    });
    words.fold(0, u32::wrapping_add)
}

#[cfg(test)]
mod tests;
