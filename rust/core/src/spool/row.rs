//! Rows of the ledger's tables: their columns, and how events become rows.
//!
//! A row in the spool is a row of PostgreSQL's binary COPY, so shipping copies bytes. A usage row
//! lacks the columns that the spool itself knows: node, boot and seq follow the id.
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use super::frame::PROGRESS;
use crate::copy::{self, Jsonb, Timestamp, Uuid};
use crate::error::Kind;
use crate::record::UsageEvent;
use crate::usage::{Source, Usage};

/// A column's name and type.
pub type Column = (&'static str, Type);

/// A column's type in PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `uuid`
    Uuid,
    /// `text`
    Text,
    /// `timestamptz`
    Timestamp,
    /// `bool`
    Bool,
    /// `int4`
    Int,
    /// `int8`
    Long,
    /// `float8`
    Float,
    /// `jsonb`
    Json,
    /// `bytea`
    Bytes,
}

/// The columns of a usage row as it is shipped.
pub const USAGE: [Column; 34] = [
    ("event_id", Type::Uuid),
    ("node", Type::Text),
    ("boot", Type::Uuid),
    ("seq", Type::Long),
    ("request_id", Type::Text),
    ("account", Type::Text),
    ("key_id", Type::Text),
    ("admitted_at", Type::Timestamp),
    ("first_byte_at", Type::Timestamp),
    ("ended_at", Type::Timestamp),
    ("model_asked", Type::Text),
    ("model_served", Type::Text),
    ("upstream", Type::Text),
    ("front", Type::Text),
    ("endpoint", Type::Text),
    ("stream", Type::Bool),
    ("outcome", Type::Text),
    ("status", Type::Int),
    ("finish_reason", Type::Text),
    ("error_kind", Type::Text),
    ("attempts", Type::Int),
    ("prompt_tokens", Type::Long),
    ("cached_tokens", Type::Long),
    ("cache_write_tokens", Type::Long),
    ("completion_tokens", Type::Long),
    ("reasoning_tokens", Type::Long),
    ("source", Type::Text),
    ("duration_ms", Type::Float),
    ("ttft_ms", Type::Float),
    ("tokens_per_second", Type::Float),
    ("price_id", Type::Long),
    ("cost_pico", Type::Long),
    ("tags", Type::Json),
    ("attempt_log", Type::Json),
];

/// The columns of a prompt log's row.
pub const ENTRY: [Column; 16] = [
    ("event_id", Type::Uuid),
    ("request_id", Type::Text),
    ("account", Type::Text),
    ("key_id", Type::Text),
    ("model", Type::Text),
    ("at", Type::Timestamp),
    ("level", Type::Text),
    ("status", Type::Int),
    ("request_bytes", Type::Int),
    ("answer_bytes", Type::Int),
    ("request_truncated", Type::Bool),
    ("answer_truncated", Type::Bool),
    ("redactions", Type::Int),
    ("enc_key", Type::Text),
    ("request", Type::Bytes),
    ("answer", Type::Bytes),
];

/// Columns that follow the id in a shipped usage row and that a row in the spool lacks.
const ORIGIN: usize = 3;
/// Columns of a row in the spool as the first version of the format has them: all but the attempts.
const OLD: usize = USAGE.len() - ORIGIN - 1;
/// Bytes of a row in the spool up to its id's end: count, length, id.
pub const HEAD: usize = 2 + 4 + 16;
/// Bytes of a finish reason that are kept: the protocols' own are short.
const FINISH: usize = 64;

/// Appends a usage row as it stands in the spool.
pub fn put_usage(event: &UsageEvent, out: &mut Vec<u8>) {
    let long = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    let finish = event.finish_reason.as_deref().map(|text| {
        let mut end = text.len().min(FINISH);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.get(..end).unwrap_or_default()
    });
    let usage = &event.usage;
    copy::row(out, (USAGE.len() - ORIGIN) as u16)
        .put(Uuid(event.event_id))
        .put(event.request_id.as_str())
        .put(&*event.account)
        .put(event.key_id.as_str())
        .put(Timestamp(event.admitted_us))
        .put(event.first_byte_us.map(Timestamp))
        .put(Timestamp(event.ended_us))
        .put(event.model_asked.as_str())
        .put(&*event.model_served)
        .put(event.upstream.as_deref())
        .put(event.front)
        .put(event.endpoint)
        .put(event.stream)
        .put(event.outcome)
        .put(i32::from(event.status))
        .put(finish)
        .put(event.error_kind)
        .put(i32::try_from(event.attempts).unwrap_or(i32::MAX))
        .put(long(usage.prompt))
        .put(long(usage.cached))
        .put(long(usage.cache_write))
        .put(long(usage.completion))
        .put(long(usage.reasoning))
        .put(event.source)
        .put(event.duration_ms)
        .put(event.ttft_ms)
        .put(event.tokens_per_second)
        .put(event.price_id)
        .put(event.cost_pico.map(long))
        .put(event.tags.as_deref().map(Jsonb))
        .put(event.attempt_log.as_deref().map(Jsonb))
        .end();
}

/// Appends the columns that a row in the spool lacks.
pub fn put_origin(node: &str, spool: [u8; 16], seq: u64, out: &mut Vec<u8>) {
    let mut fields = Vec::with_capacity(node.len() + 64);
    copy::row(&mut fields, ORIGIN as u16)
        .put(node)
        .put(Uuid(spool))
        .put(i64::try_from(seq).unwrap_or(i64::MAX))
        .end();
    out.extend_from_slice(fields.get(2..).unwrap_or_default());
}

/// How far a running request has come, as it stands behind the record of its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// An upstream was contacted.
    pub contacted: bool,
    /// The tokens are the engine's own counts.
    pub counted: bool,
    /// Upstreams tried.
    pub attempts: u8,
    /// Status of the answer that has begun; 0: none has.
    pub status: u16,
    /// When the first byte came, unix microseconds; 0: it has not.
    pub first_byte_us: i64,
    /// When this was noted, unix microseconds.
    pub seen_us: i64,
    /// Tokens until then.
    pub usage: Usage,
}

/// Words of [`Reached`].
type Words = [AtomicU64; PROGRESS / 8];

impl Reached {
    /// Notes it: plain stores, which are there even if the process is killed at the next instruction.
    pub fn store(&self, words: &Words) {
        let state = u64::from(self.contacted)
            | u64::from(self.counted) << 1
            | u64::from(self.attempts) << 8
            | u64::from(self.status) << 16;
        let values = [
            state,
            self.first_byte_us.cast_unsigned(),
            self.seen_us.cast_unsigned(),
            self.usage.prompt,
            self.usage.completion,
            self.usage.cached,
            self.usage.cache_write,
            self.usage.reasoning,
        ];
        for (word, value) in words.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Reads what was noted.
    pub fn load(words: &Words) -> Self {
        let [
            state,
            first_byte,
            seen,
            prompt,
            completion,
            cached,
            cache_write,
            reasoning,
        ] = words.each_ref().map(|word| word.load(Ordering::Relaxed));
        Self {
            contacted: state & 1 != 0,
            counted: state & 2 != 0,
            attempts: (state >> 8) as u8,
            status: (state >> 16) as u16,
            first_byte_us: first_byte.cast_signed(),
            seen_us: seen.cast_signed(),
            usage: Usage {
                prompt,
                completion,
                cached,
                cache_write,
                reasoning,
            },
        }
    }
}

/// What a request is rated by.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Who pays.
    pub account: &'a str,
    /// The model's own name.
    pub model: &'a str,
    /// Who served it.
    pub upstream: Option<&'a str>,
    /// When it was admitted, unix microseconds.
    pub admitted_us: i64,
    /// What it used.
    pub usage: Usage,
    /// How long it took, microseconds.
    pub duration_us: i64,
}

/// Gives the price's id and the cost in pico-dollars.
pub type Rate<'a> = &'a dyn Fn(&Served<'_>) -> Option<(i64, u64)>;

/// The row of a request whose process died: what its beginning says, and how far it had come.
/// `None` if `begin` is no row.
pub fn interrupted(
    begin: &[u8],
    upstream: Option<&str>,
    reached: &Reached,
    rate: Rate<'_>,
) -> Option<Vec<u8>> {
    let fields = Fields::usage(begin)?;
    let text = |name: &str| {
        let bytes = fields.0.get(place(name)?).copied().flatten()?;
        std::str::from_utf8(bytes).ok()
    };
    let admitted = fields.0.get(place("admitted_at")?).copied().flatten()?;
    let admitted_us = copy::unix_us(i64::from_be_bytes(admitted.try_into().ok()?));
    let usage = if reached.contacted {
        reached.usage
    } else {
        Usage::default()
    };
    let ended_us = reached.seen_us.max(admitted_us);
    let duration_us = ended_us - admitted_us;
    // What no upstream had is not rated, and costs nothing.
    let served = Served {
        account: text("account")?,
        model: text("model_served")?,
        upstream,
        admitted_us,
        usage,
        duration_us,
    };
    let rated = reached.contacted.then(|| rate(&served)).flatten();
    let cost = match rated {
        Some((_, cost)) => Some(cost),
        None => (!reached.contacted).then_some(0),
    };
    let first_byte = (reached.first_byte_us != 0).then_some(reached.first_byte_us);
    let source = match (reached.contacted, reached.counted) {
        (false, _) | (true, true) => Source::Counted,
        (true, false) => Source::Estimated,
    };
    let status = match reached.status {
        0 => Kind::Unavailable.status(),
        status => status,
    };
    let long = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    let mut changes = Changes::default();
    changes.set("first_byte_at", first_byte.map(Timestamp));
    changes.set("ended_at", Timestamp(ended_us));
    changes.set("upstream", upstream);
    changes.set("status", i32::from(status));
    changes.set("error_kind", Kind::Unavailable.name());
    changes.set("attempts", i32::from(reached.attempts));
    changes.set("prompt_tokens", long(usage.prompt));
    changes.set("cached_tokens", long(usage.cached));
    changes.set("cache_write_tokens", long(usage.cache_write));
    changes.set("completion_tokens", long(usage.completion));
    changes.set("reasoning_tokens", long(usage.reasoning));
    changes.set("source", source.name());
    changes.set("duration_ms", duration_us as f64 / 1e3);
    changes.set(
        "ttft_ms",
        first_byte.map(|at| (at - admitted_us) as f64 / 1e3),
    );
    changes.set("price_id", rated.map(|(id, _)| id));
    changes.set("cost_pico", cost.map(long));
    let mut fields = fields;
    changes.apply(&mut fields);
    Some(fields.encode())
}

/// When the request of a usage row in the spool ended, unix microseconds.
pub(super) fn ended_us(row: &[u8]) -> Option<i64> {
    let fields = Fields::usage(row)?;
    let ended = fields.0.get(place("ended_at")?).copied().flatten()?;
    Some(copy::unix_us(i64::from_be_bytes(ended.try_into().ok()?)))
}

/// The fields that a usage row in the spool lacks as it was written before its last column was there:
/// a null for each.
pub(super) fn missing(row: &[u8]) -> &'static [u8] {
    let columns = row.first_chunk::<2>().map(|two| u16::from_be_bytes(*two));
    match columns {
        Some(columns) if usize::from(columns) == OLD => &[0xff; 4],
        _ => &[],
    }
}

/// Where a column stands in a usage row in the spool.
fn place(name: &str) -> Option<usize> {
    let at = USAGE.iter().position(|(column, _)| *column == name)?;
    if at == 0 {
        Some(0)
    } else {
        at.checked_sub(ORIGIN)
    }
}

/// New values of some columns.
#[derive(Default)]
struct Changes {
    values: Vec<u8>,
    places: Vec<(usize, Option<Range<usize>>)>,
}

impl Changes {
    fn set(&mut self, name: &str, value: impl copy::Value) {
        let start = self.values.len();
        let is_there = value.put(&mut self.values);
        if let Some(at) = place(name) {
            let range = is_there.then_some(start..self.values.len());
            self.places.push((at, range));
        }
    }

    fn apply<'a>(&'a self, fields: &mut Fields<'a>) {
        for (at, range) in &self.places {
            if let Some(field) = fields.0.get_mut(*at) {
                *field = range.clone().and_then(|range| self.values.get(range));
            }
        }
    }
}

/// The columns of one row.
struct Fields<'a>(Vec<Option<&'a [u8]>>);

impl<'a> Fields<'a> {
    /// A usage row in the spool, of this version of the format or the one before.
    fn usage(row: &'a [u8]) -> Option<Self> {
        if let Some(fields) = Self::parse(row, OLD + 1) {
            return Some(fields);
        }
        let mut fields = Self::parse(row, OLD)?;
        fields.0.push(None);
        Some(fields)
    }

    fn parse(row: &'a [u8], columns: usize) -> Option<Self> {
        let (count, mut rest) = row.split_first_chunk::<2>()?;
        if usize::from(u16::from_be_bytes(*count)) != columns {
            return None;
        }
        let mut fields = Vec::with_capacity(columns);
        for _ in 0..columns {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            match usize::try_from(i32::from_be_bytes(*len)) {
                // -1 is null.
                Err(_) => {
                    fields.push(None);
                    rest = tail;
                }
                Ok(len) => {
                    let (field, tail) = tail.split_at_checked(len)?;
                    fields.push(Some(field));
                    rest = tail;
                }
            }
        }
        rest.is_empty().then_some(Self(fields))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&(self.0.len() as u16).to_be_bytes());
        for field in &self.0 {
            let len = field.map_or(-1, |field| i32::try_from(field.len()).unwrap_or(i32::MAX));
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(field.unwrap_or_default());
        }
        out
    }
}

/// A shipped row as a JSON object.
pub fn to_json(columns: &[Column], row: &[u8]) -> Option<String> {
    let fields = Fields::parse(row, columns.len())?;
    let mut object = Map::with_capacity(columns.len());
    for ((name, kind), field) in columns.iter().zip(fields.0) {
        let value = field.map_or(Value::Null, |bytes| plain(*kind, bytes));
        object.insert((*name).to_owned(), value);
    }
    serde_json::to_string(&object).ok()
}

fn plain(kind: Type, bytes: &[u8]) -> Value {
    let text = |bytes: &[u8]| Value::String(String::from_utf8_lossy(bytes).into_owned());
    let long = || bytes.try_into().map(i64::from_be_bytes);
    match kind {
        Type::Text => text(bytes),
        Type::Uuid => uuid::Uuid::from_slice(bytes).map_or(Value::Null, |id| json!(id.to_string())),
        Type::Timestamp => long().map_or(Value::Null, |at| json!(copy::unix_us(at))),
        Type::Long => long().map_or(Value::Null, |n| json!(n)),
        Type::Bool => json!(bytes == [1]),
        Type::Int => bytes
            .try_into()
            .map_or(Value::Null, |four| json!(i32::from_be_bytes(four))),
        Type::Float => bytes
            .try_into()
            .map_or(Value::Null, |eight| json!(f64::from_be_bytes(eight))),
        Type::Json => serde_json::from_slice(bytes.get(1..).unwrap_or_default())
            .unwrap_or_else(|_| text(bytes)),
        Type::Bytes => json!(format!("{} bytes", bytes.len())),
    }
}
