//! Everything that needs libc: signals, `poll`, socket options set before connecting.
//! The only file of the tests with `unsafe`.

use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The one sleep of the harness; see `eventually` and `proxy`.
pub fn pause(how_long: Duration) {
    std::thread::sleep(how_long);
}

pub fn entropy() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    nanos ^ (u64::from(std::process::id()) << 32) ^ call.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub fn kill(pid: u32, signal: i32) {
    // SAFETY: plain system call; the pid is a child that its owner has not reaped yet.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Lets the kernel end the child should the test's thread die without running destructors.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Ten thousand sockets do not fit in the usual soft limit; children inherit the raised one.
pub fn raise_fd_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls get a valid pointer to a local.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    });
}

/// So many descriptors and no more: the child can't raise it again.
pub fn limit_files(command: &mut Command, n_files: u64) {
    let limit = libc::rlimit { rlim_cur: n_files, rlim_max: n_files };
    // SAFETY: setrlimit is async-signal-safe; the limit is a copy of the closure's own.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// The same for a process that runs; the hard limit stays, so that it can be raised again.
pub fn set_files_of(pid: u32, n_files: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let (pid, which) = (pid as i32, libc::RLIMIT_NOFILE);
    // SAFETY: both calls get a valid pointer to a local.
    let done = unsafe {
        libc::prlimit(pid, which, std::ptr::null(), &raw mut limit);
        limit.rlim_cur = n_files;
        libc::prlimit(pid, which, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "prlimit: {}", io::Error::last_os_error());
}

/// A thread of a child that stands still as long as this lives, while the others run on. Made and
/// dropped by one thread: to the kernel that is the debugger.
pub struct Halted {
    tid: i32,
    _debugger: PhantomData<*const ()>,
}

impl Halted {
    /// The thread of this name.
    pub fn thread(pid: u32, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let is_it = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.map_while(Result::ok).find(is_it).expect("a thread of this name");
        let tid: i32 = task.file_name().to_str().unwrap().parse().unwrap();
        let none = std::ptr::null_mut::<libc::c_void>();
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: neither request reads or writes memory of ours.
            let done = unsafe { libc::ptrace(request, tid, none, none) };
            assert_eq!(done, 0, "ptrace: {}", io::Error::last_os_error());
        }
        // SAFETY: waits until the thread stands still, and fills no memory of ours.
        let stopped = unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(stopped, tid, "waitpid: {}", io::Error::last_os_error());
        Self { tid, _debugger: PhantomData }
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: touches no memory of ours; it fails if the process is gone, which is as well.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.tid, none, none) };
    }
}

/// A port below the ephemeral range: a server that is down for a while finds it free again, because
/// the kernel never gives it to an outgoing connection of some other test.
pub fn lasting_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let top = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    let top: u64 = top.filter(|low| *low > 12_000).unwrap_or(32_768);
    loop {
        let port = 10_000 + (entropy() >> 7) % (top - 10_000);
        if TcpListener::bind(("127.0.0.1", port as u16)).is_ok() {
            return port as u16;
        }
    }
}

/// Connects with a receive buffer of `rcvbuf` bytes; it must be set first to bound the window.
pub fn connect(addr: SocketAddr, rcvbuf: Option<usize>) -> io::Result<TcpStream> {
    let Some(size) = rcvbuf else { return TcpStream::connect(addr) };
    let SocketAddr::V4(v4) = addr else { panic!("the tests listen on IPv4") };
    // SAFETY: a fresh socket owned by the stream at once; option and address are valid locals.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
        let stream = TcpStream::from_raw_fd(fd);
        let size = size as i32;
        let size_len = size_of::<i32>() as u32;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const size).cast(), size_len);
        let mut name: libc::sockaddr_in = std::mem::zeroed();
        name.sin_family = libc::AF_INET as u16;
        name.sin_port = v4.port().to_be();
        name.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
        let name_len = size_of::<libc::sockaddr_in>() as u32;
        if libc::connect(fd, (&raw const name).cast(), name_len) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stream)
    }
}

/// Closes with RST instead of FIN.
pub fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as u32;
    let fd = stream.as_raw_fd();
    // SAFETY: the option is a valid local and the fd is open.
    unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), len)
    };
}

/// The host behind this socket vanishes: a filter drops what arrives before TCP sees it, so the peer
/// gets no data, no ACK, no FIN and no RST, as long as nobody writes here. Needs no privilege.
pub fn vanish(fd: RawFd) {
    let drop_all = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut code = libc::sock_filter { code: drop_all, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    set_option(fd, libc::SO_ATTACH_FILTER, &program);
}

/// And is back: what the peer sends again arrives.
pub fn come_back(fd: RawFd) {
    set_option(fd, libc::SO_DETACH_FILTER, &0i32);
}

fn set_option<T>(fd: RawFd, option: i32, value: &T) {
    let len = size_of::<T>() as u32;
    // SAFETY: pointer and length are of a live value of the option's type.
    let done = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), len)
    };
    assert_eq!(done, 0, "option {option}: {}", io::Error::last_os_error());
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    Reading,
    Writing,
}

/// Waits until the descriptor is ready; false on the deadline.
pub fn wait_fd(fd: RawFd, what: For, timeout: Duration) -> bool {
    let events = if what == For::Reading { libc::POLLIN } else { libc::POLLOUT };
    let mut list = [libc::pollfd { fd, events, revents: 0 }];
    poll(&mut list, timeout) > 0
}

/// Fills `ready` with the indices of the descriptors that can be read.
pub fn wait_many(fds: &[RawFd], ready: &mut Vec<usize>, timeout: Duration) {
    let entry = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut list: Vec<libc::pollfd> = fds.iter().map(entry).collect();
    poll(&mut list, timeout);
    ready.clear();
    ready.extend((0..list.len()).filter(|i| list[*i].revents != 0));
}

fn poll(list: &mut [libc::pollfd], timeout: Duration) -> i32 {
    // Rounded up: with 0 the last millisecond before a deadline would be a busy loop.
    let millis = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
    // SAFETY: pointer and length are of one valid slice.
    unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, millis) }
}
