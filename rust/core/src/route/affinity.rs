//! Where the prompt's beginning has been before, within bounded load.
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::draw::Draws;
use super::least_load::{self, WINDOW, from, least};
use super::prefix::Prefix;
use super::table::Table;
use super::{Fleet, crowding};

/// Most load of a target against the mean by weight.
pub const BOUND: f64 = 1.25;
/// So many requests a target may always have: below that, batching makes them cheap, and a cache that
/// is hit is worth more than an idle engine.
pub const ALWAYS: f64 = 4.0;
/// Beginnings that are remembered; of more, those are forgotten that were used longest ago. 1.5 MiB.
pub const REMEMBERED: usize = 65_536;
/// A beginning counts as known from this part of the prompt's head on: less is a greeting that all
/// prompts have.
const LEAST_PART: usize = 4;
/// Targets that a beginning is remembered at.
const OWNERS: usize = 4;

/// Who has a beginning in its cache: indices above 0, the newest first; 0 is nobody.
#[derive(Clone, Copy, Debug, Default)]
struct Owners([u16; OWNERS]);

impl Owners {
    fn iter(self) -> impl Iterator<Item = usize> {
        self.0
            .into_iter()
            .filter_map(|owner| usize::from(owner).checked_sub(1))
    }
}

/// Prefix affinity: a request goes where the longest beginning of its prompt went before, as an engine
/// that keeps prompts in its cache (SGLang's radix cache, vLLM's prefix cache) has it there. Of several
/// such targets, to the one that is crowded least.
///
/// No target gets more than [`BOUND`] times the mean load for its weight, or [`ALWAYS`]: a request
/// goes on to where a shorter beginning is known, at last to a target within the bound that has the
/// fewest beginnings. So a prompt that all have spreads to as many targets as it needs (consistent
/// hashing with bounded loads, Mirrokni et al., SODA 2018; SGLang's router likewise sends what it does
/// not know to the smallest tree).
#[derive(Debug)]
pub struct Affinity {
    entries: usize,
    targets: usize,
    /// Made with the first request.
    known: OnceLock<Mutex<Known>>,
}

#[derive(Debug)]
struct Known {
    beginnings: Table<Owners>,
    /// How many beginnings each target has.
    sizes: Box<[u32]>,
}

impl Affinity {
    /// For so many targets.
    pub fn new(targets: usize) -> Self {
        Self::of(REMEMBERED, targets)
    }

    /// The same with room for so many beginnings.
    pub fn of(entries: usize, targets: usize) -> Self {
        Self {
            entries,
            targets,
            known: OnceLock::new(),
        }
    }

    /// The target for a prompt; None where none can take the request. It is remembered there.
    pub fn pick(&self, fleet: &impl Fleet, prefix: &Prefix, draws: &mut Draws) -> Option<usize> {
        let hashes = prefix.hashes();
        if hashes.is_empty() {
            return least_load::pick(fleet, draws);
        }
        let known = self.known.get_or_init(|| {
            Mutex::new(Known {
                beginnings: Table::new(self.entries),
                sizes: vec![0; self.targets].into_boxed_slice(),
            })
        });
        let mut known = known.lock();
        let mut bound = None;
        let owner = known.owner(fleet, hashes, &mut bound);
        let picked = owner.or_else(|| known.smallest(fleet, draws, &mut bound))?;
        known.note(hashes, picked);
        Some(picked)
    }
}

impl Known {
    /// Who has the longest beginning, and room.
    fn owner(&self, fleet: &impl Fleet, hashes: &[u64], bound: &mut Option<f64>) -> Option<usize> {
        let enough = hashes.len().div_ceil(LEAST_PART);
        let long = hashes.iter().enumerate().skip(enough - 1).rev();
        long.filter_map(|(_, hash)| self.beginnings.get(*hash))
            .find_map(|owners| {
                owners
                    .iter()
                    .filter_map(|at| Some((at, crowding(fleet, at)?)))
                    .filter(|(at, _)| has_room(fleet, *at, bound))
                    .min_by(|(_, one), (_, other)| one.total_cmp(other))
                    .map(|(at, _)| at)
            })
    }

    /// Who has the fewest beginnings for its weight, and room.
    fn smallest(
        &self,
        fleet: &impl Fleet,
        draws: &mut Draws,
        bound: &mut Option<f64>,
    ) -> Option<usize> {
        let bound = *bound.get_or_insert_with(|| mean(fleet));
        let size = |at: usize| self.sizes.get(at).copied().map_or(0.0, f64::from);
        let smallest = least(fleet, draws, |at| {
            has_room(fleet, at, &mut Some(bound)).then(|| (size(at) + 1.0) / fleet.weight(at))
        });
        smallest.or_else(|| least_load::pick(fleet, draws))
    }

    /// A target has these beginnings from now on.
    fn note(&mut self, hashes: &[u64], at: usize) {
        let Ok(owner) = u16::try_from(at + 1) else {
            return;
        };
        for hash in hashes {
            let Some((owners, gone)) = self.beginnings.entry(*hash) else {
                continue;
            };
            let place = owners.0.iter().position(|known| *known == owner);
            let last = owners.0.last().copied().unwrap_or_default();
            if let Some(newest) = owners.0.get_mut(..=place.unwrap_or(OWNERS - 1)) {
                newest.rotate_right(1);
            }
            if let Some(first) = owners.0.first_mut() {
                *first = owner;
            }
            let mut change = |owner: u16, by: i32| {
                let at = usize::from(owner).checked_sub(1);
                if let Some(size) = at.and_then(|at| self.sizes.get_mut(at)) {
                    *size = size.saturating_add_signed(by);
                }
            };
            if place.is_none() {
                change(owner, 1);
                change(last, -1);
            }
            for owner in gone.unwrap_or_default().0 {
                change(owner, -1);
            }
        }
    }
}

/// Whether one more request keeps a target that can take it within the bound. `bound`: the mean, once
/// it was needed.
fn has_room(fleet: &impl Fleet, at: usize, bound: &mut Option<f64>) -> bool {
    let Some((weight, load)) = fleet.open(at) else {
        return false;
    };
    let load = load + 1.0;
    load <= ALWAYS || load <= (*bound.get_or_insert_with(|| mean(fleet)) * weight).ceil()
}

/// The most load for a weight of 1: [`BOUND`] times the mean of those that are looked at, with the
/// request that is to come.
fn mean(fleet: &impl Fleet) -> f64 {
    let (mut load, mut weights) = (1.0, 0.0);
    for at in from(fleet.now(), fleet.count()).take(WINDOW) {
        if let Some((weight, more)) = fleet.open(at) {
            load += more;
            weights += weight;
        }
    }
    if weights > 0.0 {
        BOUND * load / weights
    } else {
        0.0
    }
}
