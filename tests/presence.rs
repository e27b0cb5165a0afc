//! Promise: who is in a channel can be asked, and is told to those who are to know, alike with both
//! brokers and on every node. What only Redis can do to it is in `presence_redis`.

mod common;

use common::cf::Cf;
use common::crowd::{Crowd, Guest, counts, guest, here, member, raw, token_with, users, watcher};
use common::past::{code, result};
use common::{QUIET, Rng, SOON, drive, eventually, secs};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Runs a contract on both brokers.
fn on_both(contract: impl Fn(&Crowd)) {
    contract(&Crowd::memory_with(|builder| builder));
    contract(&Crowd::redis());
}

fn presence(channel: &str) -> Value {
    json!({ "presence": { "channel": channel } })
}

fn stats(channel: &str) -> Value {
    json!({ "presence_stats": { "channel": channel } })
}

#[test]
fn who_is_here_is_the_same_for_everybody() {
    on_both(|place| {
        let (a, b) = (&place.a, place.b());
        assert_eq!(result(a, "presence", json!({ "channel": "p:a" })), json!({ "presence": {} }));
        let zeros = json!({ "num_clients": 0, "num_users": 0 });
        assert_eq!(result(b, "presence_stats", json!({ "channel": "p:a" })), zeros);
        let mut first = member(a, "42", "p:a");
        let again = member(b, "42", "p:a");
        let other = member(b, "7", "p:a");
        let nobody = [member(a, "", "p:a"), member(b, "", "p:a")];
        let _elsewhere = member(a, "42", "p:b");
        let expected: BTreeMap<String, String> =
            [(&first, "42"), (&again, "42"), (&other, "7"), (&nobody[0], ""), (&nobody[1], "")]
                .map(|(guest, user)| (guest.client.clone(), user.to_owned()))
                .into();
        for hub in [a, b] {
            // Another node's are there once they are written, a moment later.
            assert!(eventually(SOON, || here(hub, "p:a") == expected), "{:?}", here(hub, "p:a"));
            assert_eq!(counts(hub, "p:a"), (5, 3));
        }
        let reply = first.cf.command(presence("p:a"));
        assert_eq!(users(&reply["presence"]), expected, "{reply}");
        let info = &reply["presence"]["presence"][&other.client];
        let name = json!({ "name": "user 7" });
        assert_eq!(*info, json!({ "user": "7", "client": other.client, "conn_info": name }));
        let reply = first.cf.command(stats("p:a"));
        assert_eq!(reply["presence_stats"], json!({ "num_clients": 5, "num_users": 3 }));
        // Whoever goes is gone before it is told so.
        first.cf.unsubscribe("p:a");
        assert_eq!(counts(a, "p:a"), (4, 3));
        first.cf.subscribe("p:a");
        assert_eq!(counts(a, "p:a"), (5, 3));
        let reply = first.cf.command(presence("p:a"));
        assert_eq!(users(&reply["presence"]), expected);
        drop((first, again, other, nobody));
        for hub in [a, b] {
            assert!(eventually(SOON, || counts(hub, "p:a") == (0, 0)));
            assert_eq!(here(hub, "p:a").len(), 0);
        }
    });
}

#[test]
fn who_subscribes_and_leaves_at_once_is_not_here() {
    on_both(|place| {
        let mut flips = guest(&place.a, "42");
        let mut asks = guest(place.b(), "7");
        for _ in 0..10 {
            flips.cf.subscribe("p:a");
            flips.cf.unsubscribe("p:a");
        }
        assert_eq!(counts(&place.a, "p:a"), (0, 0));
        let none = json!({ "num_clients": 0, "num_users": 0 });
        assert!(eventually(SOON, || asks.cf.command(stats("p:a"))["presence_stats"] == none));
        // All in one frame: the answer is that to what came before it.
        let subscribe = json!({ "subscribe": { "channel": "p:a" } });
        let unsubscribe = json!({ "unsubscribe": { "channel": "p:a" } });
        let asked = [subscribe.clone(), stats("p:a"), unsubscribe, subscribe, stats("p:a")];
        let ids = flips.cf.send(asked.to_vec());
        let replies: Vec<Value> =
            ids.iter().map(|id| flips.cf.reply(*id, SOON).expect("answered")).collect();
        assert_eq!(replies[4]["presence_stats"]["num_clients"], 1, "{replies:?}");
        assert_eq!(counts(&place.a, "p:a"), (1, 1));
    });
}

#[test]
fn raw_subscribers_are_here_too() {
    on_both(|place| {
        let one = raw(&place.a, "42", &["p:a", "all:a"]);
        let mut other = raw(place.b(), "42", &["p:a", "all:a"]);
        for hub in [&place.a, place.b()] {
            assert!(eventually(SOON, || counts(hub, "p:a") == (2, 1)));
            let users: BTreeSet<String> = here(hub, "all:a").into_values().collect();
            assert_eq!(users, BTreeSet::from(["42".to_owned()]));
        }
        // They get payloads, and nothing else.
        assert!(other.stays_quiet(QUIET), "{:?}", other.frames);
        drop(one);
        assert!(eventually(SOON, || counts(place.b(), "p:a") == (1, 1)));
    });
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    on_both(|place| {
        let mut asks = guest(&place.a, "42");
        for method in ["presence", "presence_stats"] {
            let ask = |channel: &str| json!({ "channel": channel });
            assert_eq!(code(&place.a, method, ask("off:a")), 108);
            assert_eq!(code(&place.a, method, ask("told:a")), 108, "only told");
            assert_eq!(code(&place.a, method, ask("nowhere:a")), 102);
            assert_eq!(code(&place.a, method, ask("")), 107);
            assert_eq!(code(&place.a, method, json!({})), 107);
            for (channel, expected) in [("off:a", 108), ("told:a", 108), ("nowhere:a", 102)] {
                let error = asks.cf.error(json!({ method: ask(channel) }));
                assert_eq!(error["code"], expected, "{method} {channel}");
            }
            let error = asks.cf.error(json!({ method: ask("p:a b") }));
            assert_eq!(error["code"], 107, "{method}");
        }
    });
}

#[test]
fn clients_may_ask_what_their_namespace_lets_them() {
    let place = Crowd::memory_with(|builder| {
        builder.without_dev().env("HUB_ALLOW_ANONYMOUS", true).env("HUB_API_KEY", "key")
    });
    let mut user = guest(&place.a, "42");
    let mut nobody = guest(&place.a, "");
    for ask in [presence, stats] {
        let is_answered =
            |reply: Value| reply["presence"].is_object() || reply["presence_stats"].is_object();
        assert!(is_answered(user.cf.command(ask("p:a"))));
        assert_eq!(nobody.cf.error(ask("p:a"))["code"], 103, "for users");
        assert_eq!(user.cf.error(ask("on:a"))["code"], 103, "for subscribers");
        assert!(is_answered(nobody.cf.command(ask("all:a"))));
        user.cf.subscribe("on:a");
        assert!(is_answered(user.cf.command(ask("on:a"))));
        user.cf.unsubscribe("on:a");
    }
}

#[test]
fn joins_and_leaves_go_to_those_who_asked() {
    on_both(|place| {
        let mut watches = watcher(&place.a, "1", "on:a");
        let own = watches.client.clone();
        watches.is_told("join", &own);
        let silent = member(&place.a, "2", "on:a");
        watches.is_told("join", &silent.client);
        let mut comes = watcher(place.b(), "3", "on:a");
        let (what, info) = watches.told(SOON).expect("told");
        let name = json!({ "name": "user 3" });
        let expected = json!({ "user": "3", "client": comes.client, "conn_info": name });
        assert_eq!((&*what, info), ("join", expected));
        let own = comes.client.clone();
        comes.is_told("join", &own);
        // In its place among the publications: who hears of somebody hears what it says after that.
        comes.cf.command(json!({ "publish": { "channel": "on:a", "data": 1 } }));
        comes.cf.unsubscribe("on:a");
        watches.is_told("leave", &comes.client);
        assert!(watches.cf.next_pub(SOON).is_some());
        let frames = watches.cf.log.iter().map(|frame| &*frame.text).collect::<String>();
        let at = |what: &str| frames.rfind(what).unwrap_or_else(|| panic!("{what}: {frames}"));
        assert!(at("\"join\"") < at("\"pub\""), "{frames}");
        assert!(at("\"pub\"") < at("\"leave\""), "{frames}");
        silent.cf.raw.half_close();
        watches.is_told("leave", &silent.client);
        assert!(silent.cf.pushes.is_empty(), "{:?}", silent.cf.pushes);
        assert!(comes.told(QUIET).is_none(), "not of its own leave");
        assert!(watches.told(QUIET).is_none());
    });
}

#[test]
fn joins_and_leaves_are_forced_on_all() {
    on_both(|place| {
        for channel in ["all:a", "told:a"] {
            let mut first = member(&place.a, "1", channel);
            let own = first.client.clone();
            first.is_told("join", &own);
            let second = member(place.b(), "2", channel);
            first.is_told("join", &second.client);
            // The reply comes before its own join.
            let frames: String = second.cf.log.iter().map(|frame| &*frame.text).collect();
            let reply = frames.find("\"subscribe\"").expect("replied");
            assert!(frames.find("\"join\"").is_none_or(|join| reply < join), "{frames}");
            let raw = raw(place.b(), "3", &[channel]);
            let (what, info) = first.told(SOON).expect("told");
            assert_eq!((&*what, &info["user"]), ("join", &json!("3")));
            drop(raw);
            first.is_told("leave", info["client"].as_str().expect("a client"));
            drop(second.cf);
            first.is_told("leave", &second.client);
        }
    });
}

/// Of the token or by the API: they are members as the others are.
#[test]
fn whoever_is_served_is_here() {
    on_both(|place| {
        let mut served = Cf::dial(&place.a);
        let token = token_with(&json!({ "sub": "42", "channels": ["all:a"] }));
        let reply = served.command(json!({ "connect": { "token": token } }));
        assert!(reply["connect"]["subs"]["all:a"].is_object(), "{reply}");
        let client = reply["connect"]["client"].as_str().expect("a client").to_owned();
        let mut served = Guest { cf: served, client };
        let own = served.client.clone();
        served.is_told("join", &own);
        assert_eq!(here(&place.a, "all:a"), BTreeMap::from([(own.clone(), "42".to_owned())]));
        let mut watches = watcher(place.b(), "w", "on:a");
        let watcher = watches.client.clone();
        watches.is_told("join", &watcher);
        let body = json!({ "user": "42", "channel": "on:a" });
        result(place.b(), "subscribe", body.clone());
        watches.is_told("join", &own);
        result(place.b(), "unsubscribe", body);
        watches.is_told("leave", &own);
        result(place.b(), "disconnect", json!({ "user": "42" }));
        assert!(eventually(SOON, || counts(place.b(), "all:a") == (0, 0)));
    });
}

#[test]
fn only_those_who_asked_pay() {
    on_both(|place| {
        let mut plain = Cf::subscribed(&place.a, &["on:a", "p:a"]);
        let mut watches = watcher(&place.a, "1", "p:a");
        member(place.b(), "2", "on:a");
        member(place.b(), "2", "p:a");
        for cf in [&mut plain, &mut watches.cf] {
            assert!(cf.next_push(QUIET).is_none());
        }
    });
}

/// Each of them is told of once, by whatever it went.
#[test]
fn whoever_goes_is_gone() {
    on_both(|place| {
        let mut watches = watcher(&place.a, "1", "on:a");
        let own = watches.client.clone();
        watches.is_told("join", &own);
        let mut gone = BTreeSet::new();
        let mut expect = |watches: &mut Guest, client: &str| {
            watches.is_told("leave", client);
            assert!(gone.insert(client.to_owned()), "once");
        };
        let comes = |watches: &mut Guest, user: &str| {
            let guest = member(place.b(), user, "on:a");
            watches.is_told("join", &guest.client);
            guest
        };
        let resets = comes(&mut watches, "2");
        resets.cf.raw.reset();
        expect(&mut watches, &resets.client);
        let mut misbehaves = comes(&mut watches, "3");
        misbehaves.cf.raw.send_text("no JSON");
        assert!(misbehaves.cf.next_close(SOON).is_some());
        expect(&mut watches, &misbehaves.client);
        let mut closes = comes(&mut watches, "4");
        closes.cf.raw.send_frame(8, &1000u16.to_be_bytes());
        closes.cf.raw.send_frame(8, &1000u16.to_be_bytes());
        expect(&mut watches, &closes.client);
        assert!(eventually(SOON, || counts(place.b(), "on:a") == (1, 1)));
        assert!(watches.told(QUIET).is_none(), "none of them twice");
    });
}

/// Scenario 48, and 40.
#[test]
fn whoever_vanishes_is_gone_within_ping_and_pong() {
    let place = Crowd::memory_with(|builder| {
        builder.env("HUB_PING_INTERVAL", "1s").env("HUB_PONG_TIMEOUT", "500ms")
    });
    let mut watches = watcher(&place.a, "1", "on:a");
    let mut sleeps = member(&place.a, "2", "on:a");
    sleeps.cf.answer_pings = false;
    let (what, _) = watches.told(SOON).expect("its own");
    assert_eq!(what, "join");
    watches.is_told("join", &sleeps.client);
    // It answers pings all the while.
    let (what, info) = watches.told(secs(7)).expect("told");
    assert_eq!((&*what, &info["client"]), ("leave", &json!(sleeps.client)));
    assert_eq!(counts(&place.a, "on:a"), (1, 1));
}

#[test]
fn a_shard_that_panics_takes_its_members_along() {
    on_both(|place| {
        let hub = place.b();
        let mut members: Vec<_> = (0..8).map(|n| member(hub, &n.to_string(), "on:a")).collect();
        assert!(eventually(SOON, || counts(&place.a, "on:a").0 == 8));
        members[0].cf.send(vec![json!({ "rpc": { "method": "hubbub.panic" } })]);
        assert!(members[0].cf.next_close(SOON).is_none(), "cut");
        assert!(hub.has_panicked(1));
        let mut alive = 0;
        assert!(eventually(SOON, || {
            alive = members.iter_mut().map(|guest| usize::from(guest.cf.pump())).sum();
            let (n, _) = counts(hub, "on:a");
            n == alive as u64 && n < 8
        }));
        assert!(eventually(SOON, || counts(&place.a, "on:a").0 == alive as u64));
        // It starts anew, with whoever comes.
        let again: Vec<_> = (0..8).map(|n| member(hub, &n.to_string(), "on:a")).collect();
        assert!(eventually(SOON, || counts(hub, "on:a").0 == (alive + again.len()) as u64));
    });
}

#[test]
fn a_large_channel_is_counted_and_not_told() {
    const N: usize = 1_000;
    on_both(|place| {
        let hub = &place.a;
        let mut watches = watcher(hub, "w", "on:a");
        let mut crowd: Vec<Cf> = (1..N).map(|_| Cf::connect(hub)).collect();
        crowd.iter_mut().for_each(|cf| {
            cf.send(vec![json!({ "subscribe": { "channel": "on:a" } })]);
        });
        assert!(drive(&mut crowd, SOON, |cf| cf.replies.len() == 1));
        // All so far are told.
        watches.cf.wait(SOON, |cf| cf.pushes.len() == N);
        assert_eq!(watches.cf.pushes.len(), N);
        watches.cf.pushes.clear();
        let dropped = "hubbub_drops_total{reason=\"too_many_to_tell\"}";
        assert_eq!(hub.metrics().get(dropped), 0.0);
        let beyond = member(hub, "one more", "on:a");
        assert!(eventually(SOON, || hub.metrics().get(dropped) == 1.0));
        assert!(eventually(SOON, || counts(place.b(), "on:a") == (N as u64 + 1, 3)));
        drop(crowd.pop());
        // It is no more than a thousand that are left: told again.
        let told = watches.told(SOON).expect("told");
        assert_eq!(told.0, "leave");
        drop(beyond.cf);
        watches.is_told("leave", &beyond.client);
        assert_eq!(here(hub, "on:a").len(), N - 1);
    });
}

#[test]
fn more_than_a_reply_may_hold_is_refused() {
    let place = Crowd::memory_with(|builder| {
        builder.env("HUB_OUTBOX_BYTES_MAX", "64KiB").env("HUB_PUBLICATION_BYTES_MAX", "16KiB")
    });
    let mut crowd: Vec<Cf> = (0..400).map(|_| Cf::connect(&place.a)).collect();
    crowd.iter_mut().for_each(|cf| {
        cf.send(vec![json!({ "subscribe": { "channel": "p:a" } })]);
    });
    assert!(drive(&mut crowd, SOON, |cf| cf.replies.len() == 1));
    let mut asks = guest(&place.a, "42");
    assert_eq!(asks.cf.error(presence("p:a"))["code"], 106);
    assert_eq!(asks.cf.command(stats("p:a"))["presence_stats"]["num_clients"], 400);
    assert_eq!(here(&place.a, "p:a").len(), 400, "the API has more room");
}

/// Members of two nodes come and go as they like; in the end each watcher has heard the same as is so.
#[test]
fn what_is_told_adds_up_to_who_is_here() {
    on_both(|place| {
        let mut rng = Rng::seeded();
        let hubs = [&place.a, place.b()];
        let mut first = watcher(hubs[0], "w", "all:a");
        let own = first.client.clone();
        first.is_told("join", &own);
        let mut watchers = [first, watcher(hubs[1], "w", "all:a")];
        // From here on both are told the same.
        let last = watchers[1].client.clone();
        watchers.iter_mut().for_each(|watches| watches.is_told("join", &last));
        let mut guests: Vec<_> = (0..6).map(|n| guest(hubs[n % 2], &(n % 3).to_string())).collect();
        let (mut is_here, mut n_asked) = ([false; 6], [0; 6]);
        for _ in 0..300 {
            let at = rng.between(0, 5) as usize;
            let command = if is_here[at] { "unsubscribe" } else { "subscribe" };
            is_here[at] = !is_here[at];
            let id = guests[at].cf.send(vec![json!({ command: { "channel": "all:a" } })])[0];
            n_asked[at] += 1;
            // No more than 64 may wait for one channel.
            if n_asked[at] % 32 == 0 {
                assert!(guests[at].cf.reply(id, SOON).is_some());
            }
            if rng.between(0, 3) == 0 {
                guests.iter_mut().for_each(|guest| {
                    guest.cf.pump();
                });
            }
        }
        let here_now = |guests: &[Guest]| -> BTreeSet<String> {
            let here = guests.iter().zip(is_here).filter(|(_, is_here)| *is_here);
            here.map(|(guest, _)| guest.client.clone()).collect()
        };
        let expected = here_now(&guests);
        for watches in &mut watchers {
            let mut told = BTreeSet::new();
            while told != expected || watches.cf.raw.is_closed() {
                let next = watches.told(SOON);
                let (what, info) = next.unwrap_or_else(|| panic!("{told:?}, not {expected:?}"));
                let client = info["client"].as_str().expect("a client").to_owned();
                let is_news =
                    if what == "join" { told.insert(client) } else { told.remove(&client) };
                assert!(is_news, "{what} of {info} twice");
            }
            while let Some((what, info)) = watches.told(QUIET) {
                let client = info["client"].as_str().expect("a client").to_owned();
                let is_news =
                    if what == "join" { told.insert(client) } else { told.remove(&client) };
                assert!(is_news, "{what} of {info} twice");
            }
            assert_eq!(told, expected);
        }
        for hub in hubs {
            let listed: BTreeSet<String> = here(hub, "all:a").into_keys().collect();
            let watching = watchers.iter().map(|watches| watches.client.clone());
            assert_eq!(listed, expected.iter().cloned().chain(watching).collect());
        }
    });
}
