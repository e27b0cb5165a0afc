//! Promise: a client that breaks rules, floods, or won't end costs itself its connection and nobody
//! else anything; nothing of it stays behind. (Scenarios 41 and 42; frames in `giants`.)

mod common;

use common::cf::{self, Cf, subscribe, unsubscribe};
use common::hub::{CLOSE_WAIT, TIME_WAIT};
use common::ws::{self, Dial, PING, TEXT, encode, encode_with, raw_path};
use common::{Hub, Raw, Rng, SOON, drive, eventually, ms, scaled, secs};
use serde_json::json;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// What must be there again once the attackers are gone.
struct Base {
    n_fds: usize,
    n_connections: f64,
}

impl Base {
    fn of(hub: &Hub) -> Self {
        // A first connection makes the process open what it keeps.
        drop(Cf::connect(hub));
        let n_connections = hub.metric_sum("hubbub_connections");
        assert!(eventually(SOON, || hub.metric_sum("hubbub_http_connections") <= 1.0));
        Self { n_fds: hub.n_fds(), n_connections }
    }

    /// Descriptors and sessions are back; a socket whose peer has sent its FIN is not kept.
    fn is_back_within(&self, hub: &Hub, deadline: Duration) {
        let began = Instant::now();
        let is_back = || {
            hub.n_fds() <= self.n_fds
                && hub.n_sockets_in(CLOSE_WAIT) == 0
                && hub.metric_sum("hubbub_connections") <= self.n_connections
        };
        let back = eventually(deadline, is_back);
        assert!(
            back,
            "{} descriptors (base {}), {} in CLOSE_WAIT, {} connections",
            hub.n_fds(),
            self.n_fds,
            hub.n_sockets_in(CLOSE_WAIT),
            hub.metric_sum("hubbub_connections")
        );
        println!("back at base after {:?}", began.elapsed());
    }
}

/// A client that keeps the rules: everything it is due comes, soon.
struct Witness {
    cf: Cf,
    n_published: usize,
    worst: Duration,
}

impl Witness {
    fn new(hub: &Hub) -> Self {
        Self { cf: Cf::subscribed(hub, &["good"]), n_published: 0, worst: Duration::ZERO }
    }

    fn check(&mut self, hub: &Hub) {
        let began = Instant::now();
        hub.publish("good", self.n_published);
        let publication = self.cf.next_pub(SOON).expect("the good client is served");
        assert_eq!(publication.data, self.n_published.to_string());
        self.n_published += 1;
        self.worst = self.worst.max(began.elapsed());
    }
}

fn no_panics(hub: &Hub) {
    assert_eq!(hub.metric_sum("hubbub_shard_panics_total"), 0.0);
}

/// Each sends its FIN at another moment and keeps its read side open.
#[test]
fn half_closed_connections_are_closed_from_both_ends() {
    let hub = Hub::start();
    let base = Base::of(&hub);
    let n_each = scaled(40, 1_000);
    let upgrade = Dial::new(&hub, cf::PATH).request();
    let before: [&str; 4] = ["", "GET /health HT", &upgrade[..60], &upgrade[..upgrade.len() - 2]];
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut raws: Vec<Raw> = Vec::new();
    for _ in 0..n_each {
        for bytes in before {
            let mut stream = Dial::new(&hub, cf::PATH).connect();
            stream.write_all(bytes.as_bytes()).expect("sent");
            stream.shutdown(Shutdown::Write).expect("a FIN");
            streams.push(stream);
        }
        // Right behind the request, so that the 101 goes to a half-closed socket.
        let mut stream = Dial::new(&hub, cf::PATH).connect();
        stream.write_all(upgrade.as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("a FIN");
        streams.push(stream);
        let fresh = Cf::dial(&hub).raw;
        let mut midway = Cf::connect(&hub).raw;
        midway.send_bytes(&encode(TEXT, b"{\"id\":9,\"publish\":{\"chan")[..20]);
        let subscribed = Cf::subscribed(&hub, &["busy"]).raw;
        let on_raw = Raw::open(&hub, &["busy"]);
        for raw in [fresh, midway, subscribed, on_raw] {
            raw.half_close();
            raws.push(raw);
        }
    }
    // One that has stopped reading, and much to read.
    let stalled = Dial::new(&hub, &raw_path(&["busy"])).rcvbuf(4096).open();
    (0..30).for_each(|_| hub.publish("busy", "x".repeat(10_000)));
    stalled.half_close();
    base.is_back_within(&hub, secs(10));
    no_panics(&hub);
    drop((streams, raws, stalled));
}

#[test]
fn closes_that_are_never_answered_free_everything() {
    let hub = Hub::builder().env("HUB_WRITE_TIMEOUT", "1s").start().wait_ready();
    let base = Base::of(&hub);
    let n_each = scaled(50, 2_500);
    let mut mute = Vec::new();
    for _ in 0..n_each {
        // Closed for a command that is none; the close frame is never read.
        let mut json = Cf::connect(&hub).raw;
        json.send_text("not JSON");
        // The same behind more data than the kernel takes.
        let mut full = Dial::new(&hub, &raw_path(&["busy"])).rcvbuf(4096).open();
        full.answer_pings = false;
        mute.extend([json, full]);
    }
    (0..30).for_each(|_| hub.publish("busy", "x".repeat(10_000)));
    mute.iter_mut().skip(1).step_by(2).for_each(|full| full.send_bytes(&[0x83, 0x80, 0, 0, 0, 0]));
    let began = Instant::now();
    // Three seconds for the closing handshake; two more, and two for a busy machine.
    base.is_back_within(&hub, secs(7));
    let closes = |code| hub.metrics().get(&format!("hubbub_closes_total{{code=\"{code}\"}}"));
    assert_eq!((closes(3501), closes(1002)), (n_each as f64, n_each as f64));
    // Nor does the kernel keep what nobody reads.
    let n_held = || hub.sockets().iter().filter(|socket| socket.state != TIME_WAIT).count();
    let held = || hub.sockets().iter().map(|socket| socket.queued_bytes).sum::<u64>();
    assert!(eventually(secs(20), || held() == 0), "{} bytes of {} sockets", held(), n_held());
    println!("the kernel's part is free after {:?}", began.elapsed());
}

#[test]
fn nothing_behind_a_close_is_obeyed() {
    let hub = Hub::start();
    let mut witness = Witness::new(&hub);
    for close_body in
        [&1000_u16.to_be_bytes()[..], b"", &999_u16.to_be_bytes(), b"x", b"\x03\xe8\xff"]
    {
        let mut cf = Cf::connect(&hub);
        let after = [
            json!({ "id": 900, "subscribe": { "channel": "late" } }),
            json!({ "id": 901, "publish": { "channel": "good", "data": "late" } }),
        ];
        let mut segment = encode(ws::CLOSE, close_body);
        segment.extend(encode(ws::CLOSE, &1000_u16.to_be_bytes()));
        after
            .iter()
            .for_each(|command| segment.extend(encode(TEXT, command.to_string().as_bytes())));
        cf.raw.send_bytes(&segment);
        assert!(cf.next_close(SOON).is_some(), "answered");
        // And later, as long as the hub still reads.
        cf.raw.send_text(&after[1].to_string());
        assert!(cf.raw.wait_eof(SOON));
        assert!(cf.replies.is_empty(), "{:?}", cf.replies);
        witness.check(&hub);
    }
    assert_eq!(hub.metric_sum("hubbub_subscriptions"), 1.0);
    assert_eq!(hub.metric_sum("hubbub_channels"), 1.0);
}

/// A frame with a random head and as many bytes as it declares, or fewer.
fn random_frame(rng: &mut Rng) -> Vec<u8> {
    let n_bytes = [0, 1, 20, 125, 126, 1_000][rng.between(0, 5) as usize];
    let payload: Vec<u8> = (0..n_bytes).map(|_| rng.next() as u8).collect();
    // Mostly legal first bytes, else nothing but the first check would be tried.
    let legal = [0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x88, 0x89, 0x8A];
    let first =
        if rng.between(0, 3) == 0 { rng.next() as u8 } else { legal[rng.between(0, 8) as usize] };
    let mut frame = encode_with(first, &payload);
    if rng.between(0, 3) == 0 {
        let at = rng.between(0, frame.len() as u64 - 1) as usize;
        frame[at] ^= 1 << rng.between(0, 7);
    }
    frame
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let hub = Hub::builder().env("HUB_STALE_TIMEOUT", "1s").start().wait_ready();
    let mut rng = Rng::seeded();
    let mut witness = Witness::new(&hub);
    let base = Base::of(&hub);
    for _ in 0..scaled(20, 400) {
        let mut attackers: Vec<Raw> = Vec::new();
        for i in 0..15 {
            let mut raw = match i % 3 {
                0 => Cf::connect(&hub).raw,
                1 => Cf::dial(&hub).raw,
                _ => Raw::open(&hub, &["good"]),
            };
            for _ in 0..rng.between(1, 12) {
                raw.send_bytes(&random_frame(&mut rng));
            }
            attackers.push(raw);
        }
        // Not even HTTP: bytes, and a TLS hello.
        for _ in 0..5 {
            let mut stream = Dial::new(&hub, "/").connect();
            let bytes: Vec<u8> = (0..rng.between(1, 2_000)).map(|_| rng.next() as u8).collect();
            let _ = stream.write_all(&bytes);
            let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        }
        witness.check(&hub);
        drive(&mut attackers, ms(5), Raw::is_closed);
        for attacker in &mut attackers {
            let close = attacker.next_close(Duration::ZERO);
            assert!(close.as_ref().is_none_or(|close| may_be_sent(close.code)), "{close:?}");
        }
    }
    base.is_back_within(&hub, SOON);
    no_panics(&hub);
    println!(
        "the good client's slowest publication of {}: {:?}",
        witness.n_published, witness.worst
    );
}

/// RFC 6455, 7.4, and IANA's registry: garbage may be a close frame, whose code is echoed.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// A client that writes flat out, as fast as the hub reads, and reads what comes.
struct Flood {
    raw: Raw,
    wave: Vec<u8>,
    at: usize,
}

impl Flood {
    fn new(raw: Raw, wave: Vec<u8>) -> Self {
        Self { raw, wave, at: 0 }
    }

    fn push(&mut self) {
        self.at += self.raw.try_send(&self.wave[self.at..]);
        if self.at == self.wave.len() {
            self.at = 0;
        }
    }

    fn push_and_read(&mut self) {
        self.push();
        self.raw.pump();
        self.raw.frames.clear();
        self.raw.pongs.clear();
    }
}

/// What one flooding client repeats.
fn wave(kind: usize) -> Vec<u8> {
    let mut wave = Vec::new();
    for i in 0..200 {
        let id = 10 + i;
        match kind {
            0 => wave.extend(encode(PING, b"flood")),
            1 => wave.extend(encode(TEXT, json!({ "id": id, "ping": {} }).to_string().as_bytes())),
            2 => {
                let publish = json!({ "id": id, "publish": { "channel": "flood", "data": i } });
                wave.extend(encode(TEXT, publish.to_string().as_bytes()));
            }
            3 => wave.extend(encode(TEXT, b"{}")),
            _ => {
                let name = format!("flip{i}");
                for mut command in [subscribe(&name), unsubscribe(&name)] {
                    command["id"] = json!(id);
                    wave.extend(encode(TEXT, command.to_string().as_bytes()));
                }
            }
        }
    }
    wave
}

#[test]
fn floods_slow_nobody_else_down() {
    let hub = Hub::start();
    let mut witness = Witness::new(&hub);
    let n_floods = scaled(10, 50);
    let open = |i| Flood::new(Cf::connect(&hub).raw, wave(i % 5));
    let mut floods: Vec<Flood> = (0..n_floods).map(open).collect();
    let began = Instant::now();
    let base = hub.anon_bytes();
    let mut n_rounds = 0;
    while began.elapsed() < secs(scaled(2, 30) as u64) {
        floods.iter_mut().for_each(Flood::push_and_read);
        // A wave is at most 20 KB: what the kernels hold of each is the attackers' own.
        if n_rounds % 10 == 0 {
            witness.check(&hub);
        }
        n_rounds += 1;
    }
    let grown = hub.anon_bytes().saturating_sub(base);
    println!(
        "{n_rounds} rounds, {} commands, {} publications checked, slowest {:?}, {grown} bytes more",
        hub.metric_sum("hubbub_commands_total"),
        witness.n_published,
        witness.worst
    );
    assert!(witness.worst < secs(2), "the good client waited for {:?}", witness.worst);
    assert!(grown < (n_floods as u64) << 20, "{grown} bytes more");
    drop(floods);
    let at_base =
        || hub.metric_sum("hubbub_channels") == 1.0 && hub.metric_sum("hubbub_connections") == 1.0;
    assert!(eventually(SOON, at_base), "{} channels", hub.metric_sum("hubbub_channels"));
    no_panics(&hub);
}

/// Floods that never read: the answers pile up until the outbox's bound.
#[test]
fn floods_that_never_read_are_cut_at_the_outbox_bound() {
    let hub = Hub::builder().env("HUB_WRITE_TIMEOUT", "60s").start().wait_ready();
    let mut witness = Witness::new(&hub);
    let open = |kind| {
        let mut cf = Cf::over(Dial::new(&hub, cf::PATH).rcvbuf(4096).open());
        cf.command(json!({ "connect": {} }));
        Flood::new(cf.raw, wave(kind))
    };
    let mut floods: Vec<Flood> = (0..2).map(open).collect();
    let closed = || {
        let metrics = hub.metrics();
        let close = |code| metrics.get(&format!("hubbub_closes_total{{code=\"{code}\"}}"));
        close(3008) + close(3013) + close(3009)
    };
    let ended = eventually(secs(30), || {
        floods.iter_mut().for_each(Flood::push);
        closed() == 2.0
    });
    assert!(ended, "{} closed, {} queued", closed(), hub.metric_sum("hubbub_outbox_bytes"));
    witness.check(&hub);
    no_panics(&hub);
}

/// Names that change all the time leave nothing behind.
#[test]
fn channel_names_that_change_leave_nothing_behind() {
    let hub = Hub::builder().env("HUB_UNSUBSCRIBE_DELAY", "10ms").start().wait_ready();
    let n_rounds = scaled(8, 60);
    let mut grown = Vec::new();
    let mut serial = 0;
    for _ in 0..n_rounds {
        let mut clients: Vec<Cf> = (0..10).map(|_| Cf::connect(&hub)).collect();
        for cf in &mut clients {
            for _ in 0..4 {
                let name = |i| format!("{serial}:{i}:{}", "n".repeat(100));
                let commands = (0..25).map(|i| subscribe(&name(i))).collect();
                serial += 1;
                let ids = cf.send(commands);
                assert!(ids.iter().all(|id| cf.reply(*id, SOON).is_some()));
            }
        }
        drop(clients);
        assert!(eventually(SOON, || hub.metric_sum("hubbub_channels") == 0.0));
        assert!(eventually(SOON, || hub.metric_sum("hubbub_cohorts") <= 4.0));
        grown.push(hub.anon_bytes());
    }
    println!("RssAnon after rounds of 1,000 names: {grown:?}");
    let growth = grown[n_rounds - 1].saturating_sub(grown[n_rounds / 2]);
    assert!(growth < grown[0] / 10, "{growth} bytes more in the second half");
}
