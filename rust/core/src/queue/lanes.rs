//! The accounts of one class: a line of waiting requests each, and what each was served.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Ask;

/// Accounts that are remembered though nothing of theirs waits or runs, because they were served
/// more than their share. Beyond, those that were served least are forgotten.
const MAX_IDLE: usize = 10_000;

/// Tokens by weight, in thousandths; 128 bits, so that no sum of them ends.
type Served = u128;

/// `tokens` of an account with a weight of `milliweight` thousandths.
fn charge(tokens: u64, milliweight: u32) -> Served {
    Served::from(tokens.max(1)) * 1_000_000 / Served::from(milliweight.max(1))
}

fn milliweight(weight: f32) -> u32 {
    // What is not a number becomes the least weight.
    ((weight * 1000.0).round() as u32).clamp(1, 1_000_000)
}

#[derive(Debug)]
struct Lane<T> {
    milliweight: u32,
    served: Served,
    /// When it was last served, as a number that grows: of equals the one served longest ago is next.
    turn: u64,
    running: u32,
    /// In the order in which they came.
    waiting: BTreeMap<u64, (u64, T)>,
}

/// One class. An account is listed in `turns` and `lengths` while something of it waits, in `idle`
/// while nothing waits or runs, and is forgotten once it would begin at the floor anyway.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    known: FxHashMap<Arc<str>, Lane<T>>,
    turns: BTreeSet<(Served, u64, Arc<str>)>,
    lengths: BTreeSet<(usize, Arc<str>)>,
    idle: BTreeSet<(Served, Arc<str>)>,
    /// The highest count from which a request was started: who comes back from being idle begins
    /// here, so that nobody saves up service, nor is owed any for the past.
    floor: Served,
    turn: u64,
    len: usize,
    /// Of the accounts that wait.
    milliweights: u64,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            known: FxHashMap::default(),
            turns: BTreeSet::new(),
            lengths: BTreeSet::new(),
            idle: BTreeSet::new(),
            floor: 0,
            turn: 0,
            len: 0,
            milliweights: 0,
        }
    }
}

impl<T> Lanes<T> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn accounts(&self) -> usize {
        self.known.len()
    }

    pub(super) fn waiting_of(&self, account: &str) -> usize {
        self.known.get(account).map_or(0, |lane| lane.waiting.len())
    }

    /// Takes a lane out of the lists, lets `work` change it, and lists it anew.
    fn change<R>(&mut self, account: &Arc<str>, work: impl FnOnce(&mut Lane<T>) -> R) -> R {
        let lane = self.known.entry(Arc::clone(account)).or_insert(Lane {
            milliweight: 1000,
            served: self.floor,
            turn: 0,
            running: 0,
            waiting: BTreeMap::new(),
        });
        let name = || Arc::clone(account);
        let before = lane.waiting.len();
        if before > 0 {
            self.turns.remove(&(lane.served, lane.turn, name()));
            self.lengths.remove(&(before, name()));
            self.milliweights -= u64::from(lane.milliweight);
        } else if lane.running == 0 {
            self.idle.remove(&(lane.served, name()));
        }
        let result = work(lane);
        let after = lane.waiting.len();
        self.len = self.len - before + after;
        if after > 0 {
            self.turns.insert((lane.served, lane.turn, name()));
            self.lengths.insert((after, name()));
            self.milliweights += u64::from(lane.milliweight);
        } else if lane.running == 0 {
            self.idle.insert((lane.served, name()));
        }
        result
    }

    /// Forgets who would begin at the floor anyway, and whom there is no room to remember.
    fn forget(&mut self) {
        while let Some((served, _)) = self.idle.first()
            && (*served <= self.floor || self.idle.len() > MAX_IDLE)
        {
            if let Some((_, account)) = self.idle.pop_first() {
                self.known.remove(&account);
            }
        }
    }

    pub(super) fn push(&mut self, ask: &Ask, number: u64, value: T) {
        let floor = self.floor;
        self.change(&ask.account, |lane| {
            lane.milliweight = milliweight(ask.weight);
            if lane.waiting.is_empty() {
                lane.served = lane.served.max(floor);
            }
            lane.waiting.insert(number, (ask.tokens, value));
        });
    }

    /// The next to start: account, tokens expected and charged, and what it is known by.
    pub(super) fn pop(
        &mut self,
        charge: impl FnOnce(u64) -> u64,
    ) -> Option<(Arc<str>, u64, u64, T)> {
        let (served, _, account) = self.turns.first()?.clone();
        self.floor = self.floor.max(served);
        self.turn += 1;
        let turn = self.turn;
        let popped = self.change(&account, |lane| {
            let (_, (expected, value)) = lane.waiting.pop_first()?;
            let charged = charge(expected);
            lane.start(charged, turn);
            Some((expected, charged, value))
        });
        self.forget();
        let (expected, charged, value) = popped?;
        Some((account, expected, charged, value))
    }

    pub(super) fn started(&mut self, ask: &Ask, charged: u64) {
        self.turn += 1;
        let (turn, floor) = (self.turn, self.floor);
        let from = self.change(&ask.account, |lane| {
            lane.milliweight = milliweight(ask.weight);
            let from = lane.served.max(floor);
            lane.served = from;
            lane.start(charged, turn);
            from
        });
        self.floor = self.floor.max(from);
        self.forget();
    }

    /// Corrects what a request was charged at its start. What comes back takes nobody below the
    /// floor: that would be service saved up, at the cost of those who wait.
    pub(super) fn ended(&mut self, account: &Arc<str>, charged: u64, used: u64) {
        let floor = self.floor;
        self.change(account, |lane| {
            lane.running = lane.running.saturating_sub(1);
            let charged = charge(charged, lane.milliweight);
            let due = charge(used, lane.milliweight);
            lane.served = if due >= charged {
                lane.served + (due - charged)
            } else {
                let least = floor.min(lane.served);
                lane.served.saturating_sub(charged - due).max(least)
            };
        });
        self.forget();
    }

    pub(super) fn remove(&mut self, account: &Arc<str>, number: u64) -> Option<T> {
        let removed = self.change(account, |lane| lane.waiting.remove(&number));
        self.forget();
        removed.map(|(_, value)| value)
    }

    /// Takes out the newest of the account that has most waiting, if that is more than `than`.
    pub(super) fn pop_newest(&mut self, than: usize) -> Option<T> {
        let (length, account) = self.lengths.last()?;
        if *length <= than {
            return None;
        }
        let account = Arc::clone(account);
        let popped = self.change(&account, |lane| lane.waiting.pop_last());
        self.forget();
        popped.map(|(_, (_, value))| value)
    }

    /// How many start before one that this account puts in now, if all cost the same: its own, and
    /// of the others as many as their weights say.
    pub(super) fn ahead(&self, account: &str, weight: f32) -> u64 {
        let (own, own_milliweight) = match self.known.get(account) {
            Some(lane) if !lane.waiting.is_empty() => {
                (lane.waiting.len() as u64, u64::from(lane.milliweight))
            }
            _ => (0, 0),
        };
        let others = self.milliweights - own_milliweight;
        let theirs = (own + 1)
            .saturating_mul(others)
            .div_ceil(u64::from(milliweight(weight)));
        own.saturating_add(theirs).min(self.len as u64)
    }
}

impl<T> Lane<T> {
    fn start(&mut self, tokens: u64, turn: u64) {
        self.served += charge(tokens, self.milliweight);
        self.turn = turn;
        self.running += 1;
    }
}
