//! An exact share of requests: canaries, and what is copied.
use std::sync::atomic::{AtomicI64, Ordering};

/// One request.
const ONE: i64 = 1_000_000;
/// What is owed at most: after a time in which nothing could be given there is no burst.
const MOST: i64 = 2 * ONE;
/// What is had in advance at most.
const LEAST: i64 = -100 * ONE;

/// Counts a share out exactly (error diffusion, as Bresenham's line): every request adds the share to
/// what is owed, and one that is given takes 1 away. After n requests `floor(n × share)` were given,
/// neither more nor fewer, evenly spread, and never two for one that was due.
#[derive(Debug)]
pub struct Share {
    each: i64,
    owed: AtomicI64,
}

impl Share {
    /// So many per cent, to a ten-thousandth of one.
    pub fn percent(percent: f64) -> Self {
        Self {
            each: (percent.clamp(0.0, 100.0) * 1e4).round() as i64,
            owed: AtomicI64::new(0),
        }
    }

    /// Counts a request. Whether one is due; [`Share::take`] says who gets it.
    pub fn count(&self) -> bool {
        let add = |owed: i64| Some((owed + self.each).min(MOST));
        let before = self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        before.is_ok_and(|owed| owed + self.each >= ONE)
    }

    /// Takes one that is due; false if another request was quicker.
    pub fn take(&self) -> bool {
        let take = |owed: i64| (owed >= ONE).then_some(owed - ONE);
        self.owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Who should have got the one that was taken could not: it stays due.
    pub fn refused(&self) {
        self.owed.fetch_add(ONE, Ordering::Relaxed);
    }

    /// One was given that was not due; it is made up for.
    pub fn given(&self) {
        let take = |owed: i64| Some((owed - ONE).max(LEAST));
        // The closure always gives a value.
        let _ = self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
    }
}
