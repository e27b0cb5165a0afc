//! Parses the configuration and carries out what the command line asks for.

use std::process::ExitCode;

use hubbub::cli::{self, Action};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An internal failure, as in `sysexits.h`.
const EXIT_SOFTWARE: u8 = 70;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().skip(1), std::env::vars_os()) {
        Action::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Action::Fail { message, code } => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
        Action::Run(_) => {
            eprintln!("error: this build has no listener yet: it can't serve");
            ExitCode::from(EXIT_SOFTWARE)
        }
    }
}
