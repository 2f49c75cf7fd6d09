//! Metrics: what is counted, and the text a scraper reads.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that goes wrong may stop"
)]

use std::time::Duration;

use forebay_core::metrics::{Bounds, Histogram, MAX_SERIES, OTHER, Registry};
use proptest::prelude::*;

const FEW: Bounds = Bounds::micros(&[1_000, 2_500, 1_000_000]);

#[test]
fn renders_the_text_format() {
    let registry = Registry::default();
    let requests = registry.counters(
        "forebay_requests_total",
        "Requests by model and status.",
        ["model", "code"],
    );
    requests.get_or_create(&["llama", "200"]).add(3);
    requests.get_or_create(&["a\"b\\c\nd", "429"]).inc();
    registry
        .gauge("forebay_in_flight", "Back\\slash,\nline and \"quotes\".")
        .set(-2);
    let seconds = registry.histogram("forebay_seconds", "Durations.", FEW);
    for micros in [1_000, 1_001, 2_500, 3_000_000] {
        seconds.observe_duration(Duration::from_micros(micros));
    }
    let tokens = registry.histograms("forebay_tokens", "Tokens.", ["kind"], {
        const SMALL: Bounds = Bounds::new(1, &[1, 4]);
        SMALL
    });
    tokens.get_or_create(&["output"]).observe(4);
    registry.counters("forebay_unused_total", "No series yet.", ["x"]);

    let golden = r#"# HELP forebay_in_flight Back\\slash,\nline and "quotes".
# TYPE forebay_in_flight gauge
forebay_in_flight -2
# HELP forebay_requests_total Requests by model and status.
# TYPE forebay_requests_total counter
forebay_requests_total{model="a\"b\\c\nd",code="429"} 1
forebay_requests_total{model="llama",code="200"} 3
# HELP forebay_seconds Durations.
# TYPE forebay_seconds histogram
forebay_seconds_bucket{le="0.001"} 1
forebay_seconds_bucket{le="0.0025"} 3
forebay_seconds_bucket{le="1"} 3
forebay_seconds_bucket{le="+Inf"} 4
forebay_seconds_sum 3.004501
forebay_seconds_count 4
# HELP forebay_tokens Tokens.
# TYPE forebay_tokens histogram
forebay_tokens_bucket{kind="output",le="1"} 0
forebay_tokens_bucket{kind="output",le="4"} 1
forebay_tokens_bucket{kind="output",le="+Inf"} 1
forebay_tokens_sum{kind="output"} 4
forebay_tokens_count{kind="output"} 1
# HELP forebay_unused_total No series yet.
# TYPE forebay_unused_total counter
"#;
    assert_eq!(registry.render(), golden);
}

#[test]
fn concurrent_updates_are_all_counted() {
    let registry = Registry::default();
    let counters = registry.counters("c_total", "", ["thread"]);
    let gauge = registry.gauge("g", "");
    let histogram = registry.histogram("h", "", Bounds::TOKENS);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (counters, gauge, histogram) = (&counters, &gauge, &histogram);
            scope.spawn(move || {
                let label = ["even", "odd"][thread % 2];
                for value in 0..10_000 {
                    counters.get_or_create(&[label]).inc();
                    gauge.add(2);
                    gauge.dec();
                    histogram.observe(value);
                }
            });
        }
    });
    assert_eq!(counters.get_or_create(&["even"]).get(), 40_000);
    assert_eq!(counters.get_or_create(&["odd"]).get(), 40_000);
    assert_eq!(gauge.get(), 80_000);
    assert_eq!(histogram.count(), 80_000);
    assert_eq!(histogram.sum(), 8 * (9_999 * 10_000 / 2));
}

#[test]
fn labels_from_requests_cannot_fill_the_memory() {
    let registry = Registry::default();
    let counters = registry.counters("c_total", "", ["model", "code"]);
    for i in 0..MAX_SERIES + 500 {
        counters.get_or_create(&[&i.to_string(), "200"]).inc();
    }
    assert_eq!(counters.get_or_create(&[OTHER, OTHER]).get(), 500);
    assert_eq!(counters.get_or_create(&["7", "200"]).get(), 1);
    // A removed series makes room, and starts again from 0.
    counters.remove(&["7", "200"]);
    counters.remove(&["8", "200"]);
    assert_eq!(counters.get_or_create(&["7", "200"]).get(), 0);
}

#[test]
fn presets_reach_from_fast_to_slow() {
    for (bounds, first, last) in [
        (Bounds::SECONDS, "0.001", "81.92"),
        (Bounds::FIRST_TOKEN, "0.001", "10"),
        (Bounds::PER_TOKEN, "0.001", "2.5"),
        (Bounds::TOKENS, "1", "67108864"),
    ] {
        let registry = Registry::default();
        registry.histogram("h", "", bounds).observe(u64::MAX);
        let text = registry.render();
        let les: Vec<&str> = text
            .split("le=\"")
            .skip(1)
            .filter_map(|s| s.split('"').next())
            .collect();
        assert_eq!(
            (les.first(), les.get(les.len() - 2)),
            (Some(&first), Some(&last))
        );
        assert!(text.contains("h_bucket{le=\"+Inf\"} 1\n"));
    }
}

#[test]
fn mistakes_end_the_program_where_they_are_made() {
    fn refuses(f: impl FnOnce(&Registry)) -> bool {
        let registry = Registry::default();
        registry.gauge("taken", "");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&registry))).is_err()
    }
    assert!(refuses(|r| drop(r.gauge("taken", ""))));
    assert!(refuses(|r| drop(r.gauge("1st", ""))));
    assert!(refuses(|r| drop(r.gauge("", ""))));
    assert!(refuses(|r| drop(r.counter("requests", ""))));
    assert!(refuses(|r| drop(r.gauges("g", "", ["a-b"]))));
    assert!(refuses(|r| drop(r.gauges("g", "", ["a", "a"]))));
    assert!(refuses(|r| drop(r.histograms("h", "", ["le"], FEW))));
    assert!(!refuses(|r| drop(r.gauges("ns:g", "", ["a_1", "_b"]))));
    assert!(std::panic::catch_unwind(|| Bounds::new(1, &[1, 1])).is_err());
    assert!(std::panic::catch_unwind(|| Bounds::new(20, &[1])).is_err());
    assert!(std::panic::catch_unwind(|| Bounds::new(1, &[])).is_err());
}

proptest! {
    #[test]
    fn buckets_hold_what_is_at_most_their_bound(values in prop::collection::vec(0..200_u64, 0..50)) {
        const BOUNDS: Bounds = Bounds::new(1, &[0, 10, 100, 150]);
        let registry = Registry::default();
        let histogram = registry.histogram("h", "", BOUNDS);
        for &value in &values {
            histogram.observe(value);
        }
        let text = registry.render();
        for bound in [0, 10, 100, 150] {
            let below = values.iter().filter(|&&value| value <= bound).count();
            let line = format!("h_bucket{{le=\"{bound}\"}} {below}\n");
            prop_assert!(text.contains(&line), "no {line:?} in {text}");
        }
        let (sum, count) = (values.iter().sum::<u64>(), values.len());
        let tail = format!("h_sum {sum}\nh_count {count}\n");
        prop_assert!(text.ends_with(&tail));
    }

    #[test]
    fn sums_are_written_exactly(micros in any::<u64>()) {
        let registry = Registry::default();
        registry.histogram("h", "", FEW).observe(micros);
        let text = registry.render();
        let sum = text.lines().find_map(|line| line.strip_prefix("h_sum ")).unwrap();
        let (whole, rest) = sum.split_once('.').unwrap_or((sum, "0"));
        prop_assert!(rest == "0" || !rest.ends_with('0'));
        let rest = format!("{rest:0<6}").parse::<u64>().unwrap();
        prop_assert_eq!(whole.parse::<u64>().unwrap() * 1_000_000 + rest, micros);
    }
}

#[test]
fn durations_are_counted_in_the_steps_of_the_bounds() {
    let histogram = Histogram::new(FEW);
    histogram.observe_duration(Duration::from_nanos(2_999));
    assert_eq!((histogram.sum(), histogram.count()), (2, 1));
}
