//! Rate limits that decide without a lock, a clock or a background task.
//!
//! A [`Bucket`] is one limit: weighted GCRA (ITU-T I.371) whose whole state is one atomic word. A
//! [`Meter`] joins the limits of one key (requests, tokens, concurrency) into one all-or-nothing
//! admission, a [`Reservation`] settles an admission exactly once, and a [`Table`] finds the meter
//! of a key among millions.
//!
//! Time is an argument: [`Nanos`] of any monotonic clock, the same for every call on one bucket.

mod gcra;
mod meter;
mod permits;
mod plan;
mod reservation;
mod table;

pub use gcra::{BadQuota, Bucket, Decision, MAX_NOW, Quota, State};
pub use meter::{Admitted, CONCURRENCY_RETRY, Dimension, Limits, Meter, MeterState, Refusal};
pub use permits::Permits;
pub use reservation::{PROGRESS_STEP, Reservation};
pub use table::Table;

/// Nanoseconds of a monotonic clock, or a span of them.
pub type Nanos = u64;
