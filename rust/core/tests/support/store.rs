//! `python/forebay/limits/lease.lua` in Rust, on a clock of the test's own: the store of shared
//! limits as models and simulations have it. `tests/data/leases.json` holds both to the same replies.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp
)]

use std::collections::{BTreeMap, HashMap};

const PART_LIFE: f64 = 5_000_000.0;
const REAP: f64 = 1_000_000.0;
const GRACE: f64 = 2_000_000.0;
const TOLD: f64 = 3_600_000_000.0;
const PERMIT_RETRY: i64 = 100;

#[derive(Clone, Debug)]
enum Value {
    Rate { level: f64, at: f64, born: f64 },
    Holding(Holding),
    Members(BTreeMap<String, f64>),
}

#[derive(Clone, Debug, Default)]
struct Holding {
    spent: f64,
    lent: f64,
    reap: f64,
    hold: f64,
    /// Part, seq, heard.
    parts: BTreeMap<String, (f64, f64, f64)>,
}

/// One node of the store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// With the instant at which each expires.
    values: HashMap<String, (Value, f64)>,
    /// Keys served.
    pub served: u64,
    /// Units taken back from participants that were silent too long.
    pub reaped: u64,
}

impl Store {
    /// Forgets everything.
    pub fn flush(&mut self) {
        self.values.clear();
    }

    /// How many keys there are, expired ones included.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Carries one call out at `now_us` of the server's clock. An argument is a number of 2^53 at
    /// most, or a kind.
    pub fn call(&mut self, now_us: i64, me: &str, keys: &[String], args: &[String]) -> Vec<i64> {
        assert_eq!(args.len(), keys.len() * 11);
        let now = now_us as f64;
        let mut replies = Vec::new();
        for (key, row) in keys.iter().zip(args.chunks_exact(11)) {
            self.served += 1;
            if self.values.get(key).is_some_and(|(_, until)| now >= *until) {
                self.values.remove(key);
            }
            let a: Vec<f64> = row[1..].iter().map(|text| text.parse().unwrap()).collect();
            replies.extend(match row[0].as_str() {
                "r" => self.rate(now, key, &a),
                "h" => self.holding(now, me, key, &a),
                "m" => self.members(now, me, key, &a),
                other => panic!("no kind {other}"),
            });
        }
        replies
    }

    fn rate(&mut self, now: f64, key: &str, a: &[f64]) -> [i64; 4] {
        let speed = a[0] / (a[1] / 1000.0);
        let burst = a[2];
        let (mut level, mut born) = (burst, now);
        if let Some((
            Value::Rate {
                level: old,
                at,
                born: since,
            },
            _,
        )) = self.values.get(key)
        {
            born = *since;
            level = burst.min(old + (now - at).max(0.0) * speed);
        } else if a[8] == 1.0 {
            level = 0.0;
        }
        let young = a[9] > 0.0 && now - born < a[9] * 1000.0;
        let owed = if young { 0.0 } else { a[3] };
        level = (burst.min(level + a[4]) - owed).max(-burst);
        let (units, short) = lend(level, a[5], a[6], a[7]);
        level -= units;
        let kept = (2.0 * burst / speed / 1000.0).ceil().clamp(1000.0, 1e12);
        let value = Value::Rate {
            level,
            at: now,
            born,
        };
        self.values
            .insert(key.to_owned(), (value, now + kept * 1000.0));
        let retry = if short {
            ((a[7] - level) / speed / 1000.0).ceil().max(1.0)
        } else {
            0.0
        };
        [units as i64, level.floor() as i64, retry as i64, 0]
    }

    fn holding(&mut self, now: f64, me: &str, key: &str, a: &[f64]) -> [i64; 4] {
        let [capacity, kept_ms, seq, part] = a[..4] else {
            panic!("too few arguments")
        };
        let mut settled = a[4];
        let (mut holding, there) = match self.values.get(key) {
            Some((Value::Holding(there), _)) => (there.clone(), true),
            _ => (Holding::default(), false),
        };
        if !there {
            holding.reap = now + REAP;
            if a[9] == 1.0 {
                holding.hold = now + GRACE;
            }
        } else if now >= holding.reap || holding.reap > now + REAP {
            self.reaped += holding.count_parts(now, kept_ms);
            holding.reap = now + REAP;
            // The script writes what it drops even if the call is stale.
            let until = self.values.get(key).map_or(now, |(_, until)| *until);
            let mut written = holding.clone();
            if let Some((Value::Holding(old), _)) = self.values.get(key) {
                (written.lent, written.reap) = (old.lent, old.reap);
            }
            self.values
                .insert(key.to_owned(), (Value::Holding(written), until));
        }
        if holding.hold > now + GRACE {
            holding.hold = 0.0;
        }
        if let Some(&(old_part, old_seq, _)) = holding.parts.get(me) {
            if seq < old_seq {
                let left = capacity - holding.spent - holding.lent;
                return [0, left.floor() as i64, 0, 1];
            }
            if seq == old_seq {
                settled = 0.0;
            }
            holding.lent -= old_part;
        }
        holding.spent = (holding.spent + settled).max(a[5]);
        holding.lent += part;
        let mut left = capacity - holding.spent - holding.lent;
        let (units, short) = if now >= holding.hold {
            lend(left, a[6], a[7], a[8])
        } else {
            (0.0, a[6] > 0.0)
        };
        holding.lent += units;
        left -= units;
        holding
            .parts
            .insert(me.to_owned(), (part + units, seq, now));
        self.values.insert(
            key.to_owned(),
            (Value::Holding(holding), now + kept_ms * 1000.0),
        );
        let retry = if short { PERMIT_RETRY } else { 0 };
        [units as i64, left.floor() as i64, retry, 0]
    }

    fn members(&mut self, now: f64, me: &str, key: &str, a: &[f64]) -> [i64; 4] {
        let life = a[0] * 1000.0;
        let (mut members, mut until) = match self.values.remove(key) {
            Some((Value::Members(members), until)) => (members, until),
            _ => (BTreeMap::new(), now),
        };
        members.retain(|_, heard| *heard > now - life && *heard < now + life);
        let there = members.contains_key(me);
        if a[1] == 1.0 {
            members.remove(me);
        } else {
            members.insert(me.to_owned(), now);
            until = now + 2.0 * life;
        }
        let count = (members.len() as u64).cast_signed();
        self.values
            .insert(key.to_owned(), (Value::Members(members), until));
        [count, 0, 0, i64::from(!there)]
    }
}

impl Holding {
    /// Returns the units taken back.
    fn count_parts(&mut self, now: f64, kept_ms: f64) -> u64 {
        let mut reaped = 0.0;
        self.lent = 0.0;
        self.parts.retain(|_, (part, _, heard)| {
            let silent = now - *heard;
            if silent < -REAP {
                *heard = now;
                self.lent += *part;
            } else if silent < PART_LIFE {
                self.lent += *part;
            } else if silent >= PART_LIFE.max(TOLD.min(kept_ms * 1000.0)) {
                return false;
            } else {
                reaped += *part;
                *part = 0.0;
            }
            true
        });
        reaped as u64
    }
}

fn lend(left: f64, want: f64, need: f64, unit: f64) -> (f64, bool) {
    let least = need.max(unit.min(want));
    if want <= 0.0 {
        return (0.0, false);
    }
    if left >= least {
        return (least.max(want.min(left / 4.0)).floor(), false);
    }
    if left < unit {
        return (0.0, true);
    }
    (want.min((left / unit).floor() * unit), true)
}
