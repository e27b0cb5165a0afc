//! Parses the configuration and carries out what the command line asks for.

use std::process::ExitCode;

use hubbub::cli::{self, Action};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().skip(1), std::env::vars_os()) {
        Action::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Action::Refuse(text) => {
            print!("{text}");
            ExitCode::FAILURE
        }
        Action::Fail { message, code } => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
        Action::Run(loaded) => hubbub::server::run(loaded.config),
    }
}
