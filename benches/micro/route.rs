//! What routing costs a request: each policy over 200 live targets, the one target of most models, and
//! the hashes of a prompt's beginning.
//!
//! Goal: at most 3 µs with 200 targets, about 50 ns with one.
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_core::alarm::Alarm;
use forebay_core::counters::Counters;
use forebay_core::dispatch::{self, Placed, Trail, Waiting};
use forebay_core::gateway::Endpoint;
use forebay_core::limit::Region;
use forebay_core::queue;
use forebay_core::route::{Ask, Draws, Prefix};
use forebay_core::snapshot::{
    Model, ModelSpec, PolicySpec, Snapshot, SnapshotSpec, StickyBy, StickySpec, TargetSpec,
    UpstreamSpec,
};
use tokio::time::Instant;

struct Silent;

impl Waiting for Silent {
    fn held(&mut self) {}
}

/// A model of so many targets, each at an upstream of its own with a bound on what is in flight.
fn snapshot(count: usize, policy: PolicySpec, sticky: Option<StickySpec>) -> Snapshot {
    let name = |at: usize| format!("gpu-{at}");
    let spec = SnapshotSpec {
        upstreams: (0..count)
            .map(|at| UpstreamSpec {
                name: name(at),
                url: "http://127.0.0.1:9".to_owned(),
                connect_s: 1.0,
                max_concurrency: Some(256),
                ..UpstreamSpec::default()
            })
            .collect(),
        models: vec![ModelSpec {
            name: "m".to_owned(),
            targets: (0..count)
                .map(|at| TargetSpec {
                    upstream: name(at),
                    model: "m".to_owned(),
                    weight: 1 + at as u32 % 3,
                    ..TargetSpec::default()
                })
                .collect(),
            first_byte_s: 30.0,
            idle_s: 30.0,
            total_s: 600.0,
            policy,
            sticky,
            ..ModelSpec::default()
        }],
        ..SnapshotSpec::default()
    };
    let region = Arc::new(Region::small(1024, 1, 0));
    Snapshot::build(spec, &Snapshot::default(), &Counters::new(), &region).expect("a snapshot")
}

fn ask(seed: u64, prompt: &str) -> Ask {
    Ask {
        queue: queue::Ask {
            account: Arc::from("acme"),
            weight: 1.0,
            priority: queue::Priority::default(),
            tokens: 100,
        },
        endpoint: Endpoint::Chat,
        context_tokens: 100,
        session: Some(seed % 1000),
        prefix: Prefix::of(prompt.as_bytes()),
        pricing: None,
        seed,
    }
}

/// One request's target, at once.
fn next(model: &Model, ask: &Ask, alarm: &mut Alarm, until: Instant) -> Placed {
    let mut trail = Trail::new();
    let mut silent = Silent;
    let mut next = pin!(dispatch::next(
        &mut trail,
        model,
        ask,
        until,
        alarm,
        &mut silent
    ));
    let polled = next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    match polled {
        Poll::Ready(Ok(placed)) => placed,
        _ => unreachable!("all targets are free"),
    }
}

/// Prompts of 4 KiB in 50 families.
fn prompts() -> Vec<String> {
    let text = |family: u64| {
        let mut draws = Draws::new(family);
        (0..256).fold(String::new(), |text, _| {
            text + &format!("{:016x}", draws.next())
        })
    };
    (0..50)
        .map(|family| format!("[{{\"role\":\"user\",\"content\":\"{}\"}}]", text(family)))
        .collect()
}

fn route(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let until = Instant::now() + Duration::from_secs(3600);
    let mut alarm = Alarm::new(until);
    let asks: Vec<Ask> = prompts()
        .iter()
        .zip(0..)
        .map(|(prompt, seed)| ask(seed, prompt))
        .collect();
    let sticky = StickySpec {
        by: StickyBy::Session,
        ttl_s: 600.0,
    };
    let mut group = c.benchmark_group("route");
    for (name, count, policy, sticky) in [
        ("one_target", 1, PolicySpec::LeastLoad, None),
        ("round_robin/200", 200, PolicySpec::RoundRobin, None),
        ("least_load/200", 200, PolicySpec::LeastLoad, None),
        ("power_of_two/200", 200, PolicySpec::PowerOfTwo, None),
        ("prefix_affinity/200", 200, PolicySpec::PrefixAffinity, None),
        ("latency/200", 200, PolicySpec::Latency, None),
        ("sticky/200", 200, PolicySpec::LeastLoad, Some(sticky)),
    ] {
        let snapshot = snapshot(count, policy, sticky);
        let model = snapshot.models.get("m").expect("the model");
        // Some are busy, as engines are.
        let mut busy = Vec::new();
        for at in 0..count * 2 {
            let ask = asks.get(at % asks.len()).expect("an ask");
            busy.push(next(model, ask, &mut alarm, until));
        }
        let mut turn = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                turn += 1;
                let ask = asks.get(turn % asks.len()).expect("an ask");
                black_box(next(model, black_box(ask), &mut alarm, until))
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("prefix");
    for bytes in [500, 4_000, 100_000] {
        let prompt = "y".repeat(bytes);
        group.throughput(Throughput::Bytes(bytes.min(24 * 1024) as u64));
        group.bench_function(bytes.to_string(), |b| {
            b.iter(|| Prefix::of(black_box(prompt.as_bytes())));
        });
    }
    group.finish();
}

criterion_group!(benches, route);
criterion_main!(benches);
