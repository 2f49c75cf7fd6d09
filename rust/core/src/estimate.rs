//! What a request will cost, learned from what earlier ones did.
use std::sync::atomic::{AtomicU64, Ordering};

/// Weight of the newest observation of bytes per token.
const RATIO_WEIGHT: f64 = 0.05;
/// English prose in most tokenizers; the start, before anything was seen.
const FIRST_RATIO: f64 = 4.0;
/// Output tokens assumed before anything was seen.
const FIRST_OUTPUT: f64 = 256.0;

/// Per model: bytes per prompt token, and how long answers get.
pub struct Estimator {
    bytes_per_token: AtomicU64,
    output: AtomicU64,
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            bytes_per_token: AtomicU64::new(FIRST_RATIO.to_bits()),
            output: AtomicU64::new(FIRST_OUTPUT.to_bits()),
        }
    }
}

impl Estimator {
    /// Prompt tokens of `bytes` of text.
    pub fn prompt_tokens(&self, bytes: usize) -> u64 {
        let ratio = f64::from_bits(self.bytes_per_token.load(Ordering::Relaxed));
        (bytes as f64 / ratio).ceil() as u64
    }

    /// Output tokens of one answer without a cap: near the upper end of what was seen.
    pub fn output_tokens(&self) -> u64 {
        f64::from_bits(self.output.load(Ordering::Relaxed)).ceil() as u64
    }

    /// Learns from a finished request. Lost updates under contention only slow the learning.
    pub fn observe(&self, prompt_bytes: usize, prompt_tokens: u64, output_tokens: u64) {
        if prompt_bytes > 0 && prompt_tokens > 0 {
            let seen = (prompt_bytes as f64 / prompt_tokens as f64).clamp(0.25, 16.0);
            let old = f64::from_bits(self.bytes_per_token.load(Ordering::Relaxed));
            let new = old + RATIO_WEIGHT * (seen - old);
            self.bytes_per_token.store(new.to_bits(), Ordering::Relaxed);
        }
        if output_tokens > 0 {
            // Rises 19 times faster than it falls: settles near the 95th percentile.
            let old = f64::from_bits(self.output.load(Ordering::Relaxed));
            let step = if output_tokens as f64 > old {
                0.19
            } else {
                0.01
            };
            let new = old + step * (output_tokens as f64 - old);
            self.output.store(new.to_bits(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_the_ratio_and_the_upper_end() {
        let estimator = Estimator::default();
        assert_eq!(estimator.prompt_tokens(400), 100);
        for i in 0..2000_u64 {
            estimator.observe(300, 100, if i % 20 == 0 { 1000 } else { 100 });
        }
        let prompt = estimator.prompt_tokens(300);
        assert!((99..=103).contains(&prompt), "{prompt}");
        let output = estimator.output_tokens();
        assert!((300..=900).contains(&output), "{output}");
    }
}
