//! API keys: format, lookup, and the state of each key's limits.
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::limit::{Meter, Nanos};
use crate::prompt_log::{Choice, ChoiceSpec};
use crate::subjects::{Ground, LimitsSpec, Metered};

/// `fb-`, kind, id, secret, check.
const KEY_LEN: usize = 3 + 1 + ID_LEN + 32 + CHECK_LEN;
const ID_LEN: usize = 12;
const CHECK_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The public part of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; ID_LEN]);

impl KeyId {
    /// An id of 12 base62 characters.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; ID_LEN] = text.as_bytes().try_into().ok()?;
        bytes
            .iter()
            .all(u8::is_ascii_alphanumeric)
            .then_some(Self(bytes))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Checked to be ASCII when it was made.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key record as the store hands it over, as JSON.
#[derive(Debug, Deserialize)]
pub struct KeySpec {
    /// The public id.
    pub id: String,
    /// `inference` or `admin`, or its one letter.
    pub kind: String,
    /// The account that is billed.
    pub account: String,
    /// SHA-256 of the whole key, hex.
    pub digest: String,
    /// The secret before the last rotation, while both are good.
    #[serde(default)]
    pub previous_digest: Option<String>,
    /// Until when the previous secret is good, unix seconds.
    #[serde(default)]
    pub previous_expires_at: Option<f64>,
    /// Models it may use; `null` for all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Its limits on all models together.
    #[serde(flatten)]
    pub limits: LimitsSpec,
    /// Its limits on single models, by the model's own name.
    #[serde(default)]
    pub per_model: FxHashMap<String, LimitsSpec>,
    /// `interactive` (unless given) or `batch`: who waits for whom.
    #[serde(default)]
    pub priority: Option<String>,
    /// What of its requests is logged; `null`: as its account says.
    #[serde(flatten)]
    pub log: ChoiceSpec,
    /// Unix seconds; `null` for never.
    #[serde(default)]
    pub expires_at: Option<f64>,
    /// Revoked for good.
    #[serde(default)]
    pub revoked: bool,
}

/// A key as admission uses it.
pub struct Key {
    /// The public id.
    pub id: KeyId,
    /// Who is billed.
    pub account: Arc<str>,
    /// Opens the admin surface, and nothing else.
    pub admin: bool,
    /// Models it may use; `None` for all.
    pub models: Option<Vec<Box<str>>>,
    /// Its limits and their state.
    pub metered: Metered,
    /// The same on single models, by the model's own name.
    pub per_model: FxHashMap<Box<str>, Metered>,
    /// Waits behind interactive requests.
    pub batch: bool,
    /// What of its requests is logged.
    pub log: Choice,
    digest: [u8; 32],
    previous: Option<([u8; 32], f64)>,
    expires_at: Option<f64>,
    revoked: bool,
}

/// Why a key does not open the door. The client is told of all but `Revoked` and `Expired` alike,
/// so that a guess learns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No key in the request.
    Missing,
    /// Not of the form of a key: refused without a lookup.
    Malformed,
    /// No such key, or the wrong secret.
    Unknown,
    /// It was revoked.
    Revoked,
    /// It ran out.
    Expired,
}

/// All keys, by id.
#[derive(Default)]
pub struct Keys {
    table: RwLock<FxHashMap<KeyId, Arc<Key>>>,
}

impl Keys {
    /// Takes records in: new ones are added, known ones changed with their limits' state kept.
    /// With `replace`, keys that are not among them go. Returns how many keys there are.
    pub fn load(
        &self,
        specs: Vec<KeySpec>,
        replace: bool,
        ground: &Ground<'_>,
        now: Nanos,
    ) -> Result<usize, String> {
        let mut loaded = Vec::with_capacity(specs.len());
        for spec in specs {
            loaded.push(self.key(spec, ground, now)?);
        }
        let mut table = self.table.write();
        if replace {
            table.clear();
        }
        for key in loaded {
            table.insert(key.id, Arc::new(key));
        }
        Ok(table.len())
    }

    fn key(&self, spec: KeySpec, ground: &Ground<'_>, now: Nanos) -> Result<Key, String> {
        let id =
            KeyId::parse(&spec.id).ok_or_else(|| format!("key id {:?} is malformed", spec.id))?;
        let bad = |what: &str| format!("key {}: {what}", spec.id);
        let limits = spec.limits.limits().map_err(|e| bad(&e))?;
        let mut model_limits = Vec::with_capacity(spec.per_model.len());
        for (model, limits) in &spec.per_model {
            let limits = limits.limits().map_err(|e| bad(&format!("{model}: {e}")))?;
            model_limits.push((model, limits));
        }
        let batch = match spec.priority.as_deref() {
            None | Some("interactive") => false,
            Some("batch") => true,
            Some(_) => return Err(bad("priority is unknown")),
        };
        let log = spec.log.choice().map_err(|e| bad(&e))?;
        let old = self.table.read().get(&id).cloned();
        let subject = format!("key:{}", spec.id);
        // With its account's, so that one call to the store asks for both.
        let tag = format!("account:{}", spec.account);
        let metered = Metered::of(
            ground,
            (&subject, &tag),
            limits,
            old.as_ref().map(|key| &key.metered),
            now,
        );
        let per_model = model_limits
            .into_iter()
            .map(|(model, limits)| {
                let known = old
                    .as_ref()
                    .and_then(|key| key.per_model.get(model.as_str()));
                let subject = format!("{subject}/{model}");
                let metered = Metered::of(ground, (&subject, &tag), limits, known, now);
                (model.as_str().into(), metered)
            })
            .collect();
        Ok(Key {
            id,
            account: Arc::from(spec.account.as_str()),
            admin: matches!(spec.kind.as_str(), "admin" | "a"),
            models: spec
                .models
                .map(|models| models.into_iter().map(String::into_boxed_str).collect()),
            metered,
            per_model,
            batch,
            log,
            digest: digest(&spec.digest).ok_or_else(|| bad("digest is malformed"))?,
            previous: match (&spec.previous_digest, spec.previous_expires_at) {
                (Some(hex), Some(until)) => Some((
                    digest(hex).ok_or_else(|| bad("previous_digest is malformed"))?,
                    until,
                )),
                _ => None,
            },
            expires_at: spec.expires_at,
            revoked: spec.revoked,
        })
    }

    /// The key that `text` is the secret of. `unix_s` is the wall clock, seconds.
    pub fn authenticate(&self, text: &[u8], unix_s: f64) -> Result<Arc<Key>, Denied> {
        let id = well_formed(text).ok_or(Denied::Malformed)?;
        let found = self.table.read().get(&id).cloned();
        let key = found.ok_or(Denied::Unknown)?;
        let digest: [u8; 32] = Sha256::digest(text).into();
        let current = same(&key.digest, &digest);
        let previous = key
            .previous
            .as_ref()
            .is_some_and(|(old, until)| same(old, &digest) && unix_s < *until);
        if !(current || previous) {
            return Err(Denied::Unknown);
        }
        if key.revoked {
            return Err(Denied::Revoked);
        }
        if key.expires_at.is_some_and(|at| unix_s >= at) {
            return Err(Denied::Expired);
        }
        Ok(key)
    }

    /// The key of that id.
    pub fn get(&self, id: &str) -> Option<Arc<Key>> {
        self.table.read().get(&KeyId::parse(id)?).cloned()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.table.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Key {
    /// Its meter.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.metered.meter
    }

    /// Whether there are models that it may not use.
    pub fn is_restricted(&self) -> bool {
        self.models.is_some()
    }

    /// Whether the key may use the model, under the name asked or the model's own.
    pub fn may_use(&self, asked: &str, name: &str) -> bool {
        self.models
            .as_ref()
            .is_none_or(|models| models.iter().any(|m| **m == *asked || **m == *name))
    }
}

/// The id of a key whose form and check are right; noise fails here, without a lookup.
fn well_formed(text: &[u8]) -> Option<KeyId> {
    if text.len() != KEY_LEN || !text.starts_with(b"fb-") {
        return None;
    }
    let (body, check) = text.split_at_checked(KEY_LEN - CHECK_LEN)?;
    if !text.get(3..)?.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let mut crc = u64::from(crc32fast::hash(body));
    let mut expected = [b'0'; CHECK_LEN];
    for place in expected.iter_mut().rev() {
        *place = *ALPHABET.get((crc % 62) as usize)?;
        crc /= 62;
    }
    if expected != *check {
        return None;
    }
    Some(KeyId(text.get(4..4 + ID_LEN)?.try_into().ok()?))
}

/// Equality in constant time.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (place, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *place = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}
