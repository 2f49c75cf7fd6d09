//! The routing of one model: its tiers, each with its policy, its sessions and its canaries.
use std::time::Duration;

use super::affinity::Affinity;
use super::latency::Latency;
use super::round_robin::RoundRobin;
use super::share::Share;
use super::sticky::Sticky;
use super::{Ask, Draws, Fleet, least_load, power_of_two};
use crate::snapshot::{ModelSpec, PolicySpec, StickySpec, TargetSpec};

/// How a model's requests are routed, with what was learned so far.
#[derive(Debug)]
pub struct Router {
    tiers: Box<[Tier]>,
    /// Where sessions are kept together, and by what they are told apart.
    sticky: Option<(StickySpec, Sticky)>,
    canaries: Box<[(usize, Share)]>,
    policy: PolicySpec,
    targets: Box<[TargetSpec]>,
}

/// Targets that are used before those of the next tier.
#[derive(Debug)]
pub struct Tier {
    /// Index of its first target among the model's.
    pub from: usize,
    /// Index after its last.
    pub to: usize,
    /// The largest weight in it.
    pub heaviest: f64,
    policy: Policy,
}

#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
    LeastLoad,
    PowerOfTwo,
    PrefixAffinity(Affinity),
    Latency(Latency),
}

impl Policy {
    fn new(spec: PolicySpec, targets: usize) -> Self {
        match spec {
            PolicySpec::RoundRobin => Self::RoundRobin(RoundRobin::default()),
            PolicySpec::LeastLoad => Self::LeastLoad,
            PolicySpec::PowerOfTwo => Self::PowerOfTwo,
            PolicySpec::PrefixAffinity => Self::PrefixAffinity(Affinity::new(targets)),
            PolicySpec::Latency => Self::Latency(Latency::new(targets)),
        }
    }
}

impl Tier {
    /// The tier's target for a request, by its index within the tier; None where none can take it.
    pub fn pick(&self, fleet: &impl Fleet, ask: &Ask, draws: &mut Draws) -> Option<usize> {
        match &self.policy {
            Policy::RoundRobin(policy) => policy.pick(fleet, draws),
            Policy::LeastLoad => least_load::pick(fleet, draws),
            Policy::PowerOfTwo => power_of_two::pick(fleet, draws),
            Policy::PrefixAffinity(policy) => policy.pick(fleet, &ask.prefix, draws),
            Policy::Latency(policy) => policy.pick(fleet, draws),
        }
    }
}

impl Router {
    /// The routing of a model whose targets are in the order of their tiers.
    pub fn new(spec: &ModelSpec) -> Self {
        let mut tiers: Vec<Tier> = Vec::new();
        let mut from = 0;
        for tier in spec.targets.chunk_by(|one, next| one.tier == next.tier) {
            let weights = tier
                .iter()
                .filter(|target| target.canary_percent.is_none())
                .map(|target| f64::from(target.weight));
            tiers.push(Tier {
                from,
                to: from + tier.len(),
                heaviest: weights.fold(0.0, f64::max).max(f64::MIN_POSITIVE),
                policy: Policy::new(spec.policy, tier.len()),
            });
            from += tier.len();
        }
        let canaries = spec.targets.iter().enumerate().filter_map(|(at, target)| {
            let percent = target.canary_percent?;
            Some((at, Share::percent(percent)))
        });
        Self {
            tiers: tiers.into_boxed_slice(),
            sticky: spec.sticky.clone().map(|sticky| {
                let ttl = Duration::try_from_secs_f64(sticky.ttl_s).unwrap_or(Duration::MAX);
                (sticky, Sticky::new(ttl))
            }),
            canaries: canaries.collect(),
            policy: spec.policy,
            targets: spec.targets.clone().into_boxed_slice(),
        }
    }

    /// Whether it is what `spec` asks for, so that it can go on with what it has learned.
    pub fn fits(&self, spec: &ModelSpec) -> bool {
        self.policy == spec.policy
            && *self.targets == *spec.targets
            && self.sticky.as_ref().map(|(sticky, _)| sticky) == spec.sticky.as_ref()
    }

    /// The tiers, the first one first.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// What sessions are told apart by, where they are kept together.
    pub fn sticky(&self) -> Option<(&StickySpec, &Sticky)> {
        self.sticky.as_ref().map(|(spec, sticky)| (spec, sticky))
    }

    /// Whether its policy looks at prompts.
    pub fn looks_at_prompts(&self) -> bool {
        self.policy == PolicySpec::PrefixAffinity
    }

    /// Counts a request, once. The canary whose it is, if that takes it.
    pub fn canary<T>(&self, mut take: impl FnMut(usize) -> Option<T>) -> Option<T> {
        let mut taken = None;
        for (at, share) in &self.canaries {
            if share.count() && taken.is_none() && share.take() {
                taken = take(*at);
                if taken.is_none() {
                    share.refused();
                }
            }
        }
        taken
    }

    /// Counts a request that a canary gets though it was not due, as its session is there or nothing
    /// else is.
    pub fn given(&self, at: usize) {
        if let Some((_, share)) = self.canaries.iter().find(|(canary, _)| *canary == at) {
            share.given();
        }
    }

    /// Whether it has canaries.
    pub fn has_canaries(&self) -> bool {
        !self.canaries.is_empty()
    }
}
