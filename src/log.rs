//! The log's way to stderr: a bounded queue, and one thread that writes.
//!
//! A write to stderr blocks while nobody reads the pipe, and fails on a full disk. Neither may hold up
//! or end the thread that has something to say: with a plain stderr the links to Redis stood still at
//! their first line.
//!
//! Owns the queue; the thread is called "log". Any thread may log.
//! **Invariant:** a log call neither waits nor fails: a line that finds the queue full is dropped and
//! counted, and how many were is said once lines get through again.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::config::{Config, LogFormat};

/// Lines that wait to be written, some hundred bytes each. The node logs changes of state; a client
/// can't make it log.
const LINES_MAX: usize = 1024;
/// How long the end of the process waits for the lines that are queued.
const FLUSH: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<SyncSender<Item>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

enum Item {
    Line(Vec<u8>),
    /// Answer once everything before is written.
    Flush(SyncSender<()>),
}

/// Starts the log. Once per process.
///
/// # Errors
/// The thread can't be started.
pub fn start(config: &Config) -> io::Result<()> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    std::thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver))?;
    let queue = QUEUE.get_or_init(|| sender);
    // SAFETY: the handler is a plain function that doesn't unwind.
    unsafe { libc::atexit(flush) };
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || Line { queue });
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Lines that were dropped since the start.
pub fn n_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Takes one line: the subscriber writes each with one call.
struct Line {
    queue: &'static SyncSender<Item>,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(queue: &Receiver<Item>) {
    let mut n_told = 0;
    while let Ok(item) = queue.recv() {
        match item {
            Item::Flush(done) => drop(done.try_send(())),
            Item::Line(line) if io::stderr().write_all(&line).is_err() => {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
            Item::Line(_) => {
                let n_lines = n_dropped() - n_told;
                if n_lines > 0 {
                    n_told += n_lines;
                    tracing::warn!(n_lines, "lines of this log were dropped");
                }
            }
        }
    }
}

/// Runs at exit, however it comes about: the last lines are the ones that say why.
extern "C" fn flush() {
    let (sender, done) = sync_channel(1);
    if QUEUE.get().is_some_and(|queue| queue.try_send(Item::Flush(sender)).is_ok()) {
        let _ = done.recv_timeout(FLUSH);
    }
}
