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
        Action::Answer(loaded, question) => cli::answer(&loaded.config, &question),
        Action::Run(loaded) => {
            without_huge_pages();
            hubbub::server::run(loaded.config)
        }
    }
}

/// The allocator asks for huge pages, of which each thread would fill a few in part: 8 to 13 MB
/// more at the start, and memory that grows in steps of 2 MiB.
fn without_huge_pages() {
    // SAFETY: a plain system call that changes how the kernel backs this process's memory.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}
