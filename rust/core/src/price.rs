//! What a request costs: one version of a price, and its exact arithmetic.
//!
//! Amounts are integers. A pico-USD is 10⁻¹² USD: prices have six decimal places for 10⁶ tokens and
//! durations are whole microseconds, so every cost is a whole number of them. The core is blind to
//! currencies; "USD" stands for whatever a price is in.
mod book;

pub use book::{PriceBook, PriceSpec, Rates};

use crate::usage::Usage;

/// The largest cost of one request, pico-USD (9.2 million USD): what a 64-bit column holds.
pub const MAX_COST: u64 = i64::MAX as u64;

/// One version of a price: a row of the price book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// The row's id.
    pub id: i64,
    /// Of input, pico-USD a token, like all that follow.
    pub input: u64,
    /// Of input that the engine had in its cache.
    pub cached: u64,
    /// Of input that the engine put into its cache.
    pub cache_write: u64,
    /// Of output.
    pub output: u64,
    /// Of output spent on reasoning.
    pub reasoning: u64,
    /// Of a request, pico-USD.
    pub request: u64,
    /// Of time, pico-USD a microsecond.
    pub second: u64,
}

impl Price {
    /// The cost in pico-USD, exact up to [`MAX_COST`], which it never exceeds. `duration_us`: the
    /// whole request's, microseconds.
    pub fn cost(&self, usage: &Usage, duration_us: u64) -> u64 {
        u64::try_from(self.pico(usage, duration_us)).map_or(MAX_COST, |pico| pico.min(MAX_COST))
    }

    /// The cost in nano-USD, rounded up: what budgets count.
    pub fn nano(&self, usage: &Usage, duration_us: u64) -> u64 {
        u64::try_from(self.pico(usage, duration_us).div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// Parts that an engine says are larger than their whole count as the whole.
    fn pico(&self, usage: &Usage, duration_us: u64) -> u128 {
        let cached = usage.cached.min(usage.prompt);
        let cache_write = usage.cache_write.min(usage.prompt - cached);
        let reasoning = usage.reasoning.min(usage.completion);
        [
            (usage.prompt - cached - cache_write, self.input),
            (cached, self.cached),
            (cache_write, self.cache_write),
            (usage.completion - reasoning, self.output),
            (reasoning, self.reasoning),
            (1, self.request),
            (duration_us, self.second),
        ]
        .into_iter()
        .map(|(count, each)| u128::from(count) * u128::from(each))
        .fold(0, u128::saturating_add)
    }
}
