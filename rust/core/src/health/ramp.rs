//! Slow start: an upstream that has just come back gets a growing share of its requests.
use std::time::Duration;

use super::nanos;
use crate::limit::Nanos;

/// The share that it begins with (Envoy's `min_weight_percent`).
pub const LEAST_SHARE: f32 = 0.1;

/// The share of its usual requests, above 0 and up to 1, at `now`, after it came back at `from`: the
/// part of `window` that is gone, at least [`LEAST_SHARE`]. Linear: Envoy's `aggression` is 1.
pub fn share(from: Nanos, window: Duration, now: Nanos) -> f32 {
    let window = nanos(window);
    let gone = now.saturating_sub(from);
    if gone >= window {
        return 1.0;
    }
    (gone as f32 / window as f32).clamp(LEAST_SHARE, 1.0)
}
