//! Promise: new rules for channels that are open leave nobody with a wrong picture: a namespace that stops
//! to keep history says so to those who rely on it, and nobody "recovers" what was never kept.

mod common;

use common::cf::{Cf, subscribe};
use common::past::{publish_each, recover, result};
use common::{Hub, SOON, eventually};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

const KEEPS: &str = "history_size = 10\nhistory_ttl = \"60s\"\nrecovery = \"stream\"\n";

fn write(file: &NamedTempFile, keys: &str) {
    let text = format!("[namespaces.x]\nsubscribe = \"anyone\"\n{keys}");
    std::fs::write(file.path(), text).expect("written");
}

#[test]
fn a_namespace_stops_to_keep_history() {
    let file = NamedTempFile::new().expect("a temporary file");
    write(&file, KEEPS);
    let hub = Hub::builder().env("HUB_CONFIG", file.path().display()).start().wait_ready();
    let mut stays = Cf::connect(&hub);
    stays.command(subscribe("x:a"));
    let had = publish_each(&hub, "x:a", 1..=3);
    stays.wait(SOON, |cf| cf.pubs.len() == 3);

    write(&file, "");
    hub.signal(libc::SIGHUP);
    let is_plain = || {
        let ask = json!({ "channel": "x:a", "data": "missed" });
        result(&hub, "publish", ask)["offset"].is_null()
    };
    assert!(eventually(SOON, is_plain), "the new rules count");

    let told = stays.next_push(SOON).expect("who is subscribed is told");
    assert_eq!(told["push"]["unsubscribe"]["code"], 2500, "{told}");
    for cf in [&mut stays, &mut Cf::connect(&hub)] {
        let reply = cf.command(recover("x:a", &had))["subscribe"].clone();
        assert_eq!((&reply["recovered"], &reply["recoverable"]), (&Value::Null, &Value::Null));
    }
}

/// Patches are of use only to who got the value before, and a channel that was opened to conflate goes on
/// to.
#[test]
fn a_channel_that_conflates_gets_no_patches_from_a_reload() {
    let file = NamedTempFile::new().expect("a temporary file");
    write(&file, "slow_consumer = \"conflate\"\n");
    // On another shard it would be opened under the new ones.
    let hub = Hub::builder().env("HUB_CONFIG", file.path().display()).env("HUB_SHARDS", 1);
    let hub = hub.start().wait_ready();
    let mut stays = Cf::subscribed(&hub, &["x:a"]);
    write(&file, "delta = true\n");
    hub.signal(libc::SIGHUP);
    let mut asks = Cf::connect(&hub);
    let mut is_patched = |channel: &str| {
        let ask = json!({ "subscribe": { "channel": channel, "delta": "fossil" } });
        asks.command(ask)["subscribe"]["delta"] == true
    };
    let mut n = 0;
    let counts = eventually(SOON, || {
        n += 1;
        is_patched(&format!("x:{n}"))
    });
    assert!(counts, "the new rules count");
    assert!(!is_patched("x:a"));
    hub.publish("x:a", json!({ "n": 1 }));
    for cf in [&mut stays, &mut asks] {
        assert_eq!(cf.next_pub(SOON).expect("delivered").data, r#"{"n":1}"#);
    }
}
