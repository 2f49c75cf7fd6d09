//! Limits of accounts and of models, beside those of keys: their records and their meters.
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::Deserialize;

use crate::limit::lease::Leases;
use crate::limit::{Budget, Limits, MAX_BUDGET, Meter, Nanos, OnStoreLoss, Period, Region};
use crate::prompt_log::{Choice, ChoiceSpec};

/// The limit fields of a record; `null` or absent is no limit.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LimitsSpec {
    /// See [`Limits::rps`].
    #[serde(default)]
    pub rps: Option<u64>,
    /// See [`Limits::rps_burst`].
    #[serde(default)]
    pub rps_burst: Option<u64>,
    /// See [`Limits::rpm`].
    #[serde(default)]
    pub rpm: Option<u64>,
    /// See [`Limits::rpm_burst`].
    #[serde(default)]
    pub rpm_burst: Option<u64>,
    /// See [`Limits::tpm`].
    #[serde(default)]
    pub tpm: Option<u64>,
    /// See [`Limits::tpm_burst`].
    #[serde(default)]
    pub tpm_burst: Option<u64>,
    /// See [`Limits::concurrency`].
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// Nano-USD.
    #[serde(default)]
    pub budget_nano: Option<u64>,
    /// `day`, `month` or `total`.
    #[serde(default)]
    pub budget_period: Option<String>,
    /// `share` or `deny`.
    #[serde(default)]
    pub on_store_loss: Option<String>,
}

impl LimitsSpec {
    /// The limits; an error names the field.
    pub fn limits(&self) -> Result<Limits, String> {
        let budget = match (self.budget_nano, self.budget_period.as_deref()) {
            (None, None) => None,
            (Some(nano), Some(name)) => {
                if nano > MAX_BUDGET {
                    return Err("budget_nano is too large".to_owned());
                }
                let period = Period::from_name(name)
                    .ok_or_else(|| format!("budget_period {name:?} is no period"))?;
                Some(Budget { nano, period })
            }
            _ => return Err("budget_nano and budget_period go together".to_owned()),
        };
        let on_store_loss = match self.on_store_loss.as_deref() {
            None | Some("share") => OnStoreLoss::Share,
            Some("deny") => OnStoreLoss::Deny,
            Some(other) => return Err(format!("on_store_loss {other:?} is unknown")),
        };
        Ok(Limits {
            rps: self.rps,
            rps_burst: self.rps_burst,
            rpm: self.rpm,
            rpm_burst: self.rpm_burst,
            tpm: self.tpm,
            tpm_burst: self.tpm_burst,
            concurrency: self.concurrency,
            budget,
            on_store_loss,
        })
    }
}

/// Where the state of limits is kept.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Memory of this machine.
    pub region: &'a Arc<Region>,
    /// Leases, where machines share limits.
    pub leases: Option<&'a Arc<Leases>>,
}

impl Ground<'_> {
    fn meter(&self, subject: &str, tag: &str, limits: &Limits) -> Meter {
        match self.leases {
            Some(leases) => Meter::leased(self.region, leases, subject, tag, limits),
            None => Meter::of(self.region, subject, limits),
        }
    }
}

/// A meter with the limits that it was made of.
#[derive(Clone, Debug)]
pub struct Metered {
    /// What is configured.
    pub limits: Limits,
    /// Its state.
    pub meter: Arc<Meter>,
}

impl Metered {
    /// The meter of `subject`; with an `old` one its state goes on. Subjects of one `tag` are kept
    /// together where machines share them.
    pub fn of(
        ground: &Ground<'_>,
        (subject, tag): (&str, &str),
        limits: Limits,
        old: Option<&Self>,
        now: Nanos,
    ) -> Self {
        let meter = match old {
            Some(old) if old.limits == limits => Arc::clone(&old.meter),
            Some(old) => old.meter.reconfigured(&limits, now),
            None => Arc::new(ground.meter(subject, tag, &limits)),
        };
        Self { limits, meter }
    }
}

/// An account's or a model's record, as the store hands it over, as JSON.
#[derive(Clone, Debug, Deserialize)]
pub struct SubjectSpec {
    /// `account` or `model`.
    pub scope: String,
    /// Whose.
    pub id: String,
    /// Its limits.
    #[serde(flatten)]
    pub limits: LimitsSpec,
    /// An account's share when requests wait; 1 unless given.
    #[serde(default)]
    pub weight: Option<f32>,
    /// What is logged of an account's requests, where their keys do not say.
    #[serde(flatten)]
    pub log: ChoiceSpec,
}

/// An account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its limits, over all its keys.
    pub metered: Metered,
    /// Its share when requests wait, relative to other accounts.
    pub weight: f32,
    /// What is logged of requests whose keys do not say.
    pub log: Choice,
}

/// The accounts and models that have limits.
#[derive(Debug, Default)]
pub struct Subjects {
    /// By id.
    pub accounts: FxHashMap<Box<str>, Account>,
    /// By the model's own name.
    pub models: FxHashMap<Box<str>, Metered>,
}

impl Subjects {
    /// The next state of all subjects; those that are not among `specs` have no limits any more.
    ///
    /// Fails on a bad record, which it names; `self` then stays as it is.
    pub fn next(
        &self,
        specs: Vec<SubjectSpec>,
        ground: &Ground<'_>,
        now: Nanos,
    ) -> Result<Self, String> {
        let mut next = Self::default();
        // All are checked before the first meter is retired.
        let mut checked = Vec::with_capacity(specs.len());
        for spec in specs {
            let bad = |e: String| format!("limits of {} {:?}: {e}", spec.scope, spec.id);
            let limits = spec.limits.limits().map_err(bad)?;
            let weight = spec.weight.unwrap_or(1.0);
            if !(weight.is_finite() && weight > 0.0) {
                return Err(bad("the weight must be above 0".to_owned()));
            }
            if !matches!(spec.scope.as_str(), "account" | "model") {
                return Err(bad("the scope is unknown".to_owned()));
            }
            let log = spec.log.choice().map_err(bad)?;
            checked.push((spec, limits, weight, log));
        }
        for (spec, limits, weight, log) in checked {
            let id = spec.id.into_boxed_str();
            let subject = format!("{}:{id}", spec.scope);
            if spec.scope == "account" {
                let old = self.accounts.get(&id).map(|account| &account.metered);
                let metered = Metered::of(ground, (&subject, &subject), limits, old, now);
                let account = Account {
                    metered,
                    weight,
                    log,
                };
                next.accounts.insert(id, account);
            } else {
                let old = self.models.get(&id);
                let metered = Metered::of(ground, (&subject, &subject), limits, old, now);
                next.models.insert(id, metered);
            }
        }
        // Whose limits are gone: what is in flight must not settle on what counts no more.
        Ok(next)
    }
}
