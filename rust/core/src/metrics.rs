//! Counters, gauges and histograms, and their Prometheus text form.
//!
//! An update is one relaxed atomic addition, or two for a histogram; no lock is taken. A [`Registry`]
//! owns the metrics of a process and renders them; callers keep the `Arc` handles it gave them, also
//! those of label values that recur on a hot path.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;

/// The media type of [`Registry::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Series per family; label values beyond share one series whose every value is [`OTHER`], so that
/// labels taken from requests cannot fill the memory.
pub const MAX_SERIES: usize = 10_000;

/// The label value of what exceeds [`MAX_SERIES`].
pub const OTHER: &str = "_other";

/// A count that only grows (and wraps after 2⁶⁴).
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds 1.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets the value.
    #[inline]
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Adds 1.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes 1 away.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// The value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// One that a gauge counts, until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Gauge>);

impl Counted {
    /// Counts one more.
    pub fn by(gauge: &Arc<Gauge>) -> Self {
        gauge.inc();
        Self(Arc::clone(gauge))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The upper bounds of a histogram's buckets, in whole steps of 1/`per_unit` of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    per_unit: u64,
    upper: &'static [u64],
}

impl Bounds {
    /// Buckets at most, besides the unbounded one.
    pub const MAX: usize = 20;

    /// Durations in seconds: OpenTelemetry's for `gen_ai` operations (10 ms to 82 s, doubling), and
    /// 1, 2 and 5 ms below.
    pub const SECONDS: Self = Self::micros(&[
        1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000,
        2_560_000, 5_120_000, 10_240_000, 20_480_000, 40_960_000, 81_920_000,
    ]);

    /// Time to decide in seconds: 10 µs to 100 ms.
    pub const DECISION: Self = Self::micros(&[
        10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    ]);

    /// Time to first token in seconds, OpenTelemetry's for `gen_ai.server.time_to_first_token`.
    pub const FIRST_TOKEN: Self = Self::micros(&[
        1_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 250_000, 500_000, 750_000,
        1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000,
    ]);

    /// Time per output token in seconds, OpenTelemetry's for `gen_ai.server.time_per_output_token`,
    /// and 1, 2.5 and 5 ms below.
    pub const PER_TOKEN: Self = Self::micros(&[
        1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000,
        400_000, 500_000, 750_000, 1_000_000, 2_500_000,
    ]);

    /// Tokens, OpenTelemetry's for `gen_ai.client.token.usage`: powers of four.
    pub const TOKENS: Self = Self::new(
        1,
        &[
            1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304,
            16_777_216, 67_108_864,
        ],
    );

    /// Bounds in steps of 1/`per_unit`, a power of ten up to 10⁹.
    ///
    /// # Panics
    /// When `per_unit` is no such power, or there are no bounds, more than [`Self::MAX`], or bounds
    /// that do not increase; at compile time if evaluated in a constant.
    #[expect(clippy::indexing_slicing, reason = "in range by the loop's condition")]
    pub const fn new(per_unit: u64, upper: &'static [u64]) -> Self {
        let mut rest = per_unit;
        while rest > 9 && rest.is_multiple_of(10) {
            rest /= 10;
        }
        assert!(
            rest == 1 && per_unit <= 1_000_000_000,
            "per_unit is a power of ten up to 10^9"
        );
        assert!(
            !upper.is_empty() && upper.len() <= Self::MAX,
            "from 1 to 20 bounds"
        );
        let mut i = 1;
        while i < upper.len() {
            assert!(upper[i - 1] < upper[i], "bounds increase");
            i += 1;
        }
        Self { per_unit, upper }
    }

    /// Bounds of seconds, given in microseconds.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub const fn micros(upper: &'static [u64]) -> Self {
        Self::new(1_000_000, upper)
    }

    fn decimal(self, value: u64) -> Decimal {
        Decimal {
            value,
            per_unit: self.per_unit,
        }
    }
}

/// `value` ÷ `per_unit`, written exactly and without trailing zeros.
struct Decimal {
    value: u64,
    per_unit: u64,
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, mut rest) = (self.value / self.per_unit, self.value % self.per_unit);
        write!(f, "{whole}")?;
        if rest == 0 {
            return Ok(());
        }
        let mut digits = self.per_unit.ilog10() as usize;
        while rest.is_multiple_of(10) {
            rest /= 10;
            digits -= 1;
        }
        write!(f, ".{rest:0digits$}")
    }
}

/// A distribution over fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: Bounds,
    /// In steps of the bounds; wraps after 2⁶⁴ (585,000 years in microseconds).
    sum: AtomicU64,
    /// Not cumulative; the one after the last bound is unbounded.
    counts: [AtomicU64; Bounds::MAX + 1],
}

impl Histogram {
    /// An empty histogram.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            sum: AtomicU64::new(0),
            counts: Default::default(),
        }
    }

    /// Counts a value given in steps of the bounds: microseconds, tokens.
    #[inline]
    pub fn observe(&self, value: u64) {
        // No branch to mispredict: all bounds are compared, and at most 20 of them.
        let bucket: usize = self
            .bounds
            .upper
            .iter()
            .map(|&upper| usize::from(value > upper))
            .sum();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    /// Counts a duration; for bounds in seconds.
    #[inline]
    pub fn observe_duration(&self, value: Duration) {
        let per_unit = u128::from(self.bounds.per_unit);
        let steps = value.as_nanos() * per_unit / 1_000_000_000;
        self.observe(u64::try_from(steps).unwrap_or(u64::MAX));
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Their sum, in steps of the bounds.
    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }
}

/// What a [`Family`] can be made of.
pub trait Metric: Send + Sync + 'static {
    /// The word on the `# TYPE` line.
    const TYPE: &'static str;

    /// Appends the sample lines of one series; `labels` is `a="x",b="y"`, or empty.
    fn render(&self, name: &str, labels: &str, out: &mut String);
}

impl Metric for Counter {
    const TYPE: &'static str = "counter";

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        sample(out, name, "", &[labels], self.get());
    }
}

impl Metric for Gauge {
    const TYPE: &'static str = "gauge";

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        sample(out, name, "", &[labels], self.get());
    }
}

impl Metric for Histogram {
    const TYPE: &'static str = "histogram";

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        // Sum before counts: a concurrent update then shows in neither or only in the counts.
        let sum = self.sum();
        let mut seen = 0;
        let mut le = String::new();
        for (i, count) in self
            .counts
            .iter()
            .enumerate()
            .take(self.bounds.upper.len() + 1)
        {
            seen += count.load(Relaxed);
            le.clear();
            // Writing to a String cannot fail.
            let _ = match self.bounds.upper.get(i) {
                Some(&upper) => write!(le, "le=\"{}\"", self.bounds.decimal(upper)),
                None => write!(le, "le=\"+Inf\""),
            };
            sample(out, name, "_bucket", &[labels, &le], seen);
        }
        sample(out, name, "_sum", &[labels], self.bounds.decimal(sum));
        sample(out, name, "_count", &[labels], seen);
    }
}

fn sample(out: &mut String, name: &str, suffix: &str, labels: &[&str], value: impl fmt::Display) {
    out.push_str(name);
    out.push_str(suffix);
    let mut separator = '{';
    for part in labels.iter().filter(|part| !part.is_empty()) {
        out.push(separator);
        out.push_str(part);
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, " {value}");
}

/// The series of one metric, told apart by `N` labels.
pub struct Family<M, const N: usize> {
    labels: [&'static str; N],
    make: Box<dyn Fn() -> M + Send + Sync>,
    /// By their rendered labels, which differ whenever the values do.
    series: RwLock<BTreeMap<Box<str>, Arc<M>>>,
}

impl<M, const N: usize> fmt::Debug for Family<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family")
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl<M: Metric, const N: usize> Family<M, N> {
    fn new(labels: [&'static str; N], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        for (i, label) in labels.iter().enumerate() {
            assert!(
                is_name(label, false) && *label != "le",
                "label {label:?} is invalid"
            );
            assert!(
                !labels.iter().take(i).any(|other| other == label),
                "label {label:?} is twice"
            );
        }
        Self {
            labels,
            make: Box::new(make),
            series: RwLock::default(),
        }
    }

    /// The series of these label values, made at first use.
    ///
    /// Costs a lookup by name, so keep the handle where it is needed often. Beyond [`MAX_SERIES`]
    /// it is the series of [`OTHER`].
    pub fn get_or_create(&self, values: &[&str; N]) -> Arc<M> {
        let mut key = self.key(values);
        if let Some(metric) = self.series.read().get(key.as_str()) {
            return Arc::clone(metric);
        }
        let mut series = self.series.write();
        if series.len() >= MAX_SERIES && !series.contains_key(key.as_str()) {
            key = self.key(&[OTHER; N]);
        }
        Arc::clone(
            series
                .entry(key.into_boxed_str())
                .or_insert_with(|| Arc::new((self.make)())),
        )
    }

    /// Stops rendering the series of these label values: what they named is gone.
    pub fn remove(&self, values: &[&str; N]) {
        self.series.write().remove(self.key(values).as_str());
    }

    fn key(&self, values: &[&str; N]) -> String {
        let mut key = String::with_capacity(64);
        for (label, value) in self.labels.iter().zip(values) {
            if !key.is_empty() {
                key.push(',');
            }
            key.push_str(label);
            key.push_str("=\"");
            escape(value, true, &mut key);
            key.push('"');
        }
        key
    }
}

/// Escapes as the text format asks: `\` and line feed, and `"` inside label values.
fn escape(text: &str, quoted: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quoted => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

/// Whether the text format allows `name` for a metric (`colons`) or a label.
fn is_name(name: &str, colons: bool) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    name.chars().all(allowed) && name.starts_with(|c: char| !c.is_ascii_digit())
}

trait Render: Send + Sync {
    fn render(&self, name: &str, out: &mut String);
}

impl<M: Metric, const N: usize> Render for Family<M, N> {
    fn render(&self, name: &str, out: &mut String) {
        for (labels, metric) in self.series.read().iter() {
            metric.render(name, labels, out);
        }
    }
}

/// A metric without labels.
struct Single<M>(Arc<M>);

impl<M: Metric> Render for Single<M> {
    fn render(&self, name: &str, out: &mut String) {
        self.0.render(name, "", out);
    }
}

struct Entry {
    help: &'static str,
    kind: &'static str,
    body: Arc<dyn Render>,
}

/// The metrics of a process, by name.
#[derive(Default)]
pub struct Registry {
    entries: RwLock<BTreeMap<&'static str, Entry>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.read().keys()).finish()
    }
}

/// Each method adds a metric and returns its handle.
///
/// # Panics
/// A name that is invalid or taken, a counter whose name does not end in `_total`, and labels that
/// are invalid, repeated or `le`, are mistakes in the program and end it where it registers them.
impl Registry {
    /// Adds a counter.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Arc<Counter> {
        self.single(name, help, Counter::default())
    }

    /// Adds a gauge.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Arc<Gauge> {
        self.single(name, help, Gauge::default())
    }

    /// Adds a histogram.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: Bounds,
    ) -> Arc<Histogram> {
        self.single(name, help, Histogram::new(bounds))
    }

    /// Adds counters told apart by labels.
    pub fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Arc<Family<Counter, N>> {
        self.family(name, help, Family::new(labels, Counter::default))
    }

    /// Adds gauges told apart by labels.
    pub fn gauges<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Arc<Family<Gauge, N>> {
        self.family(name, help, Family::new(labels, Gauge::default))
    }

    /// Adds histograms told apart by labels.
    pub fn histograms<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: Bounds,
    ) -> Arc<Family<Histogram, N>> {
        self.family(
            name,
            help,
            Family::new(labels, move || Histogram::new(bounds)),
        )
    }

    /// All metrics in the Prometheus text format 0.0.4 ([`CONTENT_TYPE`]), sorted by name and
    /// labels.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        for (name, entry) in self.entries.read().iter() {
            // Writing to a String cannot fail.
            let _ = write!(out, "# HELP {name} ");
            escape(entry.help, false, &mut out);
            let _ = writeln!(out, "\n# TYPE {name} {}", entry.kind);
            entry.body.render(name, &mut out);
        }
        out
    }

    fn single<M: Metric>(&self, name: &'static str, help: &'static str, metric: M) -> Arc<M> {
        let metric = Arc::new(metric);
        self.add::<M>(name, help, Arc::new(Single(Arc::clone(&metric))));
        metric
    }

    fn family<M: Metric, const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        family: Family<M, N>,
    ) -> Arc<Family<M, N>> {
        let family = Arc::new(family);
        self.add::<M>(name, help, Arc::clone(&family) as Arc<dyn Render>);
        family
    }

    fn add<M: Metric>(&self, name: &'static str, help: &'static str, body: Arc<dyn Render>) {
        assert!(is_name(name, true), "metric name {name:?} is invalid");
        assert!(
            M::TYPE != "counter" || name.ends_with("_total"),
            "{name:?} does not end in _total"
        );
        let entry = Entry {
            help,
            kind: M::TYPE,
            body,
        };
        let taken = self.entries.write().insert(name, entry).is_some();
        assert!(!taken, "metric {name:?} is registered twice");
    }
}
