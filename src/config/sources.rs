//! Which text each knob gets: flag, environment or file, and which names are no knobs at all.
//!
//! Deliberately strict: a mistyped name that is silently ignored is found in production.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};

use super::knob::{self, Knob};
use super::knobs::KNOBS;
use super::{Problem, Source, values};

/// A secret is a line; a path to something endless must not fill the memory.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The text for one knob, or why it cannot be read.
pub struct Given {
    /// What the operator typed: `HUB_SHARDS`, `--shards`, `HUB_API_KEY_FILE`.
    pub name: String,
    pub source: Source,
    pub value: Result<String, Problem>,
}

impl Given {
    /// Even a value that is no text can be most of a secret, so it is shown only if `knob` holds none.
    fn new(knob: &Knob, name: String, source: Source, value: OsString) -> Given {
        let value = value.into_string().map_err(|raw| {
            let (name, expected) = (name.clone(), "UTF-8".to_owned());
            if knob.holds_secret() {
                Problem::BadSecret { name, expected }
            } else {
                Problem::Bad { name, value: values::shortened(&raw.to_string_lossy()), expected }
            }
        });
        Given { name, source, value }
    }

    fn from_file(name: String, path: &OsStr) -> Given {
        let value = read_secret(path).map_err(|error| Problem::File {
            name: name.clone(),
            path: path.to_string_lossy().into_owned(),
            reason: error.to_string(),
        });
        Given { name, source: Source::File, value }
    }
}

/// What the environment says about one knob.
#[derive(Default)]
struct FromEnv {
    value: Option<OsString>,
    path: Option<OsString>,
}

/// One entry per knob, in the order of `KNOBS`; flags win over the environment.
pub fn choose(
    flags: Vec<Option<OsString>>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> Vec<Option<Given>> {
    let mut from_env: Vec<FromEnv> = KNOBS.iter().map(|_| FromEnv::default()).collect();
    for (name, value) in env {
        let name = name.to_string_lossy().into_owned();
        match classify(&name) {
            Name::Foreign => {}
            Name::Knob(knob_idx) => from_env[knob_idx].value = non_empty(value),
            Name::File(knob_idx) => from_env[knob_idx].path = non_empty(value),
            Name::NotYet if value.is_empty() => {}
            Name::NotYet => problems.push(Problem::NotYet { name }),
            Name::Unknown => {
                let suggestion = suggest(&name);
                problems.push(Problem::Unknown { name, suggestion });
            }
        }
    }
    let mut chosen = Vec::with_capacity(KNOBS.len());
    for ((knob, flag), from_env) in KNOBS.iter().zip(flags).zip(from_env) {
        let FromEnv { value, path } = from_env;
        if value.is_some() && path.is_some() {
            problems.push(Problem::TwoSources { env: knob.env });
        }
        let env = || value.map(|value| Given::new(knob, knob.env.to_owned(), Source::Env, value));
        let file = || path.map(|path| Given::from_file(format!("{}_FILE", knob.env), &path));
        let flag = flag.and_then(non_empty);
        let flag =
            flag.map(|value| Given::new(knob, format!("--{}", knob.flag), Source::Flag, value));
        chosen.push(flag.or_else(env).or_else(file));
    }
    chosen
}

#[derive(Debug, Eq, PartialEq)]
enum Name {
    /// Not ours, or put there by Kubernetes.
    Foreign,
    Knob(usize),
    /// `HUB_X_FILE` of a knob that can hold a secret.
    File(usize),
    NotYet,
    Unknown,
}

fn classify(name: &str) -> Name {
    let Some(bare) = name.strip_prefix("HUB_") else {
        return Name::Foreign;
    };
    if let Some(knob_idx) = knob::position(name) {
        return Name::Knob(knob_idx);
    }
    let of_file = name.strip_suffix("_FILE").and_then(knob::position);
    if let Some(knob_idx) = of_file.filter(|knob_idx| KNOBS[*knob_idx].holds_secret()) {
        return Name::File(knob_idx);
    }
    if knob::is_not_yet(name) {
        return Name::NotYet;
    }
    // A Service named `hub` or `hub-…` in the namespace: HUB_SERVICE_HOST, HUB_PORT_8000_TCP, ….
    if bare.contains("SERVICE_") || bare.ends_with("PORT") || bare.contains("PORT_") {
        return Name::Foreign;
    }
    Name::Unknown
}

fn non_empty(value: OsString) -> Option<OsString> {
    (!value.is_empty()).then_some(value)
}

/// Without the newline that editors end a file with. An empty file is an error: it would open
/// nothing and say nothing.
fn read_secret(path: &OsStr) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    if text.is_empty() { Err(io::Error::other("the file is empty")) } else { Ok(text) }
}

/// The knob that was probably meant: few letters apart, or one name begins with the other.
fn suggest(name: &str) -> Option<String> {
    let bare = name.strip_prefix("HUB_").unwrap_or(name);
    let files = KNOBS.iter().filter(|knob| knob.holds_secret());
    let files = files.map(|knob| format!("{}_FILE", knob.env));
    let known = || KNOBS.iter().map(|knob| knob.env.to_owned()).chain(files.clone());
    let distance_max = (bare.len() / 2).clamp(1, 4);
    let nearest = known().min_by_key(|candidate| distance(name, candidate));
    nearest
        .filter(|candidate| distance(name, candidate) <= distance_max)
        .or_else(|| known().find(|candidate| is_start(name, candidate)))
        .or_else(|| known().find(|candidate| is_start(candidate, name)))
}

fn is_start(start: &str, name: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| rest.starts_with('_'))
}

/// Levenshtein's, over bytes: names are ASCII and few.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (left_idx, left_byte) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = left_idx + 1;
        for (right_idx, right_byte) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(left_byte != right_byte);
            diagonal = row[right_idx + 1];
            row[right_idx + 1] = replaced.min(diagonal + 1).min(row[right_idx] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified() {
        let knob = |env| Name::Knob(knob::position(env).unwrap());
        let file = |env| Name::File(knob::position(env).unwrap());
        assert_eq!(classify("HUB_SHARDS"), knob("HUB_SHARDS"));
        assert_eq!(classify("HUB_API_KEY_FILE"), file("HUB_API_KEY"));
        assert_eq!(classify("HUB_TOKEN_HMAC_SECRET_FILE"), file("HUB_TOKEN_HMAC_SECRET"));
        assert_eq!(classify("HUB_REDIS_URL_FILE"), file("HUB_REDIS_URL"));
        for foreign in [
            "PATH",
            "HUBBUB_X",
            "hub_shards",
            "HUB_PORT",
            "HUB_PORT_8000_TCP",
            "HUB_SERVICE_HOST",
            "HUB_REDIS_SERVICE_PORT_REDIS",
            "HUB_REDIS_PORT",
            "HUB_LISTEN_PORT_80_TCP_ADDR",
        ] {
            assert_eq!(classify(foreign), Name::Foreign, "{foreign}");
        }
        for not_yet in ["HUB_TLS_CERT", "HUB_TOKEN_JWKS_URL", "HUB_TOKEN_RSA_PUBLIC_KEY_FILE"] {
            assert_eq!(classify(not_yet), Name::NotYet, "{not_yet}");
        }
        for unknown in ["HUB_", "HUB_SHARD", "HUB_SHARDS_FILE", "HUB_shards", "HUB_SERVICE"] {
            assert_eq!(classify(unknown), Name::Unknown, "{unknown}");
        }
    }

    #[test]
    fn kubernetes_never_shadows_a_knob() {
        for knob in KNOBS {
            assert!(matches!(classify(knob.env), Name::Knob(_)), "{}", knob.env);
        }
    }

    #[test]
    fn suggestions() {
        let check = |name: &str, suggestion: Option<&str>| {
            assert_eq!(suggest(name).as_deref(), suggestion, "{name}");
        };
        check("HUB_SHARD", Some("HUB_SHARDS"));
        check("HUB_LISTNE", Some("HUB_LISTEN"));
        check("HUB_OUTBOX_MAX_BYTES", Some("HUB_OUTBOX_TOTAL_BYTES"));
        check("HUB_API_KEYS", Some("HUB_API_KEY"));
        check("HUB_API_KEY_FIL", Some("HUB_API_KEY_FILE"));
        check("HUB_SHARDS_FILE", Some("HUB_SHARDS"));
        check("HUB_LISTEN_ADDRESS", Some("HUB_LISTEN"));
        check("HUB_REDIS", Some("HUB_REDIS_URL"));
        check("HUB_OUTBOX", Some("HUB_OUTBOX_BYTES_MAX"));
        check("HUB_DEVEL", Some("HUB_DEV"));
        check("HUB_XYZZY", None);
        check("HUB_", None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
