//! How loaded an engine is, by what is in flight there and what it said last.
use std::time::Duration;

use crate::health::Load;

/// How fast a report loses its weight: after so long it counts half.
///
/// SGLang renews what it says at every prefill, else every 15 decode steps (up to about a second), and
/// it is asked every 2 s.
pub const HALF_LIFE: Duration = Duration::from_secs(2);

/// Requests that an engine works on: `own + f × (max(0, running + waiting − own) + waiting)`, with
/// `f = 2^(−age / HALF_LIFE)`, on straight lines between the halvings.
///
/// `own` is what is in flight there from this machine, exact at any time. A report adds what others
/// send there, as far as it is more than that. What waits inside the engine counts twice, since a
/// request behind it waits too. An old report fades out, and then `own` alone decides.
#[inline]
pub fn expected(own: u64, report: Option<Load>) -> f64 {
    let own = own as f64;
    let Some(report) = report else { return own };
    let waiting = f64::from(report.waiting);
    let others = (f64::from(report.running) + waiting - own).max(0.0);
    if others + waiting <= 0.0 {
        return own;
    }
    own + freshness(report.age) * (others + waiting)
}

/// `2^(−age / HALF_LIFE)`, on straight lines between the halvings: asked of every target of every
/// request.
#[inline]
fn freshness(age: Duration) -> f64 {
    let halvings = age.as_secs_f64() * (1.0 / HALF_LIFE.as_secs_f64());
    if halvings >= 63.0 {
        return 0.0;
    }
    let whole = halvings as u64;
    let part = halvings - whole as f64;
    (1.0 - part / 2.0) / (1_u64 << whole) as f64
}
