//! Concurrency: how many holders there are at once.

use std::sync::Arc;

use super::region::{Region, Rows, subject_id};

/// A bound on how many holders there are at once, counted without a lock, by all workers that share
/// the region.
#[derive(Debug)]
pub struct Permits {
    max: u64,
    rows: Rows,
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
            rows: Rows::of(region, subject_id(subject), 1, None),
        }
    }

    /// The bound; `None` if holders are only counted.
    pub fn max(&self) -> Option<u32> {
        u32::try_from(self.max).ok()
    }

    /// Holders now.
    #[inline]
    pub fn in_use(&self) -> u64 {
        self.rows.permits().sum()
    }

    /// Takes a permit if one is free.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.rows.permits().take(1, || self.max)
    }

    /// Whether other workers take from them too.
    pub fn is_shared(&self) -> bool {
        self.rows.is_shared()
    }

    /// Tells the other workers how many requests wait here.
    pub fn set_waiting(&self, requests: usize) {
        if self.rows.is_shared() {
            self.rows.waiting().set(requests as u64);
        }
    }

    /// Where requests wait at other workers: whether this one holds its share of `max` permits, so
    /// that the next one that comes free is somebody else's. `None` where nobody else waits.
    pub fn has_share(&self, max: u64) -> Option<bool> {
        if !self.rows.is_shared() {
            return None;
        }
        let contenders = self.rows.contenders()?;
        Some(self.rows.permits().mine() >= max / contenders.max(1))
    }

    /// Returns a permit that [`Self::try_acquire`] gave; without one it does nothing.
    #[inline]
    pub fn release(&self) {
        self.rows.permits().give(1);
    }
}
