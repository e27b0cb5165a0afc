//! loadtest: open-loop load on a WebSocket hub, and what became of every publication.
//!
//! ```text
//!  publisher thread                                       subscribers' thread (one epoll)
//!  schedule --> payload --> Publisher ==> way in ==> server ==> fleet --> protocol --> checker
//!                                         (Redis, HTTP API, WebSocket)
//! ```
//! Code map: `cli`; the commands `run`, `slow` (a share reads slowly or never), `abuse` (attackers),
//! `churn` (come and go), `storm` (all drop and come back at once), `sweep` (one load, many
//! settings), `soak` (hours), `registry` (what it costs), `ceiling` (the same without a hub) and `guard` (two builds); under
//! them `pairs` (two things in turn), `measure` (one measurement: warm-up, window, drain),
//! `publish` (the schedule, and how to publish), `payload` (what), `fleet` (all subscribers),
//! `protocol` (what is spoken), `frame`, `checker` (lost, repeated, out of order, damaged, late),
//! `puppet` (a client led step by step, for attackers and churn), `server` (started and pinned
//! here, or running already), `process` (what /proc says), `timeline` (samples), `report`, `verdict`, `html`,
//! `clock`.
//!
//! **Invariant:** latency counts from the time a publication was *intended* to be sent.
//! **Invariant:** nothing a server does wrong ends the harness; it is counted and reported.

pub mod abuse;
pub mod ceiling;
pub mod checker;
pub mod churn;
pub mod cli;
pub mod clock;
pub mod fleet;
pub mod frame;
pub mod guard;
pub mod html;
pub mod measure;
pub mod pairs;
pub mod payload;
pub mod process;
pub mod protocol;
pub mod publish;
pub mod puppet;
pub mod registry;
pub mod report;
pub mod run;
pub mod server;
pub mod slow;
pub mod soak;
pub mod storm;
pub mod sweep;
pub mod timeline;
pub mod verdict;
