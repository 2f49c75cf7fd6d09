//! A model with its live targets.
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{MAX_TIMEOUT, ModelSpec, RetrySpec, TargetSpec, UpstreamSpec};
use crate::counters::{Counters, OfModel};
use crate::estimate::Estimator;
use crate::gateway::Endpoint;
use crate::guard::Known;
use crate::retry::RetryBudget;
use crate::route::Router;
use crate::route::cold::Cold;
use crate::route::shadow::{Copied, Shadow};
use crate::upstream::Upstream;

/// A model with its live targets.
pub struct Model {
    /// The name that usage is booked under.
    pub name: Arc<str>,
    /// Where it is served, in the order of the tiers.
    pub targets: Vec<Target>,
    /// Which of them a request goes to.
    pub router: Arc<Router>,
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
    /// What its engines said of it.
    pub known: Arc<Known>,
    /// A stream whose engine dies is carried on by a sibling that can.
    pub resume: bool,
    shadow: Option<Arc<Shadow>>,
    is_restricted: bool,
    is_cost_bound: bool,
}

/// When a second attempt is made beside a slow one.
pub struct Hedge {
    /// After how long without a first token.
    pub after: Duration,
    /// How many more may be.
    pub budget: RetryBudget,
}

/// One upstream, and the model's name there.
#[derive(Clone)]
pub struct Target {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The model's name there.
    pub model: Arc<str>,
    /// Its share of requests against its siblings'.
    pub weight: f64,
    /// Gets its share of all requests and no others, unless nothing else is there.
    pub is_canary: bool,
    /// Not used for requests that may cost more there, nano-USD.
    pub max_cost_nano: Option<u64>,
    /// Longest wait for its first byte, where that is not the model's.
    pub first_byte: Option<Duration>,
    /// Its context, tokens.
    pub context_tokens: Option<u64>,
    /// What requests do while it is not warm.
    pub cold: Option<Arc<Cold>>,
}

impl Target {
    /// Whether it has this API.
    pub fn offers(&self, endpoint: Endpoint) -> bool {
        self.upstream.offers(endpoint)
    }
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

/// What a model is built of, besides its own configuration.
pub(super) struct Ground<'a> {
    pub(super) upstreams: &'a FxHashMap<String, (UpstreamSpec, Arc<Upstream>)>,
    pub(super) cold: &'a FxHashMap<String, Arc<Cold>>,
    pub(super) known: Option<&'a Arc<Model>>,
    pub(super) counters: &'a Counters,
}

impl Model {
    /// As configured; an error on a dangling name or a time that is none.
    pub(super) fn new(spec: &mut ModelSpec, ground: &Ground<'_>) -> Result<Self, String> {
        if spec.targets.is_empty() {
            return Err(format!("model {}: no targets", spec.name));
        }
        spec.targets.sort_by_key(|target| target.tier);
        let targets = spec
            .targets
            .iter()
            .map(|target| Target::new(target, ground))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("model {}: {e}", spec.name))?;
        let shadow = match &spec.shadow {
            None => None,
            Some(shadow) => {
                let upstream = ground.upstream(&shadow.upstream);
                let (_, upstream) = upstream.map_err(|e| format!("model {}: {e}", spec.name))?;
                Some(Arc::new(Shadow::new(shadow, Arc::clone(upstream))))
            }
        };
        let seconds = |s: f64| {
            Duration::try_from_secs_f64(s)
                // Far below where adding it to the clock would overflow.
                .map(|timeout| timeout.min(MAX_TIMEOUT))
                .map_err(|e| format!("model {}: {e}", spec.name))
        };
        let hedge = match spec.hedge {
            None => None,
            Some(hedge) => Some(Hedge {
                after: seconds(hedge.after_s)?,
                budget: RetryBudget::new(hedge.max_percent / 100.0, 0.0),
            }),
        };
        let same = ground.known.filter(|known| known.retry == spec.retry);
        let router = ground.known.map(|known| &known.router);
        Ok(Self {
            name: Arc::from(spec.name.as_str()),
            router: match router.filter(|router| router.fits(spec)) {
                Some(router) => Arc::clone(router),
                None => Arc::new(Router::new(spec)),
            },
            timeouts: Timeouts {
                first_byte: seconds(spec.first_byte_s)?,
                idle: seconds(spec.idle_s)?,
                total: seconds(spec.total_s)?,
            },
            estimator: ground
                .known
                .map(|model| Arc::clone(&model.estimator))
                .unwrap_or_default(),
            metrics: ground.counters.model(&spec.name),
            retries: match same {
                Some(known) => Arc::clone(&known.retries),
                None => Arc::new(RetryBudget::new(
                    spec.retry.budget,
                    spec.retry.min_per_second,
                )),
            },
            retry: spec.retry.clone(),
            hedge,
            fallbacks: spec.fallbacks.clone(),
            context_fallback: spec.context_fallback.clone(),
            content_filter_fallback: spec.content_filter_fallback.clone(),
            known: Arc::default(),
            resume: spec.resume,
            shadow,
            is_restricted: targets.iter().any(Target::is_restricted),
            is_cost_bound: targets.iter().any(|target| target.max_cost_nano.is_some()),
            targets,
        })
    }

    /// The models that may answer instead, whatever for.
    pub fn fallbacks(&self) -> impl Iterator<Item = &str> {
        let fitting = [&self.context_fallback, &self.content_filter_fallback];
        let names = fitting.into_iter().flatten().chain(&self.fallbacks);
        names.map(String::as_str)
    }

    /// The right to copy this request to the model's shadow, if it is to be.
    pub fn shadow(&self) -> Option<Copied> {
        self.shadow.as_ref()?.copy()
    }

    /// Whether another model may answer in its place.
    pub fn falls_back(&self) -> bool {
        self.fallbacks().next().is_some()
    }

    /// Whether some request that the model can serve is not for all of its targets.
    pub fn is_restricted(&self) -> bool {
        self.is_restricted
    }

    /// Whether a target of it is not used for requests that may cost too much there.
    pub fn is_cost_bound(&self) -> bool {
        self.is_cost_bound
    }
}

impl<'a> Ground<'a> {
    fn upstream(&self, name: &str) -> Result<&'a (UpstreamSpec, Arc<Upstream>), String> {
        self.upstreams
            .get(name)
            .ok_or_else(|| format!("no upstream is named {name}"))
    }
}

impl Target {
    fn new(spec: &TargetSpec, ground: &Ground<'_>) -> Result<Self, String> {
        let (_, upstream) = ground.upstream(&spec.upstream)?;
        let first_byte = spec.first_byte_s.map(Duration::try_from_secs_f64);
        Ok(Self {
            upstream: Arc::clone(upstream),
            model: Arc::from(spec.model.as_str()),
            weight: f64::from(spec.weight),
            is_canary: spec.canary_percent.is_some(),
            max_cost_nano: spec.max_cost_nano,
            first_byte: first_byte
                .transpose()
                .map_err(|e| e.to_string())?
                .map(|time| time.min(MAX_TIMEOUT)),
            context_tokens: spec.context_tokens,
            cold: ground.cold.get(&spec.upstream).cloned(),
        })
    }

    fn is_restricted(&self) -> bool {
        self.max_cost_nano.is_some()
            || self.context_tokens.is_some()
            || Endpoint::COMMON
                .into_iter()
                .any(|endpoint| !self.offers(endpoint))
    }
}
