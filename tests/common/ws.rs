//! A WebSocket client at byte level: its own masked frames, any split, a receive window of any size.
//! It reads only while somebody calls it; to stall, don't call.

use super::http::{self, Head};
use super::{Hub, SOON, sys};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The sample nonce of RFC 6455 and its accept value: no SHA-1 needed to check the answer.
const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const READ_BYTES: usize = 64 * 1024;

thread_local! {
    // Room made anew for each read takes longer, in a debug build, than all the rest of it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

#[derive(Debug, Clone)]
pub struct Frame {
    pub at: Instant,
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        assert_eq!(self.opcode, TEXT, "a text frame");
        std::str::from_utf8(&self.payload).expect("text frames are UTF-8")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    pub code: u16,
    pub reason: String,
}

/// An upgrade that was answered with something else than 101.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Refused {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

pub struct Dial {
    addr: SocketAddr,
    path: String,
    headers: Vec<(String, String)>,
    rcvbuf: Option<usize>,
}

impl Dial {
    pub fn new(hub: &Hub, path: &str) -> Self {
        Self::new_at(hub.addr, path)
    }

    pub fn new_at(addr: SocketAddr, path: &str) -> Self {
        Self { addr, path: path.to_owned(), headers: Vec::new(), rcvbuf: None }
    }

    /// Through a proxy.
    pub fn via(mut self, addr: SocketAddr) -> Self {
        self.addr = addr;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn rcvbuf(mut self, bytes: usize) -> Self {
        self.rcvbuf = Some(bytes);
        self
    }

    /// The bytes of the upgrade request, for tests that send them in pieces or not at all.
    pub fn request(&self) -> String {
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {NONCE}\r\n",
            self.path, self.addr
        );
        for (name, value) in &self.headers {
            request += &format!("{name}: {value}\r\n");
        }
        request + "\r\n"
    }

    pub fn connect(&self) -> TcpStream {
        let stream = sys::connect(self.addr, self.rcvbuf).expect("hubbub accepts");
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub fn open(self) -> Raw {
        let path = self.path.clone();
        self.try_open().unwrap_or_else(|refused| panic!("{path}: {refused:?}"))
    }

    pub fn try_open(self) -> Result<Raw, Refused> {
        let mut upgrade = self.begin();
        let end = Instant::now() + SOON;
        loop {
            upgrade = match upgrade.poll() {
                Answer::Open(raw) => return Ok(raw),
                Answer::Refused(refused) => return Err(refused),
                Answer::HungUp => panic!("closed during the upgrade"),
                Answer::Pending(upgrade) => upgrade,
            };
            assert!(upgrade.0.wait_readable(end), "no answer to the upgrade");
        }
    }

    /// Asks for the upgrade and waits for nothing.
    pub fn begin(&self) -> Upgrade {
        let mut stream = self.connect();
        stream.write_all(self.request().as_bytes()).expect("hubbub reads the request");
        Upgrade(Raw::over(stream))
    }
}

/// An upgrade that was asked for.
pub struct Upgrade(Raw);

/// What came of it.
pub enum Answer {
    Open(Raw),
    Refused(Refused),
    HungUp,
    Pending(Upgrade),
}

impl Upgrade {
    pub fn fd(&self) -> RawFd {
        self.0.fd()
    }

    pub fn poll(self) -> Answer {
        let Self(mut raw) = self;
        while !raw.eof && raw.read_some(usize::MAX) {}
        let Some(head_len) = http::head_len(&raw.wire) else {
            return if raw.eof { Answer::HungUp } else { Answer::Pending(Self(raw)) };
        };
        let head = Head::parse(&raw.wire[..head_len]);
        if head.status != 101 {
            let body = String::from_utf8_lossy(&raw.wire[head_len..]).into_owned();
            return Answer::Refused(Refused { status: head.status, headers: head.headers, body });
        }
        raw.wire.drain(..head_len);
        raw.headers = head.headers;
        assert_eq!(raw.header("sec-websocket-accept"), Some(ACCEPT));
        raw.parse();
        Answer::Open(raw)
    }
}

pub struct Raw {
    stream: TcpStream,
    wire: Vec<u8>,
    headers: Vec<(String, String)>,
    /// Parsed and not yet taken.
    pub frames: VecDeque<Frame>,
    /// Set once the peer's TCP stream has ended.
    pub eof: bool,
    /// Whether WebSocket pings are answered; on by default.
    pub answer_pings: bool,
    pub n_pings: usize,
    /// Whether a close frame is answered with one; on by default.
    pub answer_close: bool,
    /// Payloads of pongs.
    pub pongs: VecDeque<Vec<u8>>,
    close: Option<Close>,
    n_read: usize,
}

impl Raw {
    /// `/ws` for these channels.
    pub fn open(hub: &Hub, channels: &[&str]) -> Self {
        Dial::new(hub, &raw_path(channels)).open()
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            wire: Vec::new(),
            headers: Vec::new(),
            frames: VecDeque::new(),
            eof: false,
            answer_pings: true,
            n_pings: 0,
            answer_close: true,
            pongs: VecDeque::new(),
            close: None,
            n_read: 0,
        }
    }

    /// A header of the upgrade's answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Bytes read since the connection began.
    pub fn n_read(&self) -> usize {
        self.n_read
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
    }

    pub fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send_bytes(&encode(opcode, payload));
    }

    /// Bytes as they are, whole. An error means the peer is gone, which reading will tell as well.
    pub fn send_bytes(&mut self, mut bytes: &[u8]) {
        let end = Instant::now() + SOON;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = end.saturating_duration_since(Instant::now());
                    assert!(!left.is_zero(), "hubbub does not read");
                    sys::wait_fd(self.fd(), sys::For::Writing, left);
                }
                Err(_) => return,
            }
        }
    }

    /// As much as the kernel takes now; nothing once the peer is gone.
    pub fn try_send(&mut self, bytes: &[u8]) -> usize {
        self.stream.write(bytes).unwrap_or(0)
    }

    /// The next text or binary frame.
    pub fn next_data(&mut self, deadline: Duration) -> Option<Frame> {
        let end = Instant::now() + deadline;
        self.wait_for(end, |raw| !raw.frames.is_empty());
        self.frames.pop_front()
    }

    /// The server's close frame, whatever data comes before it (that stays in `frames`).
    pub fn next_close(&mut self, deadline: Duration) -> Option<Close> {
        let end = Instant::now() + deadline;
        self.wait_for(end, |raw| raw.close.is_some());
        self.close.clone()
    }

    pub fn next_pong(&mut self, deadline: Duration) -> Option<Vec<u8>> {
        self.wait_for(Instant::now() + deadline, |raw| !raw.pongs.is_empty());
        self.pongs.pop_front()
    }

    /// Sends a FIN; the other direction stays open.
    pub fn half_close(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends with RST.
    pub fn reset(self) {
        sys::reset_on_close(&self.stream);
    }

    /// Whether the peer ends the TCP stream in time.
    pub fn wait_eof(&mut self, deadline: Duration) -> bool {
        self.wait_for(Instant::now() + deadline, |raw| raw.eof);
        self.eof
    }

    pub fn is_closed(&self) -> bool {
        self.eof || self.close.is_some()
    }

    /// Whether nothing but pings arrives for so long.
    pub fn stays_quiet(&mut self, how_long: Duration) -> bool {
        self.wait_for(Instant::now() + how_long, |raw| !raw.frames.is_empty() || raw.is_closed());
        self.frames.is_empty() && !self.is_closed()
    }

    /// Reads at most so many bytes once there are any: a window that opens a crack.
    pub fn read_crumb(&mut self, n_bytes: usize, deadline: Duration) -> bool {
        self.wait_readable(Instant::now() + deadline) && {
            self.read_some(n_bytes);
            self.parse();
            !self.eof
        }
    }

    /// Takes what the kernel has, without waiting; false once the stream has ended.
    pub fn pump(&mut self) -> bool {
        while !self.eof && self.read_some(256 * 1024) {}
        self.parse();
        !self.eof
    }

    fn wait_for(&mut self, end: Instant, done: impl Fn(&Self) -> bool) {
        while !done(self) && !self.eof {
            if !self.wait_readable(end) {
                return;
            }
            self.pump();
        }
    }

    fn wait_readable(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        sys::wait_fd(self.fd(), sys::For::Reading, left)
    }

    /// One read; false if there was nothing to read.
    fn read_some(&mut self, limit: usize) -> bool {
        let got = BUFFER.with_borrow_mut(|buffer| {
            let n = self.stream.read(&mut buffer[..limit.min(READ_BYTES)])?;
            self.wire.extend_from_slice(&buffer[..n]);
            Ok::<usize, std::io::Error>(n)
        });
        match got {
            Ok(0) => self.eof = true,
            Ok(n) => {
                self.n_read += n;
                return true;
            }
            Err(error) => self.eof = error.kind() != ErrorKind::WouldBlock,
        }
        false
    }

    fn parse(&mut self) {
        let at = Instant::now();
        let mut used = 0;
        while let Some(Parsed { frame, len }) = decode(&self.wire[used..], at) {
            used += len;
            assert!(self.close.is_none(), "a frame after the close frame");
            match frame.opcode {
                PING => {
                    self.n_pings += 1;
                    if self.answer_pings {
                        self.send_frame(PONG, &frame.payload);
                    }
                }
                PONG => self.pongs.push_back(frame.payload),
                CLOSE => self.on_close(&frame.payload),
                _ => self.frames.push_back(frame),
            }
        }
        self.wire.drain(..used);
    }

    fn on_close(&mut self, payload: &[u8]) {
        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
        let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
        self.close = Some(Close { code, reason });
        // The answer that ends the closing handshake; the server closes the stream.
        if self.answer_close {
            self.send_frame(CLOSE, payload.get(..2).unwrap_or_default());
        }
    }
}

/// `/ws?channel=a&channel=b`, escaped.
pub fn raw_path(channels: &[&str]) -> String {
    let mut path = "/ws".to_owned();
    for (i, channel) in channels.iter().enumerate() {
        path += if i == 0 { "?channel=" } else { "&channel=" };
        for byte in channel.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path += &format!("%{byte:02X}");
            }
        }
    }
    path
}

/// A finished, masked frame.
pub fn encode(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

pub const FIN: u8 = 0x80;
pub const CONTINUATION: u8 = 0;

/// A masked frame that begins with this byte: any opcode, with or without FIN, reserved bits.
pub fn encode_with(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = encode(first, payload);
    frame[0] = first;
    frame
}

/// A message in fragments of so many bytes.
pub fn fragments(opcode: u8, message: &[u8], n_bytes: usize) -> Vec<Vec<u8>> {
    let n_fragments = message.len().div_ceil(n_bytes);
    let parts = message.chunks(n_bytes).enumerate();
    let fragment = |(i, part): (usize, &[u8])| {
        let fin = if i + 1 == n_fragments { FIN } else { 0 };
        encode_with(fin | if i == 0 { opcode } else { CONTINUATION }, part)
    };
    parts.map(fragment).collect()
}

struct Parsed {
    frame: Frame,
    len: usize,
}

fn decode(wire: &[u8], at: Instant) -> Option<Parsed> {
    let [first, second, rest @ ..] = wire else { return None };
    assert_eq!(second & 0x80, 0, "servers do not mask");
    assert_eq!(first & 0x70, 0, "no extension was negotiated");
    let (head, len) = match second & 0x7F {
        126 => (4, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*rest.first_chunk()?)),
        len => (2, u64::from(len)),
    };
    let shortest = if len > 0xFFFF {
        10
    } else if len > 125 {
        4
    } else {
        2
    };
    assert_eq!(head, shortest, "lengths are written in their shortest form");
    let end = head + len as usize;
    let payload = wire.get(head..end)?.to_vec();
    let frame = Frame { at, fin: first & 0x80 != 0, opcode: first & 0x0F, payload };
    assert!(frame.fin, "hubbub sends whole messages");
    Some(Parsed { frame, len: end })
}
