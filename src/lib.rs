//! hubbub: live data on many screens. See the README for the picture.
//!
//! Code map: `server` (start, signals, drain), `listener` (accept, placement), `admission` (who may
//! come in), `http` (upgrades, API, pages), `shard` (fan-out to sessions), `broker` (between Redis
//! and the shards), `mailbox` (the only way between threads), `thread` (what the scheduler is told),
//! `channel`, `publication` (what is fanned out), `payload`, `position` (where in its stream), `fossil`
//! (patches), `frame`, `protocol` (wire formats, sans-I/O), `auth` (tokens, permissions, origins),
//! `config`, `cli`, `metrics`, `node`.

mod admission;
pub mod auth;
pub mod broker;
pub mod channel;
pub mod cli;
pub mod config;
pub mod fossil;
pub mod frame;
#[cfg(test)]
mod fuzz;
pub mod http;
pub mod listener;
pub mod mailbox;
pub mod metrics;
pub mod node;
pub mod payload;
pub mod position;
pub mod protocol;
pub mod publication;
pub mod server;
pub mod shard;
mod thread;
