//! A hub of two hundred lines that does one thing wrong on purpose.
//!
//! One thread a connection, one thread that owns the subscribers. WebSockets at `/ws?channel=…`
//! (raw) and `/connection/websocket` (Centrifuge, the channels from its subscribes), publications by
//! `POST /api/publish` and as messages to `/publish?channel=…`; `/ready` says yes.

#![allow(dead_code, reason = "each test file goes wrong in its own ways")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The last subscriber doesn't get it.
    Lose,
    /// Twice.
    Repeat,
    /// After the one that follows it.
    Reorder,
    /// One bit is another.
    Corrupt,
    /// The last byte but the closing bracket is missing.
    Shorten,
    /// To every subscriber, whatever the channel.
    Leak,
    /// The last subscriber is closed with 3008.
    Cut,
    /// With a reason that is HTML.
    CutRudely,
    /// The API says no, and delivers nothing.
    Refuse,
    /// An upgrade gets a 503, after the first [`CALM`] of them.
    TurnAway,
    /// Each publication waits for [`DAWDLE`] first.
    Dawdle,
    /// Each leaves a descriptor behind.
    KeepFiles,
    /// Each leaves 64 KiB behind.
    KeepMemory,
}

pub const DAWDLE: Duration = Duration::from_millis(5);

/// Goes wrong at every so-manieth publication.
pub const EVERY: usize = 10;
/// So many upgrades go well at first.
pub const CALM: usize = 20;

struct Subscriber {
    stream: TcpStream,
    channels: Vec<String>,
    is_raw: bool,
}

enum Event {
    Subscriber(Subscriber),
    Published { channel: String, payload: Vec<u8> },
}

pub fn start(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    start_on(listener, fault);
    address
}

pub fn start_on(listener: TcpListener, fault: Fault) -> JoinHandle<()> {
    let (sender, events) = sync_channel(1000);
    thread::spawn(move || deliver(&events, fault));
    let n_upgrades = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (sender, n_upgrades) = (sender.clone(), n_upgrades.clone());
            thread::spawn(move || serve(stream, &sender, fault, &n_upgrades));
        }
    })
}

fn deliver(events: &Receiver<Event>, fault: Fault) {
    let mut subscribers: Vec<Subscriber> = Vec::new();
    let mut held: Option<Vec<u8>> = None;
    let mut n_published = 0;
    for event in events {
        let (channel, payload) = match event {
            Event::Subscriber(subscriber) => {
                subscribers.push(subscriber);
                continue;
            }
            Event::Published { channel, payload } => (channel, payload),
        };
        n_published += 1;
        match fault {
            Fault::Dawdle => thread::sleep(DAWDLE),
            Fault::KeepFiles => std::mem::forget(File::open("/dev/null")),
            Fault::KeepMemory => std::mem::forget(vec![n_published as u8 | 1; 64 << 10]),
            _ => {}
        }
        let is_wrong = n_published % EVERY == EVERY / 2;
        let mut send = |payload: &[u8]| {
            for subscriber in &mut subscribers {
                let is_leak = is_wrong && fault == Fault::Leak;
                if is_leak || subscriber.channels.contains(&channel) {
                    subscriber.push(&channel, payload);
                }
            }
        };
        match fault {
            _ if !is_wrong => {
                send(&payload);
                if let Some(held) = held.take() {
                    send(&held);
                }
            }
            Fault::Repeat => [&payload, &payload].iter().for_each(|payload| send(payload)),
            Fault::Reorder => held = Some(payload),
            Fault::Corrupt => send(&corrupt(payload)),
            Fault::Shorten => send(&[&payload[..payload.len() - 3], b"\"}"].concat()),
            Fault::Lose => {
                let mut last = subscribers.pop().unwrap();
                subscribers.iter_mut().for_each(|it| it.push(&channel, &payload));
                last.channels.dedup();
                subscribers.push(last);
            }
            Fault::Cut | Fault::CutRudely => {
                send(&payload);
                let is_rude = fault == Fault::CutRudely;
                let reason = if is_rude { "<img src=x onerror=alert(1)>" } else { "slow" };
                if let Some(mut last) = subscribers.pop() {
                    last.send(8, &[b"\x0b\xc0", reason.as_bytes()].concat());
                }
            }
            _ => send(&payload),
        }
    }
}

fn corrupt(mut payload: Vec<u8>) -> Vec<u8> {
    let at = payload.len() / 2;
    payload[at] ^= 1;
    payload
}

impl Subscriber {
    fn push(&mut self, channel: &str, payload: &[u8]) {
        if self.is_raw {
            self.send(1, payload);
        } else {
            let head = format!("{{\"push\":{{\"channel\":\"{channel}\",\"pub\":{{\"data\":");
            self.send(1, &[head.as_bytes(), payload, b"}}}"].concat());
        }
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            0..126 => frame.push(payload.len() as u8),
            length => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
        }
        frame.extend(payload);
        let _ = self.stream.write_all(&frame);
    }
}

fn serve(
    mut stream: TcpStream,
    sender: &SyncSender<Event>,
    fault: Fault,
    n_upgrades: &AtomicUsize,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut n_published = 0;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&n_bytes| n_bytes > 0)?;
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let path = lines[0].split(' ').nth(1)?.to_owned();
        if path == "/ready" {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok();
        }
        if path != "/api/publish" {
            let nth = n_upgrades.fetch_add(1, Ordering::Relaxed);
            if fault == Fault::TurnAway && nth >= CALM && nth % EVERY == EVERY / 2 {
                return stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").ok();
            }
            return upgrade(stream, reader, &path, sender);
        }
        let length = lines.iter().find_map(|line| line.strip_prefix("Content-Length: "))?;
        let mut body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        n_published += 1;
        let answer = if fault == Fault::Refuse && n_published % EVERY == 0 {
            r#"{"error":{"code":100}}"#
        } else {
            let body = String::from_utf8(body).ok()?;
            let (head, data) = body.split_once(",\"data\":")?;
            let channel = head.strip_prefix("{\"channel\":\"")?.strip_suffix('"')?.to_owned();
            let payload = data.strip_suffix('}')?.as_bytes().to_vec();
            sender.send(Event::Published { channel, payload }).ok()?;
            r#"{"result":{}}"#
        };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
            .ok()?;
    }
}

fn upgrade(
    mut stream: TcpStream,
    mut reader: BufReader<TcpStream>,
    path: &str,
    sender: &SyncSender<Event>,
) -> Option<()> {
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").ok()?;
    if let Some(query) = path.strip_prefix("/publish?") {
        return take_publications(stream, reader, query, sender);
    }
    let is_raw = path.starts_with("/ws?");
    let mut channels: Vec<String> = path
        .split(['?', '&'])
        .filter_map(|it| it.strip_prefix("channel="))
        .map(Into::into)
        .collect();
    let mut replies = Vec::new();
    if !is_raw {
        for line in read_frame(&mut reader)?.1.split('\n') {
            let command: Value = serde_json::from_str(line).ok()?;
            let kind = if command["connect"].is_object() { "connect" } else { "subscribe" };
            channels.extend(command["subscribe"]["channel"].as_str().map(Into::into));
            replies.push(format!("{{\"id\":{},\"{kind}\":{{}}}}", command["id"]));
        }
    }
    let mut subscriber = Subscriber { stream, channels, is_raw };
    if !is_raw {
        subscriber.send(1, replies.join("\n").as_bytes());
    }
    sender.send(Event::Subscriber(subscriber)).ok()
}

/// The first message has to be `sesame`; after it each is a payload, or a channel, a space and a
/// payload. Each is said back, and with each comes a ping, whose pong must be the next frame but the
/// messages.
fn take_publications(
    mut stream: TcpStream,
    mut reader: BufReader<TcpStream>,
    query: &str,
    sender: &SyncSender<Event>,
) -> Option<()> {
    if read_frame(&mut reader)?.1 != "sesame" {
        return stream.write_all(b"\x88\x06\x11\x94shut").ok();
    }
    let (mut n_messages, mut n_pongs) = (0, 0);
    loop {
        let (opcode, text) = read_frame(&mut reader)?;
        match opcode {
            1 => {}
            8 => return stream.write_all(b"\x88\x02\x03\xe8").ok(),
            10 if text == "you?" => {
                n_pongs += 1;
                continue;
            }
            _ => return None,
        }
        // Pongs may be under way, in 10 MB of buffers.
        if n_messages > n_pongs + 1000 {
            return stream.write_all(b"\x88\x06\x11\x94dead").ok();
        }
        n_messages += 1;
        let own = query.strip_prefix("channel=").map(Into::into);
        let (channel, payload) = match own {
            Some(channel) => (channel, text),
            None => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()))?,
        };
        let payload = payload.into_bytes();
        let mut echo = vec![0x81, 126, (payload.len() >> 8) as u8, payload.len() as u8];
        echo.extend_from_slice(&payload);
        echo.extend_from_slice(b"\x89\x04you?");
        stream.write_all(&echo).ok()?;
        sender.send(Event::Published { channel, payload }).ok()?;
    }
}

/// Its opcode and text.
fn read_frame(reader: &mut impl std::io::Read) -> Option<(u8, String)> {
    let mut head = [0; 2];
    reader.read_exact(&mut head).ok()?;
    let opcode = head[0] & 15;
    let mut length = usize::from(head[1] & 0x7f);
    if length == 126 {
        reader.read_exact(&mut head).ok()?;
        length = usize::from(u16::from_be_bytes(head));
    }
    let (mut mask, mut payload) = ([0; 4], vec![0; length]);
    reader.read_exact(&mut mask).ok()?;
    reader.read_exact(&mut payload).ok()?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    // A close has a code that is no text.
    Some((opcode, String::from_utf8_lossy(&payload).into_owned()))
}
