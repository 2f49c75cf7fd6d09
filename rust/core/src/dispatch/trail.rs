//! What one request has tried of a model's targets.
use tokio::time::Instant;

use super::hold::Hold;
use crate::endpoint::Endpoint;
use crate::route::cold::Held;
use crate::route::{Ask, Draws, Set, Tier};
use crate::snapshot::{Model, Target};

/// What one request has tried of a model's targets. Another model needs another trail.
pub struct Trail {
    begun: bool,
    counted: bool,
    targets: usize,
    /// Not for this request, whatever happens.
    barred: Set,
    /// These, and what was tried in this round.
    tried: Set,
    draws: Draws,
    /// Of the request, from 0 to below 1.
    chance: f64,
    /// Since when it is held, and its place among those that are.
    pub(super) held_since: Option<Instant>,
    pub(super) held: Option<Held>,
    /// When the client last got a sign of life.
    pub(super) told: Option<Instant>,
}

impl Default for Trail {
    fn default() -> Self {
        Self::new()
    }
}

impl Trail {
    /// Of a request that has tried nothing.
    pub fn new() -> Self {
        Self {
            begun: false,
            counted: false,
            targets: 0,
            barred: Set::default(),
            tried: Set::default(),
            draws: Draws::new(0),
            chance: 0.0,
            held_since: None,
            held: None,
            told: None,
        }
    }

    /// Of a request for which only targets that `fit` are left.
    pub fn only(model: &Model, ask: &Ask, fit: impl Fn(&Target) -> bool) -> Self {
        let mut trail = Self::new();
        trail.begin(model, ask);
        for (at, target) in model.targets.iter().enumerate() {
            if !fit(target) {
                trail.lost(at);
            }
        }
        trail
    }

    /// The target is not tried again for this request: it cannot be reached.
    pub fn lost(&mut self, at: usize) {
        self.barred.add(at);
        self.tried.add(at);
    }

    /// Whether a target is left that was not tried.
    pub fn has_more(&self) -> bool {
        !self.begun || (0..self.targets).any(|at| !self.tried.has(at))
    }

    /// From now on all targets may be tried again, except those that were [`Trail::lost`]. False if
    /// none is left.
    pub fn again(&mut self) -> bool {
        self.tried.clone_from(&self.barred);
        self.has_more()
    }

    /// The first look sorts out what is not for this request.
    pub(super) fn begin(&mut self, model: &Model, ask: &Ask) {
        if self.begun {
            return;
        }
        self.begun = true;
        self.targets = model.targets.len();
        self.draws = Draws::new(ask.seed);
        self.chance = self.draws.unit();
        if model.is_restricted() || !Endpoint::COMMON.contains(&ask.endpoint) {
            self.barred = barred(model, ask);
            self.tried.clone_from(&self.barred);
        }
    }

    /// Whether none of the model's targets may serve the request at all.
    pub(super) fn nothing_may(&self) -> bool {
        self.targets > 0 && (0..self.targets).all(|at| self.barred.has(at))
    }

    /// Whether the request is yet to be counted; from now on it is.
    pub(super) fn counts(&mut self) -> bool {
        !std::mem::replace(&mut self.counted, true)
    }

    pub(super) fn chance(&self) -> f64 {
        self.chance
    }

    pub(super) fn draws(&mut self) -> &mut Draws {
        &mut self.draws
    }

    pub(super) fn tried(&self) -> &Set {
        &self.tried
    }

    /// The request goes there.
    pub(super) fn goes(&mut self, at: usize) {
        self.tried.add(at);
        self.held = None;
    }

    /// Whether and how the request waits for an engine of the tier that is being started; see
    /// [`Hold::at`].
    pub(super) fn hold<'m>(
        &mut self,
        model: &'m Model,
        tier: &Tier,
        further: bool,
    ) -> Option<Hold<'m>> {
        let targets = model.targets.get(tier.from..tier.to)?;
        let open = targets
            .iter()
            .enumerate()
            .filter(|(at, _)| !self.tried.has(tier.from + at))
            .map(|(_, target)| target);
        let cold: Vec<&Target> = open.filter(|target| Hold::is_for(target)).collect();
        Hold::at(cold, self, further, &model.metrics.demand.held)
    }
}

/// The targets that are not for the request: without its API, too dear, or with too small a context.
/// A context is too small by an estimate; where all are, the largest may show that it is not.
fn barred(model: &Model, ask: &Ask) -> Set {
    let mut barred = Set::default();
    let mut too_small = Set::default();
    let mut largest = None;
    let mut fits = false;
    for (at, target) in model.targets.iter().enumerate() {
        if !target.offers(ask.endpoint) || is_too_dear(model, target, ask) {
            barred.add(at);
            continue;
        }
        match target.context_tokens {
            Some(context) if context < ask.context_tokens => {
                too_small.add(at);
                largest = largest.max(Some(context));
            }
            _ => fits = true,
        }
    }
    for (at, target) in model.targets.iter().enumerate() {
        if too_small.has(at) && (fits || target.context_tokens != largest) {
            barred.add(at);
        }
    }
    barred
}

/// Whether a request may cost more there than the target is used for.
pub(super) fn is_too_dear(model: &Model, target: &Target, ask: &Ask) -> bool {
    let Some(most) = target.max_cost_nano else {
        return false;
    };
    let cost = ask
        .pricing
        .as_ref()
        .and_then(|pricing| pricing.nano(&model.name, &target.upstream.name));
    cost.is_some_and(|cost| cost > most)
}
