//! The limits of a key as they stand now, and the spend that the database knows of.
use serde::{Deserialize, Serialize};

use crate::gateway::Gateway;
use crate::limit::{Meter, Now, Scope};

/// One limit that applies to a key, as it stands.
#[derive(Debug, Serialize)]
pub struct LiveLimit {
    scope: &'static str,
    subject: String,
    model: Option<String>,
    dimension: &'static str,
    period: Option<&'static str>,
    limit: u64,
    burst: u64,
    remaining: u64,
    reset_s: Option<f64>,
}

/// What was spent in a budget's period, by all nodes together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpentSpec {
    /// `account`, `key`, `model` or `key_model`.
    pub scope: String,
    /// Whose.
    pub id: String,
    /// Of `key_model`, the model.
    #[serde(default)]
    pub model: Option<String>,
    /// When the period began, unix seconds.
    pub period_start: i64,
    /// Nano-USD.
    pub spent_nano: u64,
}

impl Gateway {
    /// Every limit that applies to a key; of models, those that have limits and that the key may
    /// use. `None` if there is no such key.
    pub fn key_limits(&self, id: &str) -> Option<Vec<LiveLimit>> {
        let key = self.keys.get(id)?;
        let subjects = self.subjects();
        let now = self.now();
        let mut out = Vec::new();
        if let Some(account) = subjects.accounts.get(&*key.account) {
            let whose = (Scope::Account, &*key.account, None);
            standings(&account.metered.meter, whose, now, &mut out);
        }
        standings(key.meter(), (Scope::Key, id, None), now, &mut out);
        let mut models: Vec<_> = subjects
            .models
            .iter()
            .filter(|(name, _)| key.may_use(name, name))
            .map(|(name, metered)| (name, Scope::Model, &**name, metered))
            .chain(
                key.per_model
                    .iter()
                    .map(|(name, metered)| (name, Scope::KeyModel, id, metered)),
            )
            .collect();
        models.sort_by_key(|(name, scope, ..)| (*name, *scope as u8));
        for (name, scope, subject, metered) in models {
            standings(&metered.meter, (scope, subject, Some(name)), now, &mut out);
        }
        Some(out)
    }

    /// Raises what was spent to what the database knows; records of unknown subjects are passed
    /// over.
    pub fn set_spent(&self, specs: &[SpentSpec]) {
        let subjects = self.subjects();
        let now_s = self.now().unix_s;
        for spec in specs {
            let raise =
                |meter: &Meter| meter.raise_spent(now_s, spec.period_start, spec.spent_nano);
            match spec.scope.as_str() {
                "account" => {
                    if let Some(account) = subjects.accounts.get(spec.id.as_str()) {
                        raise(&account.metered.meter);
                    }
                }
                "model" => {
                    if let Some(metered) = subjects.models.get(spec.id.as_str()) {
                        raise(&metered.meter);
                    }
                }
                "key" => {
                    if let Some(key) = self.keys.get(&spec.id) {
                        raise(key.meter());
                    }
                }
                "key_model" => {
                    let model = spec.model.as_deref().unwrap_or_default();
                    if let Some(key) = self.keys.get(&spec.id)
                        && let Some(metered) = key.per_model.get(model)
                    {
                        raise(&metered.meter);
                    }
                }
                _ => {}
            }
        }
    }
}

fn standings(
    meter: &Meter,
    (scope, subject, model): (Scope, &str, Option<&str>),
    now: Now,
    out: &mut Vec<LiveLimit>,
) {
    out.extend(meter.standings(now).into_iter().map(|standing| LiveLimit {
        scope: scope.as_str(),
        subject: subject.to_owned(),
        model: model.map(str::to_owned),
        dimension: standing.dimension.as_str(),
        period: (!standing.period.is_empty()).then_some(standing.period),
        limit: standing.limit,
        burst: standing.burst,
        remaining: standing.remaining,
        reset_s: standing.reset.map(|ns| ns as f64 / 1e9),
    }));
}
