//! Promise: whoever subscribes with delta makes of what it gets, byte for byte, what everybody else
//! gets, whenever it came and whatever was published in between; and a patch is made once.

mod common;

use common::cf::{Cf, unsubscribe};
use common::{Hub, Pub, QUIET, Raw, Redis, Rng, SOON, eventually};
use hubbub::fossil;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;

/// `d:` has delta, `h:` has history too, `r:` recovers, `c:` shows its newest, `p:` has none of it.
const NAMESPACES: &str = r#"
[namespaces.d]
delta = true
[namespaces.h]
delta = true
history_size = 10
history_ttl = "60s"
[namespaces.r]
delta = true
history_size = 10
history_ttl = "60s"
recovery = "stream"
[namespaces.c]
delta = true
recovery = "cache"
[namespaces.p]
"#;

struct Place {
    redis: Redis,
    hub: Hub,
    _namespaces: tempfile::NamedTempFile,
}

fn place() -> Place {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    let redis = Redis::start();
    let hub = Hub::builder().redis(&redis).env("HUB_CONFIG", file.path().display());
    Place { redis, hub: hub.start().wait_ready(), _namespaces: file }
}

/// A client with delta, that keeps the last text of each channel.
struct Patched {
    cf: Cf,
    texts: HashMap<String, Vec<u8>>,
    n_patches: u64,
}

impl Patched {
    fn connect(hub: &Hub) -> Self {
        Self { cf: Cf::connect(hub), texts: HashMap::new(), n_patches: 0 }
    }

    fn subscribed(hub: &Hub, channel: &str) -> Self {
        let mut patched = Self::connect(hub);
        patched.subscribe(channel);
        patched
    }

    fn subscribe(&mut self, channel: &str) {
        let reply = self.cf.command(subscribe(channel));
        assert_eq!(reply["subscribe"]["delta"], true, "{reply}");
        self.texts.remove(channel);
    }

    /// The text of the next publication; a patch of what isn't there fails.
    fn next(&mut self) -> String {
        let Pub { channel, body, .. } = self.cf.next_pub(SOON).expect("a publication");
        self.take(&channel, &body)
    }

    fn take(&mut self, channel: &str, body: &Value) -> String {
        let data = body["data"].as_str().expect("a string").as_bytes();
        let text = match body.get("delta") {
            Some(delta) => {
                assert_eq!(*delta, true);
                self.n_patches += 1;
                let base = self.texts.get(channel).expect("the first one is whole");
                fossil::apply(base, data).expect("a patch of what came before")
            }
            None => data.to_vec(),
        };
        self.texts.insert(channel.to_owned(), text.clone());
        String::from_utf8(text).expect("UTF-8")
    }
}

fn subscribe(channel: &str) -> Value {
    json!({ "subscribe": { "channel": channel, "delta": "fossil", "flag": 1 } })
}

/// Long enough for a patch to be shorter.
fn quote(n: u64) -> String {
    format!("{{\"symbol\":\"EURUSD\",\"name\":\"Euro and US dollar\",\"price\":{n}}}")
}

#[test]
fn everyone_gets_the_same_whenever_it_came() {
    let place = place();
    let (redis, hub) = (&place.redis, &place.hub);
    let mut plain = Cf::subscribed(hub, &["d:a"]);
    let mut raw = Raw::open(hub, &["d:a"]);
    let mut patched = vec![Patched::subscribed(hub, "d:a")];
    for n in 0..40 {
        if n % 4 == 3 {
            patched.push(Patched::subscribed(hub, "d:a"));
        }
        redis.publish("d:a", quote(n));
        assert_eq!(plain.next_pub(SOON).expect("delivered").data, quote(n));
        assert_eq!(raw.next_data(SOON).expect("delivered").text(), quote(n));
        patched.iter_mut().for_each(|patched| assert_eq!(patched.next(), quote(n)));
    }
    for (at, patched) in patched[1..].iter().enumerate() {
        assert_eq!(patched.n_patches, 36 - 4 * at as u64, "all but the first are patches");
    }
    let n_patches = patched[0].n_patches as f64;
    let made = || hub.metric_sum("hubbub_patches_total");
    assert!(eventually(SOON, || made() >= n_patches));
    assert_eq!(made(), n_patches, "one a publication, on whatever shard");
    let metrics = hub.metrics();
    let (small, full) = ("hubbub_patch_bytes_total", "hubbub_patched_bytes_total");
    assert!(3.0 * metrics.sum(small) < metrics.sum(full), "worth it");
    assert!(metrics.get("hubbub_chain_bytes") > 0.0);
}

#[test]
fn what_is_awkward_leaves_the_base_right() {
    let place = place();
    let (redis, hub) = (&place.redis, &place.hub);
    let mut plain = Cf::subscribed(hub, &["d:a"]);
    let mut patched = Patched::subscribed(hub, "d:a");
    let large = format!("[{}0]", "123456789,".repeat(9_000));
    let payloads: Vec<Vec<u8>> = [
        &b"\xff not UTF-8 before the first"[..],
        quote(1).as_bytes(),
        b"\xff\x00not UTF-8",
        quote(2).as_bytes(),
        b"text that is no JSON, and \"quoted\"",
        b"text that is no JSON, and \"quoted\" again",
        b"",
        b"{\n \"line\": \"breaks\",\r\n \"and\": \"tabs\tand more\"\n}",
        b"{\n \"line\": \"breaks\",\r\n \"and\": \"tabs are\\t escaped\"\n}",
        "[\"ééééééééééééééééé\",\"😀😀😀😀😀😀😀\"]".as_bytes(),
        "[\"éééééèééééééééééé\",\"😀😀😀😁😀😀😀\"]".as_bytes(),
        large.as_bytes(),
        large.replace("0]", "1]").as_bytes(),
        quote(3).as_bytes(),
        quote(3).as_bytes(),
        b"7",
        b"8",
        quote(4).as_bytes(),
    ]
    .map(<[u8]>::to_vec)
    .into();
    for payload in &payloads {
        redis.publish("d:a", payload);
    }
    for _ in payloads.iter().filter(|payload| std::str::from_utf8(payload).is_ok()) {
        assert_eq!(patched.next(), plain.next_pub(SOON).expect("delivered").data);
    }
    assert!(plain.stays_quiet(QUIET) && patched.cf.stays_quiet(QUIET));
    assert!(patched.n_patches > 0);
}

#[test]
fn positions_and_tags_come_with_a_patch() {
    let place = place();
    let hub = &place.hub;
    let mut patched = Patched::subscribed(hub, "h:a");
    // The broker hears of the first subscriber with delta when it can: so long they are whole.
    for n in 1..100 {
        let data = json!({ "long enough to be patched": n });
        let body = json!({ "channel": "h:a", "data": data, "tags": { "k": "v" } });
        assert!(hub.api("publish", &body).is_result());
        let seen = patched.cf.next_pub(SOON).expect("delivered").body;
        assert_eq!((&seen["offset"], &seen["tags"]["k"]), (&json!(n), &json!("v")), "{seen}");
        if n > 1 && seen["delta"] == true {
            return;
        }
        assert_eq!(seen["data"], data.to_string());
    }
    panic!("no patch");
}

#[test]
fn only_where_it_is_on_and_asked_for() {
    let place = place();
    let hub = &place.hub;
    let mut cf = Cf::connect(hub);
    let reply = cf.command(subscribe("p:a"));
    assert_eq!(reply["subscribe"], json!({}), "delta isn't on there");
    hub.publish("p:a", json!([1]));
    assert_eq!(cf.next_pub(SOON).expect("delivered").data, "[1]");
    let mut filtered = subscribe("d:a");
    filtered["subscribe"]["tf"] = json!({ "key": "k", "cmp": "eq", "val": "v" });
    assert_eq!(cf.error(filtered)["code"], 107, "no filter beside delta");
    cf.subscribe("d:a");
    assert_eq!(cf.error(subscribe("d:a"))["code"], 105, "it is subscribed");
    hub.publish("d:a", json!([2]));
    assert_eq!(cf.next_pub(SOON).expect("delivered").data, "[2]");
    assert_eq!(hub.metric_sum("hubbub_chain_bytes"), 0.0, "nobody asked for it");
}

#[test]
fn a_wish_in_one_frame_with_others_takes_effect_in_order() {
    let place = place();
    let (redis, hub) = (&place.redis, &place.hub);
    let mut patched = Patched::connect(hub);
    let plain = common::cf::subscribe("d:a");
    let ids = patched.cf.send(vec![plain, unsubscribe("d:a"), subscribe("d:a")]);
    let delta =
        |cf: &mut Cf, id| cf.reply(id, SOON).expect("a reply")["subscribe"]["delta"].clone();
    assert_eq!(delta(&mut patched.cf, ids[0]), Value::Null);
    assert_eq!(delta(&mut patched.cf, ids[2]), true);
    for n in 0..3 {
        redis.publish("d:a", quote(n));
        assert_eq!(patched.next(), quote(n));
    }
}

/// The first of those that were missed is whole, and so is the first that comes live after them.
#[test]
fn what_was_missed_comes_as_patches_too() {
    let place = place();
    let hub = &place.hub;
    let publish = |n: u64| {
        let data: Value = serde_json::from_str(&quote(n)).expect("JSON");
        common::past::publish(hub, "r:a", data)
    };
    let mut stays = Patched::subscribed(hub, "r:a");
    let had = publish(0);
    (1..6).for_each(|n| drop(publish(n)));
    let texts: Vec<String> = (0..6).map(|_| stays.next()).collect();
    let mut back = Patched::connect(hub);
    let mut ask = common::past::recover("r:a", &had);
    ask["subscribe"]["delta"] = json!("fossil");
    let reply = back.cf.command(ask)["subscribe"].clone();
    assert_eq!((&reply["delta"], &reply["recovered"]), (&json!(true), &json!(true)), "{reply}");
    let missed = reply["publications"].as_array().expect("publications");
    let missed: Vec<String> = missed.iter().map(|body| back.take("r:a", body)).collect();
    assert_eq!(missed, texts[1..]);
    assert_eq!(back.n_patches, 4);
    for n in 6..9 {
        publish(n);
        assert_eq!(back.next(), stays.next());
    }
    assert_eq!(back.n_patches, 6, "the first one live is whole");
    let mut newest = Patched::subscribed(hub, "c:a");
    for n in 0..3 {
        place.redis.publish("c:a", quote(n));
        assert_eq!(newest.next(), quote(n));
    }
    let mut late = Patched::connect(hub);
    let reply = late.cf.command(subscribe("c:a"))["subscribe"].clone();
    assert_eq!(late.take("c:a", &reply["publications"][0]), quote(2), "{reply}");
    for n in 3..5 {
        place.redis.publish("c:a", quote(n));
        assert_eq!(late.next(), quote(n));
    }
}

/// Many clients come, go and come again while values change a little, or altogether.
#[test]
fn random_comings_and_goings() {
    let mut rng = Rng::seeded();
    let place = place();
    let (redis, hub) = (&place.redis, &place.hub);
    let channels = ["d:a", "d:b", "h:c"];
    let mut plain = Cf::subscribed(hub, &channels);
    let mut clients: Vec<(Patched, Vec<&str>)> =
        (0..8).map(|_| (Patched::connect(hub), Vec::new())).collect();
    let mut values = vec![0u64; 60];
    for _ in 0..400 {
        let channel = channels[rng.between(0, 2) as usize];
        match rng.between(0, 9) {
            0..=2 => {
                let at = rng.between(0, clients.len() as u64 - 1) as usize;
                let (patched, has) = &mut clients[at];
                if let Some(at) = has.iter().position(|it| *it == channel) {
                    has.swap_remove(at);
                    patched.cf.unsubscribe(channel);
                } else {
                    has.push(channel);
                    patched.subscribe(channel);
                }
            }
            dice => {
                let at = rng.between(0, 59) as usize;
                values[at] = rng.next() >> rng.between(0, 60);
                let text = match dice {
                    3 => json!(rng.next()).to_string(),
                    4 => format!("no JSON: {values:?}"),
                    5 => json!({ "é": values, "n": "😀".repeat(at) }).to_string(),
                    _ => json!({ "values": values }).to_string(),
                };
                if dice == 6 {
                    redis.publish(channel, [b"\xff", text.as_bytes()].concat());
                }
                redis.publish(channel, &text);
                let expected = plain.next_pub(SOON).expect("delivered");
                assert_eq!(expected.channel, channel);
                for (patched, has) in &mut clients {
                    if has.contains(&channel) {
                        assert!(patched.next() == expected.data, "on {channel}");
                    }
                }
            }
        }
    }
    let n_patches: u64 = clients.iter().map(|(patched, _)| patched.n_patches).sum();
    assert!(n_patches > 50, "{n_patches}");
}
