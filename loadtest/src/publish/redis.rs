//! Pipelined `PUBLISH` over one connection, without waiting for answers.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Publisher;

/// Publications without an answer, at most: what a Redis that hangs can make us hold.
const UNANSWERED_MAX: usize = 10_000;
/// For an answer, when there is nothing to do but wait for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Redis {
    stream: TcpStream,
    prefix: String,
    out: Vec<u8>,
    /// Received, not yet a whole line.
    answers: Vec<u8>,
    unanswered: VecDeque<u32>,
    failed: Vec<u32>,
}

impl Redis {
    pub fn connect(address: SocketAddr, prefix: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("Redis at {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            stream,
            prefix: prefix.to_owned(),
            out: Vec::new(),
            answers: Vec::new(),
            unanswered: VecDeque::new(),
            failed: Vec::new(),
        })
    }

    /// Reads once and takes the whole lines: one is one answer, as `PUBLISH` never has more.
    fn read(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("Redis closed the connection"),
            Ok(n_bytes) => self.answers.extend_from_slice(&buffer[..n_bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading from Redis"),
        }
        let mut at = 0;
        while let Some(end) = memchr::memchr(b'\n', &self.answers[at..]) {
            let channel = self.unanswered.pop_front().context("Redis answers unasked")?;
            if self.answers[at] == b'-' {
                self.failed.push(channel);
            }
            at += end + 1;
        }
        self.answers.drain(..at);
        Ok(())
    }

    fn read_what_is_there(&mut self) -> anyhow::Result<()> {
        self.stream.set_nonblocking(true)?;
        let outcome = self.read();
        self.stream.set_nonblocking(false)?;
        outcome
    }
}

impl Publisher for Redis {
    fn put(&mut self, channel: u32, name: &str, payload: &[u8]) -> anyhow::Result<()> {
        let name_bytes = self.prefix.len() + name.len();
        write!(
            self.out,
            "*3\r\n$7\r\nPUBLISH\r\n${name_bytes}\r\n{}{name}\r\n${}\r\n",
            self.prefix,
            payload.len()
        )?;
        self.out.extend_from_slice(payload);
        self.out.extend_from_slice(b"\r\n");
        self.unanswered.push_back(channel);
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.out).context("writing to Redis")?;
        self.out.clear();
        // Seldom: an answer is 4 bytes, and a read costs as much as a publication.
        if self.unanswered.len() > 256 {
            self.read_what_is_there()?;
        }
        while self.unanswered.len() >= UNANSWERED_MAX {
            self.read()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.flush()?;
        while !self.unanswered.is_empty() {
            self.read()?;
        }
        Ok(())
    }

    fn take_failed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.failed)
    }
}
