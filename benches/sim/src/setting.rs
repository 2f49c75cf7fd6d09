//! What is simulated: who asks for how much of which limits, over which store.

use forebay_core::limit::Nanos;

use crate::fleet::{MS, SECOND};

/// Something that happens in the course of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The store carries nothing out, or does again.
    Down(bool),
    /// The store forgets everything.
    Flush,
    /// So many participants are cut off from the store; 0 ends it.
    Cut(usize),
    /// Messages are lost: of requests and of replies this part.
    Loss(f64),
    /// One way to the store takes so much longer, or as long as before.
    Slow(Nanos),
    /// The server's clock steps, by microseconds.
    Step(i64),
    /// So many participants are killed and started again.
    Restart(usize),
    /// The demand is so many times what it was at first.
    Demand(f64),
}

/// What a limit is on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of {
    /// Requests a minute, of which so many at once.
    Rate { rpm: u64, burst: u64 },
    /// Requests in flight, each for so long on average.
    Permits { capacity: u64, hold: Nanos },
}

/// Against what a run is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// The rate that may be had, times the limit's own.
    pub(crate) rate: f64,
    /// Bursts that may be had beyond the one.
    pub(crate) bursts: f64,
    /// Requests that may be had beyond all of it.
    pub(crate) requests: f64,
}

impl Bound {
    /// The formula, as it is while the store answers.
    pub(crate) const STORE_ANSWERS: Self = Self {
        rate: 1.0,
        bursts: 0.0,
        requests: 0.0,
    };
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) name: String,
    /// Participants: worker processes that share the limits.
    pub(crate) nodes: usize,
    /// How many participants each is told to expect before the store has counted them.
    pub(crate) expected: u64,
    /// Limits, all of the same size.
    pub(crate) keys: usize,
    pub(crate) of: Of,
    /// Requests a second of all keys together.
    pub(crate) offered: f64,
    /// Demand falls with a key's rank to this power; 0 is the same for all.
    pub(crate) zipf: f64,
    /// Participants that a key's requests come to.
    pub(crate) spread: usize,
    /// Keys whose limits are asked for in one call.
    pub(crate) keys_per_tag: usize,
    pub(crate) span: Nanos,
    /// To the store and back, on average.
    pub(crate) round_trip: Nanos,
    /// How many nanoseconds a participant's clock gains or loses each nanosecond, at most.
    pub(crate) drift: f64,
    /// Servers that the keys are spread over, and how long each call and each of its keys takes.
    pub(crate) servers: usize,
    pub(crate) per_call: Nanos,
    pub(crate) per_key: Nanos,
    /// Regions that the participants are spread over. With `own_store` each has a store and an equal
    /// part of each limit, else all but the first are `far` from the one store, one way.
    pub(crate) regions: usize,
    pub(crate) far: Nanos,
    pub(crate) own_store: bool,
    /// Of the demand so much comes to the first region, beyond its equal part.
    pub(crate) lean: f64,
    pub(crate) faults: Vec<(Nanos, Fault)>,
    /// `None`: nothing is promised.
    pub(crate) bound: Option<Bound>,
}

impl Setting {
    /// One limit of `rpm` with the usual burst (ten seconds' worth), asked for `load` times over by
    /// clients at all of `nodes`, near the store.
    pub(crate) fn one_key(name: impl Into<String>, nodes: usize, rpm: u64, load: f64) -> Self {
        Self {
            name: name.into(),
            nodes,
            expected: nodes as u64,
            keys: 1,
            of: Of::Rate {
                rpm,
                burst: (rpm / 6).max(1),
            },
            offered: load * rpm as f64 / 60.0,
            zipf: 0.0,
            spread: nodes,
            keys_per_tag: 1,
            span: 60 * SECOND,
            round_trip: MS / 2,
            drift: 100e-6,
            servers: 1,
            per_call: 0,
            per_key: 0,
            regions: 1,
            far: 0,
            own_store: false,
            lean: 0.0,
            faults: Vec::new(),
            bound: Some(Bound::STORE_ANSWERS),
        }
    }

    /// Units at once, of one store.
    pub(crate) fn size(&self) -> u64 {
        match self.of {
            Of::Rate { burst, .. } => (burst / self.stores()).max(1),
            Of::Permits { capacity, .. } => (capacity / self.stores()).max(1),
        }
    }

    /// Units that come back each nanosecond, of one store.
    pub(crate) fn per_nano(&self) -> f64 {
        match self.of {
            Of::Rate { rpm, .. } => rpm as f64 / 60e9 / self.stores() as f64,
            Of::Permits { .. } => 0.0,
        }
    }

    pub(crate) fn stores(&self) -> u64 {
        if self.own_store {
            self.regions as u64
        } else {
            1
        }
    }

    /// What all stores' limit may be exceeded by, `N·(L + c)`, while they answer.
    pub(crate) fn slack(&self) -> f64 {
        let Of::Rate { .. } = self.of else { return 0.0 };
        let (size, nodes) = (self.size(), (self.nodes as u64).div_ceil(self.stores()));
        let part = size / nodes;
        let lease = (size / 20).min(part).max(1);
        let credit = (size / 20).max(1).min(part);
        (nodes * (lease + credit) * self.stores()) as f64
    }
}
