//! What tokens cost.
use serde::Deserialize;

use crate::usage::Usage;

/// Prices of one model's tokens, pico-USD a token (which is USD per million tokens × 10⁶).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of input.
    pub input: u64,
    /// Of input that the engine had in its cache.
    pub cached: u64,
    /// Of output.
    pub output: u64,
}

impl Price {
    /// The cost in nano-USD, rounded up.
    pub fn cost(&self, usage: &Usage) -> u64 {
        let cached = usage.cached.min(usage.prompt);
        let pico = u128::from(usage.prompt - cached) * u128::from(self.input)
            + u128::from(cached) * u128::from(self.cached)
            + u128::from(usage.completion) * u128::from(self.output);
        u64::try_from(pico.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// The cost in nano-USD of so much input and output, none of it cached.
    pub fn of(&self, prompt: u64, completion: u64) -> u64 {
        self.cost(&Usage {
            prompt,
            completion,
            ..Usage::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_exact_and_rounded_up_once() {
        // 0.15, 0.075 and 0.60 USD per million.
        let price = Price {
            input: 150_000,
            cached: 75_000,
            output: 600_000,
        };
        let usage = Usage {
            prompt: 1_000_000,
            completion: 1_000_000,
            cached: 500_000,
            ..Usage::default()
        };
        assert_eq!(price.cost(&usage), 75_000_000 + 37_500_000 + 600_000_000);
        let dust = Price { input: 1, ..price };
        assert_eq!(dust.of(1, 0), 1);
        assert_eq!(dust.of(1_001, 0), 2);
        assert_eq!(price.of(u64::MAX, u64::MAX), u64::MAX);
    }
}
