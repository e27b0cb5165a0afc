//! The command line; see the library for what it does.

use std::process::ExitCode;

use clap::Parser as _;
use loadtest::cli::{Cli, Command};
use loadtest::verdict::Verdict;

const COULD_NOT_RUN: u8 = 64;

fn main() -> ExitCode {
    let command_line: Vec<String> = std::env::args().collect();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap's own code for a mistake is 2, which says something else here.
        Err(error) => {
            let is_mistake = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if is_mistake { COULD_NOT_RUN } else { 0 });
        }
    };
    let outcome = match cli.command {
        Command::Run(args) => loadtest::run::command(&args, &command_line),
        Command::Slow(args) => loadtest::slow::command(&args, &command_line),
        Command::Churn(args) => loadtest::churn::command(&args, &command_line),
        Command::Storm(args) => loadtest::storm::command(&args, &command_line),
        Command::Sweep(args) => loadtest::sweep::command(&args, &command_line),
        Command::Soak(args) => loadtest::soak::command(&args, &command_line),
        Command::Registry(args) => loadtest::registry::command(&args, &command_line),
        Command::Abuse(args) => loadtest::abuse::command(&args, &command_line),
        Command::Ceiling(args) => {
            loadtest::ceiling::command(&args, &command_line).map(Verdict::from)
        }
        Command::Guard(args) => loadtest::guard::command(&args, &command_line).map(Verdict::from),
        Command::CeilingServer => loadtest::ceiling::server::command().map(Verdict::from),
    };
    match outcome {
        Ok(verdict) => verdict.into(),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}
