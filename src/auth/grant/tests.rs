use std::sync::Arc;

use super::*;
use crate::config::{Machine, Namespaces};

const NAMESPACES: &str = r#"
[namespaces.""]
personal = true
[namespaces.user]
subscribe = "nobody"
personal = true
[namespaces.open]
subscribe = "anyone"
[namespaces.closed]
subscribe = "nobody"
"#;

/// Names have at most 20 bytes, and a connection has at most 5 channels.
fn config(namespaces: &str) -> Config {
    let machine = Machine { cores: 1, open_files_max: 1024, memory_bytes: 1 << 30 };
    let namespaces = Arc::new(Namespaces::parse(namespaces).expect("good namespaces"));
    let mut config = Config::defaults(machine);
    (config.channel_bytes_max, config.channels_max, config.namespaces) = (20, 5, namespaces);
    config
}

/// Names, a `*` behind those that count as a token's; or the code.
fn served(namespaces: &str, user: &str, granted: &[&str], wants: &[&str]) -> Result<String, u32> {
    let config = config(namespaces);
    let granted = granted.iter().map(|name| Grant::new(name)).collect();
    let served = Auth::new(&config).served(user, granted, wants.iter().copied(), &config);
    let told = |grant: &Grant| {
        let star = if grant.tie == Tie::Token { "*" } else { "" };
        format!("{}{star}", grant.channel)
    };
    match served {
        Ok(served) => Ok(served.iter().map(told).collect::<Vec<_>>().join(" ")),
        Err(Denial::Error(error)) => Err(error.code),
        Err(Denial::Close(close)) => Err(close.code.into()),
        Err(Denial::Unsubscribe(_)) => panic!("nothing is subscribed yet"),
    }
}

#[track_caller]
fn check(user: &str, granted: &[&str], wants: &[&str], expected: Result<&str, u32>) {
    let found = served(NAMESPACES, user, granted, wants);
    assert_eq!(found.as_deref().map_err(|code| *code), expected, "{user:?} {granted:?} {wants:?}");
}

#[test]
fn a_token_grants_whatever_subscribe_says() {
    check("", &[], &[], Ok(""));
    check("", &["news", "open:1", "closed:1"], &[], Ok("news* open:1* closed:1*"));
    check("", &["no:1"], &[], Err(102));
    check("", &["news", "a b"], &[], Err(107));
    check("", &["news", ""], &[], Err(107));
    check("", &["ws:conn"], &[], Err(107));
    check("", &["012345678901234567890"], &[], Err(107));
    check("", &["a", "b", "c", "d", "e"], &[], Ok("a* b* c* d* e*"));
    check("", &["a", "b", "c", "d", "e", "f"], &[], Err(3505));
}

#[test]
fn a_list_of_users_binds_tokens_too() {
    check("42", &["open:#42,43"], &[], Ok("open:#42,43* #42 user:#42"));
    check("42", &["open:#43"], &[], Err(103));
    check("", &["open:#42"], &[], Err(103));
    check("", &["open:#"], &[], Err(103));
}

#[test]
fn users_have_channels_of_their_own() {
    check("42", &[], &[], Ok("#42 user:#42"));
    check("42", &["#42"], &[], Ok("#42* user:#42"));
    check("4:2", &[], &[], Ok("user:#4:2"));
    check("4,2", &[], &[], Ok(""));
    check("42", &["a", "b", "c", "d"], &[], Err(3505));
    assert_eq!(served("[namespaces.user]", "42", &[], &[]), Ok(String::new()));
}

#[test]
fn what_a_client_wants_it_gets_if_it_may_subscribe() {
    check("42", &[], &["open:1", "news", "closed:1"], Ok("#42 user:#42 open:1 news"));
    check("42", &[], &["user:#42", "open:1", "open:1"], Ok("#42 user:#42 open:1"));
    check("42", &[], &["open:#43", "open:#42"], Ok("#42 user:#42 open:#42"));
    check("", &[], &["open:1", "news", "no:1", "a b", ""], Ok("open:1"));
    check("", &[], &["no:1", "no:2", "no:3", "no:4", "no:5", "open:1"], Ok(""));
    check("42", &["closed:1"], &["closed:1"], Ok("closed:1* #42 user:#42"));
    let four = ["open:1", "open:2", "open:3", "open:4"];
    check("42", &[], &four, Ok("#42 user:#42 open:1 open:2 open:3"));
}
