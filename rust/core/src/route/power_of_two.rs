//! The better one of two taken at random.
use super::draw::{Draws, draw};
use super::{Fleet, crowding};

/// Draws before one target alone is taken for all there are.
const TRIES: u32 = 4;

/// The power of two choices (Mitzenmacher 2001): two targets drawn by weight, and of these the one
/// that one more request crowds less. Looks at two targets only, and many gateways that know the same
/// do not all run to the same one, as they may with the least load.
pub fn pick(fleet: &impl Fleet, draws: &mut Draws) -> Option<usize> {
    let one = draw(fleet, draws)?;
    let other = (0..TRIES)
        .filter_map(|_| draw(fleet, draws))
        .find(|other| *other != one);
    let Some(other) = other else { return Some(one) };
    match (crowding(fleet, one), crowding(fleet, other)) {
        (Some(crowds_one), Some(crowds_other)) if crowds_other < crowds_one => Some(other),
        _ => Some(one),
    }
}
