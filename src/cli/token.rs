//! `hubbub token make` and `hubbub token check`: tokens by hand, to try things out and to find out why
//! one is refused.
//!
//! Runs on main and ends. The secrets, the audience and the issuer are those of the knobs, so what is
//! made here is good for a hub with the same environment, and what is refused there is refused here,
//! by the same code. No secret comes from or goes to the command line; `check -` keeps the token off
//! it as well.

use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Action;
use crate::auth::token::{TOKEN_BYTES_MAX, make as sign};
use crate::auth::{
    Asked, Auth, Bearer, Denial, Grant, LEEWAY_S, NewClaims, TokenError, Unverified, Verifier,
};
use crate::channel;
use crate::config::{Config, EXIT_CONFIG, values};
use crate::protocol::{DEPTH_MAX, depth_within};

const EXPIRES_MIN: Duration = Duration::from_secs(1);
/// Ten years.
const EXPIRES_MAX: Duration = Duration::from_secs(87_600 * 3_600);

pub(super) fn command() -> Command {
    let make = Command::new("make")
        .about("Make a token and print it")
        .override_usage(
            "hubbub token make --user USER [--channel CHANNEL | --serve CHANNEL …] \
             [--expires TIME] [--info JSON]",
        )
        .arg(option("user", "USER", "Whom it is for; empty: an anonymous client").required(true))
        .arg(option("channel", "CHANNEL", "Makes it a subscription token for that channel"))
        .arg(
            option("serve", "CHANNEL", "The server subscribes its client to it; may be repeated")
                .action(ArgAction::Append)
                .conflicts_with("channel"),
        )
        .arg(
            option("expires", "TIME", "When it ends, such as 90s or 12h; 0: never")
                .default_value("1h"),
        )
        .arg(option("info", "JSON", "What others are shown of the client"));
    let check = Command::new("check")
        .about("Tell what a token is good for (exit code 0), or why it is refused (1)")
        .override_usage("hubbub token check TOKEN\n       hubbub token check - <FILE")
        .arg(Arg::new("token").value_name("TOKEN").help("- reads it from stdin").required(true));
    Command::new("token")
        .about("Make and check the clients' tokens; the secret is HUB_TOKEN_HMAC_SECRET[_FILE]")
        .override_usage("hubbub token make …\n       hubbub token check …")
        .subcommand_required(true)
        .subcommand(make)
        .subcommand(check)
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// `matches` are those of one of the two subcommands.
pub(super) fn run(
    name: &str,
    matches: &ArgMatches,
    config: &Config,
    stdin: &mut dyn Read,
) -> Action {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let done = if name == "make" {
        let order = Order {
            user: text("user").unwrap_or_default(),
            channel: text("channel"),
            serve: matches
                .get_many::<String>("serve")
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect(),
            expires: text("expires").unwrap_or_default(),
            info: text("info"),
        };
        make(&order, config, now).map(|token| Action::Print(format!("{token}\n")))
    } else {
        given_token(text("token").unwrap_or_default(), stdin)
            .and_then(|token| check(&token, config, now))
    };
    done.unwrap_or_else(|mistake| Action::Fail {
        message: format!("error: {mistake}"),
        code: EXIT_CONFIG,
    })
}

fn given_token(argument: &str, stdin: &mut dyn Read) -> Result<String, String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    // Enough to see that it is too long.
    let read = stdin.take(2 * TOKEN_BYTES_MAX as u64).read_to_string(&mut text);
    read.map_err(|error| format!("stdin: {error}"))?;
    Ok(text.trim().to_owned())
}

const NO_SECRET: &str =
    "there is no secret: set HUB_TOKEN_HMAC_SECRET or HUB_TOKEN_HMAC_SECRET_FILE";

struct Order<'a> {
    user: &'a str,
    channel: Option<&'a str>,
    serve: Vec<&'a str>,
    expires: &'a str,
    info: Option<&'a str>,
}

fn make(order: &Order<'_>, config: &Config, now_s: u64) -> Result<String, String> {
    let secret = config.token_hmac_secret.as_ref().ok_or(NO_SECRET)?;
    if let Some(channel) = order.channel {
        channel::check_name(channel, config.channel_bytes_max)
            .map_err(|error| format!("--channel: {error}"))?;
    }
    for channel in &order.serve {
        channel::check_name(channel, config.channel_bytes_max)
            .map_err(|error| format!("--serve: {error}"))?;
    }
    let info = order.info.map(read_info).transpose()?;
    let exp = lifetime(order.expires)?.map(|lasts| now_s + lasts.as_secs());
    let token = sign(
        secret,
        &NewClaims {
            sub: order.user,
            channel: order.channel,
            channels: &order.serve,
            iat: now_s,
            exp,
            aud: config.token_audience.as_deref(),
            iss: config.token_issuer.as_deref(),
            info,
        },
    );
    if token.len() > TOKEN_BYTES_MAX {
        return Err(format!(
            "the token would have {} bytes: at most {TOKEN_BYTES_MAX}",
            token.len()
        ));
    }
    Ok(token)
}

/// `None`: for ever.
fn lifetime(text: &str) -> Result<Option<Duration>, String> {
    if text == "0" {
        return Ok(None);
    }
    values::duration(text, EXPIRES_MIN..=EXPIRES_MAX).map(Some).map_err(|_| {
        let most = values::show_duration(EXPIRES_MAX);
        format!("--expires: {text:?} is not valid: expected 0 or 90s, 5m or 12h, up to {most}")
    })
}

fn read_info(text: &str) -> Result<&RawValue, String> {
    let info: &RawValue = serde_json::from_str(text).map_err(|error| {
        format!("--info: expected JSON, such as '{{\"name\":\"Ada\"}}': {error}")
    })?;
    if depth_within(text.as_bytes(), DEPTH_MAX) {
        Ok(info)
    } else {
        Err(format!("--info: expected at most {DEPTH_MAX} levels"))
    }
}

fn check(token: &str, config: &Config, now_s: u64) -> Result<Action, String> {
    let verifier = Verifier::new(config);
    if !verifier.has_key() {
        return Err(NO_SECRET.to_owned());
    }
    let said = Unverified::read(token);
    let claim = |name: &str| said.as_ref().ok().and_then(|said| said.claims.get(name));
    let text = |name: &str| claim(name).and_then(Value::as_str).unwrap_or_default();
    let is_subscription = !text("channel").is_empty();
    let found = if is_subscription {
        // As whomever it is for.
        let client = Uuid::parse_str(text("client")).unwrap_or_default();
        let bearer = Bearer::new(text("sub"), client);
        verifier
            .subscription(token, bearer, None, now_s)
            .map(|token| (token.expire_at, token.info, Vec::new()))
    } else {
        verifier.connection(token, now_s).map(|token| (token.expire_at, token.info, token.grants))
    };
    let mut lines = Vec::new();
    match found {
        Ok((expire_at, info, grants)) => {
            let served = match served(text("sub"), grants, config) {
                _ if is_subscription => None,
                Ok(served) => served,
                Err(refused) => return Ok(Action::Refuse(printable(&refused))),
            };
            let whose = match text("sub") {
                "" => "an anonymous client".to_owned(),
                user => format!("user {user:?}"),
            };
            lines.push(match is_subscription {
                true => format!("good: subscribes {whose} to channel {:?}", text("channel")),
                false => format!("good: connects {whose}"),
            });
            lines.extend(served);
            lines.push(expire_at.map_or("never ends".to_owned(), |at| ends(at, now_s)));
            lines.extend(info.map(|info| format!("info {}", String::from_utf8_lossy(&info))));
            lines.extend(verifier.key_name(token).map(|name| format!("made with {name}")));
            Ok(Action::Print(printable(&lines)))
        }
        Err(error) => {
            let asked = if is_subscription { Asked::Subscribe } else { Asked::Connect };
            lines.push(format!("refused: {error}"));
            lines.extend(details(error, &claim, config, now_s));
            lines.push(format!("a client is told: {}", told(Denial::of(error, asked))));
            if let Ok(said) = &said {
                lines.push(format!("header, as it stands there: {}", said.header));
                lines.push(format!("claims, as they stand there: {}", said.claims));
            }
            Ok(Action::Refuse(printable(&lines)))
        }
    }
}

/// Where a connection token subscribes its client, or why that can't be.
fn served(user: &str, grants: Vec<Grant>, config: &Config) -> Result<Option<String>, Vec<String>> {
    let auth = Auth::new(config);
    let is_bad = |grant: &&Grant| auth.check_grant(user, &grant.channel, config).is_err();
    let reason = match grants.iter().find(is_bad) {
        Some(grant) => format!("refused: it may not bring along channel {:?}", grant.channel),
        None => "refused: it brings along more channels than HUB_CHANNELS_MAX".to_owned(),
    };
    match auth.served(user, grants, std::iter::empty(), config) {
        Ok(served) => {
            let names: Vec<&str> = served.iter().map(|grant| &*grant.channel).collect();
            Ok((!names.is_empty()).then(|| format!("subscribes it to {}", names.join(", "))))
        }
        Err(denial) => Err(vec![reason, format!("a client is told: {}", told(denial))]),
    }
}

/// What the error's own text cannot know.
fn details<'a>(
    error: TokenError,
    claim: &dyn Fn(&str) -> Option<&'a Value>,
    config: &Config,
    now_s: u64,
) -> Option<String> {
    let time = |name: &str| {
        let at = claim(name)?;
        let at_s = at.as_f64().or_else(|| at.as_str()?.parse().ok())? as u64;
        Some(format!("{name} {}; clocks may differ by {LEEWAY_S}s", when(at_s, now_s)))
    };
    let instead = |name: &str, own: &Option<String>| {
        let expected = own.as_deref().unwrap_or_default();
        let is = claim(name).map_or("absent".to_owned(), Value::to_string);
        Some(format!("{name} is {is}, expected {expected:?}"))
    };
    match error {
        TokenError::Expired => time("exp"),
        TokenError::NotYetValid => time("nbf"),
        TokenError::ExpireAtPast => time("expire_at"),
        TokenError::Audience => instead("aud", &config.token_audience),
        TokenError::Issuer => instead("iss", &config.token_issuer),
        TokenError::Algorithm => Some("expected alg HS256, HS384 or HS512".to_owned()),
        TokenError::Signature if config.token_hmac_previous_secret.is_some() => {
            Some("tried HUB_TOKEN_HMAC_SECRET and HUB_TOKEN_HMAC_PREVIOUS_SECRET".to_owned())
        }
        TokenError::Signature => Some("tried HUB_TOKEN_HMAC_SECRET".to_owned()),
        _ => None,
    }
}

fn ends(at_s: u64, now_s: u64) -> String {
    format!("ends {}", when(at_s, now_s))
}

fn when(at_s: u64, now_s: u64) -> String {
    let apart =
        values::show_duration(Duration::from_secs(at_s.abs_diff(now_s).min(u64::from(u32::MAX))));
    if at_s < now_s { format!("{apart} ago") } else { format!("in {apart}") }
}

fn told(denial: Denial) -> String {
    match denial {
        Denial::Error(error) => format!("error {}, {}", error.code, error.message),
        Denial::Close(close) => format!("close {}, {}", close.code, close.reason),
        Denial::Unsubscribe(end) => format!("unsubscribe {}, {}", end.code, end.reason),
    }
}

/// What a token says is whoever made it's text: it must not steer the terminal.
fn printable(lines: &[String]) -> String {
    let shown = |c: char| {
        if c.is_control() { c.escape_unicode().collect() } else { String::from(c) }
    };
    lines.iter().map(|line| line.chars().map(shown).collect::<String>() + "\n").collect()
}

#[cfg(test)]
mod tests;
