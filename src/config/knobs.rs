//! The one table of knobs. Flags, environment, help, `hubbub config` and the check for unknown names
//! all read it; adding a knob is a field of `Config`, its default, and a row here.

use std::path::PathBuf;
use std::time::Duration;

use super::knob::{Kind, Knob};
use super::secret::{self, RedisUrl};
use super::values::{self, Refusal};
use crate::auth::Origins;

const LISTENING: &str = "Listening";
const THREADS: &str = "Threads";
const REDIS: &str = "Redis";
const ACCESS: &str = "Access";
const CONNECTIONS: &str = "Connections";
const LIMITS: &str = "Limits";
const PROCESS: &str = "Process";

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A row: names and place, the value's name in the help, the help, and how `field` is read and shown.
macro_rules! knob {
    ($env:literal, $flag:literal, $heading:ident, $value:literal, $help:literal,
     $field:ident, $read:expr, $show:expr) => {
        Knob {
            env: $env,
            flag: $flag,
            heading: $heading,
            value: $value,
            help: $help,
            kind: Kind::Plain,
            default_text: None,
            set: |config, text| {
                config.$field = $read(text)?;
                Ok(())
            },
            show: |config| $show(&config.$field),
        }
    };
}

macro_rules! time {
    ($env:literal, $flag:literal, $heading:ident, $help:literal, $field:ident, $range:expr) => {
        knob!(
            $env,
            $flag,
            $heading,
            "TIME",
            $help,
            $field,
            |text| values::duration(text, $range),
            |value: &Duration| values::show_duration(*value)
        )
    };
}

macro_rules! size {
    ($env:literal, $flag:literal, $heading:ident, $help:literal, $field:ident, $range:expr) => {
        knob!(
            $env,
            $flag,
            $heading,
            "SIZE",
            $help,
            $field,
            |text| values::size(text, $range),
            |value: &usize| values::show_size(*value)
        )
    };
}

macro_rules! count {
    ($env:literal, $flag:literal, $heading:ident, $help:literal, $field:ident, $range:expr) => {
        knob!(
            $env,
            $flag,
            $heading,
            "N",
            $help,
            $field,
            |text| values::count(text, $range),
            usize::to_string
        )
    };
}

macro_rules! switch {
    ($env:literal, $flag:literal, $heading:ident, $help:literal, $field:ident) => {
        knob!($env, $flag, $heading, "BOOL", $help, $field, values::boolean, bool::to_string)
            .kind(Kind::Switch)
    };
}

/// The value is a secret shared with whoever makes tokens.
macro_rules! token_secret {
    ($env:literal, $flag:literal, $help:literal, $field:ident) => {
        knob!(
            $env,
            $flag,
            ACCESS,
            "SECRET",
            $help,
            $field,
            |text| secret::token_secret(text).map(Some),
            values::show_option
        )
        .kind(Kind::Secret)
    };
}

/// The value is a line of text, or unset.
macro_rules! text {
    ($env:literal, $flag:literal, $heading:ident, $help:literal, $field:ident) => {
        knob!(
            $env,
            $flag,
            $heading,
            "TEXT",
            $help,
            $field,
            |text| values::line(text).map(Some),
            values::show_option
        )
        .default_text("unset")
    };
}

pub static KNOBS: &[Knob] = &[
    knob!(
        "HUB_LISTEN",
        "listen",
        LISTENING,
        "IP:PORT,…",
        "Where clients connect; port 0 prints the port it got",
        listen,
        values::addresses,
        |list: &Vec<_>| values::show_list(list)
    ),
    knob!(
        "HUB_INTERNAL_LISTEN",
        "internal-listen",
        LISTENING,
        "IP:PORT,…",
        "If set, /api, /metrics, /health and / move here",
        internal_listen,
        values::addresses,
        |list: &Vec<_>| values::show_list(list)
    )
    .default_text("unset"),
    count!("HUB_SHARDS", "shards", THREADS, "Shard threads", shards, 1..=128)
        .default_text("available cores"),
    switch!("HUB_PIN_SHARDS", "pin-shards", THREADS, "Pin shard k to core k", pin_shards),
    count!(
        "HUB_MAILBOX_MAX",
        "mailbox-max",
        THREADS,
        "Publications and replies waiting for one shard; over it a channel is marked as gapped",
        mailbox_max,
        1..=1 << 20
    ),
    knob!(
        "HUB_REDIS_URL",
        "redis-url",
        REDIS,
        "URL",
        "redis://host[:port][/db] or redis+unix:///path. A URL with a password is not taken from \
         this flag: set HUB_REDIS_URL, or HUB_REDIS_URL_FILE to the path of a file that holds it",
        redis_url,
        |text| RedisUrl::parse(text).map(Some),
        |url: &Option<RedisUrl>| url.as_ref().map_or_else(String::new, RedisUrl::to_string)
    )
    .kind(Kind::MaySecret)
    .default_text("unset: the embedded broker"),
    knob!(
        "HUB_REDIS_PREFIX",
        "redis-prefix",
        REDIS,
        "TEXT",
        "Put before every channel and key in Redis",
        redis_prefix,
        values::prefix,
        String::clone
    ),
    time!(
        "HUB_REDIS_TIMEOUT",
        "redis-timeout",
        REDIS,
        "For one command; under the 5s that client SDKs wait",
        redis_timeout,
        10 * MS..=4_999 * MS
    ),
    size!(
        "HUB_REDIS_INBOX_BYTES_MAX",
        "redis-inbox-bytes-max",
        REDIS,
        "Received from Redis and not yet handed to the shards",
        redis_inbox_bytes_max,
        KIB..=64 * GIB
    ),
    knob!(
        "HUB_REGISTRY",
        "registry",
        REDIS,
        "on|off",
        "Keep connections and nodes in Redis, for `hubbub connections`, `nodes` and `where`",
        registry,
        values::on_off,
        |value: &bool| values::show_on_off(*value)
    ),
    knob!(
        "HUB_NODE_ID",
        "node-id",
        REDIS,
        "NAME",
        "What this node is called there, such as the pod's name; no two that live may share it",
        node_id,
        |text| values::node_id(text).map(Some),
        values::show_option
    )
    .default_text("drawn at every start"),
    switch!(
        "HUB_DEV",
        "dev",
        ACCESS,
        "For a laptop: everybody may do everything, the demo is on, loopback addresses only",
        dev
    ),
    switch!(
        "HUB_ALLOW_ANONYMOUS",
        "allow-anonymous",
        ACCESS,
        "Admit clients without a token; a namespace then says what they may do",
        allow_anonymous
    ),
    token_secret!(
        "HUB_TOKEN_HMAC_SECRET",
        "token-hmac-secret",
        "Secret of the clients' tokens (HS256, HS384, HS512)",
        token_hmac_secret
    ),
    token_secret!(
        "HUB_TOKEN_HMAC_PREVIOUS_SECRET",
        "token-hmac-previous-secret",
        "The secret before that, while tokens made with it are about",
        token_hmac_previous_secret
    ),
    text!(
        "HUB_TOKEN_AUDIENCE",
        "token-audience",
        ACCESS,
        "If set, what a token's aud must hold",
        token_audience
    ),
    text!(
        "HUB_TOKEN_ISSUER",
        "token-issuer",
        ACCESS,
        "If set, what a token's iss must be",
        token_issuer
    ),
    time!(
        "HUB_EXPIRED_GRACE",
        "expired-grace",
        ACCESS,
        "From a token's end to its connection's or subscription's, for a fresh one to come",
        expired_grace,
        Duration::ZERO..=HOUR
    ),
    knob!(
        "HUB_ALLOWED_ORIGINS",
        "allowed-origins",
        ACCESS,
        "ORIGIN,…",
        "Whose web pages may connect, such as https://app.example, https://*.app.example or * for \
         all; in place of the same origin, so name your own too",
        allowed_origins,
        |text| Origins::parse(text).map_err(Refusal::Expected),
        Origins::to_string
    )
    .default_text("same origin"),
    knob!(
        "HUB_CONFIG",
        "config",
        ACCESS,
        "FILE",
        "TOML file with namespaces: which channels there are, and who may do what there",
        config,
        |text| values::line(text).map(|path| Some(PathBuf::from(path))),
        |path: &Option<PathBuf>| values::show_option(&path.as_ref().map(|path| path.display()))
    )
    .default_text("unset: every channel, with the defaults"),
    knob!(
        "HUB_API_KEY",
        "api-key",
        ACCESS,
        "KEY,…",
        "Who may use /api",
        api_keys,
        secret::api_keys,
        |keys: &Vec<_>| values::show_list(keys)
    )
    .kind(Kind::Secret),
    time!(
        "HUB_PING_INTERVAL",
        "ping-interval",
        CONNECTIONS,
        "Between two pings to one client",
        ping_interval,
        SECOND..=HOUR
    ),
    time!(
        "HUB_PONG_TIMEOUT",
        "pong-timeout",
        CONNECTIONS,
        "For the pong, else close 3012; less than the ping interval",
        pong_timeout,
        MS..=HOUR
    ),
    time!(
        "HUB_HANDSHAKE_TIMEOUT",
        "handshake-timeout",
        CONNECTIONS,
        "For the whole HTTP request",
        handshake_timeout,
        MS..=HOUR
    ),
    time!(
        "HUB_STALE_TIMEOUT",
        "stale-timeout",
        CONNECTIONS,
        "For the connect command, else close 3502",
        stale_timeout,
        MS..=HOUR
    ),
    time!(
        "HUB_WRITE_TIMEOUT",
        "write-timeout",
        CONNECTIONS,
        "For a socket that takes no byte of what is due, else close 3009",
        write_timeout,
        MS..=HOUR
    ),
    time!(
        "HUB_WRITE_DELAY",
        "write-delay",
        CONNECTIONS,
        "Collect for at most so long before a write",
        write_delay,
        Duration::ZERO..=10 * SECOND
    ),
    time!(
        "HUB_UNSUBSCRIBE_DELAY",
        "unsubscribe-delay",
        CONNECTIONS,
        "How long a channel outlives its last subscriber in Redis",
        unsubscribe_delay,
        Duration::ZERO..=HOUR
    ),
    size!(
        "HUB_NOTSENT_BYTES",
        "notsent-bytes",
        CONNECTIONS,
        "TCP_NOTSENT_LOWAT: unsent bytes that the kernel may hold for one client",
        notsent_bytes,
        KIB..=GIB
    ),
    size!(
        "HUB_MESSAGE_BYTES_MAX",
        "message-bytes-max",
        LIMITS,
        "One client message",
        message_bytes_max,
        128..=64 * MIB
    ),
    size!(
        "HUB_PUBLICATION_BYTES_MAX",
        "publication-bytes-max",
        LIMITS,
        "One publication, whatever its source",
        publication_bytes_max,
        1..=512 * MIB
    ),
    size!(
        "HUB_OUTBOX_BYTES_MAX",
        "outbox-bytes-max",
        LIMITS,
        "Queued for one connection, else close 3008; at least one publication",
        outbox_bytes_max,
        1..=4 * GIB
    ),
    size!(
        "HUB_API_BODY_BYTES_MAX",
        "api-body-bytes-max",
        LIMITS,
        "One API request",
        api_body_bytes_max,
        KIB..=GIB
    ),
    size!(
        "HUB_CHANNEL_BYTES_MAX",
        "channel-bytes-max",
        LIMITS,
        "One channel name",
        channel_bytes_max,
        1..=4 * KIB
    ),
    count!(
        "HUB_CHANNELS_MAX",
        "channels-max",
        LIMITS,
        "Subscriptions of one connection",
        channels_max,
        1..=1_000_000
    ),
    count!(
        "HUB_HISTORY_MAX",
        "history-max",
        LIMITS,
        "Publications of one history read",
        history_max,
        1..=100_000
    ),
    count!(
        "HUB_CONNECTIONS_MAX",
        "connections-max",
        LIMITS,
        "Client connections, else 503",
        connections_max,
        1..=1 << 24
    )
    .default_text("10/11 of the limit of open files less 64, and 6 a shard"),
    count!(
        "HUB_HANDSHAKES_MAX",
        "handshakes-max",
        LIMITS,
        "Sockets not yet upgraded; the oldest idle one goes first",
        handshakes_max,
        1..=1 << 24
    )
    .default_text("a tenth of the default above"),
    knob!(
        "HUB_COMMAND_RATE",
        "command-rate",
        LIMITS,
        "RATE",
        "Commands of one connection, ten seconds' worth at once; over it error 111, then close 3013",
        command_rate,
        values::rate,
        values::show_rate
    ),
    knob!(
        "HUB_CONNECT_RATE",
        "connect-rate",
        LIMITS,
        "RATE",
        "New clients, ten seconds' worth at once; over it 503",
        connect_rate,
        values::rate,
        values::show_rate
    ),
    knob!(
        "HUB_CONNECTIONS_PER_IP",
        "connections-per-ip",
        LIMITS,
        "N",
        "Clients of one address (IPv6: of one /64); over it 429",
        connections_per_ip,
        values::bound,
        values::show_bound
    ),
    knob!(
        "HUB_CONNECTIONS_PER_USER",
        "connections-per-user",
        LIMITS,
        "N",
        "Clients of one user; over it close 3504",
        connections_per_user,
        values::bound,
        values::show_bound
    ),
    knob!(
        "HUB_TRUSTED_PROXIES",
        "trusted-proxies",
        LIMITS,
        "NETWORK,…",
        "Whose X-Forwarded-For names the client's address",
        trusted_proxies,
        values::networks,
        |networks: &Vec<_>| values::show_list(networks)
    ),
    size!(
        "HUB_OUTBOX_TOTAL_BYTES",
        "outbox-total-bytes",
        LIMITS,
        "Queued for all connections; over it the largest outboxes are closed with 3008",
        outbox_total_bytes,
        MIB..=usize::MAX
    )
    .default_text("a quarter of the memory there is"),
    time!(
        "HUB_DRAIN_TIMEOUT",
        "drain-timeout",
        PROCESS,
        "Over which a stopping hub spreads its closes; 1s with --dev",
        drain_timeout,
        Duration::ZERO..=HOUR
    ),
    knob!(
        "HUB_LOG",
        "log",
        PROCESS,
        "LEVEL,…",
        "off, error, warn, info, debug, trace; per module: info,hubbub=debug",
        log,
        values::log_filter,
        String::clone
    ),
    knob!(
        "HUB_LOG_FORMAT",
        "log-format",
        PROCESS,
        "FORMAT",
        "text or json",
        log_format,
        values::log_format,
        |format: &values::LogFormat| values::show_log_format(*format)
    ),
];
