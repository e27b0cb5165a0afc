//! Promise: every subscriber on every node gets each publication of its channels once, in the
//! order Redis had them, byte for byte; and Redis is asked for a channel exactly as long as a node
//! has subscribers of it.

mod common;

use common::ledger::{KINDS, Kind, Ledger, Viewer};
use common::swarm::drive;
use common::{Hub, QUIET, Raw, Redis, Rng, SOON, eventually, scaled, secs};

const N_CHANNELS: usize = 200;
const N_ON_FIRST_ONLY: usize = 20;
const CHANNELS_PER_VIEWER: usize = 5;

struct Plan {
    n_viewers: usize,
    n_publications: usize,
}

/// Every other viewer on the other node, every third one raw.
fn viewers(hubs: [&Hub; 2], channels: &[String], plan: &Plan, rng: &mut Rng) -> Vec<Viewer> {
    let mut viewers = Vec::new();
    for i in 0..plan.n_viewers {
        // The last channels have viewers on the first node only.
        let n_offered = if i % 2 == 0 { N_CHANNELS } else { N_CHANNELS - N_ON_FIRST_ONLY };
        let mut mine: Vec<&str> = vec![&channels[(i / 2) % n_offered]];
        while mine.len() < CHANNELS_PER_VIEWER {
            let channel = &channels[rng.between(0, n_offered as u64 - 1) as usize];
            if !mine.contains(&channel.as_str()) {
                mine.push(channel);
            }
        }
        let hub = hubs[i % 2];
        viewers.push(if i % 3 == 0 { Viewer::raw(hub, &mine) } else { Viewer::cf(hub, &mine) });
    }
    viewers
}

/// Binary and empty ones are rarer; sizes reach over every length form of a frame.
fn draw(rng: &mut Rng) -> (Kind, usize) {
    let kind = match rng.between(0, 9) {
        0 => KINDS[2],
        1 => KINDS[3],
        n => KINDS[(n % 2) as usize],
    };
    let n_bytes = match rng.between(0, 99) {
        0 => 70_000,
        1..20 => 1_000,
        _ => 100,
    };
    (kind, n_bytes)
}

#[test]
fn two_nodes_many_channels_nothing_lost_repeated_or_out_of_order() {
    let plan = Plan { n_viewers: scaled(300, 1_000), n_publications: scaled(4_000, 20_000) };
    let mut rng = Rng::seeded();
    let redis = Redis::start();
    // A thousand viewers are read by one thread, at full size for longer than the defaults allow
    // a client to take nothing.
    let node = || {
        let patient = Hub::builder().redis(&redis).env("HUB_WRITE_TIMEOUT", "60s");
        patient.env("HUB_PONG_TIMEOUT", "24s").start().wait_ready()
    };
    let (a, b) = (node(), node());
    let channels: Vec<String> = (0..N_CHANNELS).map(|i| format!("tile{i}")).collect();
    let mut viewers = viewers([&a, &b], &channels, &plan, &mut rng);

    let watched = |channel: &String, on: usize| {
        viewers.iter().skip(on).step_by(2).any(|viewer| viewer.channels().contains(channel))
    };
    for channel in &channels {
        let n_nodes = i64::from(watched(channel, 0)) + i64::from(watched(channel, 1));
        assert_eq!(redis.numsub(channel), n_nodes, "one subscription per node: {channel}");
    }

    let mut ledger = Ledger::new();
    let mut script = Vec::new();
    for _ in 0..plan.n_publications {
        let channel = &channels[rng.between(0, N_CHANNELS as u64 - 1) as usize];
        let (kind, n_bytes) = draw(&mut rng);
        script.push((channel.as_str(), ledger.next(channel, kind, n_bytes)));
    }
    let mut resp = redis.client();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            resp.publish_all(script.iter().map(|(channel, payload)| (*channel, &payload[..])))
        });
        ledger.read_all(&mut viewers, secs(60));
    });
    drive(&mut viewers, QUIET, |_| false);
    ledger.assert_complete(&viewers);

    drop(viewers);
    let left = || redis.channels("tile*");
    assert!(eventually(SOON, || left().is_empty()), "still subscribed: {:?}", left());
    for hub in [&a, &b] {
        assert_eq!(hub.metric_sum("hubbub_gaps_total"), 0.0);
        assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == 0.0));
    }
}

#[test]
fn one_channel_in_order_whoever_publishes() {
    // Three ways in at once; each author's own order must survive on every node.
    let n_each = scaled(200, 2_000);
    let redis = Redis::start();
    let (a, b) = (Hub::on(&redis), Hub::builder().redis(&redis).env("HUB_COMMAND_RATE", "off"));
    let b = b.start().wait_ready();
    let mut viewers = [
        Viewer::cf(&a, &["c"]),
        Viewer::cf(&b, &["c"]),
        Viewer::raw(&a, &["c"]),
        Viewer::raw(&b, &["c"]),
    ];
    let all = |viewer: &Viewer| viewer.n_received() >= 3 * n_each;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..n_each).for_each(|i| a.publish("c", format!("api {i}"))));
        scope.spawn(|| {
            let mut cf = common::Cf::connect(&b);
            for i in 0..n_each {
                let data = format!("client {i}");
                let command = serde_json::json!({ "publish": { "channel": "c", "data": data } });
                assert!(cf.command(command)["publish"].is_object());
            }
        });
        scope.spawn(|| {
            let mut resp = redis.client();
            (0..n_each).for_each(|i| _ = resp.publish("c", format!("\"redis {i}\"").as_bytes()));
        });
        assert!(drive(&mut viewers, secs(60), all), "all of them arrive");
    });
    drive(&mut viewers, QUIET, |_| false);
    let orders: Vec<Vec<String>> = viewers.iter().map(texts).collect();
    for order in &orders {
        assert!(*order == orders[0], "one order for all, on both nodes");
    }
    for author in ["api", "client", "redis"] {
        let mine = orders[0].iter().filter_map(|text| text.strip_prefix(&format!("\"{author} ")));
        let expected = (0..n_each).map(|i| format!("{i}\""));
        assert!(mine.map(str::to_owned).eq(expected), "{author}: its own order, each once");
    }
}

/// The broker thread rests under load, and only then: nothing that gathers meanwhile is lost.
#[test]
fn what_gathers_while_the_broker_rests_comes_whole_and_in_order() {
    const N_SESSIONS: usize = 600;
    const PIPELINED: usize = 8;
    const PER_ROUND: usize = 100 * PIPELINED;
    let redis = Redis::start();
    let hub = Hub::builder().redis(&redis).env("HUB_SHARDS", 1).start().wait_ready();
    let mut raws: Vec<Raw> = (0..N_SESSIONS).map(|_| Raw::open(&hub, &["c"])).collect();
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == N_SESSIONS as f64));
    let rested = || hub.metric_sum("hubbub_broker_rested_seconds_total");

    let mut resp = redis.client();
    let mut n = 0;
    resp.publish("c", b"0");
    assert!(drive(&mut raws, SOON, |raw| raw.frames.len() == 1));
    assert_eq!(rested(), 0.0, "one alone waits for nobody");
    let has_rested = eventually(secs(90), || {
        let texts: Vec<String> = (n + 1..=n + PER_ROUND).map(|i| i.to_string()).collect();
        for texts in texts.chunks(PIPELINED) {
            resp.publish_all(texts.iter().map(|text| ("c", text.as_bytes())));
        }
        n += PER_ROUND;
        assert!(drive(&mut raws, secs(30), |raw| raw.frames.len() == n + 1), "all arrive");
        rested() > 0.0
    });
    assert!(has_rested, "not in {n} publications");
    for raw in &raws {
        let numbers = raw.frames.iter().map(|frame| frame.text().parse::<usize>());
        assert!(numbers.eq((0..=n).map(Ok)), "each once, in order");
    }
}

fn texts(viewer: &Viewer) -> Vec<String> {
    match viewer {
        Viewer::Cf { cf, .. } => {
            cf.pubs.iter().map(|publication| publication.data.clone()).collect()
        }
        Viewer::Raw { raw, .. } => raw.frames.iter().map(|frame| frame.text().to_owned()).collect(),
    }
}

#[test]
fn a_second_subscriber_costs_redis_nothing_and_the_last_one_takes_all_with_it() {
    let redis = Redis::start();
    let hub = Hub::builder().redis(&redis).env("HUB_UNSUBSCRIBE_DELAY", "300ms").start();
    let hub = hub.wait_ready();
    assert_eq!(redis.numsub("c"), 0);
    let first = common::Cf::subscribed(&hub, &["c"]);
    assert_eq!(redis.numsub("c"), 1);
    let second = common::Raw::open(&hub, &["c"]);
    assert_eq!(redis.numsub("c"), 1, "one subscription per node");
    drop(first);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == 1.0));
    assert_eq!(redis.numsub("c"), 1, "somebody is left");
    drop(second);
    assert!(eventually(SOON, || redis.numsub("c") == 0), "nobody is left");
}

#[test]
fn a_prefix_separates_two_environments() {
    let redis = Redis::start();
    let with = |prefix: &str| {
        let builder = Hub::builder().redis(&redis).env("HUB_REDIS_PREFIX", prefix);
        builder.start().wait_ready()
    };
    let (blue, green) = (with("blue:"), with("green:"));
    let mut on_blue = common::Cf::subscribed(&blue, &["c"]);
    let mut on_green = common::Cf::subscribed(&green, &["c"]);
    assert_eq!(redis.numsub("blue:c"), 1);
    assert_eq!(redis.numsub("c"), 0);
    blue.publish("c", 1);
    redis.publish("green:c", "2");
    assert_eq!(on_blue.next_pub(SOON).expect("its own").data, "1");
    assert_eq!(on_green.next_pub(SOON).expect("its own").data, "2");
    assert!(on_blue.stays_quiet(QUIET) && on_green.stays_quiet(QUIET), "nothing crosses");
    let outside: Vec<String> = redis.channels("*");
    let outside = outside.iter().filter(|c| !c.starts_with("blue:") && !c.starts_with("green:"));
    assert_eq!(outside.count(), 0, "{:?}", redis.channels("*"));
}
