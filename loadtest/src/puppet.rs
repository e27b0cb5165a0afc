//! A client that is led step by step and may do anything: what attackers and churn are made of.
//!
//! Nothing here waits: a step writes what the socket takes, reads what there is, and returns.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use memchr::memmem;

use crate::fleet::dial;
use crate::frame;

/// What is kept of a response head while its end has not come.
const HEAD_BYTES_MAX: usize = 4096;
/// Read at most, a step.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The server has ended the connection, or refused it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Ended;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    Dialing,
    Plain,
    Upgrading,
    Upgraded,
}

pub struct Puppet {
    stream: TcpStream,
    stage: Stage,
    /// What the socket hasn't taken yet. The next write waits for it.
    unsent: Vec<u8>,
    head: Vec<u8>,
    pub n_bytes_sent: u64,
}

impl Puppet {
    pub fn dial(
        target: SocketAddr,
        source: Ipv4Addr,
        rcvbuf_bytes: Option<usize>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            stream: dial(target, source, rcvbuf_bytes)?.into(),
            stage: Stage::Dialing,
            unsent: Vec::new(),
            head: Vec::new(),
            n_bytes_sent: 0,
        })
    }

    /// Whether the connection stands.
    pub fn is_connected(&mut self) -> Result<bool, Ended> {
        if self.stage == Stage::Dialing {
            if !matches!(self.stream.take_error(), Ok(None)) {
                return Err(Ended);
            }
            if self.stream.peer_addr().is_err() {
                return Ok(false);
            }
            self.stage = Stage::Plain;
        }
        Ok(true)
    }

    /// Asks for the upgrade in the first step, and looks for the answer in the others.
    pub fn upgrade(&mut self, host: &str, path: &str) -> Result<bool, Ended> {
        if !self.is_connected()? {
            return Ok(false);
        }
        match self.stage {
            Stage::Upgraded => Ok(true),
            Stage::Upgrading => {
                let mut buffer = [0; HEAD_BYTES_MAX];
                let n_bytes = self.read(&mut buffer)?;
                self.head.extend_from_slice(&buffer[..n_bytes]);
                if self.head.len() >= 12 && !self.head.starts_with(b"HTTP/1.1 101") {
                    return Err(Ended);
                }
                let is_whole = memmem::find(&self.head, b"\r\n\r\n").is_some();
                if is_whole {
                    self.stage = Stage::Upgraded;
                    self.head = Vec::new();
                } else if self.head.len() > HEAD_BYTES_MAX {
                    return Err(Ended);
                }
                Ok(is_whole)
            }
            _ => {
                self.write(&frame::upgrade_request(host, path))?;
                self.stage = Stage::Upgrading;
                Ok(false)
            }
        }
    }

    /// Sends it, or the rest of what came before and not this. Whether it was taken.
    pub fn write(&mut self, bytes: &[u8]) -> Result<bool, Ended> {
        let is_new = self.unsent.is_empty();
        if is_new {
            self.unsent.extend_from_slice(bytes);
        }
        match self.stream.write(&self.unsent) {
            Ok(n_bytes) => {
                self.n_bytes_sent += n_bytes as u64;
                self.unsent.drain(..n_bytes);
            }
            Err(error) if is_temporary(error.kind()) => {}
            Err(_) => return Err(Ended),
        }
        Ok(is_new)
    }

    /// Reads some and throws it away.
    pub fn discard(&mut self) -> Result<usize, Ended> {
        let mut buffer = [0; READ_BYTES_MAX];
        self.read(&mut buffer)
    }

    /// Ends in good order (FIN) instead of by RST.
    pub fn leave(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(None);
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Ended> {
        match self.stream.read(buffer) {
            Ok(0) => Err(Ended),
            Ok(n_bytes) => Ok(n_bytes),
            Err(error) if is_temporary(error.kind()) => Ok(0),
            Err(_) => Err(Ended),
        }
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// xorshift64*: which attacker does what, and who has which channels, differs and is the same in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.roll() >> 16) % bound
    }
}
