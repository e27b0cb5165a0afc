//! Each publication as a WebSocket message to some endpoint, over one connection.
//!
//! What the endpoint says is read and thrown away, so that it never has to wait for us; only pings
//! get an answer. Nothing tells whether a publication was accepted: one that the endpoint drops is
//! lost, and one that it doesn't like ends the connection or nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use memchr::memmem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::Publisher;
use crate::frame;

/// For the upgrade, and for the endpoint to take something.
const STUCK_TIMEOUT: Duration = Duration::from_secs(10);
/// For the endpoint's close in return for ours: until then it may be at work.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Of a ping or a close.
const CONTROL_BYTES_MAX: usize = 125;
/// What Centrifuge servers send as a ping, and want back.
const CENTRIFUGE_PING: &[u8] = b"{}";

#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct WebSocketArgs {
    /// Path and query of the endpoint that takes publications (websocket only)
    #[arg(long, value_name = "PATH")]
    pub publish_path: Option<String>,
    /// Default: the server's address
    #[arg(long, value_name = "IP:PORT")]
    pub publish_address: Option<SocketAddr>,
    /// Sent once connected
    #[arg(long, value_name = "TEXT")]
    pub publish_first_message: Option<String>,
    /// A publication; {channel} (as inside a JSON string) and {payload} stand for its own
    #[arg(long, value_name = "TEXT", default_value = "{payload}")]
    pub publish_message: String,
}

impl WebSocketArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        if self.publish_path.as_ref().is_none_or(|path| !path.starts_with('/')) {
            bail!("--publish-path: where publications go, beginning with /");
        }
        if self.publish_message.matches(PAYLOAD).count() != 1 {
            bail!("--publish-message: {PAYLOAD} once");
        }
        Ok(())
    }
}

pub struct WebSocket {
    stream: TcpStream,
    message: Vec<Piece>,
    /// The message being put together.
    scratch: Vec<u8>,
    out: Vec<u8>,
    inbox: Inbox,
}

const CHANNEL: &str = "{channel}";
const PAYLOAD: &str = "{payload}";

/// Of a message.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Channel,
    Payload,
}

fn pieces(mut text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let places = [(CHANNEL, Piece::Channel), (PAYLOAD, Piece::Payload)];
        let found = places.into_iter().filter_map(|(name, piece)| {
            let at = text.find(name)?;
            Some((at, name.len(), piece))
        });
        let Some((at, length, piece)) = found.min_by_key(|it| it.0) else {
            pieces.push(Piece::Text(text.to_owned()));
            break;
        };
        if at > 0 {
            pieces.push(Piece::Text(text[..at].to_owned()));
        }
        pieces.push(piece);
        text = &text[at + length..];
    }
    pieces
}

impl WebSocket {
    /// `address`: the endpoint's, if the arguments have none.
    pub fn connect(address: SocketAddr, args: &WebSocketArgs) -> anyhow::Result<Self> {
        args.check()?;
        let address = args.publish_address.unwrap_or(address);
        let path = args.publish_path.as_deref().unwrap_or("/");
        let mut stream = TcpStream::connect(address)
            .with_context(|| format!("the publish endpoint at {address}"))?;
        stream.set_nodelay(true)?;
        let rest = upgrade(&mut stream, address, path).context("the publish endpoint")?;
        stream.set_nonblocking(true)?;
        let mut this = Self {
            stream,
            message: pieces(&args.publish_message),
            scratch: Vec::new(),
            out: Vec::new(),
            inbox: Inbox { bytes: rest, n_to_skip: 0 },
        };
        if let Some(first) = &args.publish_first_message {
            frame::put(&mut this.out, frame::TEXT, first.as_bytes());
            this.flush()?;
        }
        Ok(this)
    }

    /// Reads all there is. The reason if that was the end.
    fn read(&mut self) -> anyhow::Result<Option<String>> {
        let mut buffer = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Some("end of stream".to_owned())),
                Ok(n_bytes) => {
                    if let Some(reason) = self.inbox.take(&buffer[..n_bytes], &mut self.out)? {
                        return Ok(Some(reason));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Ok(Some(error.kind().to_string())),
            }
        }
    }

    /// Reads while it can't write: two sides that both wait for the other to read are stuck.
    fn write_all(&mut self) -> anyhow::Result<()> {
        let mut deadline = Instant::now() + STUCK_TIMEOUT;
        let mut at = 0;
        while at < self.out.len() {
            match self.stream.write(&self.out[at..]) {
                Ok(n_bytes) => {
                    at += n_bytes;
                    deadline = Instant::now() + STUCK_TIMEOUT;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Why may be there to be read.
                    let reason = self.read()?.unwrap_or_default();
                    bail!("writing to the publish endpoint: {error}; {reason}");
                }
            }
            if let Some(reason) = self.read()? {
                bail!("the publish endpoint is gone: {reason}");
            }
            if Instant::now() > deadline {
                bail!("the publish endpoint takes nothing for {STUCK_TIMEOUT:?}");
            }
            self.wait(PollFlags::IN | PollFlags::OUT, STUCK_TIMEOUT)?;
        }
        self.out.clear();
        Ok(())
    }

    fn wait(&self, flags: PollFlags, timeout: Duration) -> anyhow::Result<()> {
        let timeout = Timespec::try_from(timeout).context("a timeout out of range")?;
        match poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => bail!("poll: {error}"),
        }
    }
}

impl Publisher for WebSocket {
    fn put(&mut self, _: u32, name: &str, payload: &[u8]) -> anyhow::Result<()> {
        self.scratch.clear();
        for piece in &self.message {
            match piece {
                Piece::Text(text) => self.scratch.extend_from_slice(text.as_bytes()),
                Piece::Payload => self.scratch.extend_from_slice(payload),
                Piece::Channel => {
                    let quoted = serde_json::to_string(name)?;
                    self.scratch.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
                }
            }
        }
        frame::put(&mut self.out, frame::TEXT, &self.scratch);
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        loop {
            self.write_all()?;
            if let Some(reason) = self.read()? {
                bail!("the publish endpoint is gone: {reason}");
            }
            // Unless there was a ping.
            if self.out.is_empty() {
                return Ok(());
            }
        }
    }

    /// Says goodbye and waits for the answer, because a connection that ends with something unread
    /// takes what is under way with it.
    fn finish(&mut self) -> anyhow::Result<()> {
        frame::put(&mut self.out, frame::CLOSE, &1000u16.to_be_bytes());
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut at = 0;
        loop {
            match self.stream.write(&self.out[at..]) {
                Ok(n_bytes) => at += n_bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(()),
            }
            if self.read()?.is_some() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let is_unsent = at < self.out.len();
            let writable = if is_unsent { PollFlags::OUT } else { PollFlags::empty() };
            self.wait(PollFlags::IN | writable, left)?;
        }
    }

    /// Nobody says.
    fn take_failed(&mut self) -> Vec<u32> {
        Vec::new()
    }
}

/// What was received and not thrown away yet.
struct Inbox {
    /// Less than one frame that matters.
    bytes: Vec<u8>,
    /// Of a message that is of no interest.
    n_to_skip: usize,
}

impl Inbox {
    /// Puts the answers to pings into `out`. The reason if the endpoint closed.
    fn take(&mut self, mut new: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Option<String>> {
        let n_skipped = self.n_to_skip.min(new.len());
        self.n_to_skip -= n_skipped;
        new = &new[n_skipped..];
        self.bytes.extend_from_slice(new);
        let mut at = 0;
        while let Ok(Some(head)) = frame::head(&self.bytes[at..]) {
            let start = at + head.head_bytes;
            let is_data = head.opcode < frame::CLOSE;
            if !is_data && head.payload_bytes > CONTROL_BYTES_MAX {
                bail!("the publish endpoint sent a bad frame");
            }
            if is_data && head.payload_bytes != CENTRIFUGE_PING.len() {
                let end = start + head.payload_bytes;
                at = end.min(self.bytes.len());
                self.n_to_skip = end - at;
                continue;
            }
            let Some(payload) = self.bytes.get(start..start + head.payload_bytes) else { break };
            match head.opcode {
                frame::CLOSE => return Ok(Some(frame::close_label(payload))),
                frame::PING => frame::put(out, frame::PONG, payload),
                _ if payload == CENTRIFUGE_PING => frame::put(out, frame::TEXT, CENTRIFUGE_PING),
                _ => {}
            }
            at = start + head.payload_bytes;
        }
        if frame::head(&self.bytes[at..]).is_err() {
            bail!("the publish endpoint sent a bad frame");
        }
        self.bytes.drain(..at);
        Ok(None)
    }
}

/// What came after the response head.
fn upgrade(stream: &mut TcpStream, address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    stream.set_read_timeout(Some(STUCK_TIMEOUT))?;
    stream.write_all(&frame::upgrade_request(&address.to_string(), path))?;
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n_bytes = stream.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..n_bytes]);
        if let Some(end) = memmem::find(&bytes, b"\r\n\r\n") {
            if !bytes.starts_with(b"HTTP/1.1 101") {
                let status = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
                bail!("no upgrade: {}", String::from_utf8_lossy(status));
            }
            return Ok(bytes.split_off(end + 4));
        }
        if n_bytes == 0 || bytes.len() > RESPONSE_HEAD_BYTES_MAX {
            bail!("no response head");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_into_pieces() {
        let text = |text: &str| Piece::Text(text.to_owned());
        assert_eq!(pieces("{payload}"), [Piece::Payload]);
        assert_eq!(
            pieces("{\"c\":\"{channel}\",\"d\":{payload}}"),
            [text("{\"c\":\""), Piece::Channel, text("\",\"d\":"), Piece::Payload, text("}")]
        );
    }

    /// However the bytes are cut: pings are answered, messages thrown away, a close ends it.
    #[test]
    fn what_comes_is_read_however_it_is_cut() {
        let mut all = vec![0x81, 126, 1, 0];
        all.extend([b'x'; 256]);
        all.extend(b"\x89\x02hi\x81\x02{}\x81\x00\x88\x05\x03\xe9bye");
        let mut answers = Vec::new();
        frame::put(&mut answers, frame::PONG, b"hi");
        frame::put(&mut answers, frame::TEXT, b"{}");
        for size in 1..all.len() {
            let mut inbox = Inbox { bytes: Vec::new(), n_to_skip: 0 };
            let mut out = Vec::new();
            let mut ends = all.chunks(size).filter_map(|it| inbox.take(it, &mut out).unwrap());
            assert_eq!(ends.next().as_deref(), Some("1001 bye"), "{size}");
            drop(ends);
            assert_eq!(out, answers, "{size}");
        }
        let mut inbox = Inbox { bytes: Vec::new(), n_to_skip: 0 };
        assert!(inbox.take(&[0x89, 126, 1, 0], &mut Vec::new()).is_err(), "a giant ping");
    }
}
