//! Which of a model's targets a request goes to next, and when.
use std::time::Duration;

use tokio::time::Instant;

use crate::alarm::{Alarm, Elapsed};
use crate::error::{Error, Kind};
use crate::gate::Permit;
use crate::queue::Ask;
use crate::snapshot::Target;

/// Takes the next target out of `left`, with a permit: the first that has one free, else the one
/// where the wait is expected to be shortest, once it is the request's turn there. It waits at one
/// target only; what comes free elsewhere meanwhile goes to requests that come meanwhile.
///
/// Errors: [`Kind::Unavailable`] when no queue took it in, or its wait was over, at the latest at
/// `until`.
pub(crate) async fn next(
    left: &mut Vec<Target>,
    ask: &Ask,
    until: Instant,
    alarm: &mut Alarm,
) -> Result<(Target, Permit), Error> {
    if let Some(free) = free(left, ask) {
        return Ok(free);
    }
    let mut refused = Error::new(Kind::Internal, "There is no target left.");
    while let Some(at) = shortest(left, ask) {
        let target = left.remove(at);
        let mut waiting = match target.upstream.gate.wait(ask, until) {
            Ok(waiting) => waiting,
            Err(error) => {
                refused = error;
                continue;
            }
        };
        match alarm.within(waiting.until(), waiting.turn()).await {
            Ok(Ok(permit)) => return Ok((target, permit)),
            Ok(Err(error)) => refused = error,
            Err(Elapsed) => return Err(waiting.timed_out()),
        }
    }
    Err(refused)
}

/// Takes the first target that has a permit free out of `left`.
pub(crate) fn free(left: &mut Vec<Target>, ask: &Ask) -> Option<(Target, Permit)> {
    let (at, permit) = left.iter().enumerate().find_map(|(at, target)| {
        let permit = target.upstream.gate.try_acquire(ask)?;
        Some((at, permit))
    })?;
    Some((left.remove(at), permit))
}

/// The target with the shortest wait; of equals the first.
fn shortest(left: &[Target], ask: &Ask) -> Option<usize> {
    let backlog = |target: &Target| -> (Duration, usize) { target.upstream.gate.backlog(ask) };
    let backlogs = left.iter().map(backlog).enumerate();
    backlogs
        .min_by_key(|(_, backlog)| *backlog)
        .map(|(at, _)| at)
}
