//! Limits that decide without a lock, a clock or a background task.
//!
//! A [`Bucket`] is one rate limit: weighted GCRA (ITU-T I.371) whose whole state is one atomic word.
//! A [`Meter`] joins the limits of one subject (requests, tokens, concurrency, money), a
//! [`Reservation`] takes from all meters that apply to a request or from none, and settles exactly
//! once. A [`Region`] is the memory that their state lies in, shared by the workers of one machine;
//! a [`Table`] finds the meter of a key among millions.
//!
//! Time is an argument: [`Nanos`] of a monotonic clock, the same for every call on one region, and
//! unix seconds where the calendar matters.

mod budget;
mod gcra;
pub mod lease;
mod leased;
mod limits;
mod meter;
mod pending;
mod permits;
mod plan;
mod region;
mod reservation;
mod table;
mod verdict;

pub use budget::{Budget, MAX_BUDGET, Period};
pub use gcra::{BadQuota, Bucket, Decision, MAX_NOW, Quota, State};
pub use lease::OnStoreLoss;
pub use limits::{Ask, Limits, Now, Part};
pub use meter::Meter;
pub use permits::Permits;
pub use region::{MAX_WORKERS, Region, subject_id};
pub use reservation::{
    Declined, GRANT_WAIT, Meters, PROGRESS_STEP, Places, Reservation, Scope, Wanting,
};
pub use table::Table;
pub use verdict::{Admitted, CONCURRENCY_RETRY, Dimension, MeterState, Refusal, Standing};

/// Nanoseconds of a monotonic clock, or a span of them.
pub type Nanos = u64;
