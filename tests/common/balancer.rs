//! Debian's haproxy in front of some nodes, as users have it: it asks `/ready` and sends new connections
//! to the nodes that say yes.

use super::{SOON, eventually, http, sys};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// Not on everybody's PATH.
const PROGRAM: &str = "/usr/sbin/haproxy";

pub struct Balancer {
    child: Child,
    pub addr: SocketAddr,
    _config: tempfile::NamedTempFile,
}

impl Balancer {
    /// In front of nodes that may come and go under these addresses; one at least is ready.
    pub fn start(nodes: &[SocketAddr]) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], sys::lasting_port()));
        let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
        let servers = nodes.iter().enumerate().map(|(n, node)| format!("  server n{n} {node}\n"));
        let servers: String = servers.collect();
        write!(
            config,
            "global\n  maxconn 5000\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n\
             \x20 timeout server 60s\n  timeout tunnel 1h\n  retries 3\n  option redispatch\n\
             frontend clients\n  bind {addr}\n  default_backend nodes\n\
             backend nodes\n  balance leastconn\n  option httpchk GET /ready\n  http-check expect status 200\n\
             \x20 default-server check inter 100ms fall 1 rise 1\n{servers}"
        )
        .expect("written");
        let mut command = Command::new(PROGRAM);
        command.args(["-db", "-f"]).arg(config.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::raise_fd_limit();
        sys::die_with_parent(&mut command);
        let child = command.spawn().expect("haproxy starts; is it installed?");
        let balancer = Self { child, addr, _config: config };
        let is_up = || {
            let answer = http::request(addr, "GET", "/ready", &[], b"");
            answer.is_ok_and(|response| response.status == 200)
        };
        assert!(eventually(SOON, is_up), "haproxy passes nothing on");
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
