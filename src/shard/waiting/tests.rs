//! Unit tests of what waits for the broker, without sockets.

use uuid::Uuid;

use super::*;
use crate::config::{Config, Machine};
use crate::node::Node;
use crate::publication::Format;
use crate::shard::session::Session;

fn state() -> State {
    let machine = Machine { cores: 1, open_files_max: 1_000, memory_bytes: 1 << 30 };
    State::new(Node::new(Config::defaults(machine)), 0, 0)
}

fn session(state: &mut State) -> SessionId {
    let id = state.hub.add_session(Format::Json);
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let permit = state.node.admission.admit(address, 0).expect("room");
    let session =
        Session::new(Uuid::new_v4(), address, permit, Format::Json, 0, &state.node.config);
    assert_eq!(id.idx as usize, state.sessions.len());
    state.sessions.push(Some(session));
    id
}

#[test]
fn an_answer_that_closes_its_session_leaves_the_channel_to_those_who_wait() {
    let mut state = state();
    // Those who wait are answered in no order: with so many that end, one comes before the last.
    let ids: Vec<SessionId> = (0..50).map(|_| session(&mut state)).collect();
    let (stays, ends) = ids.split_last().unwrap();
    for id in &ids {
        let asked = Asked::Subscribe(Ask { command: 1, ..Ask::default() });
        assert!(matches!(state.want(*id, "a", asked), Ok(None)));
    }
    ends.iter().for_each(|id| state.end(*id, Disconnect::BAD_REQUEST));
    state.commands.clear();

    state.on_acquired(ChannelId { slot: 0, generation: 1 }, Arc::new(Channel::new("a")), None);
    assert!(ends.iter().all(|id| state.hub.is_closing(*id)));
    assert!(state.hub.is_subscribed(*stays, 0));
    assert!(matches!(state.names.get("a"), Some(Local::Live(0))));
    assert_eq!(state.hub.n_channels(), 1);
    assert!(state.commands.is_empty(), "{:?}", state.commands);
}

#[test]
fn what_a_client_knows_goes_before_what_the_api_does() {
    let ask = |offset| {
        let recover = Some(Position { offset, ..Position::default() });
        Ask { recover, ..Ask::default() }
    };
    let check = |asked: &[Asked], expected: Option<u64>| {
        assert_eq!(last_ask(asked).recover.map(|at| at.offset), expected);
    };
    let (subscribe, serve) = (|n| Asked::Subscribe(ask(n)), |n| Asked::Serve(ask(n)));
    check(&[], None);
    check(&[serve(1)], Some(1));
    check(&[serve(1), serve(2)], Some(2));
    check(&[subscribe(1), serve(2)], Some(1));
    check(&[serve(2), subscribe(1)], Some(1));
    check(&[serve(2), Asked::Unsubscribe(7), subscribe(1), Asked::End, subscribe(3)], Some(3));
}
