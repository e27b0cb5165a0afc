use serde_json::{Value, json};

use super::*;
use crate::config::Machine;

const NOW_S: u64 = 1_800_000_000;
/// Where the two sides are, for the tests that need no other.
const CLIENT: Uuid = Uuid::from_u128(7);

/// Made as an operator's configuration is, so that `Config` and `Verifier` agree on the knobs.
fn verifier(env: &str) -> Verifier {
    Verifier::new(&config(env))
}

fn config(env: &str) -> Config {
    let pairs = env.split_whitespace().map(|pair| pair.split_once('=').expect("NAME=value"));
    let loaded = Config::load([], pairs.map(|(name, value)| (name.into(), value.into())));
    loaded.unwrap_or_else(|error| panic!("{env}: {error}")).config
}

fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).expect("claims")
}

fn token(claims: &Value) -> String {
    signed(Algorithm::HS256, "new", claims)
}

/// A header of one's own, signed properly with `secret`.
fn with_header(header: &str, claims: &str, secret: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", signature.expect("a signature"))
}

const KEYS: &str = "HUB_TOKEN_HMAC_SECRET=new HUB_TOKEN_HMAC_PREVIOUS_SECRET=old";

fn connect(token: &str) -> Result<ConnectionToken, TokenError> {
    verifier(KEYS).connection(token, NOW_S)
}

fn user(token: &str) -> Result<String, TokenError> {
    connect(token).map(|token| token.user.into())
}

#[test]
fn a_good_token_says_who_and_how_long() {
    let claims = json!({
        "sub": "42", "exp": NOW_S + 60, "iat": NOW_S + 3600, "jti": "x", "info": {"name": "é"},
        "channels": ["a", "b"], "meta": {"secret": 1},
    });
    let expected = ConnectionToken {
        user: "42".into(),
        info: Some(r#"{"name":"é"}"#.as_bytes().into()),
        expire_at: Some(NOW_S + 60),
        grants: vec![Grant::new("a"), Grant::new("b")],
    };
    assert_eq!(connect(&token(&claims)), Ok(expected));
    assert_eq!(connect(&token(&json!({}))), Ok(ConnectionToken::default()));
}

/// The example of jwt.io, so that not only our own signatures are known to fit.
#[test]
fn a_token_of_others_is_good() {
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gR\
                 G9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
    let verifier = verifier("HUB_TOKEN_HMAC_SECRET=your-256-bit-secret");
    let user = verifier.connection(token, NOW_S).map(|token| token.user);
    assert_eq!(user, Ok("1234567890".into()));
}

#[test]
fn keys_rotate() {
    let claims = json!({"sub": "42"});
    let check = |env: &str, secret: &str, expected: Result<&str, TokenError>| {
        let verifier = verifier(env);
        let token = signed(Algorithm::HS256, secret, &claims);
        assert_eq!(verifier.key_name(&token), expected, "{env} {secret}");
        let user = verifier.connection(&token, NOW_S).map(|token| token.user);
        assert_eq!(user, expected.map(|_| "42".into()), "{env} {secret}");
    };
    check(KEYS, "new", Ok("HUB_TOKEN_HMAC_SECRET"));
    check(KEYS, "old", Ok("HUB_TOKEN_HMAC_PREVIOUS_SECRET"));
    check(KEYS, "other", Err(TokenError::Signature));
    check(KEYS, "", Err(TokenError::Signature));
    check("HUB_TOKEN_HMAC_SECRET=new", "old", Err(TokenError::Signature));
    check("", "new", Err(TokenError::NoKey));
    check("", "", Err(TokenError::NoKey));
    assert!(verifier(KEYS).has_key() && !verifier("").has_key());
}

#[test]
fn only_hmac_algorithms_find_an_hmac_key() {
    let claims = json!({"sub": "42"});
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        for secret in ["new", "old"] {
            assert_eq!(user(&signed(algorithm, secret, &claims)).as_deref(), Ok("42"));
        }
    }
    let check = |header: &str, expected: TokenError| {
        // Signed with the secret as an HMAC key would be: what algorithm confusion looks like.
        let signed = with_header(header, r#"{"sub":"42"}"#, "new");
        let (message, _) = signed.rsplit_once('.').expect("three parts");
        for token in [signed.clone(), format!("{message}.")] {
            assert_eq!(user(&token), Err(expected), "{header} {token}");
        }
    };
    for name in
        ["none", "None", "NONE", "nOnE", "", "hs256", "HS1", "RS256", "PS256", "ES256", "EdDSA"]
    {
        check(&format!(r#"{{"alg":"{name}","typ":"JWT"}}"#), TokenError::Algorithm);
    }
    check(r#"{"typ":"JWT"}"#, TokenError::Malformed);
    check(r#"{"alg":null}"#, TokenError::Malformed);
    check(r#"{"alg":["HS256"]}"#, TokenError::Malformed);
    check(r#"{"alg":"HS256","alg":"none"}"#, TokenError::Malformed);
    check("[]", TokenError::Malformed);
    check(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, TokenError::Critical);
    check(r#"{"alg":"HS256","crit":[]}"#, TokenError::Critical);
    // The header's other wishes are none of ours.
    let header = r#"{"alg":"HS256","kid":"no such","jku":"https://evil.example","typ":"x"}"#;
    assert_eq!(user(&with_header(header, r#"{"sub":"42"}"#, "new")).as_deref(), Ok("42"));
}

#[test]
fn what_was_changed_does_not_count() {
    let good = token(&json!({"sub": "42", "exp": NOW_S + 60}));
    assert_eq!(user(&good).as_deref(), Ok("42"));
    for (at, byte) in good.bytes().enumerate() {
        let other = if byte == b'A' { 'B' } else { 'A' };
        let mut changed = good.clone();
        changed.replace_range(at..=at, &other.to_string());
        assert!(user(&changed).is_err(), "{changed}");
        // Neither does a part of it.
        assert!(user(&good[..at]).is_err(), "{}", &good[..at]);
    }
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "é.é.é",
        message,
        &format!("{good}."),
        &format!("{good}.{signature}"),
        &format!("{good}="),
        &format!("{good}\n"),
        &format!(" {good}"),
        &format!("Bearer {good}"),
        &format!("{message}.{}", signature.to_ascii_uppercase()),
    ] {
        assert!(user(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_length_is_bounded() {
    let of_length = |length: usize| {
        // Three bytes of claims are four of token.
        let mut claims = json!({"sub": "42", "pad": "x".repeat(length * 3 / 4 - 100)});
        loop {
            let token = token(&claims);
            if token.len() >= length {
                return token;
            }
            let pad = claims["pad"].as_str().expect("a text").to_owned();
            claims["pad"] = format!("{pad}x").into();
        }
    };
    let longest = of_length(TOKEN_BYTES_MAX - 1);
    assert!(longest.len() <= TOKEN_BYTES_MAX, "{}", longest.len());
    assert_eq!(user(&longest).as_deref(), Ok("42"));
    let longer = of_length(TOKEN_BYTES_MAX + 1);
    assert_eq!(user(&longer), Err(TokenError::TooLong));
    assert_eq!(user(&"x".repeat(TOKEN_BYTES_MAX + 1)), Err(TokenError::TooLong));
}

#[test]
fn time_has_a_leeway_of_ten_seconds() {
    let check = |claims: Value, expected: Result<Option<u64>, TokenError>| {
        let token = token(&claims);
        assert_eq!(connect(&token).map(|token| token.expire_at), expected, "{claims}");
    };
    let (exp, nbf) = (|at: u64| json!({"exp": at}), |at: u64| json!({"nbf": at}));
    check(exp(NOW_S + 1), Ok(Some(NOW_S + 1)));
    check(exp(NOW_S), Ok(Some(NOW_S)));
    check(exp(NOW_S - 9), Ok(Some(NOW_S - 9)));
    check(exp(NOW_S - 10), Err(TokenError::Expired));
    check(exp(0), Err(TokenError::Expired));
    check(json!({"exp": -1}), Err(TokenError::Expired));
    check(json!({"exp": NOW_S as f64 + 0.5}), Ok(Some(NOW_S)));
    check(json!({"exp": (NOW_S + 5).to_string()}), Ok(Some(NOW_S + 5)));
    check(json!({"exp": (NOW_S - 10).to_string()}), Err(TokenError::Expired));
    check(json!({"exp": "soon"}), Err(TokenError::Claims));
    check(json!({"exp": [NOW_S]}), Err(TokenError::Claims));
    check(nbf(NOW_S + 10), Ok(None));
    check(nbf(NOW_S + 11), Err(TokenError::NotYetValid));
    check(json!({"nbf": "tomorrow"}), Err(TokenError::Claims));
    // `expire_at` rules how long, `exp` whether at all.
    let both = |exp: u64, expire_at: u64| json!({"exp": exp, "expire_at": expire_at});
    check(both(NOW_S + 5, NOW_S + 60), Ok(Some(NOW_S + 60)));
    check(both(NOW_S + 60, 0), Ok(None));
    check(both(NOW_S - 10, 0), Err(TokenError::Expired));
    check(both(NOW_S + 60, NOW_S - 9), Ok(Some(NOW_S - 9)));
    check(both(NOW_S + 60, NOW_S - 10), Err(TokenError::ExpireAtPast));
    check(json!({"expire_at": NOW_S + 1}), Ok(Some(NOW_S + 1)));
}

#[test]
fn claims_must_be_of_their_type() {
    for claims in [
        json!({"sub": 42}),
        json!({"sub": ["42"]}),
        json!({"iss": 1}),
        json!({"aud": 1}),
        json!({"channel": 1}),
        json!({"channels": "a"}),
        json!({"subs": ["a"]}),
        json!({"b64info": 1}),
        json!([]),
        json!("42"),
        json!(null),
    ] {
        assert_eq!(user(&token(&claims)), Err(TokenError::Claims), "{claims}");
    }
    let twice = with_header(r#"{"alg":"HS256"}"#, r#"{"sub":"1","sub":"2"}"#, "new");
    assert_eq!(user(&twice), Err(TokenError::Claims));
    let no_json = with_header(r#"{"alg":"HS256"}"#, "sub=42", "new");
    assert_eq!(user(&no_json), Err(TokenError::Claims));
    assert_eq!(user(&token(&json!({"b64info": "%"}))), Err(TokenError::Info));
    assert_eq!(user(&token(&json!({"channel": "a"}))), Err(TokenError::NotForConnections));
    assert_eq!(user(&token(&json!({"sub": "42", "channel": ""}))).as_deref(), Ok("42"));
}

#[test]
fn audience_and_issuer_count_if_configured() {
    let check = |env: &str, claims: Value, expected: Result<(), TokenError>| {
        let verifier = verifier(&format!("{KEYS} {env}"));
        let found = verifier.connection(&token(&claims), NOW_S).map(drop);
        assert_eq!(found, expected, "{env} {claims}");
    };
    check("", json!({"aud": "x", "iss": "y"}), Ok(()));
    let aud = "HUB_TOKEN_AUDIENCE=hub";
    check(aud, json!({"aud": "hub"}), Ok(()));
    check(aud, json!({"aud": ["x", "hub"]}), Ok(()));
    check(aud, json!({"aud": "hubs"}), Err(TokenError::Audience));
    check(aud, json!({"aud": []}), Err(TokenError::Audience));
    check(aud, json!({}), Err(TokenError::Audience));
    let iss = "HUB_TOKEN_ISSUER=app";
    check(iss, json!({"iss": "app"}), Ok(()));
    check(iss, json!({"iss": "App"}), Err(TokenError::Issuer));
    check(iss, json!({}), Err(TokenError::Issuer));
    // What is no good stays no good when it is also old: the client must not fetch another.
    check(iss, json!({"iss": "x", "exp": 1}), Err(TokenError::Issuer));
}

fn subscribe(
    claims: &Value,
    user: &str,
    channel: Option<&str>,
) -> Result<SubscriptionToken, TokenError> {
    verifier(KEYS).subscription(&token(claims), Bearer { user, client: CLIENT }, channel, NOW_S)
}

#[test]
fn subscription_tokens_are_for_one_user_and_channel() {
    let check = |claims: Value, user: &str, channel: &str, expected: Result<(), TokenError>| {
        let found = subscribe(&claims, user, Some(channel)).map(drop);
        assert_eq!(found, expected, "{claims} {user} {channel}");
    };
    let claims = json!({"sub": "42", "channel": "a:1"});
    check(claims.clone(), "42", "a:1", Ok(()));
    check(claims.clone(), "43", "a:1", Err(TokenError::OtherUser));
    check(claims.clone(), "", "a:1", Err(TokenError::OtherUser));
    check(claims.clone(), "42", "a:2", Err(TokenError::OtherChannel));
    check(claims.clone(), "42", "a:", Err(TokenError::OtherChannel));
    check(claims, "42", "A:1", Err(TokenError::OtherChannel));
    check(json!({"channel": "a"}), "", "a", Ok(()));
    check(json!({"channel": "a"}), "42", "a", Err(TokenError::OtherUser));
    check(json!({"sub": "42"}), "42", "a", Err(TokenError::NoChannel));
    check(json!({"sub": "42", "channel": ""}), "42", "", Err(TokenError::NoChannel));
    check(json!({"channel": "a", "client": CLIENT.to_string()}), "", "a", Ok(()));
    check(json!({"channel": "a", "client": ""}), "", "a", Ok(()));
    check(
        json!({"channel": "a", "client": Uuid::nil().to_string()}),
        "",
        "a",
        Err(TokenError::OtherClient),
    );
    check(json!({"channel": "a", "client": "x"}), "", "a", Err(TokenError::OtherClient));
    check(json!({"channel": "a", "exp": NOW_S - 10}), "", "a", Err(TokenError::Expired));
    check(json!({"channel": "a", "exp": NOW_S - 10}), "", "b", Err(TokenError::OtherChannel));
}

#[test]
fn subscription_tokens_say_how_long_and_what() {
    let claims = json!({"channel": "a", "exp": NOW_S + 9, "info": [1]});
    let expected = SubscriptionToken {
        channel: "a".into(),
        info: Some((*b"[1]").into()),
        expire_at: Some(NOW_S + 9),
    };
    assert_eq!(subscribe(&claims, "", Some("a")), Ok(expected.clone()));
    assert_eq!(subscribe(&claims, "", None), Ok(expected), "any channel will do");
}

#[test]
fn ttls() {
    assert_eq!(ttl_s(NOW_S + 60, NOW_S), 60);
    assert_eq!(ttl_s(NOW_S, NOW_S), 1);
    assert_eq!(ttl_s(NOW_S - 9, NOW_S), 1);
    assert_eq!(ttl_s(u64::MAX, NOW_S), u32::MAX);
}

#[test]
fn errors_and_debug_tell_nothing() {
    let verifier = verifier("HUB_TOKEN_HMAC_SECRET=hushhush");
    let mut told = format!("{verifier:?}");
    for token in
        ["eyJhushhush", "hush.hush.hush", &signed(Algorithm::HS256, "x", &json!({"sub": "hush"}))]
    {
        let error = verifier.connection(token, NOW_S).expect_err("a refusal");
        told.push_str(&format!("{error} {error:?} "));
    }
    assert!(!told.contains("hush") && !told.contains("104, 117, 115, 104"), "{told}");
}

#[test]
fn what_is_made_is_good() {
    let config = config(KEYS);
    let secret = config.token_hmac_secret.as_ref().expect("a secret");
    let claims = NewClaims { sub: "42", iat: NOW_S, exp: Some(NOW_S + 60), ..NewClaims::default() };
    let made = make(secret, &claims);
    assert_eq!(user(&made).as_deref(), Ok("42"));
    let unverified = Unverified::read(&made).expect("a token");
    assert_eq!(unverified.header["alg"], "HS256");
    assert_eq!(unverified.claims, json!({"sub": "42", "iat": NOW_S, "exp": NOW_S + 60}));
    assert_eq!(Unverified::read("x").err(), Some(TokenError::Malformed));
}

#[test]
fn defaults_have_no_key() {
    let verifier = Verifier::new(&Config::defaults(Machine {
        cores: 1,
        open_files_max: 1024,
        memory_bytes: 1 << 30,
    }));
    assert_eq!(verifier.connection(&token(&json!({})), NOW_S), Err(TokenError::NoKey));
}

proptest::proptest! {
    #[test]
    fn no_text_is_a_token_and_none_panics(text in proptest::string::string_regex("[ -~.]{0,200}").unwrap()) {
        proptest::prop_assert!(user(&text).is_err());
    }

    #[test]
    fn any_signed_claims_are_decided(text: String) {
        let token = with_header(r#"{"alg":"HS256"}"#, &text, "new");
        proptest::prop_assert!(!matches!(user(&token), Err(TokenError::Signature)));
    }
}
