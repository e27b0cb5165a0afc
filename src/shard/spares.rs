//! Spare buffers: what a small cohort's log leaves when everybody has it is the next log's.
//!
//! Owned by the cohorts of a shard; sans-I/O. A log of few members is empty again after each turn of the
//! ring. Where a thousand sessions have a thousand sets of channels, a buffer grown anew for each of them,
//! and its pages given back to the kernel, was a quarter of the shard's time.
//!
//! **Invariant:** `bytes` is the capacity of all spares together, at most [`SPARES_BYTES_MAX`].

/// Larger ones are freed: the next log may need little.
const SPARE_BYTES_MAX: usize = 16 * 1024;
const SPARES_BYTES_MAX: usize = 8 << 20;

/// See the module.
#[derive(Default)]
pub struct Spares {
    /// The last one is the next to go, as it is still in the cache.
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// So many, the first ones, weren't needed since [`free_unused`](Self::free_unused).
    n_unused: usize,
}

impl Spares {
    /// An empty buffer, new if there is no spare one.
    pub fn take(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        self.n_unused = self.n_unused.min(self.buffers.len());
        buffer
    }

    pub fn put(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if (1..=SPARE_BYTES_MAX).contains(&bytes) && self.bytes + bytes <= SPARES_BYTES_MAX {
            buffer.clear();
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }

    /// Frees what nobody needed since the last call: spares live as long as the load that uses them.
    pub fn free_unused(&mut self) {
        self.bytes -= self.buffers.drain(..self.n_unused).map(|it| it.capacity()).sum::<usize>();
        self.n_unused = self.buffers.len();
        if self.buffers.is_empty() {
            self.buffers = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes: usize) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(bytes);
        buffer.push(1);
        buffer
    }

    #[test]
    fn a_spare_comes_back_empty_and_the_last_one_first() {
        let mut spares = Spares::default();
        spares.put(buffer(100));
        spares.put(buffer(200));
        let taken = spares.take();
        assert_eq!((taken.len(), taken.capacity()), (0, 200));
        assert_eq!(spares.bytes, 100);
        spares.take();
        assert_eq!((spares.take().capacity(), spares.bytes), (0, 0), "a new one");
    }

    #[test]
    fn what_is_large_or_too_much_is_freed() {
        let mut spares = Spares::default();
        spares.put(Vec::new());
        spares.put(buffer(SPARE_BYTES_MAX + 1));
        assert!(spares.buffers.is_empty());
        for _ in 0..2 * SPARES_BYTES_MAX / SPARE_BYTES_MAX {
            spares.put(buffer(SPARE_BYTES_MAX));
        }
        assert_eq!(spares.bytes, SPARES_BYTES_MAX);
    }

    #[test]
    fn what_the_load_needs_stays() {
        let mut spares = Spares::default();
        (0..10).for_each(|_| spares.put(buffer(100)));
        spares.free_unused();
        assert_eq!(spares.buffers.len(), 10, "they came since the last look");
        for _ in 0..5 {
            let taken = [spares.take(), spares.take(), spares.take()];
            taken.into_iter().for_each(|buffer| spares.put(buffer));
            spares.free_unused();
        }
        assert_eq!((spares.buffers.len(), spares.bytes), (3, 300));
        spares.free_unused();
        assert_eq!((spares.buffers.capacity(), spares.bytes), (0, 0));
    }
}
