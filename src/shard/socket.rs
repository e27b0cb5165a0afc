//! Sockets of upgraded connections: the raw write of the flush, and the task that reads.
//!
//! The task owns the `TcpStream`; the hub knows only its descriptor, and the task's guard takes
//! the session out of the hub before the stream is dropped.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{self, SendAncillaryBuffer, SendFlags};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Shard;
use super::hub::{Sent, SessionId};
use super::reader::Reader;
use crate::admission::SocketPermit;

/// The shard's read buffer, shared by all its sessions. What a client can have handled in one go:
/// of the smallest commands some 0.3 ms.
const READ_BYTES: usize = 8 * 1024;
/// Reads of one session before the others get their turn.
const READS_PER_TURN_MAX: usize = 8;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

const FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Writes what the socket takes.
pub fn send(fd: i32, parts: &[&[u8]]) -> Sent {
    match parts {
        [slice] => send_slice(fd, slice),
        [first, second] => {
            let parts = [IoSlice::new(first), IoSlice::new(second)];
            sent(net::sendmsg(socket(fd), &parts, &mut SendAncillaryBuffer::default(), FLAGS))
        }
        _ => unreachable!("invariant: a write has one part or two"),
    }
}

/// The same for one part. By the bare system call: libc's `send` is a cancellation point, for which glibc
/// 2.36 pays two atomic operations a call in a process with threads.
#[inline]
pub fn send_slice(fd: i32, slice: &[u8]) -> Sent {
    sent(net::send(socket(fd), slice, FLAGS))
}

fn socket<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: the descriptor is that of a session in the hub, which its task removes before it closes
    // the socket.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn sent(result: rustix::io::Result<usize>) -> Sent {
    match result {
        Ok(n_bytes) => Sent::Bytes(n_bytes),
        Err(Errno::AGAIN | Errno::INTR) => Sent::Full,
        Err(_) => Sent::Gone,
    }
}

/// Sends a FIN: nothing follows the close frame.
pub fn shut_down_write(fd: i32) {
    let _ = net::shutdown(socket(fd), net::Shutdown::Write);
}

struct Task {
    shard: Rc<Shard>,
    id: SessionId,
    stream: TcpStream,
    reader: Reader,
    _permit: SocketPermit,
}

impl Drop for Task {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shard.break_down();
        }
        self.shard.remove(self.id);
        self.limit_orphan();
    }
}

/// Serves an upgraded connection until it ends. `leftover` came behind the handshake.
///
/// A hand-written future: an async fn would keep its arguments beside its locals, 136 bytes for
/// every connection.
pub fn serve(
    shard: Rc<Shard>,
    id: SessionId,
    stream: TcpStream,
    mut leftover: Vec<u8>,
    permit: SocketPermit,
) -> impl Future<Output = ()> {
    shard.attach(id, stream.as_raw_fd());
    let mut task = Task { shard, id, stream, reader: Reader::default(), _permit: permit };
    if !leftover.is_empty() {
        task.shard.on_bytes(id, &mut task.reader, &mut leftover);
    }
    task
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let shard = self.shard.clone();
        shard.poll_in_turn(cx, |cx| {
            shard.set_waker(self.id, cx);
            if shard.is_dead(self.id) || self.poll_read(cx).is_ready() {
                return Poll::Ready(());
            }
            self.poll_write(cx);
            if shard.is_dead(self.id) { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

impl Task {
    /// A closed socket goes on sending what the kernel still holds for it. To a peer that has
    /// vanished, or never reads, the kernel would for minutes, with up to the peer's window and
    /// `HUB_NOTSENT_BYTES` of its memory.
    fn limit_orphan(&self) {
        let patience = self.shard.node.config.write_timeout;
        // Refused only for a socket that has nothing to send any more.
        let _ = SockRef::from(&self.stream).set_tcp_user_timeout(Some(patience));
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..READS_PER_TURN_MAX {
            match self.stream.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
            }
            if self.shard.is_flooded() {
                break;
            }
            let read = READ_BUFFER.with_borrow_mut(|buffer| {
                let n = self.stream.try_read(buffer)?;
                self.shard.on_bytes(self.id, &mut self.reader, &mut buffer[..n]);
                Ok::<usize, io::Error>(n)
            });
            match read {
                Ok(0) => return Poll::Ready(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// While the socket is full: wait until it is writable, then write on.
    fn poll_write(&mut self, cx: &mut Context<'_>) {
        while self.shard.is_lagging(self.id) {
            if self.stream.poll_write_ready(cx).is_pending() {
                return;
            }
            let _ = self.stream.try_io(Interest::WRITABLE, || {
                self.shard.write_on(self.id);
                if self.shard.is_lagging(self.id) {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(())
                }
            });
        }
    }
}
