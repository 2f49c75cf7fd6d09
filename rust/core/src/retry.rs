//! How often failed attempts are made again, and how long that waits. Pure: time and chance are
//! given.
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::limit::Nanos;
use crate::snapshot::RetrySpec;

/// Retries are counted in thousandths, so that a request may earn a part of one.
const ONE: i64 = 1000;

/// For how long what was not used stays.
const MEMORY: Duration = Duration::from_secs(MEMORY_S as u64);
const MEMORY_S: u32 = 10;

/// What is retried beyond it would be a storm: retries that a model's requests have earned and not
/// used. A request earns a part of one, and every second some more, so that few requests can be
/// retried too (as in Finagle's `RetryBudget`).
#[derive(Debug)]
pub struct RetryBudget {
    balance: AtomicI64,
    refilled: AtomicU64,
    per_request: i64,
    per_second: i64,
    most: i64,
}

impl RetryBudget {
    /// A full one. `budget`: retries for each request. `min_per_second`: retries besides.
    pub fn new(budget: f64, min_per_second: f64) -> Self {
        let thousandths = |n: f64| (n.clamp(0.0, 1e6) * ONE as f64) as i64;
        let per_second = thousandths(min_per_second);
        let most = per_second.saturating_mul(i64::from(MEMORY_S));
        Self {
            balance: AtomicI64::new(most),
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
                (balance >= ONE).then_some(balance - ONE)
            });
        spent.is_ok()
    }

    fn refill(&self, now: Nanos) {
        let before = self.refilled.load(Ordering::Relaxed);
        // The first look at the clock starts it.
        let passed = match before {
            0 => Duration::ZERO,
            before => Duration::from_nanos(now.saturating_sub(before)).min(MEMORY),
        };
        let earned = (self.per_second as f64 * passed.as_secs_f64()) as i64;
        if before != 0 && earned == 0 {
            return;
        }
        let mine =
            self.refilled
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed);
        if mine.is_ok() {
            self.add(earned);
        }
    }

    fn add(&self, earned: i64) {
        if earned == 0 || self.balance.load(Ordering::Relaxed) >= self.most {
            return;
        }
        let balance = self.balance.fetch_add(earned, Ordering::Relaxed);
        let over = balance + earned - self.most;
        if over > 0 {
            self.balance.fetch_sub(over, Ordering::Relaxed);
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
    /// How often all targets had been tried and were tried again.
    pub rounds: u32,
}

impl Tries {
    /// Whether one more attempt may be made.
    pub fn allow(&self, spec: &RetrySpec, budget: &RetryBudget, now: Nanos) -> bool {
        self.made < spec.attempts.max(1) && budget.spend(now)
    }
}
