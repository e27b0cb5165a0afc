//! The promise: `hubbub token` makes what a hub with the same environment takes, tells why another is
//! refused, says so by its exit code, and shows no secret.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// What one run left behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn token(args: &[&str], secret: &str, stdin: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hubbub"));
    command.arg("token").args(args).env_clear();
    if !secret.is_empty() {
        command.env("HUB_TOKEN_HMAC_SECRET", secret);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a hubbub to run");
    // Whoever doesn't read stdin may be gone by now.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its end");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let ran = Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) };
    assert!(!ran.stdout.contains("hush") && !ran.stderr.contains("hush"), "{ran:?}");
    ran
}

#[test]
fn made_and_checked() {
    let made = token(&["make", "--user", "42", "--expires", "5m"], "hush", "");
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{made:?}");
    let text = made.stdout.trim_end();
    for ran in [token(&["check", text], "hush", ""), token(&["check", "-"], "hush", &made.stdout)] {
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
        assert!(ran.stdout.starts_with("good: connects user \"42\"\n"), "{ran:?}");
    }
    let other = token(&["check", text], "other", "");
    assert_eq!((other.code, other.stderr.as_str()), (Some(1), ""), "{other:?}");
    assert!(other.stdout.starts_with("refused: its signature fits no key"), "{other:?}");
}

#[test]
fn without_a_secret_nothing_is_made_or_checked() {
    for args in [&["make", "--user", "42"][..], &["check", "x"]] {
        let ran = token(args, "", "");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(64), ""), "{ran:?}");
        assert!(ran.stderr.contains("set HUB_TOKEN_HMAC_SECRET or"), "{ran:?}");
    }
    let on_line = token(&["make", "--user=42", "--token-hmac-secret=hush"], "", "");
    assert_eq!(on_line.code, Some(64), "{on_line:?}");
}
