//! The server that `loadtest ceiling` measures: no hub, only the kernel's part of one.
//!
//! A process of its own, so that its CPU is counted like a hub's. It accepts the fleet's
//! WebSockets, and on order keeps the publisher's schedule itself: every publication is framed once
//! and sent to each subscriber by one `send(2)`, or K of them together. One thread. It talks with the
//! harness over stdin and stdout, a JSON line each way, and ends with its stdin.
//!
//! **Invariant:** the send loop holds nothing but descriptors and bytes: no queue, no position, no
//! look-up per subscriber. A socket that takes no more is waited for.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::checker::histogram;
use crate::cli::LoadArgs;
use crate::clock::{SECOND_NS, now_ns};
use crate::frame;
use crate::protocol::ProtocolName;
use crate::publish::{self, Progress, Published, Publisher, Schedule};

/// As hubbub sets them on its sockets.
const NOTSENT_BYTES: u32 = 16 * 1024;
const BACKLOG: i32 = 4096;
/// For the fleet's request, and for a socket to take more.
const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Of the frames that wait to be sent together.
pub const GROUP_BYTES_MAX: usize = 64 << 20;

/// The first line in.
#[derive(Serialize, Deserialize)]
pub struct Setup {
    pub load: LoadArgs,
}

/// Every other line in.
#[derive(Serialize, Deserialize)]
pub struct Order {
    pub schedule: Schedule,
    pub window_ns: std::ops::Range<u64>,
    /// Publications in one send.
    pub group: u32,
}

/// A line out.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Listening(SocketAddr),
    /// So many publications are out.
    Sent(u64),
    Done(Done),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// By channel.
    pub sent: Vec<u64>,
    /// Value and count.
    pub late_us: Vec<(u64, u64)>,
    pub counts: Counts,
    pub error: Option<String>,
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Calls of send(2).
    pub sends: u64,
    /// Of these, how many the socket took in part or not at all.
    pub short_sends: u64,
}

/// Subscribers with the same channels: what one gets, all get.
struct Audience {
    sockets: Vec<TcpStream>,
    frames: Vec<u8>,
    n_frames: u32,
}

struct Server {
    load: LoadArgs,
    channels: HashMap<String, u32>,
    audiences: Vec<Audience>,
    /// By the channels, in order.
    by_channels: HashMap<Vec<u32>, u32>,
    /// The audiences of each channel.
    by_channel: Vec<Vec<u32>>,
    group: u32,
    counts: Counts,
    frame: Vec<u8>,
    n_published: u64,
    next_line_ns: u64,
}

/// Serves until stdin ends.
pub fn command() -> anyhow::Result<bool> {
    let Setup { load } = read_line()?.context("no set-up on stdin")?;
    crate::process::raise_fd_limit(load.connections + 16)?;
    let listener = listen()?;
    tell(&Line::Listening(listener.local_addr()?))?;
    let mut server = Server::new(load);
    loop {
        let stdin = std::io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&listener, PollFlags::IN)];
        poll(&mut ready, None).context("poll")?;
        if !ready[1].revents().is_empty() {
            server.accept(&listener)?;
        } else if !ready[0].revents().is_empty() {
            let Some(order) = read_line()? else { return Ok(true) };
            let done = server.obey(&order);
            tell(&Line::Done(done))?;
        }
    }
}

fn listen() -> anyhow::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `None` at the end. Every line waits for an answer to the one before: none is hidden in a buffer
/// from `poll`.
fn read_line<T: for<'a> Deserialize<'a>>() -> anyhow::Result<Option<T>> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line).context("reading stdin")? {
        0 => Ok(None),
        _ => serde_json::from_str(&line).context("a line of stdin").map(Some),
    }
}

fn tell(line: &Line) -> anyhow::Result<()> {
    let text = serde_json::to_string(line)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush().context("writing stdout")
}

impl Server {
    fn new(load: LoadArgs) -> Self {
        Self {
            channels: load.channel_names().into_iter().zip(0..).collect(),
            audiences: Vec::new(),
            by_channels: HashMap::new(),
            by_channel: vec![Vec::new(); load.channels],
            group: 1,
            counts: Counts::default(),
            frame: Vec::new(),
            n_published: 0,
            next_line_ns: 0,
            load,
        }
    }

    /// Upgrades one connection; nobody else is served meanwhile, nothing is measured yet either.
    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        let (mut stream, _) = listener.accept().context("accept")?;
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(NOTSENT_BYTES)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut buffer = [0; 2048];
            match stream.read(&mut buffer).context("reading a request")? {
                0 => return Ok(()),
                n_bytes if request.len() < REQUEST_BYTES_MAX => {
                    request.extend_from_slice(&buffer[..n_bytes]);
                }
                _ => bail!("an endless request"),
            }
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")?;
        let path = String::from_utf8_lossy(&request);
        let channels = self.channels_of(path.split(' ').nth(1).unwrap_or_default())?;
        self.subscribe(channels, stream);
        Ok(())
    }

    /// From `/ws?channel=a&channel=b`.
    fn channels_of(&self, path: &str) -> anyhow::Result<Vec<u32>> {
        let names = path.split(['?', '&']).filter_map(|part| part.strip_prefix("channel="));
        let channel = |name| self.channels.get(name).copied().with_context(|| format!("{name}?"));
        let mut channels = names.map(channel).collect::<anyhow::Result<Vec<u32>>>()?;
        channels.sort_unstable();
        channels.dedup();
        Ok(channels)
    }

    fn subscribe(&mut self, channels: Vec<u32>, stream: TcpStream) {
        let n_audiences = self.audiences.len() as u32;
        let audience = *self.by_channels.entry(channels).or_insert_with_key(|channels| {
            for &channel in channels {
                self.by_channel[channel as usize].push(n_audiences);
            }
            self.audiences.push(Audience { sockets: vec![], frames: vec![], n_frames: 0 });
            n_audiences
        });
        self.audiences[audience as usize].sockets.push(stream);
    }

    fn obey(&mut self, order: &Order) -> Done {
        self.group = order.group.max(1);
        self.counts = Counts::default();
        (self.n_published, self.next_line_ns) = (0, now_ns() + SECOND_NS);
        let mut published = Published::new(order.schedule.channels.len());
        let progress = Progress::default();
        let outcome =
            publish::publish(self, &order.schedule, &order.window_ns, &progress, &mut published)
                .and_then(|()| self.finish());
        let late = published.late_us.iter_recorded();
        Done {
            late_us: late.map(|it| (it.value_iterated_to(), it.count_at_value())).collect(),
            sent: published.sent,
            counts: self.counts,
            error: outcome.err().map(|error| format!("{error:#}")),
        }
    }
}

impl Publisher for Server {
    fn put(&mut self, channel: u32, name: &str, payload: &[u8]) -> anyhow::Result<()> {
        put_push(&mut self.frame, self.load.protocol, name, payload);
        for &audience in &self.by_channel[channel as usize] {
            let audience = &mut self.audiences[audience as usize];
            audience.frames.extend_from_slice(&self.frame);
            audience.n_frames += 1;
            if audience.n_frames >= self.group {
                audience.send(&mut self.counts)?;
            }
        }
        self.n_published += 1;
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let now = now_ns();
        if now >= self.next_line_ns {
            self.next_line_ns = now + SECOND_NS;
            tell(&Line::Sent(self.n_published))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let mut waiting = self.audiences.iter_mut().filter(|audience| audience.n_frames > 0);
        waiting.try_for_each(|audience| audience.send(&mut self.counts))
    }

    fn take_failed(&mut self) -> Vec<u32> {
        Vec::new()
    }
}

impl Audience {
    fn send(&mut self, counts: &mut Counts) -> anyhow::Result<()> {
        for socket in &self.sockets {
            send_all(socket, &self.frames, counts)?;
        }
        self.frames.clear();
        self.n_frames = 0;
        Ok(())
    }
}

#[inline]
fn send_all(socket: &TcpStream, mut bytes: &[u8], counts: &mut Counts) -> anyhow::Result<()> {
    loop {
        counts.sends += 1;
        match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(n_bytes) if n_bytes == bytes.len() => return Ok(()),
            Ok(n_bytes) => bytes = &bytes[n_bytes..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => bail!("a subscriber is gone: {error}"),
        }
        counts.short_sends += 1;
        let mut ready = [PollFd::new(socket, PollFlags::OUT)];
        let timeout = Timespec::try_from(PATIENCE).context("a timeout out of range")?;
        if poll(&mut ready, Some(&timeout)).context("poll")? == 0 {
            bail!("a subscriber has read nothing for {PATIENCE:?}");
        }
    }
}

/// The frame by which a hub would deliver it.
fn put_push(out: &mut Vec<u8>, protocol: ProtocolName, channel: &str, payload: &[u8]) {
    let (head, tail) = match protocol {
        ProtocolName::Raw => (String::new(), ""),
        ProtocolName::Centrifuge => {
            (format!("{{\"push\":{{\"channel\":\"{channel}\",\"pub\":{{\"data\":"), "}}}")
        }
    };
    out.clear();
    frame::put_unmasked_head(out, frame::TEXT, (head.len() + payload.len() + tail.len()) as u64);
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(tail.as_bytes());
}

impl Done {
    pub fn published(&self) -> Published {
        let mut late_us = histogram();
        for &(value, n) in &self.late_us {
            let _ = late_us.record_n(value, n);
        }
        let mut published = Published::new(self.sent.len());
        published.sent.clone_from(&self.sent);
        published.late_us = late_us;
        published.error.clone_from(&self.error);
        published
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Centrifuge, Event, Protocol as _};

    #[test]
    fn a_push_is_what_the_fleet_reads() {
        let payload = [b'7'; 200];
        let mut out = Vec::new();
        put_push(&mut out, ProtocolName::Centrifuge, "a", &payload);
        let head = frame::head(&out).unwrap().unwrap();
        assert_eq!(out.len(), head.head_bytes + head.payload_bytes);
        let mut events = Vec::new();
        let protocol = Centrifuge::new(None, payload.len());
        protocol.read(&out[head.head_bytes..], &mut |event| events.push(event));
        assert_eq!(events, [Event::Publication(&payload)]);
    }
}
