//! What is published: a JSON object that says who it is, and shows if a byte of it was changed.
//!
//! `{"l":"RRRRCCCCCCSSSSSSSSTTTTTTTTTTTTKKKKKKKK","f":"…"}`, all numbers in hex: the run, the
//! channel, the number in the channel, the *intended* time of sending (nanoseconds since the run's
//! epoch, so that a late publisher can't hide a delay), and a CRC-32 over every other byte. Fixed
//! widths, because a million of them a second are read on one core.

/// The shortest payload: no filler.
pub const BYTES_MIN: usize = HEAD.len() + DIGITS + MIDDLE.len() + TAIL.len();

/// Seconds that a run may last, as the intended time has 48 bits of nanoseconds: three days.
pub const RUN_S_MAX: f64 = 259_200.0;

const HEAD: &[u8] = b"{\"l\":\"";
const MIDDLE: &[u8] = b"\",\"f\":\"";
const TAIL: &[u8] = b"\"}";
const RUN: Field = Field { at: HEAD.len(), digits: 4 };
const CHANNEL: Field = RUN.next(6);
const SEQ: Field = CHANNEL.next(8);
const TIME: Field = SEQ.next(12);
const CHECK: Field = TIME.next(8);
const DIGITS: usize = CHECK.at + CHECK.digits - HEAD.len();

#[derive(Copy, Clone)]
struct Field {
    at: usize,
    digits: usize,
}

impl Field {
    const fn next(self, digits: usize) -> Self {
        Self { at: self.at + self.digits, digits }
    }

    fn put(self, payload: &mut [u8], value: u64) {
        for (idx, digit) in payload[self.at..self.at + self.digits].iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(value >> (4 * idx)) as usize & 15];
        }
    }

    /// `None` if one of them is no digit.
    fn get(self, payload: &[u8]) -> Option<u64> {
        let mut value = 0u64;
        let mut bad = 0u8;
        for &digit in &payload[self.at..self.at + self.digits] {
            let nibble = NIBBLES[usize::from(digit)];
            bad |= nibble & 0xf0;
            value = value << 4 | u64::from(nibble);
        }
        (bad == 0).then_some(value)
    }
}

const NIBBLES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut nibble = 0;
    while nibble < 16 {
        table[b"0123456789abcdef"[nibble] as usize] = nibble as u8;
        nibble += 1;
    }
    table
};

/// Who a publication is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Tells publications of another run, or another publisher, from ours.
    pub run: u16,
    pub channel: u32,
    /// From 0 in each channel.
    pub seq: u32,
    /// When it was to be sent, nanoseconds since the run's epoch; below [`RUN_S_MAX`].
    pub intended_ns: u64,
}

/// Writes the payload over what `out` holds.
pub fn put(out: &mut Vec<u8>, stamp: Stamp, n_bytes: usize) {
    debug_assert!(n_bytes >= BYTES_MIN);
    out.clear();
    out.extend_from_slice(HEAD);
    out.resize(HEAD.len() + DIGITS, b'0');
    out.extend_from_slice(MIDDLE);
    // The filler differs from one publication to the next, so that two mixed ones don't fit.
    let letters = (stamp.seq..).map(|n| b'a' + (n % 26) as u8);
    out.extend(letters.take(n_bytes - BYTES_MIN));
    out.extend_from_slice(TAIL);
    RUN.put(out, stamp.run.into());
    CHANNEL.put(out, stamp.channel.into());
    SEQ.put(out, stamp.seq.into());
    TIME.put(out, stamp.intended_ns);
    let check = checksum(out);
    CHECK.put(out, check.into());
}

/// Reads a payload back; `None` if it isn't, byte for byte, one that [`put`] made.
pub fn get(payload: &[u8]) -> Option<Stamp> {
    if payload.len() < BYTES_MIN || !payload.starts_with(HEAD) {
        return None;
    }
    let stamp = Stamp {
        run: RUN.get(payload)? as u16,
        channel: CHANNEL.get(payload)? as u32,
        seq: SEQ.get(payload)? as u32,
        intended_ns: TIME.get(payload)?,
    };
    (CHECK.get(payload)? == u64::from(checksum(payload))).then_some(stamp)
}

fn checksum(payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&payload[..CHECK.at]);
    hasher.update(&payload[CHECK.at + CHECK.digits..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { run: 0xbeef, channel: 77, seq: 123_456, intended_ns: 1 << 47 };

    #[test]
    fn survives_the_way_and_has_the_size_asked_for() {
        let mut payload = Vec::new();
        for n_bytes in [BYTES_MIN, 64, 128, 4096] {
            put(&mut payload, STAMP, n_bytes);
            assert_eq!(payload.len(), n_bytes);
            assert_eq!(get(&payload), Some(STAMP));
            let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert!(value["l"].is_string());
        }
    }

    #[test]
    fn every_changed_or_missing_byte_shows() {
        let mut payload = Vec::new();
        put(&mut payload, STAMP, 128);
        for at in 0..payload.len() {
            let mut other = payload.clone();
            other[at] ^= 1;
            assert_eq!(get(&other), None, "byte {at}");
            other = payload.clone();
            other.remove(at);
            assert_eq!(get(&other), None, "without byte {at}");
        }
        assert_eq!(get(b""), None);
    }
}
