//! How often failed attempts are made again, and how long that waits. Pure: time and chance are
//! given.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limit::Nanos;
use crate::snapshot::RetrySpec;

/// Retries are counted in thousandths, so that a request may earn a part of one.
const ONE: u64 = 1000;

/// For how long what was not used stays.
const MEMORY: Nanos = MEMORY_S * 1_000_000_000;
const MEMORY_S: u64 = 10;
const SECOND: u128 = 1_000_000_000;

/// What is retried beyond it would be a storm: retries that a model's requests have earned and not
/// used. A request earns a part of one, and every second some more, so that few requests can be
/// retried too (as in Finagle's `RetryBudget`).
#[derive(Debug)]
pub struct RetryBudget {
    balance: AtomicU64,
    refilled: AtomicU64,
    per_request: u64,
    per_second: u64,
    most: u64,
}

impl RetryBudget {
    /// A full one. `budget`: retries for each request. `min_per_second`: retries besides.
    pub fn new(budget: f64, min_per_second: f64) -> Self {
        let thousandths = |n: f64| (n.clamp(0.0, 1e6) * ONE as f64) as u64;
        let per_second = thousandths(min_per_second);
        let most = per_second.saturating_mul(MEMORY_S);
        Self {
            balance: AtomicU64::new(most),
            refilled: AtomicU64::new(0),
            per_request: thousandths(budget),
            per_second,
            // What a thousand requests earn, so that a burst of failures finds something.
            most: most.max(thousandths(budget).saturating_mul(1000)),
        }
    }

    /// A request has come.
    pub fn earn(&self) {
        self.add(self.per_request);
    }

    /// Takes one retry; false when there is none left.
    pub fn spend(&self, now: Nanos) -> bool {
        self.refill(now);
        let spent = self
            .balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| {
                balance.checked_sub(ONE)
            });
        spent.is_ok()
    }

    fn refill(&self, now: Nanos) {
        let before = self.refilled.load(Ordering::Relaxed);
        let passed = now.saturating_sub(before);
        // The first look at the clock starts it.
        let (earned, until) = if before == 0 {
            (0, now)
        } else if passed >= MEMORY {
            (self.per_second.saturating_mul(MEMORY_S), now)
        } else {
            // What is less than a thousandth stays to be earned.
            let earned = u128::from(self.per_second) * u128::from(passed) / SECOND;
            let spanned = (earned * SECOND).div_ceil(u128::from(self.per_second.max(1)));
            (earned as u64, before.saturating_add(spanned as Nanos))
        };
        if until == before {
            return;
        }
        let mine =
            self.refilled
                .compare_exchange(before, until, Ordering::Relaxed, Ordering::Relaxed);
        if mine.is_ok() {
            self.add(earned);
        }
    }

    fn add(&self, earned: u64) {
        if earned == 0 || self.balance.load(Ordering::Relaxed) >= self.most {
            return;
        }
        let balance = self.balance.fetch_add(earned, Ordering::Relaxed);
        let over = (balance + earned).saturating_sub(self.most);
        if over > 0 {
            self.balance.fetch_sub(over.min(earned), Ordering::Relaxed);
        }
    }
}

/// How long the `retry`th retry (from 1) waits: any time up to a bound that doubles ("full jitter",
/// AWS Architecture Blog, Exponential Backoff And Jitter). `chance`: 0 to 1.
pub fn backoff(spec: &RetrySpec, retry: u32, chance: f64) -> Duration {
    let doubled = spec.backoff_s * f64::from(1_u32 << retry.saturating_sub(1).min(20));
    let bound = doubled.min(spec.max_backoff_s).max(0.0);
    Duration::try_from_secs_f64(bound * chance.clamp(0.0, 1.0)).unwrap_or_default()
}

/// The retries of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    /// Attempts that an upstream has had.
    pub made: u32,
}

impl Tries {
    /// Whether one more attempt may be made.
    pub fn allow(&self, spec: &RetrySpec, budget: &RetryBudget, now: Nanos) -> bool {
        self.made < spec.attempts.max(1) && budget.spend(now)
    }
}
