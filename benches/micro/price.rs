//! The price of a request: which one holds in a large book, and the cost by it.
//!
//! Goal: under 100 ns together, which every admitted request pays once.
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_core::price::{PriceBook, PriceSpec};
use forebay_core::usage::Usage;

const MODELS: i64 = 200;
const ACCOUNTS: i64 = 50;
const MONTH_US: i64 = 30 * 86_400 * 1_000_000;

/// Every model has a base price and one of an upstream, each changed twelve times, and every account
/// one of its own for every tenth model.
fn specs() -> Vec<PriceSpec> {
    let mut specs = Vec::new();
    let mut id = 0;
    for model in 0..MODELS {
        let mut push = |account: Option<i64>, upstream: Option<&str>, from_us, to_us| {
            id += 1;
            specs.push(PriceSpec {
                id,
                model: format!("organisation/model-{model}"),
                account: account.map(|number| format!("account-{number}")),
                upstream: upstream.map(str::to_owned),
                from_us,
                to_us,
                input: 150_000,
                output: 600_000,
                ..PriceSpec::default()
            });
        };
        for month in 0..12 {
            let end = (month < 11).then_some((month + 1) * MONTH_US);
            push(None, None, month * MONTH_US, end);
            push(None, Some("gpu-a"), month * MONTH_US, end);
        }
        if model % 10 == 0 {
            for account in 0..ACCOUNTS {
                push(Some(account), None, 0, None);
            }
        }
    }
    specs
}

fn rate(c: &mut Criterion) {
    let book = PriceBook::of(specs()).expect("a sound book");
    let now = 20 * MONTH_US;
    let usage = Usage {
        prompt: 900,
        completion: 250,
        cached: 128,
        ..Usage::default()
    };
    let mut group = c.benchmark_group("price");
    for (name, account, upstream) in [
        ("account", "account-7", "gpu-a"),
        ("upstream", "nobody", "gpu-a"),
        ("base", "nobody", "gpu-b"),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                book.rates(black_box("organisation/model-70"), black_box(account))
                    .at(black_box(upstream), black_box(now))
                    .expect("a price")
                    .cost(black_box(&usage), black_box(1_234_567))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rate);
criterion_main!(benches);
