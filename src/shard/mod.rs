//! A shard: one thread, its sessions and their subscriptions.
//!
//! The sans-I/O half is whole: hub, cohorts, outbox, dirty set, frame reader. The thread's loop and
//! the sockets (`run.rs`, `state.rs`, `socket.rs`, `pause.rs` in this folder) are drafts that
//! wait for the session's commands and are not yet part of the build.

mod cohort;
mod dirty;
mod event;
pub mod hub;
mod outbox;
pub mod reader;

pub use event::{Accepted, LinkState, Role, ShardEvent};
