//! Who asks when: Poisson arrivals, keys by a Zipf law, each at some of the participants.

use forebay_core::limit::Nanos;

use crate::fleet::Random;
use crate::setting::Setting;

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Nanos,
    pub(crate) key: usize,
    pub(crate) node: usize,
}

/// Makes requests, one after the other.
pub(crate) struct Demand {
    random: Random,
    /// Requests a nanosecond.
    rate: f64,
    /// How probable each key or one before it is, not divided by the sum.
    ranks: Vec<f64>,
    at: f64,
    nodes: usize,
    spread: usize,
    regions: usize,
    lean: f64,
}

impl Demand {
    pub(crate) fn new(setting: &Setting, seed: u64) -> Self {
        let mut sum = 0.0;
        let weigh = |rank: usize| {
            sum += ((rank + 1) as f64).powf(-setting.zipf);
            sum
        };
        Self {
            random: Random(seed),
            rate: setting.offered / 1e9,
            ranks: (0..setting.keys).map(weigh).collect(),
            at: 0.0,
            nodes: setting.nodes,
            spread: setting.spread,
            regions: setting.regions,
            lean: setting.lean,
        }
    }

    /// Multiplies the rate.
    pub(crate) fn scale(&mut self, times: f64) {
        self.rate *= times;
    }

    pub(crate) fn next(&mut self) -> Arrival {
        self.at += self.random.exponential(1.0 / self.rate);
        let point = self.random.unit() * self.ranks.last().copied().unwrap_or(0.0);
        let key = self.ranks.partition_point(|sum| *sum <= point);
        // A key's participants stand beside each other, those of different keys anywhere.
        let first = Random(key as u64).next() as usize % self.nodes;
        let other = self.random.below(self.spread as u64) as usize;
        let mut node = (first + other) % self.nodes;
        if self.regions > 1 && self.random.unit() < self.lean {
            // Participants take turns over the regions.
            node -= node % self.regions;
        }
        Arrival {
            at: self.at as Nanos,
            key,
            node,
        }
    }
}
