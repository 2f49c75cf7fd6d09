//! Who is logged, how much of it, and how it is kept.
use std::sync::Arc;

use serde::Deserialize;

use super::redact::Redactor;
use super::seal::Sealer;

/// How much of a request is logged.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    Off,
    /// That it was, and its sizes.
    Metadata,
    /// What was asked and answered, too.
    Full,
}

impl Level {
    /// The name in records and in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Full => "full",
        }
    }
}

/// The fields of a key's or an account's record; null or absent is the account's, or none.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct ChoiceSpec {
    /// `off`, `metadata` or `full`.
    #[serde(default)]
    pub log_level: Option<Level>,
    /// The share of requests that are logged, 0 to 1.
    #[serde(default)]
    pub log_sample: Option<f64>,
}

impl ChoiceSpec {
    /// What was chosen; the error names the field.
    pub fn choice(&self) -> Result<Choice, String> {
        if self
            .log_sample
            .is_some_and(|share| !(0.0..=1.0).contains(&share))
        {
            return Err("log_sample must be from 0 to 1".to_owned());
        }
        Ok(Choice {
            level: self.log_level,
            sample: self.log_sample,
        })
    }
}

/// What a key or an account says of logging.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    level: Option<Level>,
    sample: Option<f64>,
}

impl Choice {
    /// A key's choice, and what it leaves to its account.
    #[must_use]
    pub fn or(self, account: Self) -> Self {
        Self {
            level: self.level.or(account.level),
            sample: self.sample.or(account.sample),
        }
    }

    /// How much of the request with this event id is logged; always the same for one id. `None`:
    /// nothing.
    #[inline]
    pub fn of(self, event_id: &[u8; 16]) -> Option<Level> {
        let level = self.level.filter(|level| *level != Level::Off)?;
        let sampled = self.sample.is_none_or(|share| fraction(event_id) < share);
        sampled.then_some(level)
    }
}

/// A number from 0 to below 1 that an id alone decides, evenly spread: the id's random half, mixed
/// (the finalizer of SplitMix64).
fn fraction(event_id: &[u8; 16]) -> f64 {
    let half = event_id.last_chunk().copied().unwrap_or_default();
    let mut mixed = u64::from_be_bytes(half);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// The snapshot's section on prompt logs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SettingsSpec {
    /// The name of the encryption key.
    pub key_name: String,
    /// The key, 32 bytes in base64.
    pub key: String,
    /// Most bytes kept of a request, and of an answer.
    pub max_bytes: usize,
    /// What else is taken out: regular expressions.
    #[serde(default)]
    pub patterns: Vec<String>,
}

/// How texts are made fit to be kept.
pub struct Settings {
    /// Takes secrets out.
    pub redactor: Redactor,
    /// Encrypts.
    pub sealer: Sealer,
    /// Most bytes kept of a request, and of an answer.
    pub max_bytes: usize,
}

impl Settings {
    /// Of the snapshot's section; an error on a bad key or pattern.
    pub fn new(spec: &SettingsSpec) -> Result<Arc<Self>, String> {
        let bad = |e: String| format!("prompt_logs: {e}");
        Ok(Arc::new(Self {
            redactor: Redactor::new(&spec.patterns).map_err(|e| bad(e.to_string()))?,
            sealer: Sealer::new(&spec.key_name, &spec.key).map_err(bad)?,
            max_bytes: spec.max_bytes,
        }))
    }
}
