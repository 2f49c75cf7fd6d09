//! What the client counts, and the report made of it.

use std::collections::BTreeMap;
use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::SECOND;

/// Width of the buckets in which events are counted over time.
const BUCKET_NS: u64 = SECOND / 10;
/// Longer times are counted as this long.
const LONGEST_NS: u64 = 3600 * SECOND;
const MAX_SAMPLES: usize = 5;

/// Why a request counts as an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// Could not connect, or the connection broke.
    Io,
    /// No whole answer in time.
    Timeout,
    /// A status other than 200.
    Status,
    /// Not the JSON or events that were asked for.
    Body,
    /// A stream without `[DONE]` at its end.
    NoDone,
    /// A stream with fewer content events than asked for.
    Short,
}

/// One thread's counts; times in nanoseconds.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) latency: Histogram<u64>,
    pub(crate) first_byte: Histogram<u64>,
    pub(crate) first_event: Histogram<u64>,
    pub(crate) gap: Histogram<u64>,
    pub(crate) delay: Histogram<u64>,
    pub(crate) late: Histogram<u64>,
    pub(crate) requests: u64,
    pub(crate) events: u64,
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
    pub(crate) reconnects: u64,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    buckets: Vec<u64>,
    errors: BTreeMap<Fault, u64>,
    samples: Vec<String>,
}

impl Stats {
    /// Empty counts of a run that starts at `start_ns`.
    pub(crate) fn new(start_ns: u64) -> io::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_NS, 3).map_err(io::Error::other);
        Ok(Self {
            latency: histogram()?,
            first_byte: histogram()?,
            first_event: histogram()?,
            gap: histogram()?,
            delay: histogram()?,
            late: histogram()?,
            requests: 0,
            events: 0,
            reads: 0,
            bytes: 0,
            reconnects: 0,
            start_ns,
            end_ns: start_ns,
            buckets: Vec::new(),
            errors: BTreeMap::new(),
            samples: Vec::new(),
        })
    }

    /// Counts one event that arrived at `now_ns`.
    pub(crate) fn event_at(&mut self, now_ns: u64) {
        self.events += 1;
        let bucket = (now_ns.saturating_sub(self.start_ns) / BUCKET_NS) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
    }

    /// Counts one failed request.
    pub(crate) fn fault(&mut self, fault: Fault, message: String) {
        *self.errors.entry(fault).or_default() += 1;
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push(message);
        }
    }

    /// Adds another thread's counts.
    pub(crate) fn merge(&mut self, other: Self) -> io::Result<()> {
        for (mine, theirs) in [
            (&mut self.latency, &other.latency),
            (&mut self.first_byte, &other.first_byte),
            (&mut self.first_event, &other.first_event),
            (&mut self.gap, &other.gap),
            (&mut self.delay, &other.delay),
            (&mut self.late, &other.late),
        ] {
            mine.add(theirs).map_err(io::Error::other)?;
        }
        self.requests += other.requests;
        self.events += other.events;
        self.reads += other.reads;
        self.bytes += other.bytes;
        self.reconnects += other.reconnects;
        self.end_ns = self.end_ns.max(other.end_ns);
        self.buckets
            .resize(self.buckets.len().max(other.buckets.len()), 0);
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        for (fault, count) in other.errors {
            *self.errors.entry(fault).or_default() += count;
        }
        self.samples.extend(other.samples);
        self.samples.truncate(MAX_SAMPLES);
        Ok(())
    }

    /// The report.
    pub(crate) fn report(&self, workload: &'static str, concurrency: usize) -> Report {
        let wall_s = self.end_ns.saturating_sub(self.start_ns).max(1) as f64 / SECOND as f64;
        Report {
            workload,
            concurrency,
            wall_s,
            requests: self.requests,
            requests_per_s: self.requests as f64 / wall_s,
            errors: self.errors.values().sum(),
            errors_by_kind: self.errors.clone(),
            error_samples: self.samples.clone(),
            reconnects: self.reconnects,
            bytes: self.bytes,
            reads: self.reads,
            latency_us: Spread::of(&self.latency),
            first_byte_us: Spread::of(&self.first_byte),
            first_event_us: Spread::of(&self.first_event),
            events: self.events,
            events_per_s: self.events as f64 / wall_s,
            events_per_s_steady: self.steady_rate(),
            gap_us: Spread::of(&self.gap),
            delay_us: Spread::of(&self.delay),
            upstream_late_us: Spread::of(&self.late),
            longest_stall_ms: self.gap.max() as f64 / 1e6,
        }
    }

    /// Median events a second over the middle half of the run: free of its start and its end.
    fn steady_rate(&self) -> f64 {
        let quarter = self.buckets.len() / 4;
        let mut middle: Vec<u64> = self
            .buckets
            .iter()
            .skip(quarter)
            .take(self.buckets.len() - 2 * quarter)
            .copied()
            .collect();
        middle.sort_unstable();
        let median = middle.get(middle.len() / 2).copied().unwrap_or_default();
        median as f64 * (SECOND / BUCKET_NS) as f64
    }
}

/// Percentiles of one histogram, microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Spread {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Spread {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Some(Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max() as f64 / 1e3,
        })
    }
}

/// What one run of the client found. A figure that the workload does not have is null.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    workload: &'static str,
    concurrency: usize,
    wall_s: f64,
    requests: u64,
    requests_per_s: f64,
    errors: u64,
    errors_by_kind: BTreeMap<Fault, u64>,
    error_samples: Vec<String>,
    reconnects: u64,
    bytes: u64,
    reads: u64,
    latency_us: Option<Spread>,
    first_byte_us: Option<Spread>,
    first_event_us: Option<Spread>,
    events: u64,
    events_per_s: f64,
    events_per_s_steady: f64,
    gap_us: Option<Spread>,
    delay_us: Option<Spread>,
    upstream_late_us: Option<Spread>,
    longest_stall_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_up() {
        let (mut a, mut b) = (Stats::new(0).unwrap(), Stats::new(0).unwrap());
        a.latency.record(1000).unwrap();
        b.latency.record(3000).unwrap();
        a.event_at(0);
        b.event_at(BUCKET_NS);
        b.fault(Fault::Status, "503".into());
        a.merge(b).unwrap();
        let report = a.report("unary", 1);
        assert_eq!((report.events, report.errors), (2, 1));
        assert_eq!(report.latency_us.unwrap().count, 2);
        assert!(report.gap_us.is_none());
    }

    #[test]
    fn the_steady_rate_leaves_out_both_ends() {
        let mut stats = Stats::new(0).unwrap();
        for bucket in 2..6 {
            for _ in 0..10 {
                stats.event_at(bucket * BUCKET_NS);
            }
        }
        stats.event_at(7 * BUCKET_NS);
        assert!((stats.steady_rate() - 100.0).abs() < f64::EPSILON);
    }
}
