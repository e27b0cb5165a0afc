//! Bytes on their way to sockets: contiguous server frames under absolute positions.
//!
//! One type for both uses. A cohort's *log* has many readers (each session holds a position);
//! a session's own *outbox* has one. Sans-I/O; owned by the hub of one shard.
//!
//! Small frames are copied into one growing tail, so that whatever a session hasn't got is one
//! slice and one write. Frames of [`SHARE_BYTES_MIN`] or more are kept by reference: a large
//! publication costs a shard one copy, however many cohorts it goes to.
//!
//! **Invariant:** positions never run backwards; `start() <= end()`.
//! **Invariant:** every segment but the first starts at a frame's first byte; the first one's
//! first whole frame starts at `boundary`.

use std::collections::VecDeque;

use bytes::Bytes;

/// From this size on a frame is shared, not copied.
pub const SHARE_BYTES_MIN: usize = 16 * 1024;
/// A tail of this size is closed, so that trimming frees whole segments and moves no bytes.
const SEGMENT_BYTES_MAX: usize = 256 * 1024;

struct Segment {
    start: u64,
    bytes: Bytes,
}

/// A run of frames. See the module.
#[derive(Default)]
pub struct Outbox {
    closed: VecDeque<Segment>,
    tail: Vec<u8>,
    tail_start: u64,
    boundary: u64,
}

impl Outbox {
    /// The position of the oldest byte that is kept.
    pub fn start(&self) -> u64 {
        self.closed.front().map_or(self.tail_start, |segment| segment.start)
    }

    /// The position behind the newest byte.
    pub fn end(&self) -> u64 {
        self.tail_start + self.tail.len() as u64
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        (self.end() - self.start()) as usize
    }

    /// Appends one whole frame.
    pub fn push(&mut self, frame: &Bytes) {
        if frame.len() >= SHARE_BYTES_MIN {
            self.push_shared(frame.clone());
        } else {
            self.push_copy(frame);
        }
    }

    /// Appends whole frames by copying them.
    pub fn push_copy(&mut self, frames: &[u8]) {
        if self.tail.len() >= SEGMENT_BYTES_MAX {
            self.close_tail();
        }
        self.tail.extend_from_slice(frames);
    }

    fn push_shared(&mut self, bytes: Bytes) {
        self.close_tail();
        let start = self.tail_start;
        self.tail_start += bytes.len() as u64;
        self.closed.push_back(Segment { start, bytes });
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let bytes = Bytes::from(std::mem::take(&mut self.tail));
            let start = self.tail_start;
            self.tail_start += bytes.len() as u64;
            self.closed.push_back(Segment { start, bytes });
        }
    }

    /// The longest contiguous run of bytes from `position` on; empty at the end.
    pub fn chunk(&self, position: u64) -> &[u8] {
        if position >= self.tail_start {
            return &self.tail[(position - self.tail_start) as usize..];
        }
        let segment = &self.closed[self.segment_idx(position)];
        &segment.bytes[(position - segment.start) as usize..]
    }

    fn segment_idx(&self, position: u64) -> usize {
        assert!(position >= self.start(), "invariant: no session is behind the trimmed part");
        self.closed.partition_point(|segment| segment.start <= position) - 1
    }

    /// Forgets whole segments before `position`, which every reader has passed.
    pub fn trim(&mut self, position: u64) {
        while let Some(segment) = self.closed.front() {
            if segment.start + segment.bytes.len() as u64 > position {
                break;
            }
            self.closed.pop_front();
        }
        if self.closed.is_empty() && position >= self.end() {
            self.clear(0);
        }
        self.boundary = self.boundary.max(self.start());
    }

    /// Forgets everything; the next byte's position stays what it was. Keeps a buffer of at
    /// most `capacity_max` for the next frames.
    pub fn clear(&mut self, capacity_max: usize) {
        let mut buffer = self.take_buffer();
        if buffer.capacity() <= capacity_max {
            buffer.clear();
            self.tail = buffer;
        }
    }

    /// Whether small frames have a buffer already; else [`set_buffer`](Self::set_buffer) spares making one.
    pub fn has_buffer(&self) -> bool {
        self.tail.capacity() > 0
    }

    /// Takes an empty buffer for the next frames.
    pub fn set_buffer(&mut self, buffer: Vec<u8>) {
        debug_assert!(buffer.is_empty() && self.tail.is_empty());
        self.tail = buffer;
    }

    /// Forgets everything, as [`clear`](Self::clear), and hands out the buffer as it is.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        self.closed = VecDeque::new();
        self.tail_start = self.end();
        self.boundary = self.tail_start;
        std::mem::take(&mut self.tail)
    }

    /// Appends the bytes `from..to` of `other`: large parts by reference. `to` is a frame
    /// boundary; so is `from`, unless nothing is kept here.
    pub fn append(&mut self, other: &Outbox, from: u64, to: u64) {
        if self.bytes() == 0 {
            // What comes may start inside a frame: remember where the next one begins.
            self.clear(usize::MAX);
            self.boundary = self.end() + (other.boundary_from(from) - from);
        }
        let mut at = from;
        while at < other.tail_start.min(to) {
            let segment = &other.closed[other.segment_idx(at)];
            let offset = (at - segment.start) as usize;
            let bytes = segment.bytes.len().min((to - segment.start) as usize) - offset;
            let rest = segment.bytes.slice(offset..offset + bytes);
            at += bytes as u64;
            if bytes >= SHARE_BYTES_MIN { self.push_shared(rest) } else { self.push_copy(&rest) }
        }
        self.tail.extend_from_slice(&other.chunk(at)[..(to - at) as usize]);
    }

    /// How many whole frames start at or after `position`.
    pub fn frames_from(&self, position: u64) -> usize {
        let mut at = self.boundary_from(position);
        let mut n_frames = 0;
        while at < self.end() {
            let frame_bytes = crate::frame::frame_len(self.chunk(at));
            at += frame_bytes.expect("invariant: the log holds whole frames") as u64;
            n_frames += 1;
        }
        n_frames
    }

    /// The first frame boundary at or after `position`.
    pub fn boundary_from(&self, position: u64) -> u64 {
        let mut at = self.boundary;
        if position < self.tail_start {
            at = at.max(self.closed[self.segment_idx(position)].start);
        } else {
            at = at.max(self.tail_start);
        }
        while at < position {
            let frame_bytes = crate::frame::frame_len(self.chunk(at));
            at += frame_bytes.expect("invariant: the log holds whole frames") as u64;
        }
        at
    }

    /// Forgets everything from `position`, a frame boundary, on. Returns the number of frames.
    pub fn cut(&mut self, position: u64) -> usize {
        let n_frames = self.frames_from(position);
        while let Some(segment) = self.closed.back_mut().filter(|_| position < self.tail_start) {
            self.tail.clear();
            self.tail_start = segment.start.max(position);
            if segment.start >= position {
                self.closed.pop_back();
            } else {
                segment.bytes.truncate((position - segment.start) as usize);
            }
        }
        self.tail.truncate((position - self.tail_start) as usize);
        n_frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Opcode, put_frame};

    fn frame(byte: u8, payload_bytes: usize) -> Bytes {
        let mut out = Vec::new();
        put_frame(&mut out, Opcode::Text, &vec![byte; payload_bytes]);
        out.into()
    }

    fn read(outbox: &Outbox, mut position: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while position < outbox.end() {
            let chunk = outbox.chunk(position);
            out.extend_from_slice(chunk);
            position += chunk.len() as u64;
        }
        out
    }

    /// Sizes on both sides of every limit, shared ones among them.
    const SIZES: [usize; 7] = [0, 1, 125, 126, 5_000, SHARE_BYTES_MIN, 70_000];

    #[test]
    fn what_goes_in_comes_out_from_every_position() {
        let mut outbox = Outbox::default();
        let mut model = Vec::new();
        for (n, size) in SIZES.iter().cycle().take(60).enumerate() {
            let frame = frame(n as u8, *size);
            outbox.push(&frame);
            model.extend_from_slice(&frame);
        }
        assert_eq!(outbox.bytes(), model.len());
        for position in (0..model.len()).step_by(997) {
            assert_eq!(read(&outbox, position as u64), model[position..]);
            let boundary = outbox.boundary_from(position as u64) as usize;
            assert!(boundary >= position);
            assert!(boundary == model.len() || model[boundary] == 0x81);
        }
    }

    #[test]
    fn trimming_keeps_what_is_still_to_be_read() {
        let mut outbox = Outbox::default();
        let mut model = Vec::new();
        for (n, size) in SIZES.iter().cycle().take(60).enumerate() {
            let frame = frame(n as u8, *size);
            outbox.push(&frame);
            model.extend_from_slice(&frame);
            let position = model.len() / 2;
            outbox.trim(position as u64);
            assert_eq!(read(&outbox, position as u64), model[position..]);
        }
        outbox.trim(outbox.end());
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn a_move_and_a_cut_keep_whole_frames() {
        for position in [0u64, 1, 130, 5_140, 22_000, 60_000] {
            for keep in 0..3 {
                let mut log = Outbox::default();
                let mut model = Vec::new();
                let mut starts = Vec::new();
                for (n, size) in SIZES.iter().enumerate() {
                    let frame = frame(n as u8, *size);
                    starts.push(model.len() as u64);
                    log.push(&frame);
                    model.extend_from_slice(&frame);
                }
                let mut own = Outbox::default();
                own.append(&log, position, log.end());
                assert_eq!(read(&own, own.start()), model[position as usize..]);
                // The reader got `keep` bytes more, then everything behind that frame goes.
                let boundary = own.boundary_from(own.start() + keep);
                let expected = *starts
                    .iter()
                    .find(|start| **start >= position + keep)
                    .unwrap_or(&(model.len() as u64));
                assert_eq!(boundary - own.start(), expected - position);
                let n_cut = own.cut(boundary);
                let n_expected = starts.iter().filter(|start| **start >= expected).count();
                assert_eq!(n_cut, n_expected);
                assert_eq!(own.end(), boundary);
                own.push(&frame(9, 3));
                let tail = read(&own, boundary);
                assert_eq!(tail, frame(9, 3));
            }
        }
    }
}
