//! Random messages, near-messages and garbage, in random chunks.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Sent {
    is_text: bool,
    payload: Vec<u8>,
    /// Where it is cut into fragments, as shares of its length.
    cuts: Vec<prop::sample::Index>,
    pings: Vec<Option<Vec<u8>>>,
    masks: [u8; 16],
}

impl Sent {
    fn arbitrary() -> impl Strategy<Value = Self> {
        let payload = prop_oneof![
            4 => ".{0,40}".prop_map(|text| (true, text.into_bytes())),
            1 => "[a-zà-ÿ😀]{100,200}".prop_map(|text| (true, text.into_bytes())),
            2 => prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| (false, bytes)),
        ];
        let cuts = prop_oneof![
            Just(Vec::new()),
            prop::collection::vec(any::<prop::sample::Index>(), 0..6)
        ];
        let ping = prop::option::of(prop::collection::vec(any::<u8>(), 0..=125));
        (payload, cuts, prop::collection::vec(ping, 0..4), any::<[u8; 16]>()).prop_map(
            |((is_text, payload), cuts, pings, masks)| Self {
                is_text,
                payload,
                cuts,
                pings,
                masks,
            },
        )
    }

    fn encode(&self, bytes: &mut Vec<u8>, seen: &mut Vec<Seen>) {
        let mut bounds: Vec<usize> =
            self.cuts.iter().map(|cut| cut.index(self.payload.len() + 1)).collect();
        bounds.extend([0, self.payload.len()]);
        bounds.sort_unstable();
        let n_fragments = bounds.len() - 1;
        for (i, bound) in bounds.windows(2).enumerate() {
            let first = match (i, self.is_text) {
                (0, true) => TEXT,
                (0, false) => BINARY,
                _ => CONTINUATION,
            };
            let fin = if i + 1 == n_fragments { FIN } else { 0 };
            let mask = self.masks[i % 13..][..4].try_into().unwrap();
            bytes.extend(client_frame(fin | first, mask, &self.payload[bound[0]..bound[1]]));
            if fin == 0
                && let Some(Some(ping)) = self.pings.get(i)
            {
                bytes.extend(client_frame(FIN | PING, mask, ping));
                seen.push(Seen::Ping(ping.clone()));
            }
        }
        let payload = self.payload.clone();
        seen.push(if self.is_text { Seen::Text(payload) } else { Seen::Binary(payload) });
    }
}

/// Cuts `bytes` into chunks of these lengths, over and over.
fn chunks_of<'a>(bytes: &'a [u8], lens: &'a [usize]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    let mut rest = bytes;
    for &len in lens.iter().cycle() {
        let (chunk, after) = rest.split_at(len.min(rest.len()));
        chunks.push(chunk);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    chunks
}

fn chunk_lens() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..8usize, 1..400usize], 1..12)
}

/// Bytes that look like frames often enough to get past the first check.
fn near_frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => prop::sample::select(vec![0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        "[a-zé]{0,200}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..130)
    ];
    let frame = (
        first,
        any::<[u8; 4]>(),
        payload,
        prop::option::weighted(0.05, any::<(prop::sample::Index, u8)>()),
    )
        .prop_map(|(first, mask, payload, damage)| {
            let mut bytes = client_frame(first, mask, &payload);
            if let Some((at, xor)) = damage {
                let at = at.index(bytes.len());
                bytes[at] ^= xor;
            }
            bytes
        });
    prop::collection::vec(frame, 0..12).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn what_was_sent_is_what_is_handed_out(
        sent in prop::collection::vec(Sent::arbitrary(), 0..12),
        lens in chunk_lens(),
    ) {
        let limits = Limits { message_bytes_max: 1_000, ..LIMITS };
        let mut bytes = Vec::new();
        let mut seen = Vec::new();
        for message in &sent {
            message.encode(&mut bytes, &mut seen);
        }
        let expected = Outcome { seen, end: Ok(Flow::Continue) };
        prop_assert_eq!(&read_chunks([&bytes[..]], &limits), &expected);
        prop_assert_eq!(&read_chunks(chunks_of(&bytes, &lens), &limits), &expected);
    }

    #[test]
    fn the_outcome_does_not_depend_on_the_chunks(bytes in near_frames(), lens in chunk_lens()) {
        let whole = read_chunks([&bytes[..]], &LIMITS);
        prop_assert_eq!(&read_chunks(chunks_of(&bytes, &lens), &LIMITS), &whole);
        prop_assert_eq!(&read_chunks(bytes.chunks(1), &LIMITS), &whole);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), lens in chunk_lens()) {
        let whole = read_chunks([&bytes[..]], &LIMITS);
        prop_assert_eq!(read_chunks(chunks_of(&bytes, &lens), &LIMITS), whole);
    }
}
