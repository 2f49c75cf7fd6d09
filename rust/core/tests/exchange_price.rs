//! What a request is booked at: the price of the upstream that served it, when it was admitted.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::gateway::Endpoint;
use forebay_core::keys::KeySpec;
use forebay_core::metrics::Registry;
use forebay_core::price::PriceSpec;
use forebay_core::slot::Slot;
use forebay_core::spool::{Config, Disk, Durability, OnFull, Spool, SpoolCounters, System};
use forebay_core::subjects::LimitsSpec;
use support::engine::{Engine, Step, UNARY, unary};
use support::{Answer, KEY, Rig, Setup, chat, key_spec, until};

/// What [`UNARY`] says it used.
const PROMPT: u64 = 7;
const OUTPUT: u64 = 2;

/// A price in force of all tokens at `pico` each.
fn price(id: i64, upstream: Option<&str>, pico: u64) -> PriceSpec {
    PriceSpec {
        id,
        model: "m".to_owned(),
        upstream: upstream.map(str::to_owned),
        input: pico,
        cached: pico,
        cache_write: pico,
        output: pico,
        reasoning: pico,
        ..PriceSpec::default()
    }
}

fn with_budget(nano: u64) -> KeySpec {
    KeySpec {
        limits: LimitsSpec {
            budget_nano: Some(nano),
            budget_period: Some("total".to_owned()),
            ..LimitsSpec::default()
        },
        ..key_spec(KEY)
    }
}

async fn answering() -> Engine {
    Engine::always(vec![Step::Send(unary("200 OK", UNARY))]).await
}

fn unpriced(rig: &Rig) -> bool {
    let text = rig.gateway.metrics.registry.render();
    text.contains("forebay_unpriced_requests_total{model=\"m\"} 1\n")
}

#[tokio::test]
async fn the_upstream_that_served_decides() {
    let (down, up) = (Engine::down().await, answering().await);
    let setup = Setup {
        prices: vec![
            price(1, None, 1_000),
            price(2, Some("a"), 10_000),
            price(3, Some("b"), 333),
        ],
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&down, &up]);
    assert_eq!(rig.chat(false).await.status, 200);
    let event = rig.event().await;
    assert_eq!(event.upstream.as_deref(), Some("b"));
    assert_eq!(event.price_id, Some(3));
    assert_eq!(event.cost_pico, Some((PROMPT + OUTPUT) * 333));
    assert!(!unpriced(&rig));
}

#[tokio::test]
async fn an_account_has_its_own_price_and_time_counts() {
    let engine = answering().await;
    let own = PriceSpec {
        account: Some("acme".to_owned()),
        request: 5,
        second: 3,
        ..price(2, None, 1)
    };
    let other = PriceSpec {
        account: Some("other".to_owned()),
        ..price(3, Some("a"), 7)
    };
    let setup = Setup {
        prices: vec![price(1, Some("a"), 1_000), own, other],
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    rig.chat(false).await;
    let event = rig.event().await;
    assert_eq!(event.price_id, Some(2));
    let duration_us = u64::try_from(event.ended_us - event.admitted_us).unwrap();
    assert!(duration_us > 0);
    assert_eq!((event.duration_ms * 1e3).round() as u64, duration_us);
    let cost = PROMPT + OUTPUT + 5 + 3 * duration_us;
    assert_eq!(event.cost_pico, Some(cost));
}

#[tokio::test]
async fn only_what_is_in_force_at_admission_holds() {
    let engine = answering().await;
    let ended = PriceSpec {
        to_us: Some(1_000_000),
        ..price(1, None, 1)
    };
    let later = PriceSpec {
        from_us: i64::MAX - 1,
        ..price(2, None, 2)
    };
    let setup = Setup {
        prices: vec![ended, later],
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    rig.chat(false).await;
    let event = rig.event().await;
    assert_eq!((event.price_id, event.cost_pico), (None, None));
    assert!(unpriced(&rig));
    rig.gateway.load_prices(vec![price(9, None, 1)]).unwrap();
    rig.chat(false).await;
    assert_eq!(rig.event().await.price_id, Some(9));
    // A book that is refused leaves the one before.
    let double = vec![price(10, None, 1), price(11, None, 1)];
    assert!(rig.gateway.load_prices(double).is_err());
    rig.chat(false).await;
    assert_eq!(rig.event().await.price_id, Some(9));
}

#[tokio::test]
async fn what_failed_costs_nothing() {
    let fee = PriceSpec {
        request: 1_000_000,
        second: 1_000,
        ..price(1, None, 1_000)
    };
    for engine in [
        Engine::down().await,
        Engine::always(vec![Step::Send(unary("500 Oops", "{}"))]).await,
    ] {
        let setup = Setup {
            prices: vec![fee.clone()],
            ..Setup::default()
        };
        let rig = Rig::new(setup, &[&engine]);
        assert!(rig.chat(false).await.status >= 500);
        let event = rig.event().await;
        assert_eq!((event.price_id, event.cost_pico), (None, Some(0)));
        assert!(!unpriced(&rig));
    }
    // A client that leaves an engine at work has been served.
    let engine = Engine::always(vec![Step::Hang]).await;
    let setup = Setup {
        prices: vec![fee],
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&engine]);
    let slot = rig.admit(Endpoint::Chat, &chat(false));
    until("it runs", || engine.active() == 1).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    slot.cancel();
    let event = rig.event().await;
    assert_eq!(event.price_id, Some(1));
    assert!(event.cost_pico > Some(1_000_000 + 2_000 * 1_000));
}

#[tokio::test]
async fn a_budget_reserves_by_the_dearest_upstream_and_pays_the_one_that_served() {
    let body = "{\"model\":\"m\",\"prompt\":[1,2,3,4,5,6,7],\"max_tokens\":2}";
    let reserved = |dear: u64, budget: u64| async move {
        let (first, second) = (answering().await, answering().await);
        let setup = Setup {
            keys: vec![with_budget(budget)],
            prices: vec![price(1, None, 1_000), price(2, Some("b"), dear)],
            ..Setup::default()
        };
        let rig = Rig::new(setup, &[&first, &second]);
        let answer = Answer::of(&rig.admit(Endpoint::Completions, body)).await;
        let spent = if answer.status == 200 {
            rig.event().await.cost_pico
        } else {
            None
        };
        (answer.status, spent)
    };
    let tokens = PROMPT + OUTPUT;
    assert_eq!(reserved(1_000, tokens).await, (200, Some(tokens * 1_000)));
    assert_eq!(reserved(3_000, tokens).await.0, 429);
    assert_eq!(
        reserved(3_000, 3 * tokens).await,
        (200, Some(tokens * 1_000))
    );
    // Nano-USD, rounded up.
    assert_eq!(reserved(1_001, tokens).await.0, 429);
    assert_eq!(reserved(1_001, tokens + 1).await.0, 200);
}

#[tokio::test]
async fn a_budget_needs_a_price_wherever_the_model_is_served() {
    let (first, second) = (answering().await, answering().await);
    let setup = Setup {
        keys: vec![with_budget(1_000_000)],
        prices: vec![price(1, Some("a"), 1_000)],
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&first, &second]);
    let answer = rig.chat(false).await;
    assert_eq!(answer.status, 403);
    assert!(
        answer.body.contains("\"model_has_no_price\""),
        "{}",
        answer.body
    );
    let prices = vec![price(1, Some("a"), 1_000), price(2, None, 0)];
    rig.gateway.load_prices(prices).unwrap();
    assert_eq!(rig.chat(false).await.status, 200);
    rig.event().await;
}

/// One engine answers that it is busy, and the place at the other is taken: (gateway and engines, the
/// request that has the place, the one that waits for it).
async fn between_two() -> (Rig, [Engine; 2], [Arc<Slot>; 2]) {
    between_two_in(None).await
}

/// The same, recorded in a spool.
async fn between_two_in(spool: Option<&Arc<Spool>>) -> (Rig, [Engine; 2], [Arc<Slot>; 2]) {
    let busy = Engine::always(vec![Step::Send(unary("503 Busy", "{}"))]).await;
    let taken = Engine::always(vec![Step::Hang]).await;
    let setup = Setup {
        max_concurrency: Some(1),
        prices: vec![PriceSpec {
            request: 5,
            ..price(1, None, 1_000)
        }],
        ..Setup::default()
    };
    let rig = Rig::new(setup, &[&busy, &taken]);
    if let Some(spool) = spool {
        rig.gateway.record_in(Arc::clone(spool)).unwrap();
    }
    let first = rig.admit(Endpoint::Chat, &chat(false));
    until("the place is taken", || taken.active() == 1).await;
    let second = rig.admit(Endpoint::Chat, &chat(false));
    until("it waits", || {
        rig.gateway.metrics.gate("b").waiting.get() == 1
    })
    .await;
    assert_eq!(busy.requests().len(), 2);
    (rig, [busy, taken], [first, second])
}

#[tokio::test]
async fn who_leaves_between_two_engines_pays_neither() {
    let (rig, _engines, [first, second]) = between_two().await;
    second.cancel();
    until("it left", || rig.gateway.events.len() == 1).await;
    let gone = rig.gateway.events.take(1).remove(0);
    assert_eq!((gone.outcome, gone.attempts), ("client_closed", 1));
    assert_eq!((gone.usage.total(), gone.cost_pico), (0, Some(0)));
    assert_eq!(gone.price_id, None);
    first.cancel();
    let served = rig.event().await;
    assert!(served.usage.total() > 0, "an engine had this one");
    assert_eq!(served.price_id, Some(1));
}

#[tokio::test]
async fn what_a_stop_finds_between_two_engines_costs_nothing() {
    let (rig, _engines, _slots) = between_two().await;
    rig.gateway.halt();
    let mut events = rig.events(2).await;
    events.sort_by_key(|event| event.attempts);
    let [between, served] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((between.outcome, between.attempts), ("gateway_died", 1));
    assert_eq!((between.usage.total(), between.cost_pico), (0, Some(0)));
    assert_eq!((served.attempts, served.price_id), (2, Some(1)));
}

#[tokio::test]
async fn what_a_crash_finds_between_two_engines_costs_nothing() {
    let root = std::env::temp_dir().join(format!("forebay-between-{}", uuid::Uuid::now_v7()));
    let open = |root: &Path| {
        let config = Config {
            root: root.to_owned(),
            node: "n".to_owned(),
            segment_bytes: 256 * 1024,
            max_bytes: 8 << 20,
            durability: Durability::Process,
            on_full: OnFull::Refuse,
        };
        let disk: Arc<dyn Disk> = Arc::new(System);
        let counters = SpoolCounters::registered(&Registry::default());
        Spool::create(config, *uuid::Uuid::now_v7().as_bytes(), &disk, counters).unwrap()
    };
    let (live, found) = (root.join("live"), root.join("found"));
    let spool = open(&live);
    let (rig, _engines, _slots) = between_two_in(Some(&spool)).await;
    // What a process that dies now leaves.
    let copied = Command::new("cp").arg("-r").args([&live, &found]).status();
    assert!(copied.unwrap().success());
    let next = open(&found);
    assert_eq!(
        next.adopt(&|served| Some((1, served.usage.total())))
            .unwrap(),
        1
    );
    let batch = next.batch(10).unwrap();
    let rows: Vec<serde_json::Value> = (0..batch.len())
        .map(|index| serde_json::from_str(&batch.json(index).unwrap()).unwrap())
        .collect();
    let of = |attempts: u64| rows.iter().find(|row| row["attempts"] == attempts).unwrap();
    assert_eq!(of(1)["cost_pico"], 0);
    assert_eq!(of(1)["prompt_tokens"], 0);
    assert_eq!(of(2)["price_id"], 1);
    drop(rig);
    std::fs::remove_dir_all(&root).unwrap();
}
