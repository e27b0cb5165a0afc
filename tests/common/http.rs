//! HTTP/1.1 as far as the tests need it: one request per connection, everything visible.

use super::{SOON, sys};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// From the request's last byte to the end of the answer.
    pub took: Duration,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text()))
    }

    /// A publish that was accepted, in the API's shape.
    pub fn is_result(&self) -> bool {
        self.status == 200 && self.json().get("result").is_some()
    }

    /// What a publish must be answered while Redis is away: something to be tried again.
    pub fn is_retryable(&self) -> bool {
        self.status == 503 || (self.status == 200 && self.json()["error"]["code"] == 100)
    }
}

pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    request_within(SOON, addr, method, path, headers, body)
}

/// An error if nothing comes for so long.
pub fn request_within(
    patience: Duration,
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    // A server that refuses a body by its length may answer and close before reading it.
    let sent = stream.write_all(&[head.as_bytes(), body].concat());
    let began = Instant::now();
    let mut wire = Vec::new();
    let received = stream.read_to_end(&mut wire);
    if wire.is_empty() {
        sent.and(received.map(|_| ()))?;
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let _ = stream.shutdown(Shutdown::Both);
    Ok(parse(&wire, began.elapsed()))
}

/// A connection that is kept for many requests, one after the other.
pub struct Kept {
    stream: TcpStream,
    addr: SocketAddr,
}

impl Kept {
    pub fn open(addr: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, addr })
    }

    pub fn post(&mut self, path: &str, body: &str) -> std::io::Result<Response> {
        let (host, length) = (self.addr, body.len());
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
        self.stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let began = Instant::now();
        let mut wire = Vec::new();
        loop {
            if let Some(len) = head_len(&wire) {
                let head = Head::parse(&wire[..len]);
                let body_len = head.headers.iter().find(|(name, _)| name == "content-length");
                let body_len: usize = body_len.map_or(0, |(_, value)| value.parse().unwrap());
                if wire.len() >= len + body_len {
                    return Ok(parse(&wire, began.elapsed()));
                }
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => wire.extend_from_slice(&buffer[..n]),
            }
        }
    }
}

fn parse(wire: &[u8], took: Duration) -> Response {
    let head_len = head_len(wire).expect("a whole response head");
    let head = Head::parse(&wire[..head_len]);
    let mut body = wire[head_len..].to_vec();
    let chunked = head.headers.iter().any(|(k, v)| k == "transfer-encoding" && v == "chunked");
    if chunked {
        body = unchunk(&body);
    }
    Response { status: head.status, headers: head.headers, body, took }
}

/// Where the head ends, the blank line included.
pub fn head_len(wire: &[u8]) -> Option<usize> {
    wire.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        });
        Self { status: status.expect("a status line"), headers: headers.collect() }
    }
}

fn unchunk(mut wire: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line_end) = wire.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&wire[..line_end]);
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        let chunk = &wire[line_end + 2..];
        if size == 0 || chunk.len() < size + 2 {
            break;
        }
        body.extend_from_slice(&chunk[..size]);
        wire = &chunk[size + 2..];
    }
    body
}

/// A connection that is gone or never was: waits until the peer has closed it.
pub fn wait_closed(stream: &mut TcpStream, deadline: Duration) -> bool {
    let end = Instant::now() + deadline;
    let mut buffer = [0; 4096];
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => continue,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return true,
            Err(_) => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        sys::wait_fd(std::os::fd::AsRawFd::as_raw_fd(stream), sys::For::Reading, left);
    }
}
