//! The way in to an upstream: permits, turns, and that nothing of them is ever lost.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_core::adaptive::Adaptive;
use forebay_core::counters::Counters;
use forebay_core::error::Error;
use forebay_core::gate::{Gate, GateSpec, Permit};
use forebay_core::limit::{Permits, Region};
use forebay_core::queue::{Ask, Priority};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);

struct Rig {
    gate: Arc<Gate>,
    permits: Arc<Permits>,
    counters: Counters,
}

fn rig(places: u32, max_waiting: usize, timeout: Duration, adaptive: Option<Adaptive>) -> Rig {
    let counters = Counters::new();
    let permits = Arc::new(Permits::new(Some(places)));
    let spec = GateSpec {
        permits: Arc::clone(&permits),
        adaptive,
        max_waiting,
        timeout,
    };
    Rig {
        gate: Gate::new(spec, Some(counters.gate("a"))),
        permits,
        counters,
    }
}

impl Rig {
    fn metric(&self, line: &str) -> String {
        let text = self.counters.registry.render();
        let found = text.lines().find_map(|l| l.strip_prefix(line));
        found.unwrap_or_default().trim().to_owned()
    }
}

fn ask(account: &str) -> Ask {
    Ask {
        account: Arc::from(account),
        weight: 1.0,
        priority: Priority::Interactive,
        tokens: 100,
    }
}

async fn acquire(gate: &Arc<Gate>, ask: &Ask) -> Result<Permit, Error> {
    if let Some(permit) = gate.try_acquire(ask) {
        return Ok(permit);
    }
    let mut waiting = gate.wait(ask, Instant::now() + Duration::from_secs(3600))?;
    match tokio::time::timeout_at(waiting.until(), waiting.turn()).await {
        Ok(turn) => turn,
        Err(_) => Err(waiting.timed_out()),
    }
}

fn spawn(gate: &Arc<Gate>, account: &'static str) -> JoinHandle<Result<Permit, Error>> {
    let gate = Arc::clone(gate);
    tokio::spawn(async move { acquire(&gate, &ask(account)).await })
}

/// Random numbers below `below` (xorshift).
fn random(seed: &mut u64, below: u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed % below
}

#[tokio::test(start_paused = true)]
async fn turns_go_round_and_metrics_tell() {
    let rig = rig(1, 10, Duration::from_secs(30), None);
    let first = rig.gate.try_acquire(&ask("a")).unwrap();
    let waiting = ["a", "a", "b"].map(|name| spawn(&rig.gate, name));
    sleep(100 * MS).await;
    assert_eq!((rig.gate.in_use(), rig.gate.waiting()), (1, 3));
    assert_eq!(rig.metric("forebay_upstream_waiting{upstream=\"a\"}"), "3");
    assert_eq!(
        rig.metric("forebay_upstream_concurrency_limit{upstream=\"a\"}"),
        "1"
    );
    assert!(rig.gate.try_acquire(&ask("c")).is_none());
    drop(first);
    sleep(MS).await;
    let done = waiting.each_ref().map(JoinHandle::is_finished);
    assert_eq!(done, [false, false, true], "b has been served less");
    let [a1, a2, b] = waiting;
    for handle in [b, a1, a2] {
        // Whoever waits behind gets the permit that this one drops.
        drop(handle.await.unwrap().unwrap());
    }
    assert_eq!((rig.gate.in_use(), rig.gate.waiting()), (0, 0));
    assert_eq!(
        rig.metric("forebay_queue_wait_seconds_count{upstream=\"a\"}"),
        "3"
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_say_why_and_until_when() {
    let rig = rig(1, 2, Duration::from_secs(30), None);
    let held = rig.gate.try_acquire(&ask("a")).unwrap();
    let flood: Vec<_> = (0..2).map(|_| spawn(&rig.gate, "flood")).collect();
    sleep(MS).await;
    let shed = |reason: &str| {
        rig.metric(&format!(
            "forebay_queue_shed_total{{upstream=\"a\",reason=\"{reason}\"}}"
        ))
    };
    let full = spawn(&rig.gate, "flood").await.unwrap().err().unwrap();
    assert_eq!(full.code.as_deref(), Some("queue_full"));
    assert_eq!((full.kind.status(), shed("full").as_str()), (503, "1"));
    // Another account is let in for one of those.
    let other = spawn(&rig.gate, "other");
    sleep(MS).await;
    let done: Vec<_> = flood.iter().map(JoinHandle::is_finished).collect();
    assert_eq!(done, [false, true]);
    assert_eq!(shed("displaced"), "1");
    let began = Instant::now();
    let late = other.await.unwrap().err().unwrap();
    assert_eq!(late.code.as_deref(), Some("queue_timeout"));
    assert_eq!(began.elapsed().as_secs(), 29);
    assert!(
        late.headers()
            .iter()
            .any(|(name, _)| *name == "retry-after")
    );
    drop(flood);
    sleep(MS).await;
    assert_eq!(shed("timeout"), "2");
    assert_eq!(rig.gate.waiting(), 0);
    drop(held);
    // Once requests are known to take 100 s, one that may wait 30 is not let in behind another.
    for _ in 0..8 {
        let held = rig.gate.try_acquire(&ask("a")).unwrap();
        sleep(Duration::from_secs(100)).await;
        drop(held);
    }
    let _held = rig.gate.try_acquire(&ask("a")).unwrap();
    let _next = spawn(&rig.gate, "a");
    sleep(MS).await;
    let late = spawn(&rig.gate, "a").await.unwrap().err().unwrap();
    assert_eq!(late.code.as_deref(), Some("queue_timeout"));
    assert_eq!(
        late.retry_after,
        Some(Duration::from_secs(60)),
        "at most a minute"
    );
    assert_eq!(shed("late"), "1");
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_it_refuses() {
    let rig = rig(1, 0, Duration::from_secs(30), None);
    let _held = acquire(&rig.gate, &ask("a")).await.unwrap();
    let refused = acquire(&rig.gate, &ask("a")).await.err().unwrap();
    assert_eq!(refused.code.as_deref(), Some("queue_full"));
    assert!(refused.message.contains("concurrency limit"));
}

/// Other processes share the permits, and say nothing when they return one.
#[tokio::test(start_paused = true)]
async fn a_permit_that_comes_free_elsewhere_is_noticed() {
    let rig = rig(1, 10, Duration::from_secs(30), None);
    for _ in 0..3 {
        assert!(rig.permits.try_acquire());
        let waiting = spawn(&rig.gate, "a");
        sleep(50 * MS).await;
        assert!(!waiting.is_finished());
        rig.permits.release();
        let began = Instant::now();
        drop(waiting.await.unwrap().unwrap());
        assert!(began.elapsed() <= 4 * MS);
        assert_eq!(rig.permits.in_use(), 0);
        sleep(10 * MS).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_adaptive_limit_lets_in_and_grows() {
    let rig = rig(
        100,
        1000,
        Duration::from_secs(30),
        Some(Adaptive::new(2, 100)),
    );
    assert_eq!(rig.gate.limit(), Some(2));
    let most = Arc::new(AtomicU64::new(0));
    let running: Vec<_> = (0..500)
        .map(|_| {
            let (gate, most) = (Arc::clone(&rig.gate), Arc::clone(&most));
            tokio::spawn(async move {
                let permit = acquire(&gate, &ask("a")).await.unwrap();
                most.fetch_max(gate.in_use(), Ordering::Relaxed);
                assert!(gate.in_use() <= gate.limit().unwrap());
                sleep(100 * MS).await;
                permit.first_token();
                sleep(100 * MS).await;
            })
        })
        .collect();
    for task in running {
        task.await.unwrap();
    }
    let limit = rig.gate.limit().unwrap();
    assert!(limit > 10, "{limit}");
    assert!(most.load(Ordering::Relaxed) > 10);
    let shown = rig.metric("forebay_upstream_concurrency_limit{upstream=\"a\"}");
    assert_eq!(shown, limit.to_string());
    let permit = rig.gate.try_acquire(&ask("a")).unwrap();
    permit.overloaded();
    assert!(rig.gate.limit().unwrap() < limit);
}

/// Requests that are dropped at any point: waiting, just granted, running.
async fn abort_at_random(places: u32, count: usize, max_waiting: usize) {
    let rig = rig(places, max_waiting, 40 * MS, None);
    let mut seed = 42;
    let mut tasks = Vec::new();
    for i in 0..count {
        let gate = Arc::clone(&rig.gate);
        let hold = Duration::from_micros(random(&mut seed, 3000));
        let name = format!("account{}", random(&mut seed, 7));
        let task = tokio::spawn(async move {
            if let Ok(mut permit) = acquire(&gate, &ask(&name)).await {
                assert!(gate.in_use() <= u64::from(places));
                tokio::task::yield_now().await;
                permit.used(hold.as_micros() as u64);
                sleep(hold).await;
            }
        });
        tasks.push(task);
        if i % 5 == 0 {
            let victim = random(&mut seed, tasks.len() as u64) as usize;
            tasks[victim].abort();
        }
        if random(&mut seed, 4) == 0 {
            sleep(Duration::from_micros(random(&mut seed, 1000))).await;
        }
        if tasks.len() > 300 {
            for task in tasks.drain(..150) {
                if random(&mut seed, 2) == 0 {
                    task.abort();
                } else {
                    let _ = task.await;
                }
            }
        }
    }
    for task in tasks {
        task.abort();
        let ended = task.await;
        assert!(ended.is_ok() || ended.unwrap_err().is_cancelled());
    }
    assert_eq!((rig.gate.in_use(), rig.gate.waiting()), (0, 0));
    assert_eq!(rig.metric("forebay_upstream_waiting{upstream=\"a\"}"), "0");
    let all: Vec<_> = (0..places)
        .map(|_| rig.gate.try_acquire(&ask("a")))
        .collect();
    assert!(all.iter().all(Option::is_some));
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_aborts_leak_nothing() {
    abort_at_random(3, 10_000, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_aborts_on_several_threads_leak_nothing() {
    abort_at_random(3, 10_000, 50).await;
}

/// The gates of one upstream in two workers.
fn workers(places: u32) -> [Arc<Gate>; 2] {
    let (fd, _region) = Region::shared(2, 16).unwrap();
    [0, 1].map(|worker| {
        let fd = fd.as_fd().try_clone_to_owned().unwrap();
        let region = Arc::new(Region::attach(fd, worker).unwrap());
        let spec = GateSpec {
            permits: Arc::new(Permits::of(&region, "upstream:a", Some(places))),
            adaptive: None,
            max_waiting: 1000,
            timeout: Duration::from_secs(30),
        };
        Gate::new(spec, None)
    })
}

/// Holds a permit for as long as a request takes, again and again.
async fn serve(gate: Arc<Gate>, rounds: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..rounds {
        let since = Instant::now();
        let permit = acquire(&gate, &ask("a")).await.unwrap();
        longest = longest.max(since.elapsed());
        sleep(200 * MS).await;
        drop(permit);
    }
    longest
}

#[tokio::test(start_paused = true)]
async fn a_flood_at_one_worker_does_not_starve_another() {
    for places in [1, 3, 4] {
        let [quiet, flooded] = workers(places);
        let flood: Vec<_> = (0..50)
            .map(|_| tokio::spawn(serve(Arc::clone(&flooded), 40)))
            .collect();
        sleep(1000 * MS).await;
        let longest = serve(quiet, 20).await;
        // The next that comes free is ours, but for a poll and a turn of the other's.
        assert!(longest < 430 * MS, "{longest:?} for one of {places} places");
        for handle in flood {
            handle.abort();
        }
    }
}
