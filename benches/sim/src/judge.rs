//! Compares what was admitted with what one exact limit admits, and with the bound.

use std::time::Duration;

use forebay_core::limit::{Bucket, Decision, Nanos, Quota};

use crate::fleet::{Decided, Fate};
use crate::setting::{Bound, Of, Setting};

/// The units of one key.
#[derive(Debug, Default)]
struct Tally {
    /// What an exact limiter decides of the same requests.
    ideal: Option<Bucket>,
    admitted: u64,
    ideally: u64,
    /// The most by which some window that ends at `at` exceeds rate times its length.
    level: f64,
    bound_level: f64,
    at: Nanos,
}

/// All keys.
#[derive(Debug)]
pub(crate) struct Judge {
    tallies: Vec<Tally>,
    quota: Option<Quota>,
    /// Units a nanosecond; and those that the bound allows.
    per_nano: f64,
    bound_per_nano: f64,
    pub(crate) asked: u64,
    pub(crate) waited: u64,
    /// Nanoseconds that those waited.
    pub(crate) waits: Vec<Nanos>,
    /// The most that any window of any key had beyond rate times its length.
    pub(crate) worst: f64,
    pub(crate) bound_worst: f64,
    /// Units of all keys by second.
    pub(crate) by_second: Vec<u64>,
}

impl Judge {
    pub(crate) fn new(setting: &Setting) -> Self {
        let quota = match setting.of {
            Of::Rate { rpm, burst } => Quota::new(rpm, Duration::from_secs(60), burst).ok(),
            Of::Permits { .. } => None,
        };
        let per_nano = setting.per_nano() * setting.stores() as f64;
        let bound = setting.bound.unwrap_or(Bound::STORE_ANSWERS);
        Self {
            tallies: (0..setting.keys).map(|_| Tally::default()).collect(),
            quota,
            per_nano,
            bound_per_nano: bound.rate * per_nano,
            asked: 0,
            waited: 0,
            waits: Vec::new(),
            worst: 0.0,
            bound_worst: 0.0,
            by_second: Vec::new(),
        }
    }

    /// A request comes, of one unit.
    pub(crate) fn came(&mut self, at: Nanos, key: usize) {
        self.asked += 1;
        let (Some(tally), Some(quota)) = (self.tallies.get_mut(key), self.quota) else {
            return;
        };
        let bucket = tally.ideal.get_or_insert_with(|| Bucket::new(quota));
        if matches!(bucket.admit(at, 1), Decision::Allow { .. }) {
            tally.ideally += 1;
        }
    }

    /// An exact limiter of permits admits it.
    pub(crate) fn ideally(&mut self, key: usize) {
        if let Some(tally) = self.tallies.get_mut(key) {
            tally.ideally += 1;
        }
    }

    /// A request was decided.
    pub(crate) fn decided(&mut self, one: &Decided) {
        if one.fate != Fate::Admitted {
            return;
        }
        let Some(tally) = self.tallies.get_mut(one.key) else {
            return;
        };
        let passed = one.at.saturating_sub(tally.at) as f64;
        let units = one.cost as f64;
        tally.admitted += one.cost;
        tally.level = (tally.level - passed * self.per_nano).max(0.0) + units;
        tally.bound_level = (tally.bound_level - passed * self.bound_per_nano).max(0.0) + units;
        tally.at = one.at;
        if self.quota.is_some() {
            self.worst = self.worst.max(tally.level);
            self.bound_worst = self.bound_worst.max(tally.bound_level);
        }
        if one.waited {
            self.waited += 1;
            self.waits.push(one.at - one.came);
        }
        let second = (one.at / 1_000_000_000) as usize;
        if self.by_second.len() <= second {
            self.by_second.resize(second + 1, 0);
        }
        if let Some(units) = self.by_second.get_mut(second) {
            *units += one.cost;
        }
    }

    /// So many of a key's permits are in use at once.
    pub(crate) fn in_use(&mut self, units: u64) {
        self.worst = self.worst.max(units as f64);
        self.bound_worst = self.worst;
    }

    /// Admitted, ideally admitted, and by how much keys had more and less than the ideal.
    pub(crate) fn sums(&self) -> [u64; 4] {
        let mut sums = [0; 4];
        for one in &self.tallies {
            let more = one.admitted.saturating_sub(one.ideally);
            let less = one.ideally.saturating_sub(one.admitted);
            for (sum, part) in sums.iter_mut().zip([one.admitted, one.ideally, more, less]) {
                *sum += part;
            }
        }
        sums
    }

    /// The wait below which 99 of 100 admissions stay.
    pub(crate) fn wait_p99(&mut self, admitted: u64) -> Nanos {
        self.waits.sort_unstable();
        let beyond = (admitted as usize).div_ceil(100);
        let at = self.waits.len().checked_sub(beyond);
        at.and_then(|at| self.waits.get(at)).copied().unwrap_or(0)
    }
}
