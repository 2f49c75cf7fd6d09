//! Concurrency: how many holders there are at once.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A count of holders. It publishes no other memory, so every access is relaxed.
#[derive(Debug, Default)]
pub(super) struct Holders(AtomicU32);

impl Holders {
    #[inline]
    pub(super) fn count(&self) -> u64 {
        u64::from(self.0.load(Relaxed))
    }

    /// Adds a holder unless there are `max`.
    #[inline]
    pub(super) fn try_acquire(&self, max: u64) -> bool {
        let mut held = self.0.load(Relaxed);
        while u64::from(held) < max {
            let Some(more) = held.checked_add(1) else {
                return false;
            };
            match self.0.compare_exchange_weak(held, more, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(seen) => held = seen,
            }
        }
        false
    }

    /// Takes a holder away; without one it does nothing.
    #[inline]
    pub(super) fn release(&self) {
        let mut held = self.0.load(Relaxed);
        while let Some(fewer) = held.checked_sub(1) {
            match self.0.compare_exchange_weak(held, fewer, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => held = seen,
            }
        }
    }
}

/// A bound on how many holders there are at once, counted without a lock.
#[derive(Debug)]
pub struct Permits {
    max: u64,
    holders: Holders,
}

impl Permits {
    /// Up to `max` holders; `None` only counts them.
    pub fn new(max: Option<u32>) -> Self {
        Self {
            max: max.map_or(u64::MAX, u64::from),
            holders: Holders::default(),
        }
    }

    /// The bound; `None` if holders are only counted.
    pub fn max(&self) -> Option<u32> {
        u32::try_from(self.max).ok()
    }

    /// Holders now.
    #[inline]
    pub fn in_use(&self) -> u64 {
        self.holders.count()
    }

    /// Takes a permit if one is free.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.holders.try_acquire(self.max)
    }

    /// Returns a permit that [`Self::try_acquire`] gave; without one it does nothing.
    #[inline]
    pub fn release(&self) {
        self.holders.release();
    }
}
