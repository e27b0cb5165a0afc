//! loadtest: open-loop load on a WebSocket hub, and what became of every publication.
//!
//! ```text
//!  publisher thread                                         subscribers' thread (one epoll)
//!  schedule --> payload --> Publisher ==> Redis or API ==> server ==> fleet --> protocol --> checker
//! ```
//! Code map: `cli`; the commands `run` and `abuse` (attackers, led as
//! `puppet`s); `measure` (one measurement); `publish` (the schedule, and how to publish), `payload`
//! (what), `fleet` (all subscribers), `protocol` (what is spoken), `frame`, `checker` (lost,
//! repeated, out of order, damaged, late), `server` (started and pinned here, or running already),
//! `process` (what /proc says), `report`, `clock`.

pub mod abuse;
pub mod checker;
pub mod cli;
pub mod clock;
pub mod fleet;
pub mod frame;
pub mod measure;
pub mod payload;
pub mod process;
pub mod protocol;
pub mod publish;
pub mod puppet;
pub mod report;
pub mod run;
pub mod server;
