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
            without_kept_pages();
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

/// `mi_option_purge_delay` of mimalloc.h, milliseconds.
const PURGE_DELAY: std::ffi::c_int = 15;

/// What is freed goes back to the kernel at once: a storm of handshakes would leave 50 to 90 bytes a
/// connection behind until somebody frees a page again. In steady state pages are neither freed nor
/// taken (no page faults with publications of up to 300 kB), but for publications of nearly 1 MiB: 490
/// faults each instead of 12. `MIMALLOC_PURGE_DELAY` in the environment goes before it.
fn without_kept_pages() {
    // SAFETY: stores a number where the allocator looks up its options, before there are threads.
    unsafe { mi_option_set_default(PURGE_DELAY, 0) };
}

// The allocator's own, linked with it.
unsafe extern "C" {
    fn mi_option_set_default(option: std::ffi::c_int, value: std::ffi::c_long);
    #[cfg(test)]
    fn mi_option_get(option: std::ffi::c_int) -> std::ffi::c_long;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another number would be another option, whose default is no second.
    #[test]
    fn the_option_is_the_delay() {
        // SAFETY: reads a number.
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1_000);
        without_kept_pages();
        assert_eq!(delay(), 0);
    }
}
