use proptest::prelude::*;

use super::*;

mod fuzz;
mod reference;

#[track_caller]
fn check(line: &str, expected: Result<(u32, Kind<'_>), Malformed>) {
    let expected = expected.map(|(id, kind)| Command { id, kind });
    assert_eq!(decode(line.as_bytes()), expected, "for {line}");
}

#[track_caller]
fn check_malformed(expected: Malformed, cases: &[&str]) {
    for line in cases {
        check(line, Err(expected));
    }
}

#[track_caller]
fn check_lines(message: &str, expected: &[&str]) {
    let found: Vec<&str> =
        lines(message.as_bytes()).map(|line| std::str::from_utf8(line).unwrap()).collect();
    assert_eq!(found, expected, "for {message:?}");
}

fn subscribe(channel: &str) -> Subscribe<'_> {
    Subscribe { channel: channel.into(), ..Subscribe::default() }
}

#[test]
fn what_centrifuge_js_sends() {
    let frame = concat!(
        r#"{"connect":{"token":"eyJ.a.b","name":"js"},"id":1}"#,
        "\n",
        r#"{"subscribe":{"channel":"room:7","flag":1},"id":2}"#
    );
    let commands: Vec<_> = lines(frame.as_bytes()).map(|line| decode(line).unwrap()).collect();
    let connect = Connect { token: "eyJ.a.b".into(), name: "js".into(), ..Connect::default() };
    assert_eq!(commands[0], Command { id: 1, kind: Kind::Connect(connect) });
    assert_eq!(
        commands[1],
        Command { id: 2, kind: Kind::Subscribe(Subscribe { flag: 1, ..subscribe("room:7") }) }
    );
    check(
        r#"{"subscribe":{"channel":"room:7","flag":3,"recover":true,"offset":44,"epoch":"kQzV"},"id":9}"#,
        Ok((
            9,
            Kind::Subscribe(Subscribe {
                flag: Subscribe::FLAG_COMPACTION | Subscribe::FLAG_REJECT_UNRECOVERED,
                recover: true,
                offset: 44,
                epoch: "kQzV".into(),
                ..subscribe("room:7")
            }),
        )),
    );
    check(
        r#"{"rpc":{"method":"m","data":[1, 2]},"id":4}"#,
        Ok((4, Kind::Rpc(Rpc { method: "m".into(), data: Some(b"[1, 2]") }))),
    );
    check(r#"{"send":{"data":null}}"#, Ok((0, Kind::Send { data: Some(b"null") })));
    check(
        r#"{"publish":{"channel":"a","data":{"n": 1.50}},"id":5}"#,
        Ok((
            5,
            Kind::Publish(Publish {
                channel: "a".into(),
                data: Some(b"{\"n\": 1.50}"),
                pub_type: 0,
            }),
        )),
    );
    let history = History {
        channel: "a".into(),
        limit: -1,
        since: Some(Since { offset: 3, epoch: "e".into() }),
        reverse: false,
    };
    check(
        r#"{"history":{"channel":"a","since":{"offset":3,"epoch":"e"},"limit":-1},"id":6}"#,
        Ok((6, Kind::History(history))),
    );
    check("{}", Ok((0, Kind::Pong)));
}

#[test]
fn what_centrifuge_python_sends() {
    check(
        r#"{"id": 1, "connect": {"name": "python", "subs": {"n\"s": {"recover": true, "offset": 0, "epoch": ""}, "b": {"delta": "fossil"}}}}"#,
        Ok((
            1,
            Kind::Connect(Connect {
                name: "python".into(),
                subs: vec![
                    WantedSub { channel: "n\"s".into(), recover: true, ..WantedSub::default() },
                    WantedSub { channel: "b".into(), delta: Delta::Fossil, ..WantedSub::default() },
                ],
                ..Connect::default()
            }),
        )),
    );
    check(
        r#"{"id": 2, "subscribe": {"channel": "caf\u00e9", "positioned": true, "recoverable": true, "join_leave": true, "recover": true, "epoch": "", "offset": 0, "flag": 1, "delta": "fossil"}}"#,
        Ok((
            2,
            Kind::Subscribe(Subscribe {
                positioned: true,
                recoverable: true,
                join_leave: true,
                recover: true,
                flag: 1,
                delta: Delta::Fossil,
                ..subscribe("café")
            }),
        )),
    );
    check(
        r#"{"id": 3, "sub_refresh": {"token": "t"}}"#,
        Ok((3, Kind::SubRefresh(SubRefresh { token: "t".into(), ..SubRefresh::default() }))),
    );
    check(
        r#"{"id": 4, "history": {"channel": "a", "limit": 0, "reverse": false}}"#,
        Ok((4, Kind::History(History { channel: "a".into(), ..History::default() }))),
    );
    check(r#"{"id": 5, "refresh": {"token": "t"}}"#, Ok((5, Kind::Refresh { token: "t".into() })));
    check(
        r#"{"id": 6, "unsubscribe": {"channel": "a"}}"#,
        Ok((6, Kind::Unsubscribe { channel: "a".into() })),
    );
    check(
        r#"{"id": 7, "presence": {"channel": "a"}}"#,
        Ok((7, Kind::Presence { channel: "a".into() })),
    );
    check(
        r#"{"id": 8, "presence_stats": {"channel": "a"}}"#,
        Ok((8, Kind::PresenceStats { channel: "a".into() })),
    );
}

#[test]
fn tolerated() {
    check(" {} ", Ok((0, Kind::Pong)));
    check(r#"{"future":1}"#, Ok((0, Kind::Pong)));
    check(r#"{"id":1,"ping":{}}"#, Ok((1, Kind::Ping)));
    check(r#"{"id":4294967295,"ping":{"x":[{}]}}"#, Ok((u32::MAX, Kind::Ping)));
    check(r#"{"id":7,"send":{}}"#, Ok((7, Kind::Send { data: None })));
    check(
        r#"{"i\u0064":1,"x":[[]],"publish":{"y":{},"channel":"a"}}"#,
        Ok((1, Kind::Publish(Publish { channel: "a".into(), ..Publish::default() }))),
    );
    check(
        r#"{"id":1,"subscribe":{"channel":"a","token":null,"recover":null,"offset":null,"delta":null,"data":null}}"#,
        Ok((1, Kind::Subscribe(Subscribe { data: Some(b"null"), ..subscribe("a") }))),
    );
    check(
        r#"{"id":1,"connect":{"subs":null,"delta":""}}"#,
        Ok((1, Kind::Connect(Connect::default()))),
    );
    let filter = br#"{"op":"and","nodes":[]}"#;
    check(
        r#"{"id":1,"subscribe":{"channel":"a","tf":{"op":"and","nodes":[]},"type":4}}"#,
        Ok((
            1,
            Kind::Subscribe(Subscribe { tags_filter: Some(filter), sub_type: 4, ..subscribe("a") }),
        )),
    );
    check(
        r#"{"id":1,"history":{"channel":"a","since":{},"reverse":true}}"#,
        Ok((
            1,
            Kind::History(History {
                channel: "a".into(),
                since: Some(Since::default()),
                reverse: true,
                ..History::default()
            }),
        )),
    );
}

#[test]
fn plain_text_is_borrowed() {
    let command = decode(br#"{"id":1,"unsubscribe":{"channel":"a"}}"#).unwrap();
    assert!(
        matches!(command.kind, Kind::Unsubscribe { channel: Cow::Borrowed("a") }),
        "{command:?}"
    );
}

#[test]
fn not_a_command() {
    check_malformed(
        Malformed::NotACommand,
        &[
            "",
            " ",
            "{",
            "null",
            "[]",
            "1",
            "\"{}\"",
            "{}{}",
            "{},",
            "hello",
            "{'id':1}",
            "\u{feff}{}",
            r#"{"id":"1","ping":{}}"#,
            r#"{"id":-1,"ping":{}}"#,
            r#"{"id":1.5,"ping":{}}"#,
            r#"{"id":null,"ping":{}}"#,
            r#"{"id":4294967296,"ping":{}}"#,
            r#"{"id":1,"id":1,"ping":{}}"#,
            r#"{"id":1,"subscribe":null}"#,
            r#"{"id":1,"subscribe":[]}"#,
            r#"{"id":1,"subscribe":["a"]}"#,
            r#"{"id":1,"subscribe":"a"}"#,
            r#"{"id":1,"subscribe":{"channel":7}}"#,
            r#"{"id":1,"subscribe":{"channel":"a","channel":"b"}}"#,
            r#"{"id":1,"subscribe":{"channel":"\ud800"}}"#,
            r#"{"id":1,"subscribe":{"channel":"a","offset":-1}}"#,
            r#"{"id":1,"subscribe":{"channel":"a","recover":1}}"#,
            r#"{"id":1,"subscribe":{"channel":"a","delta":"xdelta"}}"#,
            r#"{"id":1,"subscribe":{"channel":"a","delta":{"fossil":null}}}"#,
            r#"{"id":1,"subscribe":{"channel":"a","delta":["fossil"]}}"#,
            r#"{"id":1,"connect":{"subs":[]}}"#,
            r#"{"id":1,"connect":{"subs":{"a":null}}}"#,
            r#"{"id":1,"history":{"channel":"a","since":[1,"e"]}}"#,
            r#"{"id":1,"ping":null}"#,
            r#"{"id":1,"publish":{"channel":"a","data":NaN}}"#,
        ],
    );
}

#[test]
fn no_id_no_kind_two_kinds_no_channel_no_token() {
    check_malformed(
        Malformed::NoId,
        &[
            r#"{"connect":{}}"#,
            r#"{"id":0,"subscribe":{"channel":"a"}}"#,
            r#"{"ping":{}}"#,
            r#"{"unsubscribe":{"channel":"a"}}"#,
        ],
    );
    check_malformed(
        Malformed::NoKind,
        &[r#"{"id":1}"#, r#"{"id":1,"Connect":{}}"#, r#"{"id":1,"fly":{}}"#],
    );
    check_malformed(
        Malformed::TwoKinds,
        &[
            r#"{"id":1,"connect":{},"ping":{}}"#,
            r#"{"id":1,"ping":{},"ping":{}}"#,
            r#"{"send":{},"send":{}}"#,
        ],
    );
    for kind in ["subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history"] {
        for body in ["{}", r#"{"channel":""}"#, r#"{"channel":null}"#] {
            check(&format!(r#"{{"id":1,"{kind}":{body}}}"#), Err(Malformed::NoChannel));
        }
    }
    check_malformed(
        Malformed::NoToken,
        &[r#"{"id":1,"refresh":{}}"#, r#"{"id":1,"refresh":{"token":""}}"#],
    );
}

#[test]
fn depth_and_encoding() {
    let publish = |depth: usize| {
        let data = "[".repeat(depth) + &"]".repeat(depth);
        format!(r#"{{"id":1,"publish":{{"channel":"a","data":{data}}}}}"#)
    };
    assert!(decode(publish(DEPTH_MAX - 2).as_bytes()).is_ok());
    check(&publish(DEPTH_MAX - 1), Err(Malformed::TooDeep));
    check(&publish(1 << 16), Err(Malformed::TooDeep));
    check(&r#"{"x":"#.repeat(1 << 16), Err(Malformed::TooDeep));
    assert_eq!(decode(b"{\"id\":1,\"x\":\"\xff\"}"), Err(Malformed::NotUtf8));
    assert!(!Malformed::DISCONNECT.reconnects());
}

#[test]
fn messages_split_into_lines() {
    check_lines("{}", &["{}"]);
    check_lines("{}\n", &["{}"]);
    check_lines("a\r\nb\r\n", &["a", "b"]);
    check_lines("", &[""]);
    check_lines("\n", &[""]);
    check_lines("\n{}", &["", "{}"]);
    check_lines("{}\n\n", &["{}", ""]);
    check_lines("a\n\nb", &["a", "", "b"]);
}

proptest! {
    #[test]
    fn any_bytes_are_decided(message in any::<Vec<u8>>()) {
        for line in lines(&message) {
            let _ = decode(line);
        }
    }

    #[test]
    fn any_almost_command_is_decided(line in r#"\{("(id|connect|subscribe|publish|send|x)":([0-9]{1,11}|\{("(channel|data|offset|subs)":("a{0,3}"|null|-?[0-9]{1,3}|\[\]|\{\}),?){0,3}\}),?){0,3}\}"#) {
        if let Ok(command) = decode(line.as_bytes()) {
            let needs_no_id = matches!(command.kind, Kind::Pong | Kind::Send { .. });
            prop_assert!(command.id != 0 || needs_no_id);
        }
    }

    #[test]
    fn a_channel_comes_through(channel in any::<String>(), id in 1u32..) {
        prop_assume!(!channel.is_empty());
        let line = serde_json::json!({"id": id, "unsubscribe": {"channel": channel}}).to_string();
        let expected = Command { id, kind: Kind::Unsubscribe { channel: channel.as_str().into() } };
        prop_assert_eq!(decode(line.as_bytes()), Ok(expected));
    }
}
