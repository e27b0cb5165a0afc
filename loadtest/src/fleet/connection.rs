//! One subscriber: from dialing to ready to its end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use memchr::memmem;

use super::{Group, Plan, Shared};
use crate::checker::Flow;
use crate::clock::now_ns;
use crate::frame;
use crate::protocol::Event;

/// A longer response head is not from a WebSocket server.
const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    Dialing,
    Upgrading,
    /// So many commands are yet to be accepted.
    Greeting(u32),
    Ready,
    /// After having been ready.
    HungUp,
}

pub struct Connection {
    stream: TcpStream,
    stage: Stage,
    /// Tells the user of its token, and is what a server's log would say.
    idx: usize,
    /// When it was to be dialed.
    due_ns: u64,
    channels: Box<[u32]>,
    flows: Box<[Flow]>,
    hint: usize,
    /// The beginning of a frame, or of the response head.
    rest: Vec<u8>,
    /// The fragments of a message so far.
    message: Option<Vec<u8>>,
}

impl Connection {
    pub fn new(stream: TcpStream, plan: &Plan, idx: usize, due_ns: u64) -> Self {
        Self {
            stream,
            stage: Stage::Dialing,
            idx,
            due_ns,
            channels: plan.channels.clone().into(),
            flows: plan.channels.iter().map(|&channel| Flow::new(channel)).collect(),
            hint: 0,
            rest: Vec::new(),
            message: None,
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn is_dialing(&self) -> bool {
        self.stage == Stage::Dialing
    }

    pub fn was_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::HungUp)
    }

    pub fn is_alive(&self) -> bool {
        self.stage != Stage::HungUp
    }

    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// One past the highest number received, over its channels.
    pub fn n_reached(&self) -> u64 {
        self.flows.iter().map(Flow::n_reached).sum()
    }

    pub fn hang_up(&mut self) {
        self.stage = Stage::HungUp;
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.rest = Vec::new();
    }

    /// The next publication of each channel is number 0 again.
    pub fn forget(&mut self) {
        for flow in &mut self.flows {
            *flow = Flow::new(flow.channel);
        }
    }

    /// The socket is writable for the first time: asks for the upgrade.
    pub fn on_connected(&mut self, shared: &Shared) -> Result<(), String> {
        if let Ok(Some(error)) = self.stream.take_error() {
            return Err(error.kind().to_string());
        }
        let token = self.token(shared)?;
        let path = shared.protocol.path(&self.names(shared), token.as_deref());
        self.stage = Stage::Upgrading;
        self.send(&frame::upgrade_request(&shared.target.to_string(), &path))
    }

    /// Reads once, at most so much, and handles it. The number of bytes, 0 if there are none; the
    /// reason if this was the end.
    pub fn read(
        &mut self,
        shared: &Shared,
        group: &mut Group,
        buffer: &mut Vec<u8>,
        n_bytes_max: usize,
    ) -> Result<usize, String> {
        let kept = self.rest.len();
        if buffer.len() < 2 * kept {
            buffer.resize(2 * kept, 0);
        }
        let room = (buffer.len() - kept).min(n_bytes_max);
        let n_bytes = match self.stream.read(&mut buffer[kept..kept + room]) {
            Ok(0) => return Err("end of stream".to_owned()),
            Ok(n_bytes) => n_bytes,
            Err(error) if is_temporary(error.kind()) => return Ok(0),
            Err(error) => return Err(error.kind().to_string()),
        };
        buffer[..kept].copy_from_slice(&self.rest);
        self.rest.clear();
        let bytes = &buffer[..kept + n_bytes];
        let mut at = 0;
        if self.stage == Stage::Upgrading {
            at = self.on_response(shared, bytes)?;
        }
        if self.stage != Stage::Upgrading {
            at += self.on_frames(shared, group, &bytes[at..], now_ns())?;
        }
        self.rest.extend_from_slice(&bytes[at..]);
        if self.rest.is_empty() && self.rest.capacity() > 64 * 1024 {
            self.rest = Vec::new();
        }
        Ok(n_bytes)
    }

    fn names<'a>(&self, shared: &'a Shared) -> Vec<&'a str> {
        self.channels.iter().map(|&channel| shared.channels[channel as usize].as_str()).collect()
    }

    fn token(&self, shared: &Shared) -> Result<Option<String>, String> {
        let make = |tokens: &crate::protocol::Tokens| tokens.make(&format!("load-{}", self.idx));
        shared.tokens.as_ref().map(make).transpose().map_err(|error| error.to_string())
    }

    /// How much of `bytes` was the head; 0 if its end has yet to come.
    fn on_response(&mut self, shared: &Shared, bytes: &[u8]) -> Result<usize, String> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
            let is_too_long = bytes.len() > RESPONSE_HEAD_BYTES_MAX;
            return if is_too_long { Err("no response head".to_owned()) } else { Ok(0) };
        };
        if !bytes.starts_with(b"HTTP/1.1 101") {
            let status = String::from_utf8_lossy(&bytes[..bytes.len().min(12)]);
            return Err(format!("upgrade: {status}"));
        }
        let token = self.token(shared)?;
        self.stage = match shared.protocol.greeting(&self.names(shared), token.as_deref()) {
            None => Stage::Ready,
            Some(greeting) => {
                self.send_frame(frame::TEXT, greeting.message.as_bytes())?;
                if greeting.n_accepted == 0 {
                    Stage::Ready
                } else {
                    Stage::Greeting(greeting.n_accepted)
                }
            }
        };
        Ok(end + 4)
    }

    /// Handles all whole frames; how much of `bytes` they are.
    fn on_frames(
        &mut self,
        shared: &Shared,
        group: &mut Group,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<usize, String> {
        let mut at = 0;
        loop {
            let head = frame::head(&bytes[at..]).map_err(|_| "bad frame".to_owned())?;
            let Some(head) = head else { return Ok(at) };
            let start = at + head.head_bytes;
            let end = start + head.payload_bytes;
            if end > bytes.len() {
                return Ok(at);
            }
            let payload = &bytes[start..end];
            match head.opcode {
                frame::CLOSE => return Err(frame::close_label(payload)),
                frame::PING => self.send_frame(frame::PONG, payload)?,
                frame::PONG => {}
                _ if head.is_final && self.message.is_none() => {
                    self.on_message(shared, group, payload, now_ns)?;
                }
                _ => {
                    let mut message = self.message.take().unwrap_or_default();
                    message.extend_from_slice(payload);
                    if message.len() > frame::PAYLOAD_BYTES_MAX {
                        return Err("endless message".to_owned());
                    }
                    if head.is_final {
                        self.on_message(shared, group, &message, now_ns)?;
                    } else {
                        self.message = Some(message);
                    }
                }
            }
            at = end;
        }
    }

    fn on_message(
        &mut self,
        shared: &Shared,
        group: &mut Group,
        message: &[u8],
        now_ns: u64,
    ) -> Result<(), String> {
        let Self { flows, hint, stage, .. } = self;
        let mut answer = None;
        let mut refusal = None;
        shared.protocol.read(message, &mut |event| match event {
            Event::Publication(payload) => {
                group.tally.take(&shared.expected, flows, hint, payload, now_ns);
            }
            Event::Accepted => {
                if let Stage::Greeting(n_left) = stage {
                    *n_left -= 1;
                    if *n_left == 0 {
                        *stage = Stage::Ready;
                    }
                }
            }
            Event::Refused(words) => refusal = Some(words),
            Event::Ping(pong) => answer = Some(pong),
            Event::Unsubscribed(words) => *group.unsubscribed.entry(words).or_default() += 1,
            Event::Other => {}
        });
        if let Some(pong) = answer {
            self.send_frame(frame::TEXT, pong)?;
        }
        refusal.map_or(Ok(()), Err)
    }

    fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> Result<(), String> {
        let mut out = Vec::with_capacity(payload.len() + 14);
        frame::put(&mut out, opcode, payload);
        self.send(&out)
    }

    /// All or nothing: what a subscriber says is short, a server that doesn't even take that is
    /// stuck.
    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        match self.stream.write(bytes) {
            Ok(n_bytes) if n_bytes == bytes.len() => Ok(()),
            Ok(_) => Err("server reads nothing".to_owned()),
            Err(error) if is_temporary(error.kind()) => Err("server reads nothing".to_owned()),
            Err(error) => Err(error.kind().to_string()),
        }
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
