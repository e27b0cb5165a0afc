//! The promise: a wrong configuration never starts. It ends with exit code 64 and a line per mistake
//! that says what was expected, and nothing that hubbub prints holds a secret.

use std::process::{Command, Output};

/// What one run left behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Only runs that end by themselves: none of them starts to listen.
fn hubbub(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hubbub"));
    command.args(args).env_clear().envs(env.iter().copied());
    let Output { status, stdout, stderr } = command.output().expect("a hubbub to run");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Refused with these parts on stderr, each in a line of its own, and nothing on stdout.
#[track_caller]
fn check_refused(args: &[&str], env: &[(&str, &str)], parts: &[&str]) {
    let ran = hubbub(args, env);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert_eq!(ran.stdout, "", "{ran:?}");
    for part in parts {
        let n_lines = ran.stderr.lines().filter(|line| line.contains(part)).count();
        assert_eq!(n_lines, 1, "lines with {part:?} in\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("hush"), "{}", ran.stderr);
}

#[track_caller]
fn check_printed(args: &[&str], env: &[(&str, &str)], parts: &[&str]) {
    let ran = hubbub(args, env);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stderr, "", "{ran:?}");
    for part in parts {
        assert!(ran.stdout.contains(part), "no {part:?} in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains("hush"), "{}", ran.stdout);
}

#[test]
fn an_unknown_knob_is_refused() {
    check_refused(&[], &[("HUB_SHARD", "2")], &["HUB_SHARD (did you mean HUB_SHARDS?)"]);
    check_refused(&[], &[("HUB_XYZZY", "2")], &["unknown knob HUB_XYZZY"]);
    check_refused(&["config"], &[("HUB_LISTNE", "x")], &["did you mean HUB_LISTEN?"]);
    check_refused(&["--no-such-flag"], &[], &["'--no-such-flag'"]);
    check_refused(&["no-such-command"], &[], &["'no-such-command'"]);
}

#[test]
fn a_bad_value_is_refused() {
    let expected = "HUB_SHARDS: \"0\" is not valid: expected a whole number from 1 to 128";
    check_refused(&[], &[("HUB_SHARDS", "0")], &[expected]);
    check_refused(&["--ping-interval=25"], &[], &["--ping-interval: \"25\" is not valid"]);
    check_refused(&[], &[("HUB_LISTEN", "localhost:1")], &["expected IP:PORT"]);
    check_refused(&[], &[("HUB_PONG_TIMEOUT", "25s")], &["is not below HUB_PING_INTERVAL (25s)"]);
    check_refused(&[], &[("HUB_TLS_CERT", "/c")], &["is not available in this version"]);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let env = [("HUB_SHARDS", "many"), ("HUB_OUTBOX", "1MiB"), ("HUB_LOG_FORMAT", "xml")];
    let parts = [
        "HUB_SHARDS: \"many\"",
        "unknown knob HUB_OUTBOX",
        "HUB_LOG_FORMAT: \"xml\"",
        "--channels-max",
    ];
    check_refused(&["--channels-max=0"], &env, &parts);
}

#[test]
fn secrets_are_masked() {
    let env = [("HUB_API_KEY", "hush1,hush2"), ("HUB_REDIS_URL", "redis://me:hush@127.0.0.1:1/2")];
    let lines =
        ["HUB_API_KEY=***,***  # env\n", "HUB_REDIS_URL=redis://me:***@127.0.0.1:1/2  # env\n"];
    check_printed(&["config"], &env, &lines);
    check_refused(&[], &[("HUB_API_KEY", "hush,")], &["HUB_API_KEY: not valid"]);
    check_refused(&[], &[("HUB_REDIS_URL", "http://:hush@h")], &["HUB_REDIS_URL: not valid"]);
    check_refused(&["--api-key=hush"], &[], &["set HUB_API_KEY or HUB_API_KEY_FILE"]);
    check_refused(&["--redis-url=redis://:hush@h"], &[], &["in the process list"]);
}

#[test]
fn the_effective_configuration_is_printed() {
    let env = [("HUB_SHARDS", "3"), ("HUB_LOG", "warn"), ("HUB_SERVICE_HOST", "10.0.0.1")];
    let lines = [
        "HUB_LISTEN=127.0.0.1:8000  # default\n",
        "HUB_SHARDS=2  # flag\n",
        "HUB_DEV=true  # flag\n",
        "HUB_LOG=warn  # env\n",
    ];
    check_printed(&["--dev", "config", "--shards=2"], &env, &lines);
}

#[test]
fn help_and_version() {
    check_printed(&["--version"], &[], &[concat!("hubbub ", env!("CARGO_PKG_VERSION"))]);
    check_printed(&["--help"], &[], &["Usage: hubbub", "--dev", "HUB_REDIS_URL", "HUB_API_KEY"]);
    check_printed(&["--help"], &[("HUB_SHARDS", "0")], &["Usage: hubbub"]);
    check_printed(&["config", "--help"], &[], &["Usage: hubbub config"]);
}

#[test]
fn dev_listens_on_loopback_only() {
    for address in ["0.0.0.0:0", "[::]:0", "127.0.0.1:0,192.0.2.1:0"] {
        let part = "is not a loopback address";
        check_refused(&[], &[("HUB_DEV", "true"), ("HUB_LISTEN", address)], &[part]);
        check_refused(&["--dev"], &[("HUB_INTERNAL_LISTEN", address)], &[part]);
    }
}
