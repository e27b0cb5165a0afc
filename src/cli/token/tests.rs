use super::super::{Action, parse_with};
use super::*;

const KEY: (&str, &str) = ("HUB_TOKEN_HMAC_SECRET", "hush");

fn act(args: &[&str], env: &[(&str, &str)], stdin: &str) -> Action {
    let args = args.iter().map(|arg| arg.into());
    let env: Vec<_> = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    parse_with(args, env, &mut stdin.as_bytes())
}

#[track_caller]
fn printed(args: &[&str], env: &[(&str, &str)]) -> String {
    match act(args, env, "") {
        Action::Print(text) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[track_caller]
fn refused(token: &str, env: &[(&str, &str)]) -> String {
    match act(&["token", "check", token], env, "") {
        Action::Refuse(text) => text,
        other => panic!("{token}: {other:?}"),
    }
}

/// A made token, without its newline.
#[track_caller]
fn made(args: &[&str], env: &[(&str, &str)]) -> String {
    let args: Vec<&str> = ["token", "make"].iter().chain(args).copied().collect();
    let text = printed(&args, env);
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
    text.trim_end().to_owned()
}

#[test]
fn what_is_made_is_found_good() {
    let check = |args: &[&str], parts: &[&str]| {
        let token = made(args, &[KEY]);
        let told = printed(&["token", "check", &token], &[KEY]);
        for part in parts {
            assert!(told.contains(part), "{args:?}: no {part} in\n{told}");
        }
        assert!(!told.contains("hush") && !told.contains(&token), "{told}");
        let from_stdin = act(&["token", "check", "-"], &[KEY], &format!("{token}\n"));
        assert!(
            matches!(from_stdin, Action::Print(text) if text.lines().next() == told.lines().next())
        );
    };
    check(
        &["--user", "42"],
        &["good: connects user \"42\"\n", "ends in ", "made with HUB_TOKEN_HMAC_SECRET\n"],
    );
    check(&["--user", ""], &["good: connects an anonymous client\n"]);
    check(
        &["--user=42", "--serve=b:#42,43", "--serve=a"],
        &["good: connects user \"42\"\n", "subscribes it to a, b:#42,43\n"],
    );
    check(&["--user=42", "--expires=0"], &["never ends\n"]);
    check(&["--user", "42", "--info", r#"{"a": 1}"#], &["info {\"a\": 1}\n"]);
    let channel = ["--user", "42", "--channel", "a:1"];
    check(&channel, &["good: subscribes user \"42\" to channel \"a:1\"\n"]);
    let told = printed(
        &["token", "check", &made(&["--user=42"], &[KEY])],
        &[("HUB_TOKEN_HMAC_SECRET", "new"), ("HUB_TOKEN_HMAC_PREVIOUS_SECRET", "hush")],
    );
    assert!(told.contains("made with HUB_TOKEN_HMAC_PREVIOUS_SECRET\n"), "{told}");
}

#[test]
fn claims_follow_the_options_and_the_knobs() {
    let config = |env: &[(&str, &str)]| {
        let env: Vec<_> = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Config::load([], env).expect("a configuration").config
    };
    let config = config(&[KEY, ("HUB_TOKEN_AUDIENCE", "hub"), ("HUB_TOKEN_ISSUER", "app")]);
    let order = Order {
        user: "42",
        channel: Some("a"),
        serve: Vec::new(),
        expires: "90s",
        info: Some("[1]"),
    };
    let token = make(&order, &config, 1000).expect("a token");
    let claims = Unverified::read(&token).expect("a token").claims;
    let expected = serde_json::json!({
        "sub": "42", "channel": "a", "iat": 1000, "exp": 1090, "aud": "hub", "iss": "app", "info": [1],
    });
    assert_eq!(claims, expected);
}

#[test]
fn refusals_are_explained() {
    let token = made(&["--user", "42"], &[KEY]);
    let check = |token: &str, env: &[(&str, &str)], parts: &[&str]| {
        let told = refused(token, env);
        for part in parts {
            assert!(told.contains(part), "no {part} in\n{told}");
        }
        assert!(!told.contains("hush"), "{told}");
    };
    let other = [("HUB_TOKEN_HMAC_SECRET", "other")];
    check(
        &token,
        &other,
        &[
            "refused: its signature",
            "tried HUB_TOKEN_HMAC_SECRET\n",
            "close 3500, invalid token",
            "\"sub\":\"42\"",
        ],
    );
    check("x", &[KEY], &["refused: not a JWT"]);
    let aud = [KEY, ("HUB_TOKEN_AUDIENCE", "hub")];
    check(&token, &aud, &["aud is absent, expected \"hub\""]);
    let iss = [KEY, ("HUB_TOKEN_ISSUER", "app")];
    check(
        &made(&["--user=42"], &[iss[0], ("HUB_TOKEN_ISSUER", "x")]),
        &iss,
        &["iss is \"x\", expected \"app\""],
    );
    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    check(&long, &[KEY], &["refused: longer than 16 KiB"]);
    let others = made(&["--user=42", "--serve=a", "--serve=#43"], &[KEY]);
    check(
        &others,
        &[KEY],
        &["may not bring along channel \"#43\"", "told: error 103, permission denied"],
    );
    let many = [KEY, ("HUB_CHANNELS_MAX", "1")];
    check(
        &made(&["--user=42", "--serve=a", "--serve=b"], &[KEY]),
        &many,
        &["told: close 3505, channel limit"],
    );
    let (_, rest) = token.split_once('.').expect("three parts");
    // {"alg":"none"}
    check(
        &format!("eyJhbGciOiJub25lIn0.{rest}"),
        &[KEY],
        &["expected alg HS256", "{\"alg\":\"none\"}"],
    );
}

#[test]
fn times_are_explained() {
    let config = Config::load([], [(KEY.0.into(), KEY.1.into())]).expect("a configuration").config;
    let order =
        Order { user: "42", channel: Some("a"), serve: Vec::new(), expires: "90s", info: None };
    let token = make(&order, &config, 1_000_000).expect("a token");
    let told = |now_s: u64| match check(&token, &config, now_s) {
        Ok(Action::Print(text) | Action::Refuse(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(told(1_000_030).contains("\nends in 1m\n"), "{}", told(1_000_030));
    assert!(told(1_000_095).contains("\nends 5s ago\n"), "{}", told(1_000_095));
    let late = told(1_000_100);
    assert!(late.starts_with("refused: expired"), "{late}");
    assert!(late.contains("exp 10s ago; clocks may differ by 10s\n"), "{late}");
    assert!(late.contains("a client is told: error 109, token expired\n"), "{late}");
}

#[test]
fn what_a_token_says_cannot_steer_the_terminal() {
    let token = made(&["--user", "a\u{1b}[31m\u{9b}b\n", "--info", "\"\u{9b}\""], &[KEY]);
    for told in [
        printed(&["token", "check", &token], &[KEY]),
        refused(&token, &[("HUB_TOKEN_HMAC_SECRET", "other")]),
    ] {
        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
    }
}

#[test]
fn mistakes_end_with_64() {
    let check = |args: &[&str], env: &[(&str, &str)], part: &str| match act(args, env, "") {
        Action::Fail { message, code } => {
            assert_eq!(code, 64, "{args:?}");
            assert!(message.contains(part), "{args:?}: no {part} in\n{message}");
        }
        other => panic!("{args:?}: {other:?}"),
    };
    check(&["token"], &[KEY], "make");
    check(&["token", "make"], &[KEY], "--user");
    check(&["token", "check"], &[KEY], "TOKEN");
    check(&["token", "make", "--user=42"], &[], "set HUB_TOKEN_HMAC_SECRET or");
    check(&["token", "check", "x"], &[], "set HUB_TOKEN_HMAC_SECRET or");
    let make = |option: &'static str| ["token", "make", "--user=42", option];
    check(&make("--channel=a b"), &[KEY], "--channel: channel name holds");
    check(&make("--channel="), &[KEY], "--channel: channel is empty");
    check(&make("--serve="), &[KEY], "--serve: channel is empty");
    check(&["token", "make", "--user=42", "--serve=a", "--channel=b"], &[KEY], "--channel");
    check(&make("--channel=ws:x"), &[KEY], "--channel: channel name is reserved");
    check(&make("--expires=1d"), &[KEY], "--expires: \"1d\" is not valid: expected 0 or 90s");
    check(&make("--expires=10ms"), &[KEY], "--expires");
    check(&make("--expires=87601h"), &[KEY], "up to 87600h");
    check(&make("--info={a:1}"), &[KEY], "--info: expected JSON");
    check(&make("--token-hmac-secret=hush"), &[], "would put a secret on the command line");
    check(&make("--no-such"), &[KEY], "--no-such");
    let long = format!("--info=\"{}\"", "x".repeat(TOKEN_BYTES_MAX));
    check(&["token", "make", "--user=42", &long], &[KEY], "at most 16384");
}
