//! Messages on their way between nodes.

use super::*;

const FROM: Uuid = Uuid::from_u128(7);

fn user(user: &str) -> Target {
    Target { user: user.into(), ..Target::default() }
}

/// `json` is what stands between the sender and the end.
#[track_caller]
fn check(message: Message, kind: &str, json: &str) {
    let bytes = encode(FROM, &message);
    let head = format!(r#"{{"v":1,"kind":"{kind}","from":"{FROM}""#);
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), format!("{head}{json}}}"));
    assert_eq!(decode(&bytes), Ok(Received { from: FROM, message: message.clone() }));
    let newer = format!("{head}{json},\"novel\":[1]}}");
    assert_eq!(decode(newer.as_bytes()), Ok(Received { from: FROM, message }), "{newer}");
}

#[test]
fn commands() {
    let client = Some(Uuid::from_u128(1));
    let target = Target { user: "4\"2".into(), client, session: "s".into() };
    let keep = [Uuid::from_u128(2)].into();
    let verb = Verb::Disconnect(DisconnectUser { code: 3503, reason: "bye".into(), keep });
    check(
        Message::Control(Control { target, verb }),
        "disconnect",
        concat!(
            r#","user":"4\"2","client":"00000000-0000-0000-0000-000000000001","session":"s""#,
            r#","code":3503,"reason":"bye","keep":["00000000-0000-0000-0000-000000000002"]"#
        ),
    );
    let verb = Verb::Unsubscribe(UnsubscribeUser { channel: "".into() });
    check(Message::Control(Control { target: user(""), verb }), "unsubscribe", r#","channel":"""#);
    let verb = Verb::Refresh(RefreshUser { expire_at: Some(9), ..RefreshUser::default() });
    check(
        Message::Control(Control { target: user("u"), verb }),
        "refresh",
        r#","user":"u","expire_at":9"#,
    );
    let overrides = Overrides { presence: Some(true), ..Overrides::default() };
    let verb = Verb::Subscribe(Box::new(SubscribeUser {
        channel: "a".into(),
        data: Some("1.50".into()),
        recover_since: Some(Since { offset: 3, epoch: "kQzV".into() }),
        overrides,
        ..SubscribeUser::default()
    }));
    check(
        Message::Control(Control { target: user("u"), verb }),
        "subscribe",
        concat!(
            r#","user":"u","channel":"a","data":"1.50","#,
            r#""recover_since":{"offset":3,"epoch":"kQzV"},"override":{"presence":true}"#
        ),
    );
}

#[test]
fn surveys() {
    check(Message::Ask(Question { survey: 7, topic: Topic::Info }), "ask_info", r#","survey":7"#);
    let topic =
        Topic::Channels(ChannelsAsk { pattern: "a*".into(), at: Cursor { shard: 1, slot: 9 } });
    check(
        Message::Ask(Question { survey: 7, topic }),
        "ask_channels",
        r#","survey":7,"pattern":"a*","at":{"shard":1,"slot":9}"#,
    );
    let channels = vec![ChannelCount { name: "a".into(), n: 2 }];
    let page = ChannelPage { channels, ..ChannelPage::default() };
    check(
        Message::Answer(Answer { survey: 7, part: Part::Channels(page) }),
        "answer",
        r#","survey":7,"part":{"channels":{"channels":[{"name":"a","n":2}]}}"#,
    );
    let info = NodeInfo { uid: "u".into(), num_clients: 1, ..NodeInfo::default() };
    check(
        Message::Answer(Answer { survey: 7, part: Part::Info(info) }),
        "answer",
        concat!(
            r#","survey":7,"part":{"info":{"uid":"u","name":"","version":"","num_clients":1,"#,
            r#""num_users":0,"num_subs":0,"num_channels":0}}"#
        ),
    );
}

#[test]
fn what_newer_nodes_say_is_known_from_what_is_broken() {
    let check = |json: &str, expected| {
        let json = json.replace("FROM", &FROM.to_string());
        assert_eq!(decode(json.as_bytes()).err(), expected, "{json}");
    };
    check(r#"{"v":1,"kind":"refresh","from":"FROM"}"#, None);
    check(r#"{"v":1,"kind":"novel","from":"FROM"}"#, Some(NotObeyed::Unknown));
    check(r#"{"v":2,"kind":"refresh","from":"FROM"}"#, Some(NotObeyed::Unknown));
    check(r#"{"v":1,"kind":"refresh"}"#, Some(NotObeyed::Malformed));
    check(r#"{"v":1,"kind":"disconnect","from":"FROM"}"#, Some(NotObeyed::Malformed));
    check(r#"{"v":1,"kind":"refresh","from":"FROM"} x"#, Some(NotObeyed::Malformed));
    let disconnect = |code: u16| {
        format!(r#"{{"v":1,"kind":"disconnect","from":"FROM","code":{code},"reason":""}}"#)
    };
    check(&disconnect(4000), None);
    check(&disconnect(1005), Some(NotObeyed::Malformed));
    check("probe", Some(NotObeyed::Malformed));
    check("", Some(NotObeyed::Malformed));
    check(&" ".repeat(MESSAGE_BYTES_MAX + 1), Some(NotObeyed::Malformed));
    check(&"[".repeat(100_000), Some(NotObeyed::Malformed));
}

#[test]
fn a_command_within_the_bound_is_a_message_within_the_other() {
    let worst = "\u{1}".repeat(CONTROL_BYTES_MAX - 1);
    let verb = Verb::Unsubscribe(UnsubscribeUser { channel: "a".into() });
    let control = Control { target: user(&worst), verb };
    assert_eq!(control.bytes(), CONTROL_BYTES_MAX);
    let bytes = encode(FROM, &Message::Control(control.clone()));
    let received = Received { from: FROM, message: Message::Control(control) };
    assert_eq!(decode(&bytes), Ok(received));
    let keep = (0..CONTROL_BYTES_MAX as u128 / 16).map(Uuid::from_u128).collect();
    let verb = Verb::Disconnect(DisconnectUser { code: 1000, reason: "".into(), keep });
    let control = Control { target: user(""), verb };
    assert_eq!(control.bytes(), CONTROL_BYTES_MAX);
    assert!(decode(&encode(FROM, &Message::Control(control))).is_ok());
}
