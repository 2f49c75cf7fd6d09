//! What is counted of spools.
use std::sync::Arc;

use crate::metrics::{Counter, Gauge, Registry};

/// What happens to spools.
#[derive(Clone)]
pub struct SpoolCounters {
    /// Requests refused, because they could not have been recorded.
    pub refused: Arc<Counter>,
    /// Requests served without a record.
    pub unmetered: Arc<Counter>,
    /// Ends of requests for which there was no space: never, as far as anyone knows.
    pub lost: Arc<Counter>,
    /// Failures to bring records to the disk, or to make space ahead.
    pub failures: Arc<Counter>,
    /// Spools of processes that had gone.
    pub adopted: Arc<Counter>,
    /// Requests that were running when their process went.
    pub interrupted: Arc<Counter>,
    /// Files with damage.
    pub damaged: Arc<Counter>,
    /// Bytes of files with usage.
    pub(super) bytes: Arc<Gauge>,
    /// Bytes that they may have.
    pub(super) max_bytes: Arc<Gauge>,
    /// Seconds that the oldest usage has waited.
    pub(super) lag: Arc<Gauge>,
    /// Prompt logs that wait to be shipped.
    pub(super) logs_waiting: Arc<Gauge>,
}

impl SpoolCounters {
    /// Counters of this registry.
    pub fn registered(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        Self {
            refused: counter(
                "forebay_spool_refused_total",
                "Requests refused because the usage spool had no space for them.",
            ),
            unmetered: counter(
                "forebay_spool_unmetered_total",
                "Requests served without a usage record, as spool.on_full allows.",
            ),
            lost: counter(
                "forebay_spool_lost_total",
                "Ends of requests that could not be recorded.",
            ),
            failures: counter(
                "forebay_spool_failures_total",
                "Failures to write the usage spool to the disk.",
            ),
            adopted: counter(
                "forebay_spool_adopted_total",
                "Spools taken over from processes that had gone.",
            ),
            interrupted: counter(
                "forebay_spool_interrupted_total",
                "Requests that were running when their process went.",
            ),
            damaged: counter(
                "forebay_spool_damaged_total",
                "Files of spools in which something was damaged.",
            ),
            bytes: registry.gauge(
                "forebay_spool_bytes",
                "Bytes of the usage spool on the disk.",
            ),
            max_bytes: registry.gauge(
                "forebay_spool_max_bytes",
                "Bytes that the usage spool may have.",
            ),
            lag: registry.gauge(
                "forebay_usage_lag_seconds",
                "Since the request ended whose usage has waited longest for the database.",
            ),
            logs_waiting: registry.gauge(
                "forebay_prompt_log_backlog_entries",
                "Prompt logs that wait for the database.",
            ),
        }
    }
}
