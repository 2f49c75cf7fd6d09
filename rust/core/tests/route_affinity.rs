//! Prefix affinity, simulated: how much of what engines could find in their caches they do find, and
//! how evenly they are loaded.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::rc::Rc;
use std::time::Duration;

use forebay_core::route::affinity::{Affinity, BOUND};
use forebay_core::route::{Draws, Fleet, Prefix};
use proptest::prelude::*;

struct Engines {
    weights: Vec<f64>,
    loads: Vec<f64>,
}

impl Engines {
    fn new(count: usize) -> Self {
        Self {
            weights: vec![1.0; count],
            loads: vec![0.0; count],
        }
    }
}

impl Fleet for Engines {
    fn count(&self) -> usize {
        self.weights.len()
    }
    fn weight(&self, at: usize) -> f64 {
        self.weights[at]
    }
    fn heaviest(&self) -> f64 {
        self.weights
            .iter()
            .fold(f64::MIN_POSITIVE, |a, b| a.max(*b))
    }
    fn load(&self, at: usize) -> f64 {
        self.loads[at]
    }
    fn ttft(&self, _: usize) -> Option<Duration> {
        None
    }
    fn now(&self) -> u64 {
        0
    }
}

/// A message as a client writes it.
fn message(role: &str, text: &str) -> String {
    format!("{{\"role\":\"{role}\",\"content\":\"{text}\"}}")
}

/// Text of about so many bytes that no other seed has.
fn text(seed: u64, bytes: usize) -> String {
    let mut draws = Draws::new(seed);
    let mut out = String::new();
    while out.len() < bytes {
        write!(out, "{:x} ", draws.next()).unwrap();
    }
    out
}

/// A prompt: its head as the client writes it, and for each message a hash of all up to its end and
/// how many bytes that are.
#[derive(Clone)]
struct Prompt {
    head: String,
    ends: Rc<Vec<(u64, usize)>>,
    messages: usize,
}

/// What an engine's cache holds: the beginnings of all prompts that it had, by whole messages.
#[derive(Default)]
struct Cache(HashSet<u64>);

impl Cache {
    /// Bytes of the prompt that are there; from now on all of it is.
    fn hit(&mut self, prompt: &Prompt) -> usize {
        let ends = &prompt.ends[..prompt.messages];
        let known = ends.iter().rposition(|(end, _)| self.0.contains(end));
        let from = known.map_or(0, |at| at + 1);
        self.0.extend(ends[from..].iter().map(|(end, _)| *end));
        known.map_or(0, |at| ends[at].1)
    }
}

struct Outcome {
    /// Bytes found in caches, against those that one cache of all requests would have found.
    share: f64,
    /// Most requests of an engine against the mean.
    imbalance: f64,
    /// Most requests in flight at an engine against the mean then, where there were enough.
    worst: f64,
}

/// Sends prompts; `lanes` run side by side, each one's prompts one after the other.
fn run(engines: usize, lanes: &[Vec<Prompt>]) -> Outcome {
    let policy = Affinity::new(engines);
    let mut fleet = Engines::new(engines);
    let mut caches: Vec<Cache> = (0..engines).map(|_| Cache::default()).collect();
    let mut ideal = Cache::default();
    let mut draws = Draws::new(11);
    let (mut hit, mut possible) = (0, 0);
    let mut counts = vec![0_u32; engines];
    let mut worst = 0.0_f64;
    // (when, lane, turn, the engine that is done)
    let mut events = BinaryHeap::new();
    for lane in 0..lanes.len() {
        events.push(Reverse((draws.below(50) as u64, lane, 0, usize::MAX)));
    }
    while let Some(Reverse((now, lane, turn, done))) = events.pop() {
        if done != usize::MAX {
            fleet.loads[done] -= 1.0;
            let pause = draws.below(30) as u64;
            events.push(Reverse((now + pause, lane, turn + 1, usize::MAX)));
            continue;
        }
        let Some(prompt) = lanes[lane].get(turn) else {
            continue;
        };
        let prefix = Prefix::of(prompt.head.as_bytes());
        let at = policy.pick(&fleet, &prefix, &mut draws).unwrap();
        fleet.loads[at] += 1.0;
        counts[at] += 1;
        hit += caches[at].hit(prompt);
        possible += ideal.hit(prompt);
        let mean = fleet.loads.iter().sum::<f64>() / engines as f64;
        if mean >= 8.0 {
            worst = worst.max(fleet.loads[at] / mean);
        }
        let time = 20 + draws.below(60) as u64;
        events.push(Reverse((now + time, lane, turn, at)));
    }
    let total: u32 = counts.iter().sum();
    // Shown where a test fails.
    println!("{counts:?}, {hit} of {possible} bytes");
    let most = f64::from(*counts.iter().max().unwrap());
    Outcome {
        share: hit as f64 / possible as f64,
        imbalance: most * engines as f64 / f64::from(total),
        worst,
    }
}

/// A conversation of so many turns that begins with `head`, as it grows.
fn conversation(seed: u64, head: &str, turns: usize, bytes: usize) -> Vec<Prompt> {
    let mut texts = vec![message("system", head)];
    for turn in 0..turns as u64 {
        let seed = seed * 1_000_003 + turn * 2;
        texts.push(message("user", &text(seed, bytes)));
        texts.push(message("assistant", &text(seed + 1, bytes)));
    }
    let mut hasher = DefaultHasher::new();
    let mut bytes = 0;
    let ends = texts.iter().map(|text| {
        hasher.write(text.as_bytes());
        bytes += text.len() + 1;
        (hasher.finish(), bytes)
    });
    let ends = Rc::new(ends.collect::<Vec<_>>());
    let mut whole = String::from("[");
    (0..turns)
        .map(|turn| {
            let from = if turn == 0 { 0 } else { 2 * turn };
            for text in &texts[from..2 * turn + 2] {
                if whole.len() > 1 {
                    whole.push(',');
                }
                whole += text;
            }
            let head = whole.get(..30_000).unwrap_or(&whole);
            Prompt {
                head: format!("{head}]"),
                ends: Rc::clone(&ends),
                messages: 2 * turn + 2,
            }
        })
        .collect()
}

#[test]
fn ten_families_of_a_thousand_turns_find_their_caches() {
    // One long conversation each.
    let lanes: Vec<_> = (0..10)
        .map(|family| conversation(family + 1, &text(family + 1, 1500), 1000, 40))
        .collect();
    let long = run(4, &lanes);
    assert!(long.share >= 0.95, "{}", long.share);
    assert!(long.imbalance <= 1.25, "{}", long.imbalance);
}

#[test]
fn families_of_many_conversations_share_their_head() {
    // Ten families with a system prompt each, of a hundred conversations of ten turns; eight of each
    // family run at once.
    let mut lanes: Vec<Vec<Prompt>> = vec![Vec::new(); 80];
    for family in 0..10_u64 {
        let head = text(family + 1, 3000);
        for number in 0..100_u64 {
            let lane = (family * 8 + number % 8) as usize;
            lanes[lane].extend(conversation(family * 1000 + number + 77, &head, 10, 200));
        }
    }
    let many = run(4, &lanes);
    assert!(many.share >= 0.95, "{}", many.share);
    assert!(many.imbalance <= 1.25, "{}", many.imbalance);
    assert!(many.worst <= BOUND + 0.15, "{}", many.worst);
}

#[test]
fn one_prompt_that_all_have_spreads_within_the_bound() {
    let head = text(5, 4000);
    let lanes: Vec<_> = (0..64)
        .map(|lane| conversation(lane + 9, &head, 100, 100))
        .collect();
    let one = run(4, &lanes);
    assert!(one.share >= 0.95, "{}", one.share);
    assert!(one.imbalance <= 1.25, "{}", one.imbalance);
    assert!(one.worst <= BOUND + 0.15, "{}", one.worst);
}

#[test]
fn a_greeting_that_all_have_moves_nobody() {
    // The same 130 bytes before prompts that are otherwise their own.
    let lanes: Vec<_> = (0..40)
        .map(|lane| {
            let each = |turn: u64| {
                let head = "x".repeat(130) + &text(lane * 1000 + turn + 5, 4000);
                conversation(turn, &head, 1, 100)
            };
            (0..50).flat_map(each).collect()
        })
        .collect();
    let own = run(8, &lanes);
    assert!(own.imbalance <= 1.1, "{}", own.imbalance);
}

#[test]
fn a_target_that_is_away_is_passed_over_and_found_again() {
    let policy = Affinity::new(3);
    let mut fleet = Engines::new(3);
    let mut draws = Draws::new(2);
    let prompts = conversation(3, &text(3, 2000), 20, 100);
    let at = |fleet: &Engines, draws: &mut Draws, turn: usize| {
        let prefix = Prefix::of(prompts[turn].head.as_bytes());
        policy.pick(fleet, &prefix, draws)
    };
    let home = at(&fleet, &mut draws, 0).unwrap();
    assert_eq!(at(&fleet, &mut draws, 1), Some(home));
    fleet.weights[home] = 0.0;
    let other = at(&fleet, &mut draws, 2).unwrap();
    assert_ne!(other, home);
    assert_eq!(at(&fleet, &mut draws, 3), Some(other));
    fleet.weights = vec![0.0; 3];
    assert_eq!(at(&fleet, &mut draws, 4), None);
}

#[test]
fn memory_is_bounded_and_what_is_used_stays() {
    let policy = Affinity::of(2048, 4);
    let fleet = Engines::new(4);
    let mut draws = Draws::new(8);
    let kept = Prefix::of(format!("[{}]", message("user", &text(1, 3000))).as_bytes());
    let home = policy.pick(&fleet, &kept, &mut draws).unwrap();
    for seed in 0..2000 {
        let other = Prefix::of(format!("[{}]", message("user", &text(seed + 5, 3000))).as_bytes());
        policy.pick(&fleet, &other, &mut draws).unwrap();
        assert_eq!(policy.pick(&fleet, &kept, &mut draws), Some(home), "{seed}");
    }
}

proptest! {
    #[test]
    fn two_prompts_share_hashes_as_far_as_they_are_equal(
        head in "[a-z]{0,600}", one in "[a-z]{1,600}", other in "[a-z]{1,600}",
    ) {
        let one = format!("\"{head}{one}\"");
        let other = format!("\"{head}{other}\"");
        let equal = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let (a, b) = (Prefix::of(one.as_bytes()), Prefix::of(other.as_bytes()));
        let shared = a.hashes().iter().zip(b.hashes()).take_while(|(a, b)| a == b).count();
        let ends = [128, 256, 512, 768, 1024, 1280];
        let length = one.len().min(other.len()) - 1;
        let whole = ends.iter().filter(|end| **end <= equal.min(length)).count();
        prop_assert_eq!(shared, whole);
    }

    #[test]
    fn a_conversation_keeps_its_beginning(turns in 1_usize..30, bytes in 1_usize..200) {
        let prompts = conversation(7, &text(7, 300), turns, bytes);
        for (before, after) in prompts.iter().zip(prompts.iter().skip(1)) {
            let (before, after) = (Prefix::of(before.head.as_bytes()), Prefix::of(after.head.as_bytes()));
            prop_assert!(after.hashes().starts_with(before.hashes()));
        }
    }
}

#[test]
fn no_prompt_is_no_prefix() {
    for value in ["", "\"", "[]", "null"] {
        assert!(Prefix::of(value.as_bytes()).hashes().is_empty());
    }
}
