use super::*;
use crate::config::{Machine, Namespaces};

const NOW_S: u64 = 1_800_000_000;
const CLIENT: Uuid = Uuid::from_u128(7);

fn auth(env: &str) -> Auth {
    let pairs = env.split_whitespace().map(|pair| pair.split_once('=').expect("NAME=value"));
    let loaded = Config::load([], pairs.map(|(name, value)| (name.into(), value.into())));
    let mut config = loaded.unwrap_or_else(|error| panic!("{env}: {error}")).config;
    config.namespaces = Arc::new(
        Namespaces::parse(
            "[namespaces.open]\nsubscribe = \"anyone\"\npublish = \"subscriber\"\n\
             [namespaces.signed]\nsubscribe = \"token\"\n\
             [namespaces.closed]\nsubscribe = \"nobody\"\n\
             [namespaces.users]\n",
        )
        .expect("good namespaces"),
    );
    Auth::new(&config)
}

fn token(user: &str, channel: Option<&str>, exp: u64) -> String {
    let mut config =
        Config::defaults(Machine { cores: 1, open_files_max: 1024, memory_bytes: 1 << 30 });
    config.token_hmac_secret = auth_secret();
    let secret = config.token_hmac_secret.as_ref().expect("a secret");
    token::make(secret, &NewClaims { sub: user, channel, exp: Some(exp), ..NewClaims::default() })
}

fn auth_secret() -> Option<crate::config::Secret> {
    let env = [("HUB_TOKEN_HMAC_SECRET".into(), "new".into())];
    Config::load([], env).expect("a configuration").config.token_hmac_secret
}

const KEY: &str = "HUB_TOKEN_HMAC_SECRET=new";
const BOTH: &str = "HUB_TOKEN_HMAC_SECRET=new HUB_ALLOW_ANONYMOUS=true";
const DEV: &str = "HUB_DEV=true";
const DEV_KEY: &str = "HUB_DEV=true HUB_TOKEN_HMAC_SECRET=new";
const FUTURE_S: u64 = NOW_S + 60;
const PAST_S: u64 = NOW_S - 60;

/// The code of an answer, 0 for a yes.
fn code<T>(result: Result<T, Denial>) -> u32 {
    match result {
        Ok(_) => 0,
        Err(Denial::Error(error)) => error.code,
        Err(Denial::Close(close)) => close.code.into(),
        Err(Denial::Unsubscribe(end)) => end.code,
    }
}

#[test]
fn connecting() {
    let check = |env: &str, token: &str, expected: Result<&str, u32>| {
        let found = auth(env).connect(token, NOW_S);
        let user = found.as_ref().ok().map(|token| token.user.to_string());
        let found = user.as_deref().ok_or(code(found));
        assert_eq!(found, expected, "{env} {token}");
    };
    let good = token("42", None, FUTURE_S);
    let old = token("42", None, PAST_S);
    check("", "", Err(3501));
    check("", &good, Err(3500));
    check(KEY, "", Err(3501));
    check(KEY, &good, Ok("42"));
    check(KEY, &token("", None, FUTURE_S), Ok(""));
    check(KEY, &old, Err(109));
    check(KEY, "x", Err(3500));
    check(KEY, &token("42", Some("a"), FUTURE_S), Err(3500));
    check(BOTH, "", Ok(""));
    check(BOTH, &good, Ok("42"));
    // Whose token is no good doesn't go on as anonymous.
    check(BOTH, "x", Err(3500));
    check(BOTH, &old, Err(109));
    check("HUB_ALLOW_ANONYMOUS=true", &good, Err(3500));
    check(DEV, "", Ok(""));
    check(DEV, "x", Ok(""));
    check(DEV_KEY, "", Ok(""));
    check(DEV_KEY, &good, Ok("42"));
    check(DEV_KEY, "x", Err(3500));
}

#[test]
fn refreshing() {
    let check = |env: &str, token: &str, expected: u32| {
        assert_eq!(code(auth(env).refresh(token, "42", NOW_S)), expected, "{env} {token}");
    };
    check(KEY, &token("42", None, FUTURE_S), 0);
    check(KEY, &token("43", None, FUTURE_S), 3500);
    check(KEY, &token("", None, FUTURE_S), 3500);
    check(KEY, &token("42", None, PAST_S), 3005);
    check(KEY, "x", 3500);
    check(DEV, "x", 0);
    let fresh = auth(KEY).refresh(&token("42", None, FUTURE_S), "42", NOW_S);
    assert_eq!(fresh.map(|token| token.expire_at), Ok(Some(FUTURE_S)));
}

fn wish<'a>(user: &'a str, channel: &'a str, token: &'a str) -> Wish<'a> {
    Wish { channel, token, bearer: Bearer::new(user, CLIENT) }
}

#[test]
fn subscribing() {
    let check = |env: &str, user: &str, channel: &str, token: &str, expected: u32| {
        let auth = auth(env);
        let found = auth.subscribe(wish(user, channel, token), NOW_S);
        assert_eq!(code(found), expected, "{env} {user:?} {channel} {token}");
    };
    let of = |user: &str, channel: &str| token(user, Some(channel), FUTURE_S);
    check(KEY, "42", "users:1", "", 0);
    check(KEY, "", "users:1", "", 103);
    check(KEY, "", "users:1", &of("", "users:1"), 0);
    check(KEY, "", "open:1", "", 0);
    check(KEY, "", "open:1", "x", 103);
    check(KEY, "42", "signed:1", "", 103);
    check(KEY, "42", "signed:1", &of("42", "signed:1"), 0);
    check(KEY, "42", "signed:1", &of("42", "signed:2"), 3500);
    check(KEY, "42", "signed:1", &of("43", "signed:1"), 3500);
    check(KEY, "42", "signed:1", &token("42", Some("signed:1"), PAST_S), 109);
    check(KEY, "42", "signed:1", &token("42", None, FUTURE_S), 103);
    check(KEY, "42", "closed:1", &of("42", "closed:1"), 103);
    check(KEY, "42", "no:1", &of("42", "no:1"), 102);
    check(KEY, "42", "plain", "", 102);
    // A list of users in the name, and what the namespace says: both hold.
    check(KEY, "42", "open:#42", "", 0);
    check(KEY, "42", "open:#43", "", 103);
    check(KEY, "", "open:#42", "", 103);
    check(KEY, "", "open:#", "", 103);
    check(KEY, "42", "open:#43", &of("42", "open:#43"), 103);
    check(KEY, "42", "signed:#42", "", 103);
    check(KEY, "42", "signed:#42", &of("42", "signed:#42"), 0);
    check(KEY, "42", "closed:#42", &of("42", "closed:#42"), 103);
    check(DEV, "", "closed:#42", "", 0);
    check("", "42", "signed:1", &of("42", "signed:1"), 103);
    check(DEV, "", "closed:1", "x", 0);
    check(DEV, "", "no:1", "", 102);
    check(DEV_KEY, "", "closed:1", "", 0);
    check(DEV_KEY, "", "closed:1", "x", 103);
    let auth = auth(KEY);
    let token = of("42", "signed:1");
    let granted = auth.subscribe(wish("42", "signed:1", &token), NOW_S).expect("a yes");
    assert_eq!(granted.token.and_then(|token| token.expire_at), Some(FUTURE_S));
    assert_eq!(granted.namespace.subscribe, crate::config::Access::Token);
}

#[test]
fn refreshing_a_subscription() {
    let check = |env: &str, channel: &str, token: &str, expected: u32| {
        let found = auth(env).sub_refresh(wish("42", channel, token), NOW_S);
        assert_eq!(code(found), expected, "{env} {channel:?} {token}");
    };
    let good = token("42", Some("a"), FUTURE_S);
    check(KEY, "a", &good, 0);
    check(KEY, "", &good, 0);
    check(KEY, "b", &good, 3500);
    check(KEY, "a", &token("43", Some("a"), FUTURE_S), 3500);
    check(KEY, "a", &token("42", Some("a"), PAST_S), 2501);
    check(KEY, "a", "x", 3500);
    check(KEY, "a", "", 107);
    check(DEV, "a", "x", 0);
    let found = auth(KEY).sub_refresh(wish("42", "", &good), NOW_S).expect("a yes");
    assert_eq!(found.map(|token| token.channel), Some("a".into()));
}

#[test]
fn doing() {
    let check = |env: &str, action: Action, channel: &str, tie: Tie, expected: u32| {
        let auth = auth(env);
        let found = auth.may(action, channel, Standing::new("42", tie)).map_err(Denial::from);
        assert_eq!(code(found), expected, "{env} {action:?} {channel} {tie:?}");
    };
    check(KEY, Action::Publish, "open:1", Tie::None, 103);
    check(KEY, Action::Publish, "open:1", Tie::Subscribed, 0);
    check(KEY, Action::History, "open:1", Tie::Subscribed, 103);
    check(KEY, Action::Publish, "no:1", Tie::Subscribed, 102);
    check(KEY, Action::Publish, "open:#42", Tie::Subscribed, 0);
    check(KEY, Action::Publish, "open:#43", Tie::Token, 103);
    check(DEV, Action::History, "closed:1", Tie::None, 0);
    check(DEV, Action::Publish, "no:1", Tie::None, 102);
}
