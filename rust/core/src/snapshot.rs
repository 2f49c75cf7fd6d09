//! The configuration as the core sees it: one frozen snapshot, swapped whole.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::counters::{Counters, OfModel};
use crate::estimate::Estimator;
use crate::limit::Region;
use crate::prompt_log::{Settings, SettingsSpec};
use crate::retry::RetryBudget;
use crate::upstream::Upstream;

mod spec;

pub use spec::{
    AdaptiveSpec, ColdSpec, DrainSpec, ErrorRule, HedgeSpec, ModelSpec, OutlierSpec, PathsSpec,
    PolicySpec, Reason, RetrySpec, ShadowSpec, SignSpec, SnapshotSpec, StickyBy, StickySpec,
    TargetSpec, UpstreamSpec,
};

/// Longest timeout: a year, far below where adding it to the clock would overflow.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);

/// A model with its live targets.
pub struct Model {
    /// The name that usage is booked under.
    pub name: Arc<str>,
    /// Where it is served.
    pub targets: Vec<Target>,
    /// Its timeouts.
    pub timeouts: Timeouts,
    /// What its requests cost, as learned so far.
    pub estimator: Arc<Estimator>,
    /// Its metrics.
    pub metrics: OfModel,
    /// When failed attempts are made again.
    pub retry: RetrySpec,
    /// How many more of them may be.
    pub retries: Arc<RetryBudget>,
    /// When a second attempt is made beside a slow one.
    pub hedge: Option<Hedge>,
    /// Models that are tried in turn when this one cannot answer.
    pub fallbacks: Vec<String>,
    /// The model for what does not fit into this one's context.
    pub context_fallback: Option<String>,
    /// The model for what a content filter refuses.
    pub content_filter_fallback: Option<String>,
    next: AtomicUsize,
}

/// When a second attempt is made beside a slow one.
pub struct Hedge {
    /// After how long without a first token.
    pub after: Duration,
    /// How many more may be.
    pub budget: RetryBudget,
}

impl Model {
    /// The targets in the order in which this request tries them: round robin, then the siblings.
    pub fn candidates(&self) -> impl Iterator<Item = &Target> {
        let start = self.next.fetch_add(1, Ordering::Relaxed) % self.targets.len().max(1);
        self.targets
            .iter()
            .cycle()
            .skip(start)
            .take(self.targets.len())
    }
}

/// One upstream, and the model's name there.
#[derive(Clone)]
pub struct Target {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The model's name there.
    pub model: Arc<str>,
}

/// How long each part of a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the answer's first byte.
    pub first_byte: Duration,
    /// Between two reads of the answer.
    pub idle: Duration,
    /// The whole request.
    pub total: Duration,
}

/// Everything a request is decided by, frozen.
#[derive(Default)]
pub struct Snapshot {
    /// By name and by alias.
    pub models: FxHashMap<Box<str>, Arc<Model>>,
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
                    let mut next = Upstream::new(&spec, counters, region)?;
                    if let Some((_, old)) = known {
                        next.take_over(old);
                    }
                    Arc::new(next)
                }
            };
            upstreams.insert(spec.name.clone(), (spec, upstream));
        }
        let mut models = FxHashMap::default();
        for spec in spec.models {
            let mut targets = Vec::with_capacity(spec.targets.len());
            for target in &spec.targets {
                let (_, upstream) = upstreams.get(&target.upstream).ok_or_else(|| {
                    format!(
                        "model {}: no upstream is named {}",
                        spec.name, target.upstream
                    )
                })?;
                targets.push(Target {
                    upstream: Arc::clone(upstream),
                    model: Arc::from(target.model.as_str()),
                });
            }
            if targets.is_empty() {
                return Err(format!("model {}: no targets", spec.name));
            }
            let seconds = |s: f64| {
                Duration::try_from_secs_f64(s)
                    // Far below where adding it to the clock would overflow.
                    .map(|timeout| timeout.min(MAX_TIMEOUT))
                    .map_err(|e| format!("model {}: {e}", spec.name))
            };
            let known = previous.models.get(spec.name.as_str());
            let model = Arc::new(Model {
                name: Arc::from(spec.name.as_str()),
                targets,
                timeouts: Timeouts {
                    first_byte: seconds(spec.first_byte_s)?,
                    idle: seconds(spec.idle_s)?,
                    total: seconds(spec.total_s)?,
                },
                estimator: known
                    .map(|model| Arc::clone(&model.estimator))
                    .unwrap_or_default(),
                metrics: counters.model(&spec.name),
                retries: known.filter(|model| model.retry == spec.retry).map_or_else(
                    || {
                        let RetrySpec {
                            budget,
                            min_per_second,
                            ..
                        } = spec.retry;
                        Arc::new(RetryBudget::new(budget, min_per_second))
                    },
                    |model| Arc::clone(&model.retries),
                ),
                hedge: match spec.hedge {
                    None => None,
                    Some(hedge) => Some(Hedge {
                        after: seconds(hedge.after_s)?,
                        budget: RetryBudget::new(hedge.max_percent / 100.0, 0.0),
                    }),
                },
                retry: spec.retry,
                fallbacks: spec.fallbacks,
                context_fallback: spec.context_fallback,
                content_filter_fallback: spec.content_filter_fallback,
                next: AtomicUsize::new(0),
            });
            for alias in spec.aliases {
                models.insert(alias.into_boxed_str(), Arc::clone(&model));
            }
            models.insert(spec.name.into_boxed_str(), model);
        }
        Ok(Self {
            models,
            max_event_bytes: spec.max_event_bytes,
            max_answer_bytes: spec.max_answer_bytes,
            complete: spec.complete,
            prompt_logs,
            prompt_logs_spec: spec.prompt_logs,
            upstreams,
        })
    }
}
