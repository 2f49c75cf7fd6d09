//! Concurrency: how many holders there are at once.

use std::sync::Arc;

use super::region::{Region, Row, subject_id};

/// A bound on how many holders there are at once, counted without a lock, by all workers that share
/// the region.
#[derive(Debug)]
pub struct Permits {
    max: u64,
    row: Row,
}

impl Permits {
    /// Up to `max` holders in this process; `None` only counts them.
    pub fn new(max: Option<u32>) -> Self {
        Self::of(&Arc::new(Region::small(1, 1, 0)), "permits", max)
    }

    /// Up to `max` holders of `subject` in all workers of `region`; `None` only counts them.
    pub fn of(region: &Arc<Region>, subject: &str, max: Option<u32>) -> Self {
        Self {
            max: max.map_or(u64::MAX, u64::from),
            row: Row::of(region, subject_id(subject)),
        }
    }

    /// The bound; `None` if holders are only counted.
    pub fn max(&self) -> Option<u32> {
        u32::try_from(self.max).ok()
    }

    /// Holders now.
    #[inline]
    pub fn in_use(&self) -> u64 {
        self.row.permits().sum()
    }

    /// Takes a permit if one is free.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.row.permits().take(1, || self.max)
    }

    /// Returns a permit that [`Self::try_acquire`] gave; without one it does nothing.
    #[inline]
    pub fn release(&self) {
        self.row.permits().give(1);
    }
}
