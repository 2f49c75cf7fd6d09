//! The price book: every version of every price, and which one holds for a request.
use rustc_hash::FxHashMap;
use serde::Deserialize;

use super::Price;

/// A row of the price book as the store hands it over, as JSON. Units as in [`Price`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceSpec {
    /// The row's id.
    pub id: i64,
    /// The model's own name.
    pub model: String,
    /// Where it is served; none: wherever no price of an upstream's own holds.
    #[serde(default)]
    pub upstream: Option<String>,
    /// Whose price it is; none: everyone's without a price of their own.
    #[serde(default)]
    pub account: Option<String>,
    /// From when on it holds, unix microseconds.
    pub from_us: i64,
    /// Until when, itself excluded; none: for good.
    #[serde(default)]
    pub to_us: Option<i64>,
    /// See [`Price::input`].
    pub input: u64,
    /// See [`Price::cached`].
    pub cached: u64,
    /// See [`Price::cache_write`].
    pub cache_write: u64,
    /// See [`Price::output`].
    pub output: u64,
    /// See [`Price::reasoning`].
    pub reasoning: u64,
    /// See [`Price::request`].
    pub request: u64,
    /// See [`Price::second`].
    pub second: u64,
}

impl PriceSpec {
    fn price(&self) -> Price {
        Price {
            id: self.id,
            input: self.input,
            cached: self.cached,
            cache_write: self.cache_write,
            output: self.output,
            reasoning: self.reasoning,
            request: self.request,
            second: self.second,
        }
    }
}

#[derive(Debug)]
struct Version {
    from_us: i64,
    to_us: i64,
    price: Price,
}

/// The versions of one price, one after the other.
#[derive(Debug, Default)]
struct Timeline(Vec<Version>);

impl Timeline {
    fn at(&self, unix_us: i64) -> Option<&Price> {
        let later = self.0.partition_point(|version| version.from_us <= unix_us);
        let version = self.0.get(later.checked_sub(1)?)?;
        (unix_us < version.to_us).then_some(&version.price)
    }

    /// Takes a version in that begins after all others.
    fn push(&mut self, version: Version) -> Result<(), String> {
        if version.to_us <= version.from_us {
            return Err(format!("price {} ends before it begins", version.price.id));
        }
        if let Some(last) = self.0.last()
            && last.to_us > version.from_us
        {
            return Err(format!(
                "prices {} and {} overlap",
                last.price.id, version.price.id
            ));
        }
        self.0.push(version);
        Ok(())
    }
}

/// A model's prices for one account, or for all others.
#[derive(Debug, Default)]
struct Side {
    anywhere: Timeline,
    upstreams: FxHashMap<Box<str>, Timeline>,
}

impl Side {
    fn at(&self, upstream: &str, unix_us: i64) -> Option<&Price> {
        self.upstreams
            .get(upstream)
            .and_then(|own| own.at(unix_us))
            .or_else(|| self.anywhere.at(unix_us))
    }
}

#[derive(Debug, Default)]
struct OfModel {
    everyone: Side,
    accounts: FxHashMap<Box<str>, Side>,
}

/// Every version of every price, by model, account and upstream.
#[derive(Debug, Default)]
pub struct PriceBook {
    models: FxHashMap<Box<str>, OfModel>,
}

impl PriceBook {
    /// A book of these rows.
    ///
    /// Fails where two rows would hold for the same requests, and names them.
    pub fn of(mut specs: Vec<PriceSpec>) -> Result<Self, String> {
        specs.sort_by_key(|spec| spec.from_us);
        let mut book = Self::default();
        for spec in specs {
            let version = Version {
                from_us: spec.from_us,
                to_us: spec.to_us.unwrap_or(i64::MAX),
                price: spec.price(),
            };
            let model = book.models.entry(spec.model.into_boxed_str()).or_default();
            let side = match spec.account {
                Some(account) => model.accounts.entry(account.into_boxed_str()).or_default(),
                None => &mut model.everyone,
            };
            let timeline = match spec.upstream {
                Some(upstream) => side.upstreams.entry(upstream.into_boxed_str()).or_default(),
                None => &mut side.anywhere,
            };
            timeline.push(version)?;
        }
        Ok(book)
    }

    /// The prices of a model for an account.
    pub fn rates(&self, model: &str, account: &str) -> Rates<'_> {
        let model = self.models.get(model);
        Rates {
            own: model.and_then(|model| model.accounts.get(account)),
            everyone: model.map(|model| &model.everyone),
        }
    }
}

/// The prices of a model for an account.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    own: Option<&'a Side>,
    everyone: Option<&'a Side>,
}

impl<'a> Rates<'a> {
    /// The price of a request that was admitted at `unix_us` and is served by `upstream`: the
    /// account's at the upstream, else the account's, else the upstream's, else the model's.
    pub fn at(&self, upstream: &str, unix_us: i64) -> Option<&'a Price> {
        self.own
            .and_then(|own| own.at(upstream, unix_us))
            .or_else(|| self.everyone?.at(upstream, unix_us))
    }
}
