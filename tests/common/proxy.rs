//! A TCP fault proxy, in front of Redis: delays, slices, cuts, refuses and swallows, per direction.
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

struct Lane {
    fault: Mutex<Fault>,
    n_bytes: AtomicU64,
}

struct Conn {
    client: TcpStream,
    server: TcpStream,
    swallow: Arc<AtomicBool>,
}

struct Shared {
    target: SocketAddr,
    lanes: [Lane; 2],
    conns: Mutex<Vec<Conn>>,
    refuse: AtomicBool,
    swallow_new: AtomicBool,
    n_accepted: AtomicU64,
    n_refused: AtomicU64,
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
        };
        let shared = Arc::new(Shared {
            target,
            lanes: [lane(), lane()],
            conns: Mutex::default(),
            refuse: AtomicBool::new(false),
            swallow_new: AtomicBool::new(false),
            n_accepted: AtomicU64::new(0),
            n_refused: AtomicU64::new(0),
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

    pub fn delay(&self, direction: Direction, min: Duration, max: Duration) {
        let mut fault = self.shared.lanes[direction as usize].fault.lock().unwrap();
        (fault.delay_min, fault.delay_max) = (min, max);
    }

    pub fn slice(&self, direction: Direction, slice: Slice) {
        self.shared.lanes[direction as usize].fault.lock().unwrap().slice = slice;
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
        for conn in self.shared.conns.lock().unwrap().iter() {
            conn.swallow.store(true, SeqCst);
        }
    }

    /// While on, new connections carry nothing either.
    pub fn blackhole_new(&self, on: bool) {
        self.shared.swallow_new.store(on, SeqCst);
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
        if shared.refuse.load(SeqCst) {
            shared.n_refused.fetch_add(1, SeqCst);
            sys::reset_on_close(&client);
            continue;
        }
        let Ok(server) = TcpStream::connect(shared.target) else {
            shared.n_refused.fetch_add(1, SeqCst);
            continue;
        };
        shared.n_accepted.fetch_add(1, SeqCst);
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let swallow = Arc::new(AtomicBool::new(shared.swallow_new.load(SeqCst)));
        carry(shared, Direction::Up, &client, &server, &swallow);
        carry(shared, Direction::Down, &server, &client, &swallow);
        shared.conns.lock().unwrap().push(Conn { client, server, swallow });
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
    swallow: &Arc<AtomicBool>,
) {
    let (sender, receiver) = mpsc::channel::<Chunk>();
    let mut reading = from.try_clone().unwrap();
    let state = Arc::clone(shared);
    let swallow = Arc::clone(swallow);
    thread::spawn(move || {
        let mut rng = Rng::quiet();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = reading.read(&mut buffer) {
            if n == 0 {
                break;
            }
            if swallow.load(SeqCst) {
                continue;
            }
            let fault = *state.lanes[direction as usize].fault.lock().unwrap();
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
        to.write_all(&bytes[..n])?;
        lane.n_bytes.fetch_add(n as u64, SeqCst);
        bytes = &bytes[n..];
    }
    Ok(())
}
