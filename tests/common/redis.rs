//! A real redis-server of the test's own, and a RESP2 client small enough to read at a glance.

use super::{SOON, eventually, sys};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub struct Redis {
    child: Option<Child>,
    dir: PathBuf,
    pub port: u16,
}

impl Redis {
    pub fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("hubbub-test-{:016x}", sys::entropy()));
        std::fs::create_dir_all(&dir).unwrap();
        for _ in 0..20 {
            let mut redis = Self { child: None, dir: dir.clone(), port: sys::lasting_port() };
            if redis.try_launch() {
                return redis;
            }
            std::mem::forget(redis);
        }
        panic!("redis-server does not start; is it installed?");
    }

    /// A port for a Redis that is not there yet: `restart` starts it.
    pub fn absent() -> Self {
        let mut redis = Self::start();
        redis.kill();
        redis
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// On the port it had; returns once it answers.
    pub fn restart(&mut self) {
        self.kill();
        assert!(eventually(SOON, || self.try_launch()), "redis-server does not come back");
    }

    /// SIGSTOP: connections stay open, nothing is answered.
    pub fn stop(&self) {
        sys::kill(self.pid(), libc::SIGSTOP);
    }

    pub fn cont(&self) {
        sys::kill(self.pid(), libc::SIGCONT);
    }

    pub fn client(&self) -> Resp {
        Resp::connect(self.addr()).expect("redis accepts")
    }

    pub fn command(&self, args: &[&str]) -> Reply {
        self.client().command(args)
    }

    pub fn publish(&self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        self.client().publish(channel, payload.as_ref())
    }

    /// How often a command has run, in scripts too.
    pub fn n_calls(&self, command: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]).text();
        let prefix = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    }

    /// How many connections (for hubbub: nodes) are subscribed to the channel.
    pub fn numsub(&self, channel: &str) -> i64 {
        match self.command(&["PUBSUB", "NUMSUB", channel]) {
            Reply::Array(items) => items[1].int(),
            other => panic!("NUMSUB answered {other:?}"),
        }
    }

    /// Channels with a subscriber, by pattern.
    pub fn channels(&self, pattern: &str) -> Vec<String> {
        match self.command(&["PUBSUB", "CHANNELS", pattern]) {
            Reply::Array(items) => items.iter().map(Reply::text).collect(),
            other => panic!("CHANNELS answered {other:?}"),
        }
    }

    pub fn config_set(&self, name: &str, value: &str) {
        let reply = self.command(&["CONFIG", "SET", name, value]);
        assert_eq!(reply, Reply::Bytes(b"OK".to_vec()), "CONFIG SET {name} {value}");
    }

    /// A connection that sees every command of everybody; see `Resp::monitored`.
    pub fn monitor(&self) -> Resp {
        let mut resp = self.client();
        assert_eq!(resp.command(&["MONITOR"]), Reply::Bytes(b"OK".to_vec()));
        resp
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("redis is up").id()
    }

    fn try_launch(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        // IPv6 where the machine has it.
        command.args(["--bind", "127.0.0.1", "-::1", "--save", "", "--appendonly", "no"]);
        command.args(["--loglevel", "warning", "--port", &self.port.to_string()]);
        command.arg("--dir").arg(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::die_with_parent(&mut command);
        let Ok(child) = command.spawn() else { return false };
        let pid = child.id();
        self.child = Some(child);
        // Asks for its pid: on a port taken in between, another test's server would answer.
        let own = format!("process_id:{pid}\r\n");
        let up = eventually(Duration::from_secs(5), || {
            let exited =
                self.child.as_mut().unwrap().try_wait().is_ok_and(|status| status.is_some());
            exited || Resp::connect(self.addr()).is_ok_and(|mut resp| resp.info().contains(&own))
        });
        let alive = self.child.as_mut().unwrap().try_wait().is_ok_and(|status| status.is_none());
        if !(up && alive) {
            self.kill();
        }
        up && alive
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Nil,
    Int(i64),
    Bytes(Vec<u8>),
    Error(String),
    Array(Vec<Reply>),
}

impl Reply {
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(n) => *n,
            other => panic!("expected an integer, got {other:?}"),
        }
    }

    /// Of ROLE: a replica that has caught up once.
    pub fn is_connected_replica(&self) -> bool {
        matches!(self, Self::Array(items) if items.len() == 5 && items[3].text() == "connected")
    }

    pub fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("expected a string, got {other:?}"),
        }
    }
}

/// One connection to Redis.
pub struct Resp {
    reader: BufReader<TcpStream>,
}

impl Resp {
    pub fn connect(addr: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, SOON)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    pub fn command(&mut self, args: &[&str]) -> Reply {
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        self.try_command(&args).expect("redis answers")
    }

    pub fn publish(&mut self, channel: &str, payload: &[u8]) -> i64 {
        self.try_command(&[b"PUBLISH", channel.as_bytes(), payload]).expect("redis answers").int()
    }

    pub fn try_command(&mut self, args: &[&[u8]]) -> std::io::Result<Reply> {
        let mut wire = Vec::new();
        encode(&mut wire, args);
        self.reader.get_mut().write_all(&wire)?;
        self.read_reply()
    }

    /// Publishes all, some hundreds of commands in flight; returns the receivers of each.
    pub fn publish_all<'a>(
        &mut self,
        publications: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Vec<i64> {
        let mut receivers = Vec::new();
        let mut wire = Vec::new();
        let mut n_pending = 0;
        for (channel, payload) in publications {
            encode(&mut wire, &[b"PUBLISH", channel.as_bytes(), payload]);
            n_pending += 1;
            if n_pending == 256 || wire.len() > 256 * 1024 {
                self.flush(&mut wire, &mut n_pending, &mut receivers);
            }
        }
        self.flush(&mut wire, &mut n_pending, &mut receivers);
        receivers
    }

    fn flush(&mut self, wire: &mut Vec<u8>, n_pending: &mut usize, receivers: &mut Vec<i64>) {
        self.reader.get_mut().write_all(wire).expect("redis takes the commands");
        wire.clear();
        for _ in 0..std::mem::take(n_pending) {
            receivers.push(self.read_reply().expect("redis answers").int());
        }
    }

    /// The commands since MONITOR, as Redis prints them: `time [db address] "NAME" "argument"…`.
    pub fn monitored(&mut self, redis: &Redis) -> Vec<String> {
        let end = format!("{:016x}", sys::entropy());
        redis.command(&["ECHO", &end]);
        let mut lines = Vec::new();
        loop {
            let line = self.read_reply().expect("redis shows its commands").text();
            if line.contains(&end) {
                return lines;
            }
            lines.push(line);
        }
    }

    fn info(&mut self) -> String {
        match self.try_command(&[b"INFO", b"server"]) {
            Ok(Reply::Bytes(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::new(),
        }
    }

    /// The next reply, or on a subscribed connection the next push.
    pub fn read_reply(&mut self) -> std::io::Result<Reply> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let rest = line[1..].trim_end();
        let number = || rest.parse::<i64>().expect("a RESP number");
        Ok(match line.as_bytes()[0] {
            b'+' => Reply::Bytes(rest.into()),
            b'-' => Reply::Error(rest.into()),
            b':' => Reply::Int(number()),
            b'$' if number() < 0 => Reply::Nil,
            b'$' => {
                let mut bytes = vec![0; number() as usize + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Bytes(bytes)
            }
            b'*' => {
                let items = (0..number().max(0)).map(|_| self.read_reply());
                Reply::Array(items.collect::<Result<_, _>>()?)
            }
            other => panic!("RESP type {:?}", other as char),
        })
    }
}

fn encode(wire: &mut Vec<u8>, args: &[&[u8]]) {
    wire.extend(format!("*{}\r\n", args.len()).bytes());
    for arg in args {
        wire.extend(format!("${}\r\n", arg.len()).bytes());
        wire.extend_from_slice(arg);
        wire.extend_from_slice(b"\r\n");
    }
}
