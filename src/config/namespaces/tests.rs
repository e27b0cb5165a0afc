use super::keys::ACCESSES;
use super::*;

#[track_caller]
fn parsed(text: &str) -> Namespaces {
    Namespaces::parse(text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"))
}

/// `line: complaint`, one line each.
#[track_caller]
fn mistakes(text: &str) -> String {
    let mistakes = Namespaces::parse(text).expect_err(text);
    let line = |mistake: &Mistake| {
        let line = mistake.line.map_or("?".to_owned(), |line| line.to_string());
        format!("{line}: {}", mistake.complaint)
    };
    mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_channel_finds_its_namespace() {
    // Each is told by who may publish there.
    let namespaces = parsed(
        "[namespaces.prices]\npublish = \"user\"\n[namespaces.\"\"]\npublish = \"token\"\n\
         [namespaces.\"*\"]\npublish = \"anyone\"\n[namespaces.\"a.b/c\"]\npublish = \"subscriber\"\n",
    );
    let check = |channel: &str, publish: Access| {
        assert_eq!(namespaces.of(channel).map(|found| found.publish), Some(publish), "{channel}");
    };
    check("prices:btc", Access::User);
    check("prices:", Access::User);
    check("prices:a:b", Access::User);
    check("prices", Access::Token);
    check("news", Access::Token);
    check("*", Access::Token);
    check("Prices:btc", Access::Anyone);
    check("prices2:btc", Access::Anyone);
    check("price:btc", Access::Anyone);
    check("*:x", Access::Anyone);
    check(":x", Access::Anyone);
    check(":", Access::Anyone);
    check("a.b/c:x", Access::Subscriber);
}

#[test]
fn without_a_match_there_is_none() {
    let namespaces = parsed("[namespaces.prices]\n");
    assert_eq!(namespaces.of("prices:btc"), Some(&Namespace::default()));
    for channel in ["prices", "news", "news:a", ":x", "", "*", "*:x"] {
        assert_eq!(namespaces.of(channel), None, "{channel}");
    }
    for text in ["", "# nothing\n", "[namespaces]\n"] {
        assert_eq!(parsed(text).of("prices"), None, "{text}");
    }
    // Without a `""`, channels without a colon are of the rest too.
    assert!(parsed("[namespaces.\"*\"]").of("news").is_some());
    assert!(parsed("[namespaces.\"\"]").of("news:a").is_none());
}

#[test]
fn without_a_file_every_channel_takes_the_defaults() {
    let namespaces = Namespaces::default();
    for channel in ["news", "prices:btc", ":x", ""] {
        assert_eq!(namespaces.of(channel), Some(&Namespace::default()), "{channel}");
    }
    let defaults = Namespace::default();
    assert_eq!((defaults.subscribe, defaults.publish), (Access::User, Access::Nobody));
    assert_eq!((defaults.history, defaults.presence_access), (Access::Nobody, Access::Nobody));
    assert_eq!((defaults.slow_consumer, defaults.gap), (SlowConsumer::Disconnect, Gap::Count));
}

#[test]
fn every_key_is_read() {
    let namespaces = parsed(
        r#"
        [namespaces.a]
        subscribe = "anyone"
        publish = "subscriber"
        history = "token"
        presence_access = "user"
        slow_consumer = "disconnect"
        gap = "resubscribe"
        history_size = 100
        history_ttl = "60s"
        recovery = "stream"
        presence = true
        join_leave = "forced"
        max_rate = "off"
        write_delay = 0
        delta = true
        tags_filter = false
        personal = true
        "#,
    );
    let expected = Namespace {
        subscribe: Access::Anyone,
        publish: Access::Subscriber,
        history: Access::Token,
        presence_access: Access::User,
        slow_consumer: SlowConsumer::Disconnect,
        gap: Gap::Resubscribe,
        history_size: 100,
        history_ttl: Duration::from_secs(60),
        recovery: Recovery::Stream,
        presence: true,
        join_leave: JoinLeave::Forced,
        max_rate: None,
        write_delay: Duration::ZERO,
        delta: true,
        personal: true,
    };
    assert_eq!(expected.keep(), Some(Keep { size: 100, ttl_ms: 60_000 }));
    assert_eq!(Namespace::default().keep(), None);
    assert_eq!(namespaces.of("a:1"), Some(&expected));
    assert_eq!(KEYS.len(), 16, "a new key is to be in this test");
    for (word, access) in ACCESSES {
        for key in ["publish", "history", "presence_access"] {
            let found = *parsed(&format!("namespaces.a.{key} = \"{word}\"")).of("a:").unwrap();
            let of_key = [found.publish, found.history, found.presence_access];
            assert_eq!(
                of_key.iter().filter(|found| **found == access).count(),
                if access == Access::Nobody { 3 } else { 1 },
                "{key} {word}"
            );
        }
    }
}

#[test]
fn what_recovers_leaves_nothing_out() {
    let found = *parsed("namespaces.a = { slow_consumer = \"conflate\", max_rate = 1000 }")
        .of("a:")
        .unwrap();
    assert_eq!((found.slow_consumer, found.max_rate), (SlowConsumer::Conflate, Some(1_000)));
    assert_eq!(parsed("namespaces.a.max_rate = 0").of("a:").unwrap().max_rate, None);
    let text = |more: &str| format!("[namespaces.a]\nrecovery = \"stream\"\n{more}");
    let history = "history_size = 1\nhistory_ttl = \"1s\"\n";
    assert_eq!(mistakes(&text("")), "2: namespaces.a.recovery = \"stream\" needs history_size");
    assert_eq!(
        mistakes(&text(&format!("{history}slow_consumer = \"conflate\""))),
        "2: namespaces.a.recovery = \"stream\" and slow_consumer = \"conflate\" contradict each other"
    );
    assert_eq!(
        mistakes(&text(&format!("{history}max_rate = 5"))),
        "2: namespaces.a.recovery = \"stream\" and max_rate contradict each other"
    );
    assert_eq!(
        mistakes("namespaces.a.max_rate = 1001"),
        "1: namespaces.a.max_rate: 1001 is not valid: expected off or a number of publications a second, at most 1000"
    );
    for skips in ["max_rate = 5", "slow_consumer = \"conflate\""] {
        assert_eq!(
            mistakes(&format!("[namespaces.a]\n{skips}\ndelta = true")),
            "3: namespaces.a.delta contradicts slow_consumer = \"conflate\" and max_rate"
        );
    }
    parsed("namespaces.a = { recovery = \"cache\", slow_consumer = \"conflate\", max_rate = 5 }");
}

#[test]
fn a_write_delay_is_at_most_the_nodes_longest() {
    let found = |value: &str| {
        parsed(&format!("namespaces.a.write_delay = {value}")).of("a:").unwrap().write_delay
    };
    for off in ["0", "\"0\"", "\"off\""] {
        assert_eq!(found(off), Duration::ZERO);
    }
    assert_eq!(found("\"1ms\""), Duration::from_millis(1));
    assert_eq!(found("\"10s\""), Duration::from_secs(10));
    for bad in ["\"10001ms\"", "\"999us\"", "\"soon\"", "50"] {
        assert_eq!(
            mistakes(&format!("namespaces.a.write_delay = {bad}")),
            format!(
                "1: namespaces.a.write_delay: {bad} is not valid: expected off, 0 or a duration from \"1ms\" to \"10s\""
            )
        );
    }
}

#[test]
fn openness_is_told() {
    assert!(!Namespaces::default().let_anyone_in());
    assert!(!parsed("namespaces.a.publish = \"anyone\"").let_anyone_in());
    for name in ["a", "\"\"", "\"*\""] {
        assert!(parsed(&format!("namespaces.{name}.subscribe = \"anyone\"")).let_anyone_in());
    }
}

#[test]
fn personal_channels_are_in_namespaces_with_a_name() {
    assert_eq!(Namespaces::default().personal().count(), 0);
    let text = "namespaces.b.personal = true\nnamespaces.\"\".personal = true\n\
                namespaces.a.personal = true\nnamespaces.c.personal = false\n";
    assert_eq!(parsed(text).personal().collect::<Vec<_>>(), ["", "a", "b"]);
    assert_eq!(
        mistakes("[namespaces.a]\n[namespaces.\"*\"]\npersonal = true"),
        "2: namespaces.\"*\".personal: expected a namespace with a name, or \"\""
    );
    assert_eq!(
        mistakes("[namespaces.a]\npersonal = 1"),
        "2: namespaces.a.personal: 1 is not valid: expected true or false"
    );
}

#[test]
fn members_are_noted_where_somebody_may_know() {
    assert!(!Namespaces::default().have_members());
    for (entry, is_noted) in [
        ("presence = true", true),
        ("join_leave = \"on\"", true),
        ("join_leave = \"forced\"", true),
        ("presence_access = \"user\"", false),
    ] {
        let namespaces = parsed(&format!("namespaces.a.{entry}"));
        assert_eq!(namespaces.of("a:").unwrap().has_members(), is_noted, "{entry}");
        assert_eq!(namespaces.have_members(), is_noted, "{entry}");
    }
}

#[test]
fn values_of_later_versions_are_refused_as_such() {
    assert_eq!(
        mistakes("[namespaces.a]\ntags_filter = true\n"),
        "2: namespaces.a.tags_filter = true is not available in this version"
    );
}

#[test]
fn mistakes_name_line_key_and_what_was_expected() {
    let check = |text: &str, expected: &str| assert_eq!(mistakes(text), expected, "{text}");
    check(
        "[namespaces.a]\n\nsubscribe = \"users\"",
        "3: namespaces.a.subscribe: \"users\" is not valid: expected nobody, token, user or anyone",
    );
    check(
        "[namespaces.a]\nsubscribe = \"subscriber\"",
        "2: namespaces.a.subscribe: \"subscriber\" is not valid: expected nobody, token, user or anyone",
    );
    check(
        "namespaces.\"\".publish = true",
        "1: namespaces.\"\".publish: true is not valid: expected nobody, token, subscriber, user or \
         anyone",
    );
    check(
        "[namespaces.a]\ngap = \"\"",
        "2: namespaces.a.gap: \"\" is not valid: expected count or resubscribe",
    );
    check(
        "[namespaces.a]\nhistory_size = -1",
        "2: namespaces.a.history_size: -1 is not valid: expected 0 or a number of publications, at \
         most 100000",
    );
    check(
        "[namespaces.a]\npresence = \"yes\"",
        "2: namespaces.a.presence: \"yes\" is not valid: expected true or false",
    );
    check("[namespace.a]", "1: unknown key namespace: expected namespaces");
    check("namespaces = 1", "1: namespaces: expected tables such as [namespaces.prices]");
    check("[namespaces]\na = 1", "2: namespaces.a: expected a table");
    for bad in ["60", "\"60\"", "\"1d\"", "true", "1.5"] {
        let text = format!("[namespaces.a]\nhistory_ttl = {bad}");
        assert!(mistakes(&text).contains("expected off, 0 or a duration"), "{text}");
    }
    let unknown = mistakes("[namespaces.a]\nsubscrib = \"user\"");
    assert!(
        unknown.starts_with("2: unknown key namespaces.a.subscrib: expected subscribe, publish, ")
    );
}

#[test]
fn history_needs_a_size_and_a_time() {
    let check = |entries: &str, expected: &str| {
        assert_eq!(mistakes(&format!("[namespaces.a]\n{entries}")), expected, "{entries}");
    };
    check(
        "gap = \"count\"\nhistory_size = 5",
        "3: namespaces.a.history_size needs history_ttl too",
    );
    check("history_ttl = \"5s\"", "2: namespaces.a.history_ttl needs history_size too");
    check(
        "history_ttl = \"5s\"\nhistory_size = 0",
        "2: namespaces.a.history_ttl needs history_size too",
    );
    let refused = mistakes("[namespaces.a]\nhistory_ttl = \"5s\"\nhistory_size = 100001");
    assert!(refused.starts_with("3: namespaces.a.history_size: 100001 is not valid"), "{refused}");
    assert_eq!(refused.lines().count(), 1, "one complaint is enough: {refused}");
    for off in ["history_size = 0\nhistory_ttl = \"off\"", "history_ttl = 0", "history_size = 0"] {
        let namespaces = parsed(&format!("[namespaces.a]\n{off}"));
        assert_eq!(namespaces.of("a:").unwrap().keep(), None, "{off}");
    }
}

#[test]
fn all_mistakes_are_told_in_the_order_of_their_lines() {
    let text =
        "[namespaces.b]\ngap = 1\n[namespaces.a]\nrecovery = \"x\"\ntags_filter = true\n[x]\n";
    let lines: Vec<String> = mistakes(text).lines().map(|line| line[..2].to_owned()).collect();
    assert_eq!(lines, ["2:", "4:", "5:", "6:"]);
}

#[test]
fn text_that_is_no_toml_is_told_with_its_line() {
    for (text, line) in [
        ("[namespaces.a]\nsubscribe = user\n", "2: "),
        ("[namespaces.a]\n[namespaces.a]\n", "2: "),
        ("[namespaces.a]\ngap = \"count\"\ngap = \"count\"\n", "3: "),
        ("\n\nnamespaces:\n  a: 1\n", "3: "),
    ] {
        let found = mistakes(text);
        assert!(found.starts_with(line), "{text}: {found}");
        assert!(!found.contains("is not valid"), "{found}");
    }
}

#[test]
fn names_that_no_channel_can_have_are_refused() {
    for (name, part) in [
        ("\"a:b\"", "without a colon"),
        ("\"prices:*\"", "without a colon"),
        ("ws", "reserved"),
        ("\"a b\"", "printable ASCII"),
        ("\"é\"", "printable ASCII"),
        ("\"a\\nb\"", "printable ASCII"),
        ("\"__sentinel__\"", "reserved"),
    ] {
        let found = mistakes(&format!("[namespaces.{name}]"));
        assert!(found.contains(part), "{name}: {found}");
        assert_eq!(found.lines().count(), 1, "{found:?}");
    }
    assert!(mistakes(&format!("[namespaces.{}]", "x".repeat(NAME_BYTES_MAX))).contains("shorter"));
    for good in ["ws2", "\"$x\"", "\"a*\"", "\"**\"", "\"__redis\""] {
        parsed(&format!("[namespaces.{good}]"));
    }
}

#[test]
fn files_are_bounded() {
    let path = std::env::temp_dir().join(format!("hubbub-namespaces-test-{}", std::process::id()));
    let load = |text: &str| {
        std::fs::write(&path, text).expect("a writable folder");
        Namespaces::load(&path)
    };
    let good = load("[namespaces.a]");
    let long = load(&format!("# {}", "x".repeat(FILE_BYTES_MAX as usize)));
    let wrong = load("x");
    std::fs::remove_file(&path).expect("a file of this test");
    let missing = Namespaces::load(&path);
    assert!(good.is_ok_and(|namespaces| namespaces.of("a:1").is_some()));
    assert!(matches!(long, Err(LoadError::Io(error)) if error.to_string().contains("more than")));
    assert!(matches!(wrong, Err(LoadError::Mistakes(mistakes)) if mistakes[0].line == Some(1)));
    assert!(
        matches!(missing, Err(LoadError::Io(error)) if error.kind() == io::ErrorKind::NotFound)
    );
}
