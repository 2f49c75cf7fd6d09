//! Which of a model's targets a request goes to: policies over a frozen list of targets.
//!
//! Pure: what is known of the targets is asked of a [`Fleet`], randomness comes from the request
//! ([`Draws`]), time from the fleet. A policy is a small file of its own and keeps what it must
//! remember in atomics, or behind a lock that no wait is within. None allocates.
//!
//! [`Router`] puts them together for one model; [`crate::dispatch`] asks it and takes permits.
pub mod affinity;
pub mod cold;
pub mod draw;
pub mod latency;
pub mod least_load;
pub mod load;
pub mod power_of_two;
pub mod prefix;
pub mod round_robin;
pub mod shadow;
pub mod share;
pub mod sticky;
pub mod table;

mod ask;
mod router;
mod set;

use std::time::Duration;

use crate::limit::Nanos;

pub use ask::{Ask, Pricing, session};
pub use draw::Draws;
pub use prefix::Prefix;
pub use router::{Router, Tier};
pub use set::Set;

/// The targets of one tier, as a policy sees them: by index, each asked for only when it matters.
pub trait Fleet {
    /// How many there are.
    fn count(&self) -> usize;
    /// A target's share of requests against its siblings'; 0 where it cannot take this one.
    fn weight(&self, at: usize) -> f64;
    /// The largest weight that any of them can have, above 0.
    fn heaviest(&self) -> f64;
    /// Requests that it works on, as far as is known ([`load::expected`]).
    fn load(&self, at: usize) -> f64;
    /// Its time to first token, if it was measured.
    fn ttft(&self, at: usize) -> Option<Duration>;
    /// The present.
    fn now(&self) -> Nanos;

    /// The weight and the load of a target that can take this request.
    #[inline]
    fn open(&self, at: usize) -> Option<(f64, f64)> {
        let weight = self.weight(at);
        (weight > 0.0).then(|| (weight, self.load(at)))
    }
}

/// What one more request means for a target: its load with it, for its weight. None where it cannot
/// take one.
pub(crate) fn crowding(fleet: &impl Fleet, at: usize) -> Option<f64> {
    let (weight, load) = fleet.open(at)?;
    Some((load + 1.0) / weight)
}
