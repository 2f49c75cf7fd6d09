//! What is known of an upstream: whether it takes requests now, and how well.
//!
//! Three sources come together. What requests come to ([`Health::succeeded`], [`Health::failed`]):
//! outlier detection with Envoy's parameters, which ejects an upstream for a while ([`outlier`],
//! [`ejection`]). What probes find ([`Health::report`]): warm, loading, cold, draining or down. What a person
//! decides ([`Health::drain`]). Afterwards its share of requests grows slowly ([`ramp`]).
//!
//! The parts are pure machines with the time as an argument; they stand behind one lock that is taken
//! when a request's outcome is told. What every request asks, [`Health::availability`], reads atomics
//! alone.
pub mod ejection;
pub mod load;
pub mod outlier;
pub mod peak;
pub mod ramp;
pub mod verdict;

mod siblings;
mod standing;
mod state;
mod view;

pub use load::Load;
pub use siblings::Group;
pub use standing::{AgentState, Availability, Engine, Settings};
pub use state::{Health, Trial};
pub use verdict::{Cause, Verdict};
pub use view::{Ejected, View};

use std::time::Duration;

use crate::limit::Nanos;

fn nanos(span: Duration) -> Nanos {
    Nanos::try_from(span.as_nanos()).unwrap_or(Nanos::MAX)
}

/// `seconds` of the configuration; what is no time is none at all.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .min(crate::snapshot::MAX_TIMEOUT)
}
