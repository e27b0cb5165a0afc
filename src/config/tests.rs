use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;

use super::*;

const MACHINE: Machine = Machine { cores: 4, open_files_max: 1024, memory_bytes: 1 << 30 };

/// Flags and `NAME=value` pairs, each separated by spaces.
fn load(flags: &str, env: &str) -> Result<Loaded, ConfigError> {
    let command = add_flags(clap::Command::new("hubbub")).no_binary_name(true);
    let matches = command.try_get_matches_from(flags.split_whitespace()).expect("known flags");
    let pairs = env.split_whitespace().map(|pair| pair.split_once('=').expect("NAME=value"));
    let pairs = pairs.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Loaded::assemble(MACHINE, &matches, pairs)
}

#[track_caller]
fn loaded(flags: &str, env: &str) -> Loaded {
    load(flags, env).unwrap_or_else(|error| panic!("{flags} {env}: {error}"))
}

/// The errors of this environment, one line each.
#[track_caller]
fn errors(flags: &str, env: &str) -> String {
    load(flags, env).expect_err("a refusal").to_string()
}

#[test]
fn nothing_given_is_the_defaults() {
    let loaded = loaded("", "");
    let defaults = format!("{:?}", Config::defaults(MACHINE));
    assert_eq!(format!("{:?}", loaded.config), defaults);
    assert!(KNOBS.iter().all(|knob| loaded.source(knob.env) == Some(Source::Default)));
    assert_eq!((loaded.config.shards, loaded.config.connections_max), (4, 850));
    assert_eq!(loaded.source("HUB_NO_SUCH"), None);
}

/// Every knob, by its variable and by its flag, ends in the field it is named after.
#[test]
fn every_knob_can_be_set() {
    let values = "HUB_LISTEN=127.0.0.1:1,[::1]:1 HUB_INTERNAL_LISTEN=127.0.0.1:2 HUB_SHARDS=128 \
         HUB_PIN_SHARDS=true HUB_MAILBOX_MAX=3 HUB_REDIS_URL=redis://h HUB_REDIS_PREFIX=p: \
         HUB_REDIS_TIMEOUT=1s HUB_REDIS_INBOX_BYTES_MAX=2MiB HUB_REGISTRY=off HUB_NODE_ID=pod-0 HUB_DEV=true \
         HUB_ALLOW_ANONYMOUS=true HUB_PING_INTERVAL=50s HUB_PONG_TIMEOUT=49s \
         HUB_HANDSHAKE_TIMEOUT=2s HUB_STALE_TIMEOUT=3s HUB_WRITE_TIMEOUT=4s HUB_WRITE_DELAY=5ms \
         HUB_UNSUBSCRIBE_DELAY=6ms HUB_NOTSENT_BYTES=7KiB HUB_MESSAGE_BYTES_MAX=8KiB \
         HUB_PUBLICATION_BYTES_MAX=9KiB HUB_OUTBOX_BYTES_MAX=10KiB HUB_API_BODY_BYTES_MAX=11KiB \
         HUB_CHANNEL_BYTES_MAX=12 HUB_CHANNELS_MAX=13 HUB_HISTORY_MAX=15 HUB_CONNECTIONS_MAX=14 HUB_HANDSHAKES_MAX=16 \
         HUB_COMMAND_RATE=17/s HUB_CONNECT_RATE=18/s HUB_CONNECTIONS_PER_IP=19 \
         HUB_CONNECTIONS_PER_USER=20 HUB_TRUSTED_PROXIES=10.0.0.0/8 HUB_OUTBOX_TOTAL_BYTES=21MiB \
         HUB_TOKEN_AUDIENCE=hub HUB_TOKEN_ISSUER=app HUB_EXPIRED_GRACE=16s \
         HUB_ALLOWED_ORIGINS=https://*.a.example HUB_CONFIG=/dev/null \
         HUB_DRAIN_TIMEOUT=15s HUB_LOG=warn HUB_LOG_FORMAT=json";
    let mut flags = String::new();
    let mut expected_debug = Vec::new();
    for pair in values.split_whitespace() {
        let (env, value) = pair.split_once('=').expect("NAME=value");
        let knob = &KNOBS[knob::position(env).expect(env)];
        assert_ne!((knob.show)(&Config::defaults(MACHINE)), value, "{env}: no change to see");
        flags.push_str(&format!(" --{}={value}", knob.flag));
        // `pong_timeout: 49s` of the derived Debug: the field bears the knob's name.
        expected_debug.push(format!("{}: ", knob.flag.replace('-', "_")));
    }
    let n_secrets = KNOBS.iter().filter(|knob| knob.kind == knob::Kind::Secret).count();
    assert_eq!(expected_debug.len(), KNOBS.len() - n_secrets, "all but those without a flag");
    let check = |loaded: &Loaded, source: &str| {
        let shown = render(loaded);
        let debug = format!("{:?}", loaded.config);
        for (pair, field) in values.split_whitespace().zip(&expected_debug) {
            let line = format!("{pair}  # {source}");
            assert!(shown.lines().any(|shown| shown == line), "no {line} in\n{shown}");
            assert!(debug.contains(field), "no {field} in {debug}");
        }
    };
    check(&loaded("", values), "env");
    check(&loaded(&flags, ""), "flag");
    check(&loaded(&flags, "HUB_SHARDS=2 HUB_LOG=debug"), "flag");
}

#[test]
fn an_empty_value_is_none() {
    let loaded = loaded("--shards=", "HUB_LISTEN= HUB_REDIS_URL= HUB_CONFIG= HUB_API_KEY=");
    let sources = ["HUB_SHARDS", "HUB_LISTEN", "HUB_REDIS_URL"].map(|env| loaded.source(env));
    assert_eq!(sources, [Some(Source::Default); 3]);
    assert!(loaded.config.api_keys.is_empty() && loaded.config.redis_url.is_none());
}

#[test]
fn dev_drains_fast_unless_told() {
    let check = |flags: &str, env: &str, dev: bool, drain_secs: u64| {
        let config = loaded(flags, env).config;
        assert_eq!(config.dev, dev, "{flags} {env}");
        assert_eq!(config.drain_timeout, Duration::from_secs(drain_secs), "{flags} {env}");
    };
    check("", "", false, 20);
    check("--dev", "", true, 1);
    check("", "HUB_DEV=true", true, 1);
    check("--dev=false", "HUB_DEV=true", false, 20);
    check("--dev --drain-timeout=20s", "", true, 20);
    check("", "HUB_DEV=1 HUB_DRAIN_TIMEOUT=7s", true, 7);
}

#[test]
fn errors_say_what_was_expected() {
    let check = |flags: &str, env: &str, line: &str| assert_eq!(errors(flags, env), line);
    check(
        "",
        "HUB_SHARDS=0",
        r#"HUB_SHARDS: "0" is not valid: expected a whole number from 1 to 128"#,
    );
    check("--shards=x", "", r#"--shards: "x" is not valid: expected a whole number from 1 to 128"#);
    check("", "HUB_SHARD=2", "unknown knob HUB_SHARD (did you mean HUB_SHARDS?)");
    check("", "HUB_XYZZY=2", "unknown knob HUB_XYZZY");
    check("", "HUB_TLS_CERT=/c", "HUB_TLS_CERT is not available in this version");
    check("--tls-cert=/c", "", "--tls-cert is not available in this version");
    check(
        "--api-key=k",
        "",
        "--api-key would put a secret on the command line: set HUB_API_KEY or HUB_API_KEY_FILE",
    );
    check(
        "",
        "HUB_REDIS_URL=rediss://u:pw@h",
        "HUB_REDIS_URL: rediss:// is not available in this version",
    );
    check(
        "",
        "HUB_EXPIRED_GRACE=25",
        "HUB_EXPIRED_GRACE: \"25\" is not valid: expected a duration such as 500ms, 25s, 1m or 2h, \
         from 0 to 1h",
    );
    let origin = errors("", "HUB_ALLOWED_ORIGINS=https://a.example/");
    let start = "HUB_ALLOWED_ORIGINS: \"https://a.example/\" is not valid: expected * alone, or ";
    assert!(origin.starts_with(start), "{origin}");
    let several = errors("", "HUB_SHARDS=0 HUB_SHARD=1 HUB_LOG=loud");
    assert_eq!(several.lines().count(), 3, "{several}");
}

#[test]
fn values_are_checked_against_each_other() {
    let check = |flags: &str, env: &str, knob: &str| {
        let error = load(flags, env).expect_err(env);
        let blamed: Vec<&str> = error.problems().iter().map(blamed).collect();
        assert_eq!(blamed, [knob], "{error}");
    };
    check("", "HUB_PONG_TIMEOUT=25s", "HUB_PONG_TIMEOUT");
    check("", "HUB_PING_INTERVAL=8s", "HUB_PONG_TIMEOUT");
    check("", "HUB_PUBLICATION_BYTES_MAX=2MiB", "HUB_OUTBOX_BYTES_MAX");
    check("", "HUB_CONNECTIONS_MAX=937", "HUB_CONNECTIONS_MAX");
    check("", "HUB_INTERNAL_LISTEN=127.0.0.1:8000", "HUB_LISTEN");
    check("", "HUB_DEV=true HUB_LISTEN=127.0.0.1:1,0.0.0.0:2", "HUB_LISTEN");
    check("--dev", "HUB_INTERNAL_LISTEN=[::]:1", "HUB_INTERNAL_LISTEN");
    check("--redis-url=redis://:pw@h", "", "HUB_REDIS_URL");
    check("", "HUB_TOKEN_HMAC_PREVIOUS_SECRET=old", "HUB_TOKEN_HMAC_PREVIOUS_SECRET");
    // No second complaint that follows from the first.
    check("", "HUB_PING_INTERVAL=x HUB_PONG_TIMEOUT=30s", "HUB_PING_INTERVAL");
    loaded("", "HUB_SHARDS=1 HUB_CONNECTIONS_MAX=954");
    check("", "HUB_SHARDS=128 HUB_CONNECTIONS_MAX=200", "HUB_CONNECTIONS_MAX");
    loaded("", "HUB_CONNECTIONS_MAX=936 HUB_LISTEN=127.0.0.1:0,127.0.0.1:0");
    loaded("", "HUB_LISTEN=0.0.0.0:8000 HUB_OUTBOX_BYTES_MAX=2MiB HUB_PUBLICATION_BYTES_MAX=2MiB");
    loaded("--dev", "HUB_LISTEN=[::1]:0,127.8.9.1:0");
}

fn blamed(problem: &Problem) -> &str {
    match problem {
        Problem::Conflict { knob, .. } => knob,
        Problem::Bad { name, .. } => name,
        other => panic!("{other}"),
    }
}

#[test]
fn secrets_never_show() {
    let loaded = loaded(
        "",
        "HUB_API_KEY=hush,quiet HUB_REDIS_URL=redis://u:hush@h HUB_TOKEN_HMAC_SECRET=hush1 \
         HUB_TOKEN_HMAC_PREVIOUS_SECRET=hush2",
    );
    let secrets = [&loaded.config.token_hmac_secret, &loaded.config.token_hmac_previous_secret];
    let secrets = secrets.map(|secret| secret.as_ref().map(Secret::expose));
    assert_eq!(secrets, [Some("hush1"), Some("hush2")]);
    let url = loaded.config.redis_url.as_ref().map(RedisUrl::expose);
    assert_eq!(url, Some("redis://u:hush@h"));
    let keys: Vec<&str> = loaded.config.api_keys.iter().map(Secret::expose).collect();
    assert_eq!(keys, ["hush", "quiet"]);
    let shown = render(&loaded);
    assert!(shown.contains("HUB_API_KEY=***,***  # env\n"), "{shown}");
    assert!(shown.contains("HUB_REDIS_URL=redis://u:***@h  # env\n"), "{shown}");
    assert!(shown.contains("HUB_TOKEN_HMAC_SECRET=***  # env\n"), "{shown}");
    assert!(shown.contains("HUB_TOKEN_HMAC_PREVIOUS_SECRET=***  # env\n"), "{shown}");
    let debug = format!("{loaded:?}");
    let refused = [
        errors("", "HUB_API_KEY=hush,,quiet"),
        errors("", "HUB_REDIS_URL=http://u:hush@h"),
        errors("--redis-url=redis://:hush@h", ""),
        errors("--redis-url=hush", ""),
        errors("--api-key=hush", ""),
        errors("--token-hmac-secret=hush", ""),
        errors("", "HUB_TOKEN_HMAC_SECRET=hush\u{7}"),
        errors("", "HUB_TOKEN_HMAC_PREVIOUS_SECRET=hush"),
    ];
    for text in refused.iter().chain([&shown, &debug]) {
        assert!(!text.contains("hush") && !text.contains("quiet"), "{text}");
    }
}

#[test]
fn a_secret_that_is_no_text_does_not_show_either() {
    let matches = add_flags(clap::Command::new("hubbub")).get_matches_from(["hubbub"]);
    let check = |env: &str, shows: bool| {
        let value = OsString::from_vec(b"hush\xff".to_vec());
        let error = Loaded::assemble(MACHINE, &matches, [(env.into(), value)]).expect_err(env);
        let text = error.to_string();
        assert!(text.starts_with(env) && text.ends_with("expected UTF-8"), "{text}");
        assert_eq!(text.contains("hush"), shows, "{text}");
    };
    check("HUB_API_KEY", false);
    check("HUB_REDIS_URL", false);
    check("HUB_TOKEN_HMAC_SECRET", false);
    check("HUB_TOKEN_ISSUER", true);
    check("HUB_LOG", true);
}

#[test]
fn secrets_come_from_files() {
    let name = format!("hubbub-config-test-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let env = format!("HUB_API_KEY_FILE={}", path.display());
    let missing = errors("", &env);
    assert!(missing.starts_with("HUB_API_KEY_FILE: cannot read "), "{missing}");
    fs::write(&path, "one,two\r\n").expect("a writable folder");
    let config = loaded("", &env);
    let both = errors("", &format!("{env} HUB_API_KEY=k"));
    fs::write(&path, "\n").expect("a writable folder");
    let empty = errors("", &env);
    fs::remove_file(&path).expect("a file of this test");
    assert_eq!(config.source("HUB_API_KEY"), Some(Source::File));
    let keys: Vec<&str> = config.config.api_keys.iter().map(Secret::expose).collect();
    assert_eq!(keys, ["one", "two"]);
    assert_eq!(both, "HUB_API_KEY and HUB_API_KEY_FILE are both set: expected one of them");
    assert!(empty.ends_with("the file is empty"), "{empty}");
}

#[test]
fn namespaces_come_from_the_file() {
    let name = format!("hubbub-config-test-{}.toml", std::process::id());
    let path = std::env::temp_dir().join(name);
    let (flag, env) =
        (format!("--config={}", path.display()), format!("HUB_CONFIG={}", path.display()));
    let missing = errors("", &env);
    fs::write(&path, "[namespaces.a]\nsubscribe = \"anyone\"\n").expect("a writable folder");
    let good = [loaded("", &env), loaded(&flag, "")];
    fs::write(&path, "[namespaces.a]\nsubscribe = \"all\"\ntags_filter = true\n")
        .expect("a writable folder");
    let bad = [errors("", &env), errors(&flag, "HUB_SHARDS=0")];
    fs::remove_file(&path).expect("a file of this test");
    assert!(
        missing.starts_with("HUB_CONFIG: cannot read ") && missing.contains("No such file"),
        "{missing}"
    );
    for Loaded { config, .. } in good {
        let found = config.namespaces.of("a:1").map(|namespace| namespace.subscribe);
        assert_eq!((found, config.namespaces.of("b:1")), (Some(Access::Anyone), None));
    }
    let lines = |knob: &str| {
        let (at, expected) = (path.display(), "expected nobody, token, user or anyone");
        format!(
            "{knob}: {at}:2: namespaces.a.subscribe: \"all\" is not valid: {expected}\n\
             {knob}: {at}:3: namespaces.a.tags_filter = true is not available in this version"
        )
    };
    assert_eq!(bad[0], lines("HUB_CONFIG"));
    assert!(bad[1].contains(&lines("--config")) && bad[1].contains("HUB_SHARDS"), "{}", bad[1]);
    assert!(loaded("", "").config.namespaces.of("b:1").is_some());
}

#[test]
fn load_reads_the_process_machine() {
    let none = || std::iter::empty::<(OsString, OsString)>();
    let loaded = Config::load(["--shards=3".into()], none()).expect("a good flag");
    assert_eq!(loaded.config.shards, 3);
    let error = Config::load(["--shard".into()], none()).expect_err("no such flag");
    assert_eq!(error.exit_code(), EXIT_CONFIG);
}
