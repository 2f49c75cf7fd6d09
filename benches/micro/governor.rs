//! One decision on requests alone, beside the crate `governor`: both find the key's state in a table
//! of 1, 10³ and 10⁶ keys and read the clock, on one thread and on two.
//!
//! `cargo bench --bench governor`. Criterion's times are wall time for one decision of one thread,
//! also where two run. `governor` is as its documentation sets it up: a `DashMap` of states and
//! `quanta`'s clock. The core's meter counts requests in flight besides.

#![expect(clippy::unwrap_used, reason = "a bench that goes wrong may stop")]

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay_core::limit::{Limits, Meter, Region, Table};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use rustix::time::{ClockId, clock_gettime};

const PER_MINUTE: u32 = u32::MAX;

/// Keys in no order of memory.
struct Walk(u64);

impl Walk {
    fn next(&mut self, keys: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(keys)) >> 64) as u64
    }
}

/// Ids as a 64-bit hash would give them.
fn id(i: u64) -> u64 {
    (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// As the gateway reads it.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The longest that one of `threads` took for `rounds` decisions.
fn timed(threads: u64, rounds: u64, keys: u64, decide: &(impl Fn(u64) + Sync)) -> Duration {
    let run = |seed: u64| {
        let mut walk = Walk(0x0139_408D_CBBF_7A44 ^ seed);
        let start = Instant::now();
        for _ in 0..rounds {
            decide(id(walk.next(keys)));
        }
        start.elapsed()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|seed| scope.spawn(move || run(seed << 32)))
            .collect();
        let own = run(0);
        others
            .into_iter()
            .map(|other| other.join().unwrap())
            .fold(own, Duration::max)
    })
}

fn governor(c: &mut Criterion) {
    let limits = Limits {
        rpm: Some(u64::from(PER_MINUTE)),
        rpm_burst: Some(u64::from(PER_MINUTE)),
        ..Limits::default()
    };
    for keys in [1_u64, 1_000, 1_000_000] {
        let region = Arc::new(Region::private(keys as usize).unwrap());
        let table: Table<Meter> = Table::default();
        let quota = Quota::per_minute(NonZeroU32::new(PER_MINUTE).unwrap());
        let other: DefaultKeyedRateLimiter<u64> = RateLimiter::keyed(quota);
        for key in (0..keys).map(id) {
            table.insert(key, Arc::new(Meter::with_id(&region, key, &limits)));
            other.check_key(&key).unwrap();
        }
        let mut group = c.benchmark_group(format!("governor/{keys}_keys"));
        group
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new("forebay", threads), |b| {
                let decide = |key| {
                    table
                        .with(key, |meter| {
                            assert!(black_box(meter.admit(now(), 0)).is_ok());
                            meter.release();
                        })
                        .unwrap();
                };
                b.iter_custom(|rounds| timed(threads, rounds, keys, &decide));
            });
            group.bench_function(BenchmarkId::new("governor", threads), |b| {
                let decide = |key| assert!(black_box(other.check_key(&key)).is_ok());
                b.iter_custom(|rounds| timed(threads, rounds, keys, &decide));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, governor);
criterion_main!(benches);
