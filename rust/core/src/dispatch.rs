//! Which of a model's targets a request goes to next, and when.
//!
//! Tier by tier: a target that has a place free at once, by the tier's policy; else the request waits
//! in the queue of one that is there; else it is held for an engine that is being started. The next
//! tier comes in only where a tier can do none of that, or where it is time to spill
//! ([`crate::snapshot::ColdSpec`]).
mod fleet;
mod hold;
mod refuse;
mod trail;

use std::pin::pin;

use tokio::time::Instant;

use crate::alarm::{Alarm, Elapsed};
use crate::error::Error;
use crate::gate::{self, Permit};
use crate::gateway::monotonic;
use crate::health::{Availability, Trial};
use crate::limit::Nanos;
use crate::route::{Ask, Set, Tier};
use crate::snapshot::{Model, Target};

use fleet::View;
use hold::Hold;
pub use hold::Waiting;
pub use trail::Trail;

/// Picks of a policy in one tier before its targets are gone through in order: a place may be taken
/// between the look and the grasp.
const PICKS: usize = 4;

/// A target that a request goes to, with a place there.
pub struct Placed {
    /// Its index among the model's targets.
    pub at: usize,
    /// The target.
    pub target: Target,
    /// The place.
    pub permit: Permit,
    /// Where the request finds out whether the target is back: to be kept as long as the attempt runs.
    pub trial: Option<Trial>,
}

/// Takes the next target for a request, with a permit; waits for it if need be.
///
/// `trail` remembers what the request has tried; the target that is given counts as tried. `waiting` is
/// told from time to time that the request is held for an engine that is being started.
///
/// Errors: [`crate::error::Kind::Unavailable`] when no target could take the request by `until`, with
/// the wait that is known; [`crate::error::Kind::InvalidRequest`] when none of the model's targets may.
pub async fn next(
    trail: &mut Trail,
    model: &Model,
    ask: &Ask,
    until: Instant,
    alarm: &mut Alarm,
    waiting: &mut (dyn Waiting + Send),
) -> Result<Placed, Error> {
    trail.begin(model, ask);
    if trail.nothing_may() {
        return Err(refuse::forbidden(model, ask));
    }
    let mut search = Search::new(model, ask, trail);
    if let Some(placed) = search.canary(trail) {
        return Ok(search.go(trail, placed));
    }
    if let Some(tier) = model.router.tiers().first()
        && !search.yields(0, tier, trail)
        && let Some(placed) = search.at_once(tier, trail)
    {
        return Ok(search.go(trail, placed));
    }
    // Most requests never come here, and carry no room for it.
    Box::pin(search.on(trail, until, alarm, waiting)).await
}

/// Takes a target for a second attempt beside the first: one of the lowest tier that has any, with a
/// place free at once, if it `may` be made then.
pub fn beside(
    trail: &mut Trail,
    model: &Model,
    ask: &Ask,
    may: impl FnOnce() -> bool,
) -> Option<Placed> {
    let mut search = Search::new(model, ask, trail);
    let mut tiers = model.router.tiers().iter();
    let placed = tiers.find_map(|tier| search.at_once(tier, trail))?;
    if !may() {
        return None;
    }
    trail.goes(placed.at);
    Some(placed)
}

/// One look for a target.
struct Search<'a> {
    model: &'a Model,
    ask: &'a Ask,
    /// Targets that are out of the question.
    skip: Set,
    /// Targets that were found without a free place.
    full: Set,
    /// Canaries are taken for any request.
    canaries: bool,
    /// What the last queue said that did not take the request in.
    refused: Option<Error>,
}

impl<'a> Search<'a> {
    fn new(model: &'a Model, ask: &'a Ask, trail: &Trail) -> Self {
        Self {
            model,
            ask,
            skip: trail.tried().clone(),
            full: Set::default(),
            canaries: false,
            refused: None,
        }
    }
}

impl Search<'_> {
    /// Looks through all tiers, until one has a place or none will.
    async fn on(
        mut self,
        trail: &mut Trail,
        until: Instant,
        alarm: &mut Alarm,
        waiting: &mut (dyn Waiting + Send),
    ) -> Result<Placed, Error> {
        // Tiers that have just come back leave requests to later ones.
        let mut ramps = true;
        loop {
            let mut wait: Option<Hold<'_>> = None;
            let mut yielded = false;
            for (number, tier) in self.model.router.tiers().iter().enumerate() {
                if ramps && self.yields(number, tier, trail) {
                    yielded = true;
                    continue;
                }
                if let Some(placed) = self.at_once(tier, trail) {
                    return Ok(self.go(trail, placed));
                }
                if yielded {
                    continue;
                }
                if let Some(placed) = self.in_turn(tier, until, alarm).await {
                    return Ok(self.go(trail, placed));
                }
                let further = self.is_left_after(number);
                if let Some(hold) = trail.hold(self.model, tier, further) {
                    let stays = hold.comes_first;
                    wait.get_or_insert(hold);
                    if stays {
                        break;
                    }
                }
            }
            match wait {
                _ if yielded => ramps = false,
                Some(hold) => hold.wait(trail, until, alarm, waiting).await,
                None if self.model.router.has_canaries() && !self.canaries => self.canaries = true,
                None => {
                    return match self.last_resort() {
                        Some(placed) => Ok(self.go(trail, placed)),
                        None => Err(refuse::unavailable(self.model, trail, self.refused)),
                    };
                }
            }
            if Instant::now() >= until {
                return Err(refuse::unavailable(self.model, trail, self.refused));
            }
            self.skip.clone_from(trail.tried());
            self.full.clear();
        }
    }

    /// The canary whose turn it is; the request is counted once. A session that has its place keeps it.
    fn canary(&self, trail: &mut Trail) -> Option<Placed> {
        if !self.model.router.has_canaries() || !trail.counts() {
            return None;
        }
        let is_settled = self.session().is_some_and(|at| self.is_there(at));
        self.model.router.canary(|at| {
            let free = !is_settled && !self.skip.has(at);
            free.then(|| self.take(at)).flatten()
        })
    }

    /// Where the request's session is.
    fn session(&self) -> Option<usize> {
        let (_, sticky) = self.model.router.sticky()?;
        sticky.get(self.ask.session?, monotonic())
    }

    fn is_there(&self, at: usize) -> bool {
        self.model.targets.get(at).is_some_and(is_there)
    }

    /// Whether the request may go to a target of a later tier than this.
    fn is_left_after(&self, number: usize) -> bool {
        let mut later = self.model.router.tiers().iter().skip(number + 1);
        later.any(|tier| (tier.from..tier.to).any(|at| !self.skip.has(at)))
    }

    /// Whether a tier leaves the request to a later one, as all of it that is there starts slowly: it
    /// takes the share of requests that the furthest of its targets does.
    fn yields(&self, number: usize, tier: &Tier, trail: &Trail) -> bool {
        if number + 1 == self.model.router.tiers().len() {
            return false;
        }
        let now = monotonic();
        let mut most = 0.0_f32;
        for at in (tier.from..tier.to).filter(|at| !self.skip.has(*at)) {
            let target = self.model.targets.get(at);
            match target.map(|target| target.upstream.health.availability(now)) {
                Some(Availability::Open { share }) if share < 1.0 => most = most.max(share),
                Some(Availability::Open { .. } | Availability::Trial) => return false,
                _ => {}
            }
        }
        most > 0.0 && trail.chance() >= f64::from(most) && self.is_left_after(number)
    }

    /// A target of the tier that has a place free: where the request's session is, else by the policy.
    fn at_once(&mut self, tier: &Tier, trail: &mut Trail) -> Option<Placed> {
        if tier.to - tier.from == 1 {
            let open = View::of(self, tier).open().next()?;
            return self.take(open);
        }
        if let Some(at) = self.session()
            && (tier.from..tier.to).contains(&at)
            && !self.skip.has(at)
            && let Some(placed) = self.take(at)
        {
            if placed.target.is_canary {
                self.model.router.given(at);
            }
            return Some(placed);
        }
        for _ in 0..PICKS {
            let view = View::of(self, tier);
            let at = tier.from + tier.pick(&view, self.ask, trail.draws())?;
            if let Some(placed) = self.take(at) {
                return Some(placed);
            }
            self.full.add(at);
        }
        let view = View::of(self, tier);
        view.open().find_map(|at| self.take(at))
    }

    /// Takes a place at a target if it is there and has one free.
    fn take(&self, at: usize) -> Option<Placed> {
        let target = self.model.targets.get(at)?;
        let health = &target.upstream.health;
        let now = monotonic();
        let trial = match health.availability(now) {
            Availability::Open { .. } => None,
            Availability::Trial => Some(health.take_trial(now)?),
            _ => return None,
        };
        let permit = target.upstream.gate.try_acquire(&self.ask.queue)?;
        Some(Placed {
            at,
            target: target.clone(),
            permit,
            trial,
        })
    }

    /// A target that is out, the one that is back soonest: where nothing is there that could be full,
    /// a guess that it fails is no reason to refuse (Envoy's panic threshold).
    fn last_resort(&self) -> Option<Placed> {
        if self.refused.is_some() {
            return None;
        }
        let now = monotonic();
        let mut ejected: Vec<(Nanos, usize)> = self
            .model
            .targets
            .iter()
            .enumerate()
            .filter(|(at, target)| {
                !self.skip.has(*at)
                    && (!target.is_canary || self.canaries)
                    && target.upstream.health.is_last_resort(now)
            })
            .map(|(at, target)| (target.upstream.health.back_at(now).unwrap_or(now), at))
            .collect();
        ejected.sort_unstable();
        ejected.into_iter().find_map(|(_, at)| {
            let target = self.model.targets.get(at)?;
            let permit = target.upstream.gate.try_acquire(&self.ask.queue)?;
            Some(Placed {
                at,
                target: target.clone(),
                permit,
                trial: None,
            })
        })
    }

    /// Waits for a turn at a target of the tier that is there: the one where the wait is expected to be
    /// shortest. It waits at one only; what comes free elsewhere meanwhile goes to requests that come
    /// meanwhile. Nobody waits to the end of the time twice in one tier.
    async fn in_turn(&mut self, tier: &Tier, until: Instant, alarm: &mut Alarm) -> Option<Placed> {
        while let Some(at) = self.shortest(tier) {
            self.skip.add(at);
            let target = self.model.targets.get(at)?;
            let mut waiting = match target.upstream.gate.wait(&self.ask.queue, until) {
                Ok(waiting) => waiting,
                Err(error) => {
                    self.refused = Some(error);
                    continue;
                }
            };
            let turn = alarm.within(waiting.until(), turn(target, &mut waiting));
            match turn.await {
                Ok(Some(Ok(permit))) => {
                    return Some(Placed {
                        at,
                        target: target.clone(),
                        permit,
                        trial: None,
                    });
                }
                Ok(Some(Err(error))) => self.refused = Some(error),
                Ok(None) => {}
                Err(Elapsed) => {
                    self.refused = Some(waiting.timed_out());
                    return None;
                }
            }
        }
        None
    }

    /// The target of the tier that takes requests and has the shortest wait; of equals the first.
    fn shortest(&self, tier: &Tier) -> Option<usize> {
        let now = monotonic();
        let backlog = |at: usize| {
            let target = self.model.targets.get(at)?;
            let takes = !self.skip.has(at)
                && (!target.is_canary || self.canaries)
                && matches!(
                    target.upstream.health.availability(now),
                    Availability::Open { .. }
                );
            takes.then(|| (target.upstream.gate.backlog(&self.ask.queue), at))
        };
        let shortest = (tier.from..tier.to).filter_map(backlog).min();
        shortest.map(|(_, at)| at)
    }

    /// The request goes there: that is remembered, by its session too.
    fn go(&self, trail: &mut Trail, placed: Placed) -> Placed {
        let router = &self.model.router;
        if self.canaries && placed.target.is_canary {
            router.given(placed.at);
        }
        if let Some((_, sticky)) = router.sticky()
            && let Some(session) = self.ask.session
        {
            let tier = router.tiers().iter().find(|tier| placed.at < tier.to);
            // One that only had no place free keeps its session.
            let keeps = |at: &usize| {
                tier.is_some_and(|tier| *at < tier.to)
                    && !trail.tried().has(*at)
                    && self.is_there(*at)
            };
            let stays = self.session().filter(keeps);
            sticky.set(session, stays.unwrap_or(placed.at), monotonic());
        }
        let first = router.tiers().first();
        if !placed.target.is_canary && first.is_some_and(|tier| placed.at >= tier.to) {
            self.model.metrics.demand.spills.inc();
        }
        trail.goes(placed.at);
        placed
    }
}

/// Whether a target takes requests.
fn is_there(target: &Target) -> bool {
    let availability = target.upstream.health.availability(monotonic());
    matches!(
        availability,
        Availability::Open { .. } | Availability::Trial
    )
}

/// The turn at a target, or None once that takes no requests any more.
async fn turn(target: &Target, waiting: &mut gate::Waiting) -> Option<Result<Permit, Error>> {
    let health = &target.upstream.health;
    let mut changed = pin!(health.changed());
    loop {
        changed.as_mut().enable();
        if !is_there(target) {
            return None;
        }
        tokio::select! {
            biased;
            turn = waiting.turn() => return Some(turn),
            () = changed.as_mut() => changed.set(health.changed()),
        }
    }
}
