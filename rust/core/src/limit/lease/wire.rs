//! Calls as the script `python/forebay/limits/lease.lua` reads them.

use super::ask::PART_LIFE;
use super::registry::NODES;
use super::terms::Kind;
use super::{Ask, Call, Grant, Nanos};

/// Arguments per key.
const WIDTH: usize = 11;
/// Numbers per key in the reply.
const REPLY: usize = 4;
/// The reply's fourth number: the call was overtaken, or the participant was not known.
const STALE: i64 = 1;
/// Money is remembered for so long after the last call; then the database has it.
const MONEY_KEPT_MS: u64 = 24 * 3_600_000;
const PERMITS_KEPT_MS: u64 = 10_000;

impl Call {
    /// The keys of the limits, one hash slot.
    pub fn keys(&self) -> Vec<String> {
        if self.is_beat() {
            return vec![format!("fb:{{{NODES}}}")];
        }
        // A brace would end the hash tag early; two tags that become one only share a slot.
        let tag = self.tag.replace(['{', '}'], "_");
        self.asks()
            .map(|(id, _)| format!("fb:{{{tag}}}:{id}"))
            .collect()
    }

    /// The arguments after the participant's name: as many for each key.
    pub fn arguments(&self) -> Vec<String> {
        let mut all = Vec::with_capacity(WIDTH * self.asks().len().max(1));
        if self.is_beat() {
            all.push("m".to_owned());
            all.push(millis(PART_LIFE).to_string());
            all.push(u8::from(self.leaving).to_string());
        }
        for (_, ask) in self.asks() {
            all.extend(fields(ask));
        }
        all.resize(all.len().next_multiple_of(WIDTH), "0".to_owned());
        all
    }

    /// The grants in a reply; `None` if it is not one of this call.
    pub fn grants(&self, reply: &[i64]) -> Option<Vec<Grant>> {
        let (rows, rest) = reply.as_chunks::<REPLY>();
        if !rest.is_empty() || rows.len() != self.asks().len().max(1) {
            return None;
        }
        let grant = |&[units, level, retry_ms, note]: &[i64; REPLY]| Grant {
            units: u64::try_from(units).unwrap_or_default(),
            level,
            retry: u64::try_from(retry_ms)
                .unwrap_or_default()
                .saturating_mul(1_000_000),
            stale: note == STALE,
        };
        Some(rows.iter().map(grant).collect())
    }
}

fn fields(ask: &Ask) -> impl Iterator<Item = String> {
    let known = u64::from(ask.known);
    let numbers: [u64; WIDTH - 1] = match ask.terms.kind {
        Kind::Rate {
            units,
            period,
            burst,
        } => [
            units,
            period,
            burst,
            ask.owed,
            ask.returned,
            ask.want,
            ask.need,
            ask.unit,
            known,
            millis(ask.away),
        ],
        Kind::Permits { capacity } | Kind::Money { capacity } => [
            capacity,
            match ask.terms.kind {
                Kind::Money { .. } => MONEY_KEPT_MS,
                _ => PERMITS_KEPT_MS,
            },
            ask.seq,
            ask.part,
            ask.settled,
            ask.floor,
            ask.want,
            ask.need,
            ask.unit,
            known,
        ],
    };
    let kind = if ask.terms.is_rate() { "r" } else { "h" };
    std::iter::once(kind.to_owned()).chain(numbers.map(|number| number.to_string()))
}

fn millis(nanos: Nanos) -> u64 {
    nanos.div_ceil(1_000_000)
}
