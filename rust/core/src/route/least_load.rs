//! The fewest requests for its weight.
use super::draw::{Draws, mix};
use super::{Fleet, crowding};

/// So many targets are looked at, of more a part that begins anywhere: the best of so many taken at
/// random is hardly worse than the best of all (Mitzenmacher, The Power of Two Choices in Randomized
/// Load Balancing, 2001), and costs no more however many there are.
pub(super) const WINDOW: usize = 64;

/// The target that one more request crowds least: the smallest `(load + 1) / weight`, with the load of
/// [`super::load::expected`]. Of equals each is as likely. Looks at [`WINDOW`] of them.
pub fn pick(fleet: &impl Fleet, draws: &mut Draws) -> Option<usize> {
    least(fleet, draws, |at| crowding(fleet, at))
}

/// The target of the least cost; None of a cost is not considered. Of equals each is as likely.
pub(super) fn least(
    fleet: &impl Fleet,
    draws: &mut Draws,
    cost: impl Fn(usize) -> Option<f64>,
) -> Option<usize> {
    let seed = draws.next();
    let count = fleet.count();
    let mut best: Option<(f64, usize)> = None;
    for (looked, at) in from(seed, count).enumerate() {
        if looked >= WINDOW && best.is_some() {
            break;
        }
        let Some(cost) = cost(at) else { continue };
        let better = match best {
            None => true,
            Some((least, _)) if cost < least => true,
            Some((least, found)) if cost <= least => {
                mix(seed ^ at as u64) < mix(seed ^ found as u64)
            }
            Some(_) => false,
        };
        if better {
            best = Some((cost, at));
        }
    }
    best.map(|(_, at)| at)
}

/// All of so many targets, from any one on where not all are looked at.
pub(super) fn from(seed: u64, count: usize) -> impl Iterator<Item = usize> {
    let start = if count > WINDOW {
        mix(seed) as usize % count
    } else {
        0
    };
    (start..count).chain(0..start)
}
