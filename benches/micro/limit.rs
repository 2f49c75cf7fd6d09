//! What one admission costs: a hot bucket, and meters found among up to a million keys at random.
//!
//! `cargo bench --bench limit`. `admit` is `Meter::admit` of a request and tokens where the caller
//! holds the meter; `lookup_admit` finds it in the table first, and `reserve_settle` is a request's
//! whole life. `threads_2` runs `lookup_admit` on two threads and reports wall time per admission
//! of one of them. A million meters fit no cache: `memory` is what one dependent access to as many
//! lines costs on this machine, of which `admit` needs two and `lookup_admit` three.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench that goes wrong may stop"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay_core::limit::{
    Ask, Bucket, Limits, Meter, Now, OnStoreLoss, Quota, Region, Reservation, Table,
};
use forebay_core::metrics::{Bounds, Histogram};

const LIMITS: Limits = Limits {
    rpm: Some(u32::MAX as u64),
    rpm_burst: None,
    tpm: Some(100_000_000_000),
    tpm_burst: None,
    concurrency: Some(u32::MAX - 1),
    rps: None,
    rps_burst: None,
    budget: None,
    on_store_loss: OnStoreLoss::Share,
};

/// Ids as a 64-bit hash would give them.
fn id(i: u64) -> u64 {
    let mut x = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A random walk over `0..keys`, a power of two or one.
struct Walk(u64);

impl Walk {
    fn next(&mut self, keys: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(keys)) >> 64) as u64
    }
}

/// A table of `keys` meters, and the meters in an order unlike that of their addresses.
fn filled(keys: u64) -> (Table<Meter>, Vec<Arc<Meter>>) {
    let table = Table::default();
    let region = Arc::new(Region::private(keys as usize).unwrap());
    let meter = |i| Arc::new(Meter::with_id(&region, id(i), &LIMITS));
    let mut meters: Vec<_> = (0..keys).map(meter).collect();
    for (i, meter) in (0..).zip(&meters) {
        table.insert(id(i), Arc::clone(meter));
    }
    let mut walk = Walk(2_862_933_555_777_941_757);
    for last in (1..meters.len()).rev() {
        meters.swap(last, walk.next(last as u64 + 1) as usize);
    }
    (table, meters)
}

#[repr(align(128))]
struct Line(AtomicU64);

impl From<u64> for Line {
    fn from(i: u64) -> Self {
        Self(AtomicU64::new(i))
    }
}

fn admit(meter: &Meter, now: u64) {
    assert!(black_box(meter.admit(black_box(now), black_box(500))).is_ok());
    meter.release();
}

fn limit(c: &mut Criterion) {
    let mut group = c.benchmark_group("limit");
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));

    let bucket = Bucket::new(Quota::per_minute(100_000_000_000, None).unwrap());
    let mut now = 0;
    group.bench_function("bucket_admit", |b| {
        b.iter(|| {
            now += 1_000;
            bucket.admit(black_box(now), black_box(500))
        });
    });

    for keys in [1_u64, 1 << 10, 1 << 20] {
        let (table, meters) = filled(keys);
        let mut walk = Walk(88_172_645_463_325_252);
        let (mut now, mut last) = (0, 0);
        let lines: Vec<Line> = (0..keys).map(Line::from).collect();
        group.bench_function(BenchmarkId::new("memory", keys), |b| {
            b.iter(|| {
                // The address needs the last value, as a request's does its key: no overlap.
                let line = &lines[((walk.next(keys) ^ last) & (keys - 1)) as usize];
                last = line.0.fetch_add(2, Relaxed) & 1;
            });
        });
        drop(lines);
        // In sequence through shuffled pointers: the pointer is at hand, the meter is not.
        let mut at = meters.iter().cycle();
        group.bench_function(BenchmarkId::new("admit", keys), |b| {
            b.iter(|| {
                now += 1_000;
                admit(at.next().unwrap(), now);
            });
        });
        group.bench_function(BenchmarkId::new("lookup_admit", keys), |b| {
            b.iter(|| {
                now += 1_000;
                table
                    .with(id(walk.next(keys)), |meter| admit(meter, now))
                    .unwrap();
            });
        });
        group.bench_function(BenchmarkId::new("reserve_settle", keys), |b| {
            b.iter(|| {
                now += 1_000;
                let meter = table.get(id(walk.next(keys))).unwrap();
                let meters = [None, Some(meter), None, None];
                let now = Now {
                    mono: now,
                    unix_s: 0,
                };
                let ask = Ask {
                    tokens: 500,
                    nano: 0,
                };
                let (reservation, _) = Reservation::admit(meters, now, ask).unwrap();
                reservation.settle(black_box(300), 0);
            });
        });
        group.bench_function(BenchmarkId::new("threads_2", keys), |b| {
            b.iter_custom(|rounds| {
                let run = |seed: u64| {
                    let (table, mut walk, mut now) = (&table, Walk(seed), now);
                    move || {
                        let start = Instant::now();
                        for _ in 0..rounds {
                            now += 1_000;
                            table
                                .with(id(walk.next(keys)), |meter| admit(meter, now))
                                .unwrap();
                        }
                        start.elapsed()
                    }
                };
                let spent = std::thread::scope(|scope| {
                    let other = scope.spawn(run(6_364_136_223_846_793_005));
                    run(1_442_695_040_888_963_407)().max(other.join().unwrap())
                });
                now += rounds * 1_000;
                spent
            });
        });
    }

    let histogram = Histogram::new(Bounds::SECONDS);
    let mut walk = Walk(88_172_645_463_325_252);
    group.bench_function("histogram_observe", |b| {
        b.iter(|| histogram.observe(black_box(walk.next(1 << 20))));
    });
    group.finish();
}

criterion_group!(benches, limit);
criterion_main!(benches);
