use super::*;
use crate::config::Source;

fn act(args: &[&str], env: &[(&str, &str)]) -> Action {
    let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    parse(args.iter().map(OsString::from), env.collect::<Vec<_>>())
}

#[test]
fn runs_with_flags_and_environment() {
    let check = |args: &[&str], env: &[(&str, &str)], dev: Source| match act(args, env) {
        Action::Run(loaded) => {
            assert!(loaded.config.dev, "{args:?}");
            assert_eq!(loaded.source("HUB_DEV"), Some(dev), "{args:?}");
        }
        other => panic!("{args:?}: {other:?}"),
    };
    check(&["--dev"], &[], Source::Flag);
    check(&["--dev=true"], &[], Source::Flag);
    check(&["--shards", "2", "--dev"], &[("PATH", "/bin")], Source::Flag);
    check(&[], &[("HUB_DEV", "true")], Source::Env);
}

#[test]
fn prints() {
    let check = |args: &[&str], parts: &[&str]| match act(args, &[]) {
        Action::Print(text) => {
            for part in parts {
                assert!(text.contains(part), "{args:?}: no {part} in\n{text}");
            }
            assert!(text.ends_with('\n'), "{args:?}");
        }
        other => panic!("{args:?}: {other:?}"),
    };
    check(&["--version"], &[concat!("hubbub ", env!("CARGO_PKG_VERSION"))]);
    check(&["--help"], &["Usage: hubbub [FLAGS]", "--shards", "HUB_REDIS_URL", "HUB_API_KEY_FILE"]);
    check(&["-h"], &["--dev", "Exit codes"]);
    check(
        &["token", "make", "--help"],
        &["Usage: hubbub token make", "--expires", "HUB_TOKEN_ISSUER"],
    );
    check(&["token", "check", "--help"], &["Usage: hubbub token check TOKEN"]);
    check(&["config", "--help"], &["Usage: hubbub config", "--dev"]);
    check(&["config", "--dev"], &["HUB_DEV=true  # flag\n", "HUB_LOG=info  # default\n"]);
    check(&["--dev", "config"], &["HUB_DEV=true  # flag\n"]);
    check(&["config", "--shards", "3"], &["HUB_SHARDS=3  # flag\n"]);
}

/// Each flag is told with its variable, and those of later versions are not.
#[test]
fn help_names_every_knob() {
    let Action::Print(help) = act(&["--help"], &[]) else { panic!("no help") };
    let Action::Print(shown) = act(&["config"], &[]) else { panic!("no configuration") };
    for line in shown.lines() {
        let (env, _) = line.split_once('=').expect("NAME=value");
        assert!(help.contains(env), "{env} is not in\n{help}");
    }
    assert!(!help.contains("--tls-cert") && !help.contains("--api-key"), "{help}");
    assert!(!help.contains("--token-hmac"), "{help}");
}

#[test]
fn fails_with_64() {
    let check = |args: &[&str], env: &[(&str, &str)], parts: &[&str]| match act(args, env) {
        Action::Fail { message, code } => {
            assert_eq!(code, 64, "{args:?}");
            for part in parts {
                assert!(message.contains(part), "{args:?}: no {part} in\n{message}");
            }
            assert!(!message.ends_with('\n'), "{args:?}");
        }
        other => panic!("{args:?}: {other:?}"),
    };
    check(&["--shard=2"], &[], &["--shard", "--shards"]);
    check(&["serve"], &[], &["serve"]);
    check(&["--shards"], &[], &["--shards"]);
    check(&["--shards=0"], &[], &["error: --shards: \"0\""]);
    check(&["config"], &[("HUB_SHARDS", "0")], &["error: HUB_SHARDS: \"0\""]);
    check(&["--api-key", "hush"], &[], &["HUB_API_KEY_FILE"]);
    let Action::Fail { message, .. } = act(&["redis://:hush@h"], &[]) else { panic!("taken") };
    assert!(message.contains("unexpected argument") && !message.contains("hush"), "{message}");
    let two = [("HUB_SHARDS", "0"), ("HUB_LISTNE", "x")];
    check(&[], &two, &["error: HUB_SHARDS", "error: unknown knob HUB_LISTNE (did you mean"]);
}
