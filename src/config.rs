//! Every knob and limit, validated before the first thread starts.
//!
//! Owns: the typed [`Config`] with its [`Namespaces`], where each value came from ([`Loaded`]) and what
//! was wrong ([`ConfigError`]). Thread: main, at start; afterwards a `Config` is a plain value that is cloned
//! into whoever needs it.
//! Who may call: main, tests and embedders, through [`Config::load`] or `cli::parse`.
//!
//! A knob is one row of `knobs::KNOBS`; flags, environment, help and `hubbub config` are all read
//! from that table. A flag beats the environment, the environment beats the default. An empty value
//! is an unset one, wherever it stands: deployment templates leave variables empty.
//!
//! **Invariant:** a `Config` that left [`Config::load`] has passed every check.
//! **Invariant:** no error, `Debug` or rendered text holds a secret.
//!
//! Absent: reloading (the server reads `namespaces` again by itself), and any use of the values.

mod error;
mod flags;
mod knob;
mod knobs;
mod machine;
mod namespaces;
mod secret;
mod sources;
pub(crate) mod values;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::{ConfigError, EXIT_CONFIG, Problem};
pub(crate) use flags::{add_flags, read_flags};
use ipnet::IpNet;
use knobs::KNOBS;
pub use machine::Machine;
pub use namespaces::{
    Access, Gap, JoinLeave, Keep, LoadError, Mistake, Namespace, Namespaces, Recovery, SlowConsumer,
};
pub use secret::{RedisUrl, Secret};
use sources::Given;
pub use values::{LogFormat, Rate};

use crate::auth::Origins;

const DEV_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The effective value of every knob. Times are `Duration`s, sizes bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    /// Empty: the API and the metrics stay on `listen`.
    pub internal_listen: Vec<SocketAddr>,
    /// Shard threads, 1 to 128.
    pub shards: usize,
    /// Shard k runs on core k only.
    pub pin_shards: bool,
    /// Items, not bytes: a mailbox item is a pointer to a shared frame.
    pub mailbox_max: usize,
    /// `None`: the memory broker.
    pub redis_url: Option<RedisUrl>,
    /// Before every channel and key in Redis; may be empty.
    pub redis_prefix: String,
    /// For one command.
    pub redis_timeout: Duration,
    /// Whether connections and the node stand in Redis; without Redis they don't.
    pub registry: bool,
    /// What the node is called there; `None`: its run_id.
    pub node_id: Option<String>,
    /// Received from Redis and not yet handed to the shards.
    pub redis_inbox_bytes_max: usize,
    /// Everybody may do everything, on loopback addresses only.
    pub dev: bool,
    /// Clients need no token.
    pub allow_anonymous: bool,
    /// HMAC key of the clients' tokens; `None`: no token is good.
    pub token_hmac_secret: Option<Secret>,
    /// The key before that one, while tokens made with it are about.
    pub token_hmac_previous_secret: Option<Secret>,
    /// What a token's `aud` must hold, if set.
    pub token_audience: Option<String>,
    /// What a token's `iss` must be, if set.
    pub token_issuer: Option<String>,
    /// How long a connection or subscription outlives its token.
    pub expired_grace: Duration,
    /// Whose pages may connect.
    pub allowed_origins: Origins,
    /// The file that `namespaces` were read from.
    pub config: Option<PathBuf>,
    /// Without a file, every channel takes the defaults.
    pub namespaces: Arc<Namespaces>,
    /// Empty: the API is closed.
    pub api_keys: Vec<Secret>,
    /// At least 1 s, since the wire counts it in whole seconds and 0 means none.
    pub ping_interval: Duration,
    /// Below `ping_interval`; over it close 3012.
    pub pong_timeout: Duration,
    /// For the whole HTTP request.
    pub handshake_timeout: Duration,
    /// For the connect command; over it close 3502.
    pub stale_timeout: Duration,
    /// For a socket that takes no byte of what is due; over it close 3009.
    pub write_timeout: Duration,
    /// Collected for at most so long before a write; zero means no added pause.
    pub write_delay: Duration,
    /// How long a channel outlives its last subscriber at the broker.
    pub unsubscribe_delay: Duration,
    /// `TCP_NOTSENT_LOWAT` of client sockets.
    pub notsent_bytes: usize,
    /// One client message.
    pub message_bytes_max: usize,
    /// One publication, whatever its source; at most `outbox_bytes_max`.
    pub publication_bytes_max: usize,
    /// Queued for one connection; over it close 3008.
    pub outbox_bytes_max: usize,
    /// One API request; over it 413.
    pub api_body_bytes_max: usize,
    /// One channel name; over it error 107.
    pub channel_bytes_max: usize,
    /// Subscriptions of one connection.
    pub channels_max: usize,
    /// Publications of one history read.
    pub history_max: usize,
    /// Client connections; over it 503. Never more than the limit of open files allows.
    pub connections_max: usize,
    /// Sockets that aren't upgraded; over it the oldest idle one goes.
    pub handshakes_max: usize,
    /// Commands of one connection.
    pub command_rate: Option<Rate>,
    /// Clients that may come, over all shards.
    pub connect_rate: Option<Rate>,
    /// Clients of one address, or of one IPv6 /64.
    pub connections_per_ip: Option<usize>,
    pub connections_per_user: Option<usize>,
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Queued for all connections together.
    pub outbox_total_bytes: usize,
    /// Descriptors that may be sockets of listeners.
    files_for_sockets: usize,
    /// Over which a stopping hub spreads its closes; 1 s under `dev` unless set.
    pub drain_timeout: Duration,
    /// Comma-separated `level` or `target=level`.
    pub log: String,
    pub log_format: LogFormat,
}

impl Config {
    /// Reads flags (without the program's name) and environment on the machine this runs on. Raises
    /// the soft limit of open files to the hard one.
    pub fn load(
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Loaded, ConfigError> {
        let command = add_flags(clap::Command::new("hubbub"))
            .no_binary_name(true)
            .disable_help_flag(true)
            .disable_version_flag(true);
        let matches = command
            .try_get_matches_from(args)
            .map_err(|error| ConfigError::from(vec![Problem::Usage(error.render().to_string())]))?;
        Loaded::assemble(Machine::detect(), &matches, env)
    }

    /// Whether this node is in the connection registry.
    pub fn is_registered(&self) -> bool {
        self.registry && self.redis_url.is_some()
    }

    /// All sockets of listeners that may be open, upgraded or not.
    pub fn sockets_max(&self) -> usize {
        (self.connections_max + self.handshakes_max).min(self.files_for_sockets)
    }

    /// Every knob at its default on this machine.
    pub fn defaults(machine: Machine) -> Config {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8000))],
            internal_listen: Vec::new(),
            shards: machine.default_shards(),
            pin_shards: false,
            mailbox_max: 65_536,
            redis_url: None,
            redis_prefix: String::new(),
            redis_timeout: Duration::from_secs(3),
            registry: true,
            node_id: None,
            redis_inbox_bytes_max: 64 * MIB,
            dev: false,
            allow_anonymous: false,
            token_hmac_secret: None,
            token_hmac_previous_secret: None,
            token_audience: None,
            token_issuer: None,
            expired_grace: Duration::from_secs(25),
            allowed_origins: Origins::Same,
            config: None,
            namespaces: Arc::default(),
            api_keys: Vec::new(),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            handshake_timeout: Duration::from_secs(10),
            stale_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            write_delay: Duration::ZERO,
            unsubscribe_delay: Duration::from_secs(1),
            notsent_bytes: 16 * KIB,
            message_bytes_max: 64 * KIB,
            publication_bytes_max: MIB,
            outbox_bytes_max: MIB,
            api_body_bytes_max: 16 * MIB,
            channel_bytes_max: 255,
            channels_max: 128,
            history_max: 300,
            connections_max: machine.connections_max(machine.default_shards()),
            handshakes_max: machine.handshakes_max(machine.default_shards()),
            command_rate: Some(Rate { per_second: 100 }),
            connect_rate: None,
            connections_per_ip: None,
            connections_per_user: None,
            trusted_proxies: Vec::new(),
            outbox_total_bytes: machine.memory_bytes / 4,
            files_for_sockets: machine.files_for_sockets(machine.default_shards()),
            drain_timeout: Duration::from_secs(20),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// Who set a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    Default,
    /// A `HUB_X` variable.
    Env,
    /// A flag on the command line.
    Flag,
    /// The file that `HUB_X_FILE` names.
    File,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Default => "default",
            Source::Env => "env",
            Source::Flag => "flag",
            Source::File => "file",
        }
    }
}

/// A checked configuration that still knows where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// In the order of `KNOBS`.
    sources: Vec<Source>,
}

impl Loaded {
    /// The source of one knob, by its environment name; `None` for a name that is no knob.
    pub fn source(&self, env_name: &str) -> Option<Source> {
        knob::position(env_name).map(|knob_idx| self.sources[knob_idx])
    }

    pub(crate) fn assemble(
        machine: Machine,
        matches: &clap::ArgMatches,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Loaded, ConfigError> {
        let mut problems = Vec::new();
        let flags = read_flags(matches, &mut problems);
        let given = sources::choose(flags, env, &mut problems);
        let mut attempt = Attempt::new(machine, &given);
        attempt.apply(&given, &mut problems);
        attempt.divide_files(machine);
        attempt.read_namespaces(&given, &mut problems);
        attempt.check_all(machine, &mut problems);
        if problems.is_empty() { Ok(attempt.loaded) } else { Err(ConfigError::from(problems)) }
    }
}

/// `hubbub config`: one line per knob, readable by a shell once the masked values are filled in.
pub fn render(loaded: &Loaded) -> String {
    let mut text = String::new();
    for (knob, source) in KNOBS.iter().zip(&loaded.sources) {
        let value = values::quoted(&(knob.show)(&loaded.config));
        writeln!(text, "{}={value}  # {}", knob.env, source.as_str())
            .expect("invariant: writing to a String cannot fail");
    }
    text
}

/// A configuration on its way: values are applied one by one, then checked against each other.
struct Attempt {
    loaded: Loaded,
    /// Knobs with a problem keep their default, so a check that involves them would mislead.
    refused: Vec<&'static str>,
}

impl Attempt {
    fn new(machine: Machine, given: &[Option<Given>]) -> Attempt {
        let source = |given: &Option<Given>| given.as_ref().map_or(Source::Default, |g| g.source);
        Attempt {
            loaded: Loaded {
                config: Config::defaults(machine),
                sources: given.iter().map(source).collect(),
            },
            refused: Vec::new(),
        }
    }

    fn apply(&mut self, given: &[Option<Given>], problems: &mut Vec<Problem>) {
        for (knob, given) in KNOBS.iter().zip(given) {
            let Some(given) = given else { continue };
            let text = match &given.value {
                Ok(text) => text,
                Err(problem) => {
                    self.refused.push(knob.env);
                    problems.push(problem.clone());
                    continue;
                }
            };
            if let Err(refusal) = (knob.set)(&mut self.loaded.config, text) {
                self.refused.push(knob.env);
                problems.push(Problem::refused(knob, given, text, refusal));
            }
        }
        let drain_is_default = self.loaded.source("HUB_DRAIN_TIMEOUT") == Some(Source::Default);
        if self.loaded.config.dev && drain_is_default {
            self.loaded.config.drain_timeout = DEV_DRAIN_TIMEOUT;
        }
    }

    /// Defaults that follow from another knob: shards need descriptors, too.
    fn divide_files(&mut self, machine: Machine) {
        let shards = self.loaded.config.shards;
        self.loaded.config.files_for_sockets = machine.files_for_sockets(shards);
        if self.loaded.source("HUB_CONNECTIONS_MAX") == Some(Source::Default) {
            self.loaded.config.connections_max = machine.connections_max(shards);
        }
        if self.loaded.source("HUB_HANDSHAKES_MAX") == Some(Source::Default) {
            self.loaded.config.handshakes_max = machine.handshakes_max(shards);
        }
    }

    fn read_namespaces(&mut self, given: &[Option<Given>], problems: &mut Vec<Problem>) {
        let Some(path) = &self.loaded.config.config else { return };
        let knob_idx = knob::position("HUB_CONFIG").expect("invariant: HUB_CONFIG is a knob");
        let name = given[knob_idx].as_ref().map_or("HUB_CONFIG", |given| &given.name);
        match Namespaces::load(path) {
            Ok(namespaces) => self.loaded.config.namespaces = Arc::new(namespaces),
            Err(error) => problems.extend(Problem::of_file(name, path, error)),
        }
    }

    fn check_all(&self, machine: Machine, problems: &mut Vec<Problem>) {
        let config = &self.loaded.config;
        self.check(problems, &["HUB_PONG_TIMEOUT", "HUB_PING_INTERVAL"], || {
            (config.pong_timeout >= config.ping_interval).then(|| {
                format!(
                    "{} is not below HUB_PING_INTERVAL ({})",
                    values::show_duration(config.pong_timeout),
                    values::show_duration(config.ping_interval)
                )
            })
        });
        let outbox = ["HUB_OUTBOX_BYTES_MAX", "HUB_PUBLICATION_BYTES_MAX"];
        self.check(problems, &outbox, || {
            (config.outbox_bytes_max < config.publication_bytes_max).then(|| {
                format!(
                    "{} is below HUB_PUBLICATION_BYTES_MAX ({}): expected room for at least one \
                     publication",
                    values::show_size(config.outbox_bytes_max),
                    values::show_size(config.publication_bytes_max)
                )
            })
        });
        self.check(problems, &["HUB_CONNECTIONS_MAX"], || {
            let most = config.files_for_sockets;
            (config.connections_max > most).then(|| {
                format!(
                    "{} is more than the limit of open files allows: expected at most {most}, or \
                     a higher `ulimit -n` (now {})",
                    config.connections_max, machine.open_files_max
                )
            })
        });
        self.check(problems, &["HUB_LISTEN", "HUB_INTERNAL_LISTEN"], || twice_listened(config));
        self.check(problems, &["HUB_REDIS_URL"], || {
            let on_command_line = self.loaded.source("HUB_REDIS_URL") == Some(Source::Flag);
            let has_password = config.redis_url.as_ref().is_some_and(RedisUrl::has_password);
            (on_command_line && has_password).then(|| {
                "every user of this machine could read that password in the process list: set \
                 HUB_REDIS_URL or HUB_REDIS_URL_FILE instead of the flag"
                    .to_owned()
            })
        });
        let secrets = ["HUB_TOKEN_HMAC_PREVIOUS_SECRET", "HUB_TOKEN_HMAC_SECRET"];
        self.check(problems, &secrets, || {
            (config.token_hmac_previous_secret.is_some() && config.token_hmac_secret.is_none())
                .then(|| "there is no HUB_TOKEN_HMAC_SECRET that it came before".to_owned())
        });
        if config.dev {
            self.check(problems, &["HUB_LISTEN"], || not_loopback(&config.listen));
            self.check(problems, &["HUB_INTERNAL_LISTEN"], || {
                not_loopback(&config.internal_listen)
            });
        }
    }

    /// Runs a check unless one of the knobs it involves was refused; the first one is blamed.
    fn check(
        &self,
        problems: &mut Vec<Problem>,
        involved: &[&'static str],
        complaint: impl FnOnce() -> Option<String>,
    ) {
        if involved.iter().any(|env| self.refused.contains(env)) {
            return;
        }
        if let Some(complaint) = complaint() {
            problems.push(Problem::Conflict { knob: involved[0], complaint });
        }
    }
}

fn not_loopback(addresses: &[SocketAddr]) -> Option<String> {
    let open = addresses.iter().find(|address| !address.ip().is_loopback())?;
    Some(format!("{open} is not a loopback address, and HUB_DEV lets everybody do everything"))
}

fn twice_listened(config: &Config) -> Option<String> {
    let all: Vec<_> = config.listen.iter().chain(&config.internal_listen).collect();
    let twice = all
        .iter()
        .enumerate()
        .find(|(idx, address)| address.port() != 0 && all[..*idx].contains(address))?;
    Some(format!("{} is there twice (HUB_INTERNAL_LISTEN counts too)", twice.1))
}

#[cfg(test)]
mod tests;
