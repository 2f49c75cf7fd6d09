//! In turn, by weight.
use std::sync::atomic::{AtomicU64, Ordering};

use super::Fleet;
use super::draw::{Draws, draw};

/// A whole turn.
const WHOLE: u64 = 1 << 16;

/// Smooth weighted round robin without a lock: the static stride scheduler of gRPC (proposal A58).
///
/// Turns go through all targets, round after round. In each round a target is due if its share of a
/// turn, summed over the rounds, has passed a whole: the heaviest target in every round, one of half
/// its weight in every second. So over any stretch of rounds every target gets its share to within
/// two requests, whichever others are left out, and a share that changes (slow start) counts at once.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turn: AtomicU64,
}

impl RoundRobin {
    /// The next target; None where none can take the request.
    ///
    /// Where two rounds find none, as all that is left weighs little against what is not there, it is
    /// drawn at random by weight.
    pub fn pick(&self, fleet: &impl Fleet, draws: &mut Draws) -> Option<usize> {
        let count = fleet.count();
        let heaviest = fleet.heaviest();
        for _ in 0..2 * count {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let (round, at) = (turn / count as u64, (turn % count as u64) as usize);
            let weight = fleet.weight(at);
            if weight > 0.0 && is_due(weight / heaviest, round, at) {
                return Some(at);
            }
        }
        draw(fleet, draws)
    }
}

/// Whether a target of this share of a turn is due in a round. Every second target is half a turn
/// ahead, so that light ones are not due together.
fn is_due(share: f64, round: u64, at: usize) -> bool {
    let share = ((share * WHOLE as f64).ceil() as u64).clamp(1, WHOLE);
    let ahead = (at as u64 & 1) * (WHOLE / 2);
    let sum = share.wrapping_mul(round).wrapping_add(ahead);
    sum % WHOLE >= WHOLE - share
}
