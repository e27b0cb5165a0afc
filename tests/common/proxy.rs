//! A TCP fault proxy, in front of Redis: delays, slices, slows, cuts, refuses and swallows, per
//! direction.
//!
//! Per direction of a connection one thread reads and stamps each chunk with the time it is due,
//! another writes it then, so a delay adds latency without taking away throughput.

use super::{Rng, sys};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// hub to Redis
    Up,
    /// Redis to hub
    Down,
}

#[derive(Clone, Copy)]
pub enum Slice {
    Whole,
    /// Writes of between so many and so many bytes.
    Of(usize, usize),
}

#[derive(Clone, Copy)]
struct Fault {
    delay_min: Duration,
    delay_max: Duration,
    slice: Slice,
}

/// What the proxy itself holds of a slow connection: the rest must pile up at the sender.
const WINDOW_BYTES: usize = 64 * 1024;

struct Lane {
    fault: Mutex<Fault>,
    n_bytes: AtomicU64,
    /// Bytes a second of each connection; 0 is as fast as it goes.
    rate: AtomicU64,
    /// The connection that carries the byte of this number ends with it.
    cut_at: AtomicU64,
}

#[derive(Default)]
struct Marks {
    swallow: AtomicBool,
    /// Has asked for subscriptions.
    pubsub: AtomicBool,
    /// Has asked for scripts to be run.
    command: AtomicBool,
}

/// One of a node's two connections, known by what it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    PubSub,
    Command,
}

impl Marks {
    fn of(&self, link: Link) -> &AtomicBool {
        match link {
            Link::PubSub => &self.pubsub,
            Link::Command => &self.command,
        }
    }

    fn see(&self, sent: &[u8]) {
        let has = |word: &[u8]| sent.windows(word.len()).any(|window| window == word);
        if has(b"\nSUBSCRIBE\r") {
            self.pubsub.store(true, SeqCst);
        }
        if has(b"\nEVAL\r") || has(b"\nEVALSHA\r") {
            self.command.store(true, SeqCst);
        }
    }
}

struct Conn {
    client: TcpStream,
    server: TcpStream,
    marks: Arc<Marks>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    lanes: [Lane; 2],
    conns: Mutex<Vec<Conn>>,
    refuse: AtomicBool,
    swallow_new: AtomicBool,
    swallow_link: Mutex<Option<Link>>,
    n_accepted: AtomicU64,
    n_refused: AtomicU64,
    dials: Mutex<Vec<Instant>>,
    closing: AtomicBool,
}

pub struct Proxy {
    shared: Arc<Shared>,
    addr: SocketAddr,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let lane = || Lane {
            fault: Mutex::new(Fault {
                delay_min: Duration::ZERO,
                delay_max: Duration::ZERO,
                slice: Slice::Whole,
            }),
            n_bytes: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
        };
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            lanes: [lane(), lane()],
            conns: Mutex::default(),
            refuse: AtomicBool::new(false),
            swallow_new: AtomicBool::new(false),
            swallow_link: Mutex::default(),
            n_accepted: AtomicU64::new(0),
            n_refused: AtomicU64::new(0),
            dials: Mutex::default(),
            closing: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || accept_all(&listener, &for_thread));
        Self { shared, addr }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Where new connections lead; those there are stay.
    pub fn retarget(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    pub fn delay(&self, direction: Direction, min: Duration, max: Duration) {
        let mut fault = self.shared.lanes[direction as usize].fault.lock().unwrap();
        (fault.delay_min, fault.delay_max) = (min, max);
    }

    pub fn slice(&self, direction: Direction, slice: Slice) {
        self.shared.lanes[direction as usize].fault.lock().unwrap().slice = slice;
    }

    /// Each connection carries at most so many bytes a second; 0 is as fast as it goes.
    pub fn rate(&self, direction: Direction, bytes_per_second: u64) {
        self.shared.lanes[direction as usize].rate.store(bytes_per_second, SeqCst);
    }

    /// Ends the connection that carries so many bytes more, in the middle of whatever it says.
    pub fn cut_after(&self, direction: Direction, n_bytes: u64) {
        let lane = &self.shared.lanes[direction as usize];
        lane.cut_at.store(lane.n_bytes.load(SeqCst) + n_bytes, SeqCst);
    }

    /// Whether a `cut_after` is still to come.
    pub fn will_cut(&self, direction: Direction) -> bool {
        self.shared.lanes[direction as usize].cut_at.load(SeqCst) != u64::MAX
    }

    /// Ends every connection now; new ones are welcome unless `refuse`d.
    pub fn cut(&self) {
        for conn in self.shared.conns.lock().unwrap().drain(..) {
            conn.close();
        }
    }

    /// While on, new connections are accepted and closed at once: the port must stay ours.
    pub fn refuse(&self, on: bool) {
        self.shared.refuse.store(on, SeqCst);
    }

    /// Existing connections carry nothing from now on, without FIN or RST; new ones work.
    pub fn blackhole_existing(&self) {
        self.blackhole(|_| true);
    }

    /// The same for the connections that have asked for subscriptions.
    pub fn blackhole_pubsub(&self) {
        self.blackhole(|marks| marks.pubsub.load(SeqCst));
    }

    fn blackhole(&self, which: impl Fn(&Marks) -> bool) {
        for conn in self.shared.conns.lock().unwrap().iter().filter(|conn| which(&conn.marks)) {
            conn.marks.swallow.store(true, SeqCst);
        }
    }

    /// While on, new connections carry nothing either.
    pub fn blackhole_new(&self, on: bool) {
        self.shared.swallow_new.store(on, SeqCst);
    }

    /// Of this link, connections that are there and new ones carry nothing from what they are known by
    /// on. Lasts until it is `None`, and for those it has met for ever.
    pub fn blackhole_link(&self, link: Option<Link>) {
        if let Some(link) = link {
            self.blackhole(|marks| marks.of(link).load(SeqCst));
        }
        *self.shared.swallow_link.lock().unwrap() = link;
    }

    pub fn n_bytes(&self, direction: Direction) -> u64 {
        self.shared.lanes[direction as usize].n_bytes.load(SeqCst)
    }

    /// Connections let through since the start.
    pub fn n_accepted(&self) -> u64 {
        self.shared.n_accepted.load(SeqCst)
    }

    pub fn n_refused(&self) -> u64 {
        self.shared.n_refused.load(SeqCst)
    }

    /// When somebody dialled, whatever came of it.
    pub fn dials(&self) -> Vec<Instant> {
        self.shared.dials.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        self.cut();
        let _ = TcpStream::connect(self.addr);
    }
}

impl Conn {
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        if shared.closing.load(SeqCst) {
            return;
        }
        shared.dials.lock().unwrap().push(Instant::now());
        if shared.refuse.load(SeqCst) {
            shared.n_refused.fetch_add(1, SeqCst);
            sys::reset_on_close(&client);
            continue;
        }
        let target = *shared.target.lock().unwrap();
        let Ok(server) = sys::connect(target, Some(WINDOW_BYTES)) else {
            shared.n_refused.fetch_add(1, SeqCst);
            continue;
        };
        shared.n_accepted.fetch_add(1, SeqCst);
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let marks = Arc::new(Marks::default());
        marks.swallow.store(shared.swallow_new.load(SeqCst), SeqCst);
        carry(shared, Direction::Up, &client, &server, &marks);
        carry(shared, Direction::Down, &server, &client, &marks);
        shared.conns.lock().unwrap().push(Conn { client, server, marks });
    }
}

struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
}

fn carry(
    shared: &Arc<Shared>,
    direction: Direction,
    from: &TcpStream,
    to: &TcpStream,
    marks: &Arc<Marks>,
) {
    let (sender, receiver) = mpsc::channel::<Chunk>();
    let mut reading = from.try_clone().unwrap();
    let state = Arc::clone(shared);
    let marks = Arc::clone(marks);
    thread::spawn(move || {
        let lane = &state.lanes[direction as usize];
        let mut rng = Rng::quiet();
        let mut buffer = vec![0; WINDOW_BYTES];
        loop {
            // Twenty times a second, so that slow is slow and not a standstill with bursts.
            let rate = lane.rate.load(SeqCst);
            let n_max = if rate == 0 { WINDOW_BYTES } else { (rate as usize / 20).max(1) };
            let n = match reading.read(&mut buffer[..n_max.min(WINDOW_BYTES)]) {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            if direction == Direction::Up {
                marks.see(&buffer[..n]);
            }
            if state.swallow_link.lock().unwrap().is_some_and(|link| marks.of(link).load(SeqCst)) {
                marks.swallow.store(true, SeqCst);
            }
            if marks.swallow.load(SeqCst) {
                continue;
            }
            let micros = (n as u64 * 1_000_000).checked_div(rate);
            sys::pause(Duration::from_micros(micros.unwrap_or_default()));
            let fault = *lane.fault.lock().unwrap();
            let spread = (fault.delay_max - fault.delay_min).as_micros() as u64;
            let delay = fault.delay_min + Duration::from_micros(rng.between(0, spread));
            let chunk = Chunk { due: Instant::now() + delay, bytes: buffer[..n].to_vec() };
            if sender.send(chunk).is_err() {
                break;
            }
        }
    });
    let mut writing = to.try_clone().unwrap();
    let from = from.try_clone().unwrap();
    let state = Arc::clone(shared);
    thread::spawn(move || {
        while let Ok(chunk) = receiver.recv() {
            sys::pause(chunk.due.saturating_duration_since(Instant::now()));
            let lane = &state.lanes[direction as usize];
            if write_sliced(&mut writing, lane, &chunk.bytes).is_err() {
                break;
            }
        }
        // One side has ended: so has the connection, in both directions.
        let _ = writing.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn write_sliced(to: &mut TcpStream, lane: &Lane, mut bytes: &[u8]) -> std::io::Result<()> {
    let slice = lane.fault.lock().unwrap().slice;
    let mut rng = Rng::quiet();
    while !bytes.is_empty() {
        let n = match slice {
            Slice::Whole => bytes.len(),
            Slice::Of(min, max) => (rng.between(min as u64, max as u64) as usize).min(bytes.len()),
        };
        let until_cut = lane.cut_at.load(SeqCst).saturating_sub(lane.n_bytes.load(SeqCst));
        let n = n.min(usize::try_from(until_cut).unwrap_or(usize::MAX));
        to.write_all(&bytes[..n])?;
        lane.n_bytes.fetch_add(n as u64, SeqCst);
        if n as u64 == until_cut {
            lane.cut_at.store(u64::MAX, SeqCst);
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        bytes = &bytes[n..];
    }
    Ok(())
}
