//! The knobs as command-line flags: one flag per row of `KNOBS`, with its environment name and
//! default in the help.
//!
//! clap's own `env` feature stays unused: it reads the process environment behind the caller's
//! back, cannot mask, and cannot tell an empty variable from a set one.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::knob::{self, Kind, Knob};
use super::knobs::KNOBS;
use super::{Config, Machine, Problem};

/// Every value but the ones that the table overrides is the same on all machines.
static DEFAULTS: LazyLock<Config> = LazyLock::new(|| {
    Config::defaults(Machine { cores: 1, open_files_max: 1024, memory_bytes: 1 << 30 })
});

/// Adds every knob, before and after a subcommand alike.
pub(crate) fn add_flags(command: Command) -> Command {
    let refused = KNOBS.iter().filter(|knob| knob.kind == Kind::Secret).map(|knob| knob.flag);
    command
        .args(KNOBS.iter().filter(|knob| knob.kind != Kind::Secret).map(flag))
        .args(refused.chain(knob::NOT_YET.iter().copied()).map(refused_flag))
}

fn flag(knob: &Knob) -> Arg {
    let default = match knob.default_text {
        Some(text) => text.to_owned(),
        None => (knob.show)(&DEFAULTS),
    };
    let default = if default.is_empty() { "empty".to_owned() } else { default };
    let arg = Arg::new(knob.flag)
        .long(knob.flag)
        .value_name(knob.value)
        .help(format!("{} [{}, default: {default}]", knob.help, knob.env))
        .help_heading(knob.heading)
        .value_parser(value_parser!(OsString))
        .global(true);
    match knob.kind {
        // Without the equals sign, `--dev config` would take the subcommand for the value.
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Plain | Kind::MaySecret | Kind::Secret => arg,
    }
}

/// Parsed only to be refused with a better answer than "unexpected argument".
fn refused_flag(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .num_args(0..=1)
        .value_parser(value_parser!(OsString))
        .hide(true)
        .global(true)
}

/// One entry per knob, in the order of `KNOBS`.
pub(crate) fn read_flags(
    matches: &ArgMatches,
    problems: &mut Vec<Problem>,
) -> Vec<Option<OsString>> {
    for name in knob::NOT_YET.iter().filter(|name| is_given(matches, name)) {
        problems.push(Problem::NotYet { name: format!("--{name}") });
    }
    let mut values = Vec::with_capacity(KNOBS.len());
    for knob in KNOBS {
        if knob.kind == Kind::Secret && is_given(matches, knob.flag) {
            let name = format!("--{}", knob.flag);
            problems.push(Problem::SecretFlag { name, env: knob.env });
            values.push(None);
        } else {
            values.push(matches.get_one::<OsString>(knob.flag).cloned());
        }
    }
    values
}

fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine)
}
