//! A tier's live targets, as policies see them.
use std::time::Duration;

use super::Search;
use crate::gateway::monotonic;
use crate::health::Availability;
use crate::limit::Nanos;
use crate::route::{Fleet, Set, Tier, load};
use crate::snapshot::Target;

/// A tier's targets for one request, now.
pub(super) struct View<'a> {
    targets: &'a [Target],
    from: usize,
    heaviest: f64,
    skip: &'a Set,
    full: &'a Set,
    canaries: bool,
    now: Nanos,
}

impl<'a> View<'a> {
    /// The tier as a search sees it.
    pub(super) fn of(search: &'a Search<'_>, tier: &Tier) -> Self {
        Self {
            targets: search
                .model
                .targets
                .get(tier.from..tier.to)
                .unwrap_or_default(),
            from: tier.from,
            heaviest: tier.heaviest,
            skip: &search.skip,
            full: &search.full,
            canaries: search.canaries,
            now: monotonic(),
        }
    }

    /// The weight of a target that can take the request, as it seems, and what is in flight there.
    #[inline]
    fn open_at(&self, at: usize) -> Option<(f64, u64, &Target)> {
        let target = self.targets.get(at)?;
        let place = self.from + at;
        if self.skip.has(place) || self.full.has(place) || (target.is_canary && !self.canaries) {
            return None;
        }
        let upstream = &target.upstream;
        let share = match upstream.health.availability(self.now) {
            Availability::Open { share } => f64::from(share),
            Availability::Trial => 1.0,
            _ => return None,
        };
        let own = upstream.gate.in_use();
        let is_free = upstream.gate.has_room(own);
        is_free.then_some((target.weight * share, own, target))
    }

    /// The model's indices of those that can take the request, as it seems.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> {
        let open = (0..self.targets.len()).filter(|at| self.weight(*at) > 0.0);
        open.map(|at| self.from + at)
    }
}

impl Fleet for View<'_> {
    fn count(&self) -> usize {
        self.targets.len()
    }

    #[inline]
    fn weight(&self, at: usize) -> f64 {
        self.open_at(at).map_or(0.0, |(weight, _, _)| weight)
    }

    fn heaviest(&self) -> f64 {
        self.heaviest
    }

    #[inline]
    fn load(&self, at: usize) -> f64 {
        self.targets.get(at).map_or(0.0, |target| {
            let own = target.upstream.gate.in_use();
            load::expected(own, target.upstream.health.load(self.now))
        })
    }

    #[inline]
    fn open(&self, at: usize) -> Option<(f64, f64)> {
        let (weight, own, target) = self.open_at(at)?;
        let load = load::expected(own, target.upstream.health.load(self.now));
        Some((weight, load))
    }

    fn ttft(&self, at: usize) -> Option<Duration> {
        self.targets.get(at)?.upstream.health.ttft()
    }

    fn now(&self) -> Nanos {
        self.now
    }
}
