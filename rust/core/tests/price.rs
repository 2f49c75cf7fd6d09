//! The price book: which price holds, and what a request costs by it.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use forebay_core::price::{MAX_COST, PriceBook, PriceSpec};
use forebay_core::usage::Usage;
use proptest::prelude::*;

/// A row that holds from `from_us` on, for good.
fn row(id: i64, account: Option<&str>, upstream: Option<&str>, from_us: i64) -> PriceSpec {
    PriceSpec {
        id,
        model: "m".to_owned(),
        upstream: upstream.map(str::to_owned),
        account: account.map(str::to_owned),
        from_us,
        ..PriceSpec::default()
    }
}

fn book(specs: &[PriceSpec]) -> PriceBook {
    PriceBook::of(specs.to_vec()).unwrap()
}

/// The id of the price of model `m` that holds.
fn held(book: &PriceBook, account: &str, upstream: &str, unix_us: i64) -> Option<i64> {
    let price = book.rates("m", account).at(upstream, unix_us)?;
    Some(price.id)
}

#[test]
fn the_most_specific_price_in_force_holds() {
    let all = [
        row(1, None, None, 0),
        row(2, None, Some("gpu"), 10),
        row(3, Some("acme"), None, 20),
        row(4, Some("acme"), Some("gpu"), 30),
    ];
    let book = book(&all);
    assert_eq!(held(&book, "acme", "gpu", -1), None);
    assert_eq!(held(&book, "acme", "gpu", 9), Some(1));
    assert_eq!(held(&book, "acme", "gpu", 10), Some(2));
    assert_eq!(held(&book, "acme", "gpu", 20), Some(3));
    assert_eq!(held(&book, "acme", "gpu", 30), Some(4));
    assert_eq!(held(&book, "acme", "cpu", 30), Some(3));
    assert_eq!(held(&book, "other", "gpu", 30), Some(2));
    assert_eq!(held(&book, "other", "cpu", 30), Some(1));
    assert!(book.rates("n", "acme").at("gpu", 30).is_none());
}

#[test]
fn an_end_gives_way_to_the_next_specific() {
    let mut own = row(2, Some("acme"), None, 10);
    own.to_us = Some(20);
    let book = book(&[own, row(1, None, None, 0), row(3, Some("acme"), None, 30)]);
    assert_eq!(held(&book, "acme", "gpu", 19), Some(2));
    assert_eq!(held(&book, "acme", "gpu", 20), Some(1));
    assert_eq!(held(&book, "acme", "gpu", 29), Some(1));
    assert_eq!(held(&book, "acme", "gpu", 30), Some(3));
}

#[test]
fn a_book_that_contradicts_itself_is_refused() {
    let first = row(7, None, None, 0);
    let error = PriceBook::of(vec![row(8, None, None, 5), first.clone()]).unwrap_err();
    assert!(error.contains('7') && error.contains('8'), "{error}");
    for to_us in [0, -1] {
        let backwards = PriceSpec {
            to_us: Some(to_us),
            ..first.clone()
        };
        assert!(PriceBook::of(vec![backwards]).unwrap_err().contains('7'));
    }
}

#[test]
fn records_are_read_as_the_store_writes_them() {
    let json = r#"[{"id":5,"model":"m","upstream":null,"account":"acme","from_us":0,"to_us":10,
        "input":150000,"cached":75000,"cache_write":187500,"output":600000,"reasoning":600000,
        "request":1,"second":0}]"#;
    let specs = serde_json::from_str(json).unwrap();
    let book = PriceBook::of(specs).unwrap();
    assert_eq!(held(&book, "acme", "gpu", 9), Some(5));
    let unknown = json.replace("\"second\"", "\"hour\"");
    assert!(serde_json::from_str::<Vec<PriceSpec>>(&unknown).is_err());
}

#[test]
fn costs_are_exact_and_budgets_round_up_once() {
    // 0.15, 0.075, 0.1875, 0.60 and 1.20 USD per million, 0.0001 a request, 0.0005 a second.
    let book = book(&[PriceSpec {
        input: 150_000,
        cached: 75_000,
        cache_write: 187_500,
        output: 600_000,
        reasoning: 1_200_000,
        request: 100_000_000,
        second: 500,
        ..row(1, None, None, 0)
    }]);
    let price = book.rates("m", "a").at("u", 0).unwrap();
    let usage = Usage {
        prompt: 1_000,
        cached: 400,
        cache_write: 100,
        completion: 200,
        reasoning: 50,
    };
    let pico = 500 * 150_000 + 400 * 75_000 + 100 * 187_500 + 150 * 600_000 + 50 * 1_200_000;
    assert_eq!(
        price.cost(&usage, 1_000_001),
        pico + 100_000_000 + 500_000_500
    );
    assert_eq!(price.nano(&usage, 1), 373_751);
    assert_eq!(price.nano(&Usage::default(), 0), 100_000);
    let endless = Usage {
        prompt: u64::MAX,
        completion: u64::MAX,
        ..Usage::default()
    };
    assert_eq!(price.cost(&endless, u64::MAX), MAX_COST);
    assert_eq!(price.nano(&endless, u64::MAX), u64::MAX);
}

prop_compose! {
    fn amounts()(amounts in prop::array::uniform6(0..=1_000_000_000_000_u64), request in 0..=1_000_000_000_000_000_000_u64) -> PriceSpec {
        let [input, cached, cache_write, output, reasoning, second] = amounts;
        PriceSpec { input, cached, cache_write, output, reasoning, request, second, ..row(1, None, None, 0) }
    }
}

prop_compose! {
    fn usage()(counts in prop::array::uniform5(0..1_u64 << 40)) -> Usage {
        let [prompt, completion, cached, reasoning, cache_write] = counts;
        Usage { prompt, completion, cached, reasoning, cache_write }
    }
}

proptest! {
    #[test]
    fn cost_is_the_formula((spec, usage) in (amounts(), usage()), duration_us in 0..100_000_000_000_u64) {
        let book = book(std::slice::from_ref(&spec));
        let price = book.rates("m", "a").at("u", 0).unwrap();
        // The formula as it is written down, with parts no larger than their whole; in pico-USD for
        // 10^6 tokens, so that the division by 10^6 has to leave nothing.
        let of = |count: u64, pico: u64| u128::from(count) * u128::from(pico) * 1_000_000;
        let cached = usage.cached.min(usage.prompt);
        let written = usage.cache_write.min(usage.prompt - cached);
        let reasoning = usage.reasoning.min(usage.completion);
        let micro = of(usage.prompt - cached - written, spec.input)
            + of(cached, spec.cached)
            + of(written, spec.cache_write)
            + of(usage.completion - reasoning, spec.output)
            + of(reasoning, spec.reasoning)
            + of(duration_us, spec.second)
            + of(1, spec.request);
        prop_assert_eq!(micro % 1_000_000, 0);
        let pico = micro / 1_000_000;
        prop_assert_eq!(u128::from(price.cost(&usage, duration_us)), pico.min(u128::from(MAX_COST)));
        let nano = u128::from(price.nano(&usage, duration_us));
        prop_assert!(nano * 1000 >= pico && (nano == 0 || (nano - 1) * 1000 < pico) || nano == u128::from(u64::MAX));
    }

    #[test]
    fn what_is_measured_more_costs_no_less((spec, usage) in (amounts(), usage()), more in 0..1_u64 << 30) {
        let book = book(&[spec]);
        let price = book.rates("m", "a").at("u", 0).unwrap();
        let base = price.cost(&usage, 0);
        prop_assert!(price.cost(&usage, more) >= base);
        let longer = Usage { completion: usage.completion + more, ..usage };
        if usage.reasoning <= usage.completion {
            prop_assert!(price.cost(&longer, 0) >= base);
        }
    }

    /// Against a search through all rows, with the four places written out.
    #[test]
    fn lookup_is_the_search_through_all(
        rows in prop::collection::vec((0..2_usize, 0..2_usize, 0..12_i64, prop::option::of(1..6_i64)), 0..24),
        asked in (0..2_usize, 0..2_usize, -1..20_i64),
    ) {
        let accounts = [None, Some("acme")];
        let upstreams = [None, Some("gpu")];
        let mut specs: Vec<PriceSpec> = Vec::new();
        for (id, (account, upstream, from, length)) in rows.into_iter().enumerate() {
            let mut spec = row(i64::try_from(id).unwrap(), accounts[account], upstreams[upstream], from);
            spec.to_us = length.map(|length| from + length);
            let overlaps = specs.iter().any(|other| {
                (&other.account, &other.upstream) == (&spec.account, &spec.upstream)
                    && other.from_us < spec.to_us.unwrap_or(i64::MAX)
                    && spec.from_us < other.to_us.unwrap_or(i64::MAX)
            });
            if !overlaps {
                specs.push(spec);
            }
        }
        let account = ["other", "acme"][asked.0];
        let upstream = ["cpu", "gpu"][asked.1];
        let at = asked.2;
        let expected = [
            (Some(account), Some(upstream)),
            (Some(account), None),
            (None, Some(upstream)),
            (None, None),
        ]
        .into_iter()
        .find_map(|(account, upstream)| {
            specs.iter().find(|spec| {
                (spec.account.as_deref(), spec.upstream.as_deref()) == (account, upstream)
                    && spec.from_us <= at
                    && spec.to_us.is_none_or(|to| at < to)
            })
        })
        .map(|spec| spec.id);
        prop_assert_eq!(held(&book(&specs), account, upstream, at), expected);
    }
}
