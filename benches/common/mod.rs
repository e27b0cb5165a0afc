//! What the benches share: payloads, and a hub with sessions.
//!
//! `cargo bench --bench fan_out` runs one file; `cargo test --benches` runs each bench once, to see
//! that it works.
#![allow(dead_code, reason = "each bench takes what it needs")]

use std::sync::Arc;

use hubbub::channel::{Channel, ChannelId};
use hubbub::publication::{Body, Format, Publication};
use hubbub::shard::hub::{Hub, Sent, SessionId, Totals};

/// JSON of so many bytes, at least 16.
pub fn payload(n_bytes: usize) -> Vec<u8> {
    let mut out = b"{\"price\":\"".to_vec();
    out.resize(n_bytes - 2, b'7');
    out.extend_from_slice(b"\"}");
    out
}

pub fn publication(channel: &Arc<Channel>, payload_bytes: usize) -> Arc<Publication> {
    Arc::new(Publication::new(channel.clone(), Body::plain(payload(payload_bytes))))
}

/// A hub, its channels and its sessions; the nth session has the channel `n % n_channels`.
pub struct Crowd {
    pub hub: Hub,
    pub channels: Vec<(ChannelId, Arc<Channel>)>,
    pub sessions: Vec<SessionId>,
}

impl Crowd {
    /// Sockets are what `fd` says of the nth session.
    pub fn new(n_sessions: usize, n_channels: usize, fd: impl Fn(usize) -> i32) -> Self {
        let mut hub = Hub::new(1 << 20, Totals::default());
        let channel = |n: usize| {
            let id = ChannelId { slot: n as u32, generation: 0 };
            (id, Arc::new(Channel::new(&format!("prices:{n}"))))
        };
        let channels: Vec<_> = (0..n_channels).map(channel).collect();
        for (id, channel) in &channels {
            hub.open_channel(*id, channel.clone());
        }
        let mut sessions = Vec::new();
        for n in 0..n_sessions {
            let session = hub.add_session(Format::Raw);
            hub.attach(session, fd(n));
            assert!(hub.subscribe(session, (n % n_channels) as u32));
            sessions.push(session);
        }
        let mut crowd = Self { hub, channels, sessions };
        crowd.flush(&mut |_, parts| Sent::Bytes(parts.iter().map(|part| part.len()).sum()));
        crowd
    }

    /// Visits everyone who has something to get, in order.
    pub fn flush(&mut self, write: &mut impl FnMut(i32, &[&[u8]]) -> Sent) {
        let mut at = 0;
        while let Some(idx) = self.hub.next_dirty(at, self.hub.seats_len()) {
            self.hub.visit(idx, write);
            at = idx + 1;
        }
        assert!(self.hub.is_clean());
    }

    /// The same in a run.
    pub fn flush_run(&mut self, write: &mut impl FnMut(i32, &[u8]) -> Sent) {
        self.hub.visit_run(0, self.hub.seats_len(), usize::MAX, write, &mut |_, _| {});
        assert!(self.hub.is_clean());
    }
}
