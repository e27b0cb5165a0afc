//! Promise: whatever others PUBLISH on the Redis channel of a stream, who follows it gets all that is the
//! stream's, in its order and nothing else under its numbers; and nobody is cut off. (Scenario 12, where
//! positions are kept.)

mod common;

use common::follower::{Follower, follow, tops};
use common::past::{At, Place, publish};
use common::redis::Reply;
use common::{Hub, Rng, SOON, eventually, scaled, secs};
use std::time::Instant;

const CHANNEL: &str = "long:a";

/// What the publish script puts on the Redis channel.
fn envelope(at: &At, payload: &[u8]) -> Vec<u8> {
    let header =
        [b"\xffhub\x02", &at.offset.to_be_bytes()[..], at.epoch.as_bytes(), &[0; 12]].concat();
    [&header[..], payload].concat()
}

/// Nodes, and who follows `CHANNEL` on each.
struct Bench {
    place: Place,
    followers: Vec<Follower>,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    dropped: usize,
    repeated: usize,
    not_utf8: usize,
    told: usize,
    plain: usize,
}

impl Bench {
    fn start() -> Self {
        let place = Place::redis();
        let at = publish(&place.a, CHANNEL, 1);
        let open = |n: usize| Follower::open([&place.a, place.b()][n % 2], &[CHANNEL]);
        let mut followers: Vec<Follower> = (0..2).map(open).collect();
        assert!(follow(&mut followers, SOON, Follower::is_live));
        Self { place, followers, at }
    }

    fn hubs(&self) -> [&Hub; 2] {
        [&self.place.a, self.place.b()]
    }

    /// On the first node, and of its follower.
    fn count(&self) -> Count {
        let metrics = self.place.a.metrics();
        let of = |name: &str| metrics.sum(name) as usize;
        let dropped = |reason: &str| {
            metrics.get(&format!("hubbub_drops_total{{reason=\"{reason}\"}}")) as usize
        };
        Count {
            dropped: dropped("bad_envelope") + dropped("too_large"),
            repeated: of("hubbub_repeated_total"),
            not_utf8: dropped("not_utf8"),
            told: self.followers[0].n_told,
            plain: self.followers[0].n_plain(),
        }
    }

    /// The next good one reaches everybody, in its place.
    #[track_caller]
    fn goes_on(&mut self, what: &str) {
        let next = publish(self.place.b(), CHANNEL, "good");
        let expected = At { offset: self.at.offset + 1, ..self.at.clone() };
        assert_eq!(next, expected, "{what}");
        self.at = next;
        let (top, end) = (self.at.clone(), Instant::now() + secs(30));
        let is_there = |it: &Follower| it.is_live() && *it.at(CHANNEL) == top;
        while !follow(&mut self.followers, SOON, is_there) {
            assert!(Instant::now() < end, "{what}: not everybody is there");
        }
        self.followers.iter().for_each(|it| assert!(!it.is_gone(), "{what}: cut off"));
    }

    /// Publishes it past the hubs; after that and the next good one so much has been counted.
    #[track_caller]
    fn check(&mut self, what: &str, bytes: &[u8], expected: Count) {
        let before = self.count();
        let n_heard = self.place.server().publish(CHANNEL, bytes);
        assert_eq!(n_heard, 2, "{what}: both nodes listen");
        self.goes_on(what);
        let grown = || {
            let now = self.count();
            Count {
                dropped: now.dropped - before.dropped,
                repeated: now.repeated - before.repeated,
                not_utf8: now.not_utf8 - before.not_utf8,
                told: now.told - before.told,
                plain: now.plain - before.plain,
            }
        };
        assert!(eventually(SOON, || grown() == expected), "{what}: {:?}", grown());
    }
}

#[test]
fn foreign_messages_on_the_channel_of_a_stream() {
    let mut bench = Bench::start();
    let lines_before: usize = bench.hubs().iter().map(|hub| hub.log().len()).sum();
    let began = Instant::now();
    let none = Count::default();
    let plain = Count { plain: 1, ..none };
    bench.check("empty", b"", plain);
    bench.check("text", b"half a {\"json\":", plain);
    bench.check("not UTF-8", &[0xC3, 0x28, 0x00], Count { not_utf8: 1, ..none });

    let dropped = Count { dropped: 1, ..none };
    let next = |bench: &Bench| At { offset: bench.at.offset + 1, ..bench.at.clone() };
    let header_bytes = envelope(&bench.at, b"").len();
    for n_bytes in 1..header_bytes {
        let whole = envelope(&next(&bench), b"forged");
        bench.check("half an envelope", &whole[..n_bytes], dropped);
    }
    for offset in [0, (1 << 53) + 1, u64::MAX] {
        let at = At { offset, ..bench.at.clone() };
        bench.check("no offset", &envelope(&at, b"forged"), dropped);
    }
    let large = vec![b'x'; 5 << 20];
    bench.check("5 MB", &large, dropped);
    let at = next(&bench);
    bench.check("5 MB in an envelope", &envelope(&at, &large), dropped);

    let repeated = Count { repeated: 1, ..none };
    for offset in [bench.at.offset, 1] {
        let at = At { offset, ..bench.at.clone() };
        bench.check("again", &envelope(&at, b"forged"), repeated);
    }
    // Claims that something is missing, or that another stream begins: whoever follows asks, and it isn't so.
    let told = Count { told: 1, ..none };
    for ahead in [2, 1_000, 1 << 52] {
        let at = At { offset: bench.at.offset + ahead, ..bench.at.clone() };
        bench.check("ahead", &envelope(&at, b"forged"), told);
    }
    for offset in [1, bench.at.offset + 1, 1 << 53] {
        let at = At { offset, epoch: "abcdefgh".to_owned() };
        bench.check("of another stream", &envelope(&at, b"forged"), told);
    }
    for follower in &bench.followers {
        assert_eq!((follower.n_lost(), follower.n_gaps()), (0, 0), "nothing was lost");
    }
    let n_lines: usize = bench.hubs().iter().map(|hub| hub.log().len()).sum();
    println!("{:?}", began.elapsed());
    let n_lines_max = 2 * (began.elapsed().as_secs() as usize + 1);
    assert!(n_lines - lines_before <= n_lines_max, "{n_lines} lines");
}

/// Many at once, of which none waits for what the one before did.
#[test]
fn a_flood_of_foreign_messages_on_the_channel_of_a_stream() {
    let mut bench = Bench::start();
    let mut rng = Rng::seeded();
    let mut client = bench.place.server().client();
    for round in 0..scaled(10, 200) {
        for _ in 0..50 {
            let mut bytes = envelope(&bench.at, b"\"forged\"");
            for _ in 0..rng.between(1, 3) {
                let at = rng.between(0, bytes.len() as u64 - 1) as usize;
                bytes[at] = rng.next() as u8;
            }
            bytes.truncate(rng.between(0, 2 * bytes.len() as u64) as usize);
            // Whoever may PUBLISH is trusted not to forge what comes next.
            let next = At { offset: bench.at.offset + 1, ..bench.at.clone() };
            if !bytes.starts_with(&envelope(&next, b"")[..21]) {
                client.publish(CHANNEL, &bytes);
            }
        }
        bench.goes_on(&format!("round {round}"));
    }
    let n = |of: fn(&Follower) -> usize| bench.followers.iter().map(of).sum::<usize>();
    println!("told {} times, {} gaps announced", n(|it| it.n_told), n(Follower::n_gaps));
    let channels = [CHANNEL.to_owned()];
    let tops = tops(&bench.place.a, &channels);
    assert!(bench.followers.iter().all(|it| it.has_all(&tops)));
    let reply = bench.place.server().command(&["XLEN", "ws:stream:{long:a}"]);
    assert_eq!(reply, Reply::Int(bench.at.offset as i64), "the stream is what was published");
}
