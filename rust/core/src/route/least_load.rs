//! The fewest requests for its weight.
use super::draw::{Draws, mix};
use super::{Fleet, crowding};

/// The target that one more request crowds least: the smallest `(load + 1) / weight`, with the load of
/// [`super::load::expected`]. Of equals each is as likely. Looks at all of them.
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
    let mut best: Option<(f64, usize)> = None;
    for at in 0..fleet.count() {
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
