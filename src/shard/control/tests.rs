//! Unit tests of commands to users' connections, without sockets.

use uuid::Uuid;

use super::*;
use crate::broker::{Target, UnsubscribeUser};
use crate::channel::{Channel, ChannelId};
use crate::config::{Config, Machine};
use crate::node::Node;
use crate::publication::Format;
use crate::shard::hub::Sent;
use crate::shard::session::Session;
use crate::shard::waiting::Ask;

fn state() -> State {
    let machine = Machine { cores: 1, open_files_max: 20_000, memory_bytes: 1 << 30 };
    State::new(Node::new(Config::defaults(machine)), 0, 0)
}

fn session(state: &mut State, born_ms: u64) -> SessionId {
    let id = state.hub.add_session(Format::Json);
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let permit = state.node.admission.admit(address, 0).expect("room");
    let config = &state.node.config;
    let mut session = Session::new(Uuid::new_v4(), permit, Format::Json, born_ms, config);
    session.kind = Kind::Connected;
    assert_eq!(id.idx as usize, state.sessions.len());
    state.sessions.push(Some(session));
    id
}

fn control(user: &str, verb: Verb) -> Arc<Control> {
    Arc::new(Control { target: Target { user: user.into(), ..Target::default() }, verb })
}

fn disconnect(user: &str) -> Arc<Control> {
    let disconnect = DisconnectUser { code: 3503, reason: "x".into(), keep: [].into() };
    control(user, Verb::Disconnect(disconnect))
}

fn unsubscribe(channel: &str) -> Arc<Control> {
    control("", Verb::Unsubscribe(UnsubscribeUser { channel: channel.into() }))
}

/// Carries everything out; returns how many slices it took.
fn obey_all(state: &mut State) -> usize {
    let mut n_slices = 1;
    while state.obey_some() == Left::More {
        n_slices += 1;
    }
    assert_eq!(state.controls.weight, 0);
    n_slices
}

/// What is written for a session.
fn written(state: &mut State, id: SessionId) -> String {
    let mut bytes = Vec::new();
    state.hub.attach(id, 0);
    state.hub.visit(id.idx, &mut |_, parts| {
        bytes.extend(parts.concat());
        Sent::Bytes(parts.concat().len())
    });
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_crowd_is_disconnected_in_slices_and_who_comes_later_stays() {
    let mut state = state();
    let crowd: Vec<SessionId> = (0..5_000).map(|_| session(&mut state, 0)).collect();
    let later = session(&mut state, 1 << 40);
    state.on_control(disconnect("nobody"));
    assert_eq!(obey_all(&mut state), 1);
    state.on_control(disconnect(""));
    assert_eq!(state.obey_some(), Left::More, "5,000 closes fit into no slice");
    assert!(!state.hub.is_closing(crowd[4_999]));
    obey_all(&mut state);
    assert!(crowd.iter().all(|id| state.hub.is_closing(*id)));
    assert!(!state.hub.is_closing(later));
    assert_eq!(state.node.metrics.shards[0].controlled.get(), 5_000);
}

#[test]
fn what_waits_is_bounded_and_the_rest_counted() {
    let mut state = state();
    let long = "x".repeat(64 << 10);
    for _ in 0..300 {
        state.on_control(unsubscribe(&long));
    }
    let n_waiting = state.controls.jobs.len() as u64;
    assert!((200..300).contains(&n_waiting), "{n_waiting}");
    assert_eq!(state.node.metrics.shards[0].drops_control_full.get(), 300 - n_waiting);
    obey_all(&mut state);
}

#[test]
fn an_unsubscribe_ends_what_still_waits_for_the_broker() {
    for channel in ["a", ""] {
        let mut state = state();
        let (ends, stays) = (session(&mut state, 0), session(&mut state, 0));
        let asked = || Asked::Subscribe(Ask { command: 1, ..Ask::default() });
        assert!(matches!(state.want(ends, "a", asked()), Ok(None)));
        state.on_control(unsubscribe(channel));
        state.on_control(unsubscribe(channel));
        obey_all(&mut state);
        assert!(matches!(state.want(stays, "a", asked()), Ok(None)));
        state.on_acquired(ChannelId { slot: 0, generation: 1 }, Arc::new(Channel::new("a")), None);
        assert!(!state.hub.is_subscribed(ends, 0), "{channel:?}");
        assert!(state.hub.is_subscribed(stays, 0), "it asked later");
        let told = written(&mut state, ends);
        let expected = concat!(
            "{\"id\":1,\"subscribe\":{}}\n",
            r#"{"push":{"channel":"a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#
        );
        assert!(told.ends_with(expected), "{told}");
        assert_eq!(told.matches("push").count(), 1, "once: {told}");
    }
}

#[test]
fn channels_are_listed_page_by_page() {
    let mut state = state();
    let id = session(&mut state, 0);
    for slot in 0..1_000 {
        let channel = Arc::new(Channel::new(&format!("c:{slot}")));
        state.hub.open_channel(ChannelId { slot, generation: 1 }, channel);
        state.hub.subscribe(id, slot);
    }
    let mut check = |pattern: &str, at, n, next| {
        let at = Cursor { shard: 0, slot: at };
        state.list_channels(7, &ChannelsAsk { pattern: pattern.into(), at });
        let Some(BrokerCommand::ChannelPage { owed: 7, page }) = state.commands.pop() else {
            panic!("no page");
        };
        assert_eq!((page.channels.len(), page.next.map(|next| next.slot)), (n, next), "{pattern}");
        page
    };
    let first = check("", 0, 512, Some(512));
    assert_eq!(first.channels[0], ChannelCount { name: "c:0".into(), n: 1 });
    check("", 512, 488, None);
    check("c:99?", 0, 10, None);
    check("[", 0, 0, None);
    check("", 1_000, 0, None);
    check("", u32::MAX, 0, None);
}
