//! The command line; see the library for what it does.

use std::process::ExitCode;

use clap::Parser as _;
use loadtest::cli::{Cli, Command};

fn main() -> ExitCode {
    let command_line: Vec<String> = std::env::args().collect();
    let outcome = match Cli::parse().command {
        Command::Run(args) => loadtest::run::command(&args, &command_line),
        Command::Slow(args) => loadtest::slow::command(&args, &command_line),
        Command::Churn(args) => loadtest::churn::command(&args, &command_line),
        Command::Storm(args) => loadtest::storm::command(&args, &command_line),
        Command::Sweep(args) => loadtest::sweep::command(&args, &command_line),
        Command::Soak(args) => loadtest::soak::command(&args, &command_line),
        Command::Abuse(args) => loadtest::abuse::command(&args, &command_line),
        Command::Ceiling(args) => loadtest::ceiling::command(&args, &command_line),
        Command::Guard(args) => loadtest::guard::command(&args, &command_line),
        Command::CeilingServer => loadtest::ceiling::server::command(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(64)
        }
    }
}
