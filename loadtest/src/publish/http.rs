//! `POST /api/publish` over keep-alive connections, several in flight on each.
//!
//! A channel always takes the same connection, and a server answers the requests of a connection in
//! order: so the publications of a channel stay in order however many are in flight.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use memchr::memmem;

use super::Publisher;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const HEADERS_MAX: usize = 64;

pub struct Http {
    connections: Vec<Connection>,
    head: String,
    n_in_flight_max: usize,
    body: Vec<u8>,
    failed: Vec<u32>,
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    answers: Vec<u8>,
    unanswered: VecDeque<u32>,
}

impl Http {
    /// `n_in_flight_max` is for each connection.
    pub fn connect(
        address: SocketAddr,
        api_key: Option<&str>,
        n_connections: usize,
        n_in_flight_max: usize,
    ) -> anyhow::Result<Self> {
        let key = api_key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        let connect = |_| Connection::open(address);
        Ok(Self {
            connections: (0..n_connections).map(connect).collect::<anyhow::Result<_>>()?,
            head: format!(
                "POST /api/publish HTTP/1.1\r\nHost: {address}\r\n{key}Content-Type: \
                 application/json\r\nContent-Length: "
            ),
            n_in_flight_max,
            body: Vec::new(),
            failed: Vec::new(),
        })
    }
}

impl Connection {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("the API at {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { stream, out: Vec::new(), answers: Vec::new(), unanswered: VecDeque::new() })
    }

    fn flush(&mut self, n_in_flight_max: usize, failed: &mut Vec<u32>) -> anyhow::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.out).context("writing to the API")?;
        self.out.clear();
        self.stream.set_nonblocking(true)?;
        let outcome = self.read(failed);
        self.stream.set_nonblocking(false)?;
        outcome?;
        while self.unanswered.len() >= n_in_flight_max {
            self.read(failed)?;
        }
        Ok(())
    }

    fn read(&mut self, failed: &mut Vec<u32>) -> anyhow::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the API closed the connection"),
            Ok(n_bytes) => self.answers.extend_from_slice(&buffer[..n_bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading from the API"),
        }
        while let Some(answer) = answer(&self.answers)? {
            let channel = self.unanswered.pop_front().context("the API answers unasked")?;
            if !answer.is_success {
                failed.push(channel);
            }
            self.answers.drain(..answer.n_bytes);
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    n_bytes: usize,
    is_success: bool,
}

/// The first answer, if all of it is there.
fn answer(bytes: &[u8]) -> anyhow::Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes).context("an answer")? else {
        return Ok(None);
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .context("an answer without Content-Length")?;
    let body_bytes: usize =
        std::str::from_utf8(length.value)?.trim().parse().context("Content-Length")?;
    let Some(body) = bytes.get(head_bytes..head_bytes + body_bytes) else { return Ok(None) };
    // An API error is 200 with an `error`; the body of a success has no such word.
    let is_success = response.code == Some(200) && memmem::find(body, b"\"error\"").is_none();
    Ok(Some(Answer { n_bytes: head_bytes + body_bytes, is_success }))
}

impl Publisher for Http {
    fn put(&mut self, channel: u32, name: &str, payload: &[u8]) -> anyhow::Result<()> {
        self.body.clear();
        write!(self.body, "{{\"channel\":{},\"data\":", serde_json::to_string(name)?)?;
        self.body.extend_from_slice(payload);
        self.body.push(b'}');
        let idx = channel as usize % self.connections.len();
        let connection = &mut self.connections[idx];
        write!(connection.out, "{}{}\r\n\r\n", self.head, self.body.len())?;
        connection.out.extend_from_slice(&self.body);
        connection.unanswered.push_back(channel);
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        for connection in &mut self.connections {
            connection.flush(self.n_in_flight_max, &mut self.failed)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.flush()?;
        for connection in &mut self.connections {
            while !connection.unanswered.is_empty() {
                connection.read(&mut self.failed)?;
            }
        }
        Ok(())
    }

    fn take_failed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"result\":{}}HTTP/1.1";
        let whole = ok.len() - b"HTTP/1.1".len();
        assert_eq!(answer(ok).unwrap(), Some(Answer { n_bytes: whole, is_success: true }));
        assert_eq!(answer(&ok[..whole - 1]).unwrap(), None);
        assert_eq!(answer(&ok[..20]).unwrap(), None);
        let error = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"error\":{}}";
        assert!(!answer(error).unwrap().unwrap().is_success);
        let refused = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
        assert!(!answer(refused).unwrap().unwrap().is_success);
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
