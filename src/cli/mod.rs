//! The command line: `hubbub [FLAGS]` runs the hub, `hubbub config [FLAGS]` prints what it would run
//! with, `hubbub token` makes and checks tokens, `hubbub script` prints the publish script, `hubbub nodes`,
//! `connections` and `where` read the registry. Decides only; main prints, runs and exits.
//!
//! Knobs and their flags come from `config`; a further subcommand is one `Command` in [`command`] and
//! one arm in [`parse`].

mod registry;
mod script;
mod show;
mod token;

use std::ffi::OsString;
use std::io::{self, Read};

use clap::error::ErrorKind;
use clap::{ArgMatches, Command};

use crate::config::{self, EXIT_CONFIG, Loaded, Machine};
pub use registry::Question;
pub use show::answer;

const ABOUT: &str = "\
hubbub: live data on many screens. A WebSocket hub, sharded over all cores, that brings what is
published in Redis, or by its own HTTP API, to every subscriber.

  hubbub --dev                               try it: no Redis needed, a live demo on /demo
  HUB_REDIS_URL=redis://127.0.0.1 hubbub     serve what is published in that Redis";

const AFTER: &str = "\
Every flag is also an environment variable, named in its brackets; the flag wins. An empty value is
as good as none. Times: 500ms, 25s, 1m, 2h. Sizes: 64KiB, 1MiB, 16kB, or bytes.

Secrets have no flag:
  HUB_API_KEY       who may use /api, comma-separated for rotation; unset: the API is closed
  HUB_TOKEN_HMAC_SECRET
                    what the clients' tokens are signed with; unset: no token is good
  HUB_TOKEN_HMAC_PREVIOUS_SECRET
                    what they were signed with before that
  HUB_API_KEY_FILE, HUB_REDIS_URL_FILE, HUB_TOKEN_HMAC_SECRET_FILE,
  HUB_TOKEN_HMAC_PREVIOUS_SECRET_FILE
                    path of a file that holds the value

Exit codes: 0 after a stop by SIGTERM or SIGINT, 1 for a refused token or a connection that isn't there, 64 for a bad
configuration, 69 if another live node has this HUB_NODE_ID or Redis doesn't answer a question, 70 for an internal
failure, 130 or 143 on a second signal.";

const TEMPLATE: &str = "{about}\n\n{usage-heading} {usage}\n\n{all-args}{after-help}\n";

/// What main is to do.
#[derive(Debug)]
pub enum Action {
    /// Boxed: a configuration is large beside a message.
    Run(Box<Loaded>),
    /// A question to the registry in Redis: see [`answer`].
    Answer(Box<Loaded>, Question),
    /// To stdout, as it is; exit 0.
    Print(String),
    /// To stdout, as it is; exit 1.
    Refuse(String),
    /// To stderr, with a newline; exit with `code`.
    Fail { message: String, code: u8 },
}

/// Reads the command line, without the program's name, and the environment.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Action {
    parse_with(args, env, &mut io::stdin())
}

/// `stdin` is read by `token check -` only.
fn parse_with(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    stdin: &mut dyn Read,
) -> Action {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return on_clap_error(&error),
    };
    match matches.subcommand() {
        Some(("config", matches)) => match load(matches, env) {
            Ok(loaded) => Action::Print(config::render(&loaded)),
            Err(failure) => failure,
        },
        Some(("script", _)) => Action::Print(script::text()),
        Some((name @ ("nodes" | "connections" | "where"), matches)) => match load(matches, env) {
            Ok(loaded) => registry::ask(name, matches, loaded),
            Err(failure) => failure,
        },
        Some(("token", matches)) => {
            let (name, matches) =
                matches.subcommand().expect("invariant: clap requires a subcommand of token");
            match load(matches, env) {
                Ok(loaded) => token::run(name, matches, &loaded.config, stdin),
                Err(failure) => failure,
            }
        }
        _ => match load(&matches, env) {
            Ok(loaded) => Action::Run(Box::new(loaded)),
            Err(failure) => failure,
        },
    }
}

fn load(
    matches: &ArgMatches,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Action> {
    Loaded::assemble(Machine::detect(), matches, env).map_err(|error| {
        let lines: Vec<String> = error.problems().iter().map(|p| format!("error: {p}")).collect();
        Action::Fail { message: lines.join("\n"), code: error.exit_code() }
    })
}

fn command() -> Command {
    let root = Command::new("hubbub")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(AFTER)
        .help_template(TEMPLATE)
        .override_usage(
            "hubbub [FLAGS]\n       hubbub config [FLAGS]\n       hubbub token make|check …\n       hubbub script\n       hubbub nodes|connections|where …",
        )
        .max_term_width(100)
        .no_binary_name(true)
        .disable_help_subcommand(true);
    let config = Command::new("config")
        .about("Print the effective configuration, secrets masked, and where each value is from")
        .override_usage("hubbub config [FLAGS]");
    config::add_flags(root)
        .subcommand(config)
        .subcommand(token::command())
        .subcommand(script::command())
        .subcommands(registry::commands())
}

/// Help and version come as errors; everything else is the caller's mistake, for which clap would
/// exit with 2.
fn on_clap_error(error: &clap::Error) -> Action {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Action::Print(text),
        // Not repeated: somebody may have passed a URL with its password.
        _ if text.contains("://") => Action::Fail {
            message: "error: unexpected argument: hubbub takes flags only, and a URL with a \
                      password from its variable (see `hubbub --help`)"
                .to_owned(),
            code: EXIT_CONFIG,
        },
        _ => Action::Fail { message: text.trim_end().to_owned(), code: EXIT_CONFIG },
    }
}

#[cfg(test)]
mod tests;
