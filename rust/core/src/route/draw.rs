//! Random choice by weight, from randomness that the request brings.
use super::Fleet;

/// Draws before all targets are looked at: with half of them out, one in 65,000 comes to that.
const TRIES: u32 = 16;

/// Random numbers of one request: SplitMix64 (Steele et al., OOPSLA 2014), seeded by its id.
#[derive(Clone, Copy, Debug)]
pub struct Draws(u64);

impl Draws {
    /// The numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[inline]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// The next one below `bound`, which is above 0.
    #[inline]
    pub const fn below(&mut self, bound: usize) -> usize {
        ((self.next() as u128 * bound as u128) >> 64) as usize
    }

    /// The next one from 0 to below 1.
    #[inline]
    pub const fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Every bit of a number in every bit of another one.
#[inline]
pub(crate) const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// A target at random, each as often as its weight says; None where none can take the request.
///
/// Rejection: an index, which is kept as often as its weight against the heaviest. Only where that
/// fails often are all weights summed.
pub fn draw(fleet: &impl Fleet, draws: &mut Draws) -> Option<usize> {
    let count = fleet.count();
    if count == 0 {
        return None;
    }
    let heaviest = fleet.heaviest();
    for _ in 0..TRIES {
        let at = draws.below(count);
        let weight = fleet.weight(at);
        if weight > 0.0 && (weight >= heaviest || draws.unit() * heaviest < weight) {
            return Some(at);
        }
    }
    let total: f64 = (0..count).map(|at| fleet.weight(at)).sum();
    if total <= 0.0 {
        return None;
    }
    let mut left = draws.unit() * total;
    let mut last = None;
    for at in 0..count {
        let weight = fleet.weight(at);
        if weight > 0.0 {
            last = Some(at);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}
