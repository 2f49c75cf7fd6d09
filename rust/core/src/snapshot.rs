//! The configuration as the core sees it: one frozen snapshot, swapped whole.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::counters::Counters;
use crate::health::{self, Health, Settings as HealthSettings};
use crate::limit::Region;
use crate::prompt_log::{Settings, SettingsSpec};
use crate::route::cold::Cold;
use crate::upstream::Upstream;

mod model;
mod spec;

use model::Ground;
pub use model::{Model, Target, Timeouts};

pub use spec::{
    AdaptiveSpec, AgentSpec, ColdSpec, DrainSpec, ErrorRule, HedgeSpec, ModelSpec, OutlierSpec,
    PathsSpec, PolicySpec, Reason, RetrySpec, ShadowSpec, SignSpec, SnapshotSpec, StickyBy,
    StickySpec, TargetSpec, UpstreamSpec,
};

/// Longest timeout: a year, far below where adding it to the clock would overflow.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);

/// Everything a request is decided by, frozen.
#[derive(Default)]
pub struct Snapshot {
    /// By name and by alias.
    pub models: FxHashMap<Box<str>, Arc<Model>>,
    /// See [`SnapshotSpec::files`].
    pub files: Option<Arc<Model>>,
    /// See [`SnapshotSpec::max_event_bytes`].
    pub max_event_bytes: usize,
    /// See [`SnapshotSpec::max_answer_bytes`].
    pub max_answer_bytes: usize,
    /// See [`SnapshotSpec::complete`].
    pub complete: bool,
    /// See [`SnapshotSpec::prompt_logs`].
    pub prompt_logs: Option<Arc<Settings>>,
    prompt_logs_spec: Option<SettingsSpec>,
    upstreams: FxHashMap<String, (UpstreamSpec, Arc<Upstream>)>,
}

impl Snapshot {
    /// The upstream of that name.
    pub fn upstream(&self, name: &str) -> Option<Arc<Upstream>> {
        self.upstreams
            .get(name)
            .map(|(_, upstream)| Arc::clone(upstream))
    }

    /// All upstreams, in no order, with what they were configured by.
    pub fn upstreams(&self) -> impl Iterator<Item = (&UpstreamSpec, &Arc<Upstream>)> {
        self.upstreams
            .values()
            .map(|(spec, upstream)| (spec, upstream))
    }

    /// Builds the next snapshot. Upstreams that did not change keep their pool and their permits.
    ///
    /// Fails on a bad address or a dangling name; `previous` then stays as it is.
    pub fn build(
        spec: SnapshotSpec,
        previous: &Self,
        counters: &Counters,
        region: &Arc<Region>,
    ) -> Result<Self, String> {
        let prompt_logs = match &spec.prompt_logs {
            // Patterns take a while to compile.
            same if *same == previous.prompt_logs_spec => previous.prompt_logs.clone(),
            Some(spec) => Some(Settings::new(spec)?),
            None => None,
        };
        let mut upstreams = FxHashMap::default();
        for spec in spec.upstreams {
            let upstream = match previous.upstreams.get(&spec.name) {
                Some((old, upstream)) if *old == spec => Arc::clone(upstream),
                known => {
                    let health = health_of(&spec, known, previous, counters);
                    let mut next = Upstream::new(&spec, counters, region, health)?;
                    if let Some((_, old)) = known {
                        next.take_over(old);
                    }
                    Arc::new(next)
                }
            };
            upstreams.insert(spec.name.clone(), (spec, upstream));
        }
        let cold = cold_engines(&upstreams)?;
        let mut models = FxHashMap::default();
        let mut tiers = Vec::new();
        for mut spec in spec.models {
            tiers.extend(tiers_of(&spec, &upstreams));
            let ground = Ground {
                upstreams: &upstreams,
                cold: &cold,
                known: previous.models.get(spec.name.as_str()),
                counters,
            };
            let model = Arc::new(Model::new(&mut spec, &ground)?);
            for alias in spec.aliases {
                models.insert(alias.into_boxed_str(), Arc::clone(&model));
            }
            models.insert(spec.name.into_boxed_str(), model);
        }
        let files = spec.files.map(|mut spec| {
            let ground = Ground {
                upstreams: &upstreams,
                cold: &cold,
                known: previous.files.as_ref(),
                counters,
            };
            Model::new(&mut spec, &ground).map(Arc::new)
        });
        let files = files.transpose()?;
        // Only now, when nothing can fail any more: health is shared with the previous snapshot.
        for (name, (spec, upstream)) in &upstreams {
            upstream.health.configure(HealthSettings::from(spec));
            upstream.health.set_groups(groups(name, &tiers));
        }
        Ok(Self {
            models,
            files,
            max_event_bytes: spec.max_event_bytes,
            max_answer_bytes: spec.max_answer_bytes,
            complete: spec.complete,
            prompt_logs,
            prompt_logs_spec: spec.prompt_logs,
            upstreams,
        })
    }
}

/// An upstream's health: as known while its address is the same, else a new one.
fn health_of(
    spec: &UpstreamSpec,
    known: Option<&(UpstreamSpec, Arc<Upstream>)>,
    previous: &Snapshot,
    counters: &Counters,
) -> Arc<Health> {
    if let Some((old, upstream)) = known
        && old.url == spec.url
    {
        return Arc::clone(&upstream.health);
    }
    // What is there from the beginning shares the beginning; what joins later begins slowly.
    let joins = !previous.upstreams.is_empty();
    let settings = HealthSettings::from(spec);
    let health = Health::new(settings, counters.health(&spec.name), joins);
    // Who drained it meant the name.
    health.drain(known.is_some_and(|(_, upstream)| upstream.health.is_drained()));
    Arc::new(health)
}

/// What requests do at each upstream that is not warm; several models may share one.
fn cold_engines(
    upstreams: &FxHashMap<String, (UpstreamSpec, Arc<Upstream>)>,
) -> Result<FxHashMap<String, Arc<Cold>>, String> {
    let specs = upstreams
        .iter()
        .filter_map(|(name, (spec, _))| Some((name, spec.cold.as_ref()?)));
    specs
        .map(|(name, spec)| match Cold::new(spec) {
            Ok(cold) => Ok((name.clone(), Arc::new(cold))),
            Err(error) => Err(format!("upstream {name}: {error}")),
        })
        .collect()
}

/// A tier of a model: the names of its upstreams, and their health.
struct Tier {
    names: Vec<String>,
    group: health::Group,
}

fn tiers_of(
    spec: &ModelSpec,
    upstreams: &FxHashMap<String, (UpstreamSpec, Arc<Upstream>)>,
) -> Vec<Tier> {
    let mut names: BTreeMap<u8, BTreeSet<&str>> = BTreeMap::new();
    for target in &spec.targets {
        names
            .entry(target.tier)
            .or_default()
            .insert(&target.upstream);
    }
    let tier = |names: BTreeSet<&str>| Tier {
        group: names
            .iter()
            .filter_map(|name| upstreams.get(*name))
            .map(|(_, upstream)| Arc::downgrade(&upstream.health))
            .collect(),
        names: names.into_iter().map(str::to_owned).collect(),
    };
    names.into_values().map(tier).collect()
}

/// The tiers that an upstream serves in.
fn groups(upstream: &str, tiers: &[Tier]) -> Vec<health::Group> {
    tiers
        .iter()
        .filter(|tier| tier.names.iter().any(|name| name == upstream))
        .map(|tier| Arc::clone(&tier.group))
        .collect()
}
