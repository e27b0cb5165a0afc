//! Debian's haproxy in front of two nodes, as users have it: it asks `/ready` and sends new connections
//! to those that say yes.

use super::{SOON, eventually, http, sys};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// Not on everybody's PATH.
const PROGRAM: &str = "/usr/sbin/haproxy";
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/haproxy.cfg");

pub struct Balancer {
    child: Child,
    pub addr: SocketAddr,
}

impl Balancer {
    /// In front of nodes that may come and go under these addresses; one at least is ready.
    pub fn start(nodes: [SocketAddr; 2]) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], sys::lasting_port()));
        let mut command = Command::new(PROGRAM);
        command.args(["-db", "-f", CONFIG]).env("BALANCER", addr.to_string());
        command.env("NODE_0", nodes[0].to_string()).env("NODE_1", nodes[1].to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::raise_fd_limit();
        sys::die_with_parent(&mut command);
        let child = command.spawn().expect("haproxy starts; is it installed?");
        let balancer = Self { child, addr };
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
