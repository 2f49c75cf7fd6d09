//! What a request will cost, learned from what earlier ones did.
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Weight of the newest request, once there were enough: the last few hundred decide.
const WEIGHT: f64 = 0.01;
/// English prose in most tokenizers; the start, before anything was seen.
const FIRST_RATIO: f64 = 4.0;
/// Output tokens assumed before anything was seen.
const FIRST_OUTPUT: u64 = 256;
/// Tokens a byte, at least and at most: nothing sent can teach more.
const SLOPES: std::ops::RangeInclusive<f64> = 1.0 / 16.0..=4.0;
/// Lengths must differ by this, relative to their mean, before they tell overhead from text.
const LEAST_SPREAD: f64 = 0.1;
/// So many of the newest answers say how long answers get.
const ANSWERS: usize = 128;
/// Of these, one in so many is longer than the estimate.
const LONGER: usize = 20;

/// Per model: how many tokens a prompt has, and how long answers get.
///
/// A prompt has tokens for its text and some for the template around it. Both are fitted to recent
/// requests by least squares, with weights that fall by age; the fit passes through their mean, so
/// that over many requests it is right even where the tokens of single ones vary.
pub struct Estimator {
    /// Tokens a byte of text.
    slope: AtomicU64,
    /// Tokens of a prompt without text.
    base: AtomicU64,
    output: AtomicU64,
    seen: Mutex<Seen>,
}

/// What was seen: the newest answers, and of prompts the moments, weighted by age.
#[derive(Default)]
struct Seen {
    /// The newest answers' tokens, in a circle.
    outputs: Vec<u64>,
    next: usize,
    count: f64,
    bytes: f64,
    tokens: f64,
    variance: f64,
    covariance: f64,
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            slope: AtomicU64::new((1.0 / FIRST_RATIO).to_bits()),
            base: AtomicU64::new(0),
            output: AtomicU64::new(FIRST_OUTPUT),
            seen: Mutex::default(),
        }
    }
}

impl Estimator {
    /// Prompt tokens of `bytes` of text.
    pub fn prompt_tokens(&self, bytes: usize) -> u64 {
        if bytes == 0 {
            return 0;
        }
        let slope = f64::from_bits(self.slope.load(Ordering::Relaxed));
        let base = f64::from_bits(self.base.load(Ordering::Relaxed));
        (base + bytes as f64 * slope).ceil() as u64
    }

    /// Output tokens of one answer without a cap: of recent ones, the longest but one in twenty.
    pub fn output_tokens(&self) -> u64 {
        self.output.load(Ordering::Relaxed)
    }

    /// Learns from a finished request. One that meets another here teaches nothing, rather than
    /// wait.
    pub fn observe(&self, prompt_bytes: usize, prompt_tokens: u64, output_tokens: u64) {
        let Some(mut seen) = self.seen.try_lock() else {
            return;
        };
        if prompt_bytes > 0 && prompt_tokens > 0 {
            let (slope, base) = seen.prompt(prompt_bytes as f64, prompt_tokens as f64);
            self.slope.store(slope.to_bits(), Ordering::Relaxed);
            self.base.store(base.to_bits(), Ordering::Relaxed);
        }
        if output_tokens > 0 {
            self.output
                .store(seen.output(output_tokens), Ordering::Relaxed);
        }
    }
}

impl Seen {
    /// Takes one answer in; the tokens that all recent ones but one in [`LONGER`] keep to.
    fn output(&mut self, tokens: u64) -> u64 {
        match self.outputs.get_mut(self.next) {
            Some(oldest) => *oldest = tokens,
            None => self.outputs.push(tokens),
        }
        self.next = (self.next + 1) % ANSWERS;
        let mut sorted = self.outputs.clone();
        let at = sorted.len() - 1 - sorted.len() / LONGER;
        *sorted.select_nth_unstable(at).1
    }

    /// Takes one prompt in; tokens a byte and of a prompt without text.
    fn prompt(&mut self, bytes: f64, tokens: f64) -> (f64, f64) {
        self.count += 1.0;
        let weight = WEIGHT.max(1.0 / self.count);
        let (x, y) = (bytes - self.bytes, tokens - self.tokens);
        self.bytes += weight * x;
        self.tokens += weight * y;
        self.variance = (1.0 - weight) * (self.variance + weight * x * x);
        self.covariance = (1.0 - weight) * (self.covariance + weight * x * y);
        let ratio = (self.tokens / self.bytes).clamp(*SLOPES.start(), *SLOPES.end());
        if self.variance < (LEAST_SPREAD * self.bytes).powi(2) {
            // All alike: what exceeds ordinary text is the template's. A first "hi" of seven tokens
            // must not make every longer prompt look enormous.
            let base = self.tokens - self.bytes / FIRST_RATIO;
            return if base < 0.0 {
                (ratio, 0.0)
            } else {
                (1.0 / FIRST_RATIO, base)
            };
        }
        let slope = (self.covariance / self.variance).clamp(*SLOPES.start(), *SLOPES.end());
        let base = self.tokens - slope * self.bytes;
        if base < 0.0 {
            return (ratio, 0.0);
        }
        (slope, base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers without a pattern, 0 to 1.
    fn noise(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn begins_with_english_prose() {
        let estimator = Estimator::default();
        assert_eq!(estimator.prompt_tokens(400), 100);
        assert_eq!(estimator.prompt_tokens(0), 0);
        assert_eq!(estimator.output_tokens(), 256);
    }

    #[test]
    fn prompts_all_of_one_length_teach_their_ratio() {
        let estimator = Estimator::default();
        for _ in 0..1000 {
            estimator.observe(300, 107, 10);
        }
        assert!((107..=108).contains(&estimator.prompt_tokens(300)));
    }

    #[test]
    fn nonsense_stays_within_bounds() {
        let estimator = Estimator::default();
        for (bytes, tokens) in [(1, 1 << 39), (1 << 40, 1), (1, 1), (usize::MAX, 1 << 39)] {
            for _ in 0..200 {
                estimator.observe(bytes, tokens, 1);
                assert!(estimator.prompt_tokens(1000) >= 62);
            }
        }
    }

    proptest! {
        /// Short and long prompts, each with the template's tokens around it: both are found, so
        /// that single estimates are right, not only their sum.
        #[test]
        fn overhead_is_told_from_text(
            seed in any::<u64>(),
            overhead in 0_u32..60,
            ratio in 1.5_f64..6.0,
            longest in 100_f64..20_000.0,
        ) {
            let estimator = Estimator::default();
            let mut noise = noise(seed);
            let mut draw = || {
                let bytes = 20.0 + longest * noise() * noise();
                // A text's own ratio varies.
                let tokens = f64::from(overhead) + bytes / ratio * (0.95 + 0.1 * noise());
                (bytes as usize, tokens.round() as u64)
            };
            for _ in 0..1000 {
                let (bytes, tokens) = draw();
                estimator.observe(bytes, tokens, 1);
            }
            let (mut estimated, mut actual, mut apart) = (0, 0, 0);
            for _ in 0..1000 {
                let (bytes, tokens) = draw();
                let guess = estimator.prompt_tokens(bytes);
                estimated += guess;
                actual += tokens;
                apart += guess.abs_diff(tokens);
            }
            prop_assert!(estimated.abs_diff(actual) * 100 <= actual * 5, "{estimated} {actual}");
            prop_assert!(apart * 100 <= actual * 10, "{apart} of {actual}");
        }

        /// Lengths of whatever spread: about one answer in twenty is longer.
        #[test]
        fn outputs_are_covered_but_for_one_in_twenty(
            seed in any::<u64>(),
            least in 1_f64..2000.0,
            spread in 0_f64..4000.0,
        ) {
            let estimator = Estimator::default();
            let mut noise = noise(seed);
            let mut longer = 0;
            for round in 0..4200 {
                let tokens = (least + spread * noise()).round() as u64;
                if round >= 200 && tokens > estimator.output_tokens() {
                    longer += 1;
                }
                estimator.observe(10, 3, tokens);
            }
            prop_assert!(longer <= 4000 * 7 / 100, "{longer} of 4000");
            prop_assert!(estimator.output_tokens() <= (least + spread).ceil() as u64);
        }

        #[test]
        fn answers_all_alike_are_foreseen(before in 1_u64..20_000, tokens in 1_u64..20_000) {
            let estimator = Estimator::default();
            for answer in [before, tokens] {
                for _ in 0..200 {
                    estimator.observe(10, 3, answer);
                }
                prop_assert_eq!(estimator.output_tokens(), answer);
            }
        }
    }
}
