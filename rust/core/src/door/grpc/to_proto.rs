//! From OpenAI's JSON to a message's bytes.
//!
//! A member that has no field, or a value that its field cannot hold, goes to `extra` as it is, so that
//! nothing is lost. Null is absence: OpenAI means the same by both in every member that has a field.
use std::borrow::Cow;

use super::base64;
use super::json::{Cursor, Fault, Text};
use super::table::{EXTRA, Enum, Field, Form, Kind, Message, Shape};
use super::wire::{put_bytes, put_double, put_nested, put_uint, put_varint};

/// Containers within containers in `extra` and in schemas. protobuf's own implementations refuse more
/// than 100 messages within each other, of which an object takes three; what is deeper is left out.
const MAX_DEPTH: u32 = 30;

/// What becomes of members that have no field and are null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nulls {
    /// They are in `extra`: engines may mean something by them.
    Kept,
    /// They are left out: engines have dozens of them in each answer.
    Dropped,
}

/// Why a value is not written.
enum Stop {
    /// The field cannot hold it.
    Mismatch,
    /// The text is no JSON.
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

type Done = Result<(), Stop>;

/// Appends the message of a JSON text.
///
/// Errors: it is no JSON, or of another form.
pub(super) fn to_proto(
    message: &Message,
    json: &[u8],
    nulls: Nulls,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let none = |what| Fault { what, at: 0 };
    let text = simdutf8::basic::from_utf8(json).map_err(|_| none("it is not UTF-8"))?;
    let mut cursor = Cursor::new(text);
    match (Encoder { nulls }).message(message, &mut cursor, out) {
        Ok(()) => cursor.end(),
        Err(Stop::Mismatch) => Err(none("it has another form")),
        Err(Stop::Fault(fault)) => Err(fault),
    }
}

struct Encoder {
    nulls: Nulls,
}

impl Encoder {
    fn message(&self, message: &Message, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Done {
        let first = message.fields.first();
        match (message.form, cursor.peek(), first) {
            (Form::First, b'n', _) => cursor.word().map(drop).map_err(Stop::Fault),
            (Form::First, _, Some(field))
            | (Form::TaggedOrFirst | Form::ObjectOrText, b'"', Some(field)) => {
                if accepts(field, cursor) {
                    return self.field(field, cursor, out);
                }
                Err(Stop::Mismatch)
            }
            (Form::ObjectOrArray, b'[', _) => {
                let list = |field: &&Field| matches!(field.shape, Shape::List);
                match message.fields.iter().find(list) {
                    Some(field) => self.field(field, cursor, out),
                    None => Err(Stop::Mismatch),
                }
            }
            (_, b'{', _) => self.object(message, cursor, out, true),
            _ => Err(Stop::Mismatch),
        }
    }

    /// An object. `may_choose`: of the members that exclude each other one may be set.
    fn object(
        &self,
        message: &Message,
        cursor: &mut Cursor<'_>,
        out: &mut Vec<u8>,
        may_choose: bool,
    ) -> Done {
        let (begin, before) = (*cursor, out.len());
        let mut seen = 0_u64;
        let mut chosen: Option<&Field> = None;
        let mut tag = None;
        let mut expected = 0;
        // Where the keys of the members stand that have no field.
        let mut rest: Vec<usize> = Vec::new();
        cursor.object(|cursor, start, key| {
            let key = key.plain();
            let is_named = |field: &Field| *key == *field.json || field.alias == Some(&*key);
            if cursor.peek() == b'n' {
                if self.nulls == Nulls::Kept && !message.fields.iter().any(is_named) {
                    rest.push(start);
                }
                return Ok(cursor.word().map(drop)?);
            }
            if message.is_tagged() && key == "type" {
                tag = Some(start);
                return Ok(cursor.skip()?);
            }
            if let Some((name, value)) = message.fixed
                && key == name
            {
                let at = *cursor;
                if cursor.peek() == b'"' && cursor.string()?.is(value) {
                    return Ok(());
                }
                *cursor = at;
            }
            let takes = |index: &usize| {
                message.fields.get(*index).is_some_and(|field| {
                    is_named(field)
                        && seen >> index & 1 == 0
                        && (may_choose && chosen.is_none() || !matches!(field.shape, Shape::OneOf))
                        && accepts(field, cursor)
                })
            };
            // Members mostly come in the table's order.
            let index = (expected..message.fields.len())
                .find(takes)
                .or_else(|| (0..expected).find(takes));
            if let Some((index, field)) = index.and_then(|i| Some((i, message.fields.get(i)?))) {
                let (len, at) = (out.len(), *cursor);
                match self.field(field, cursor, out) {
                    Ok(()) => {
                        seen |= 1 << index;
                        expected = index + 1;
                        if matches!(field.shape, Shape::OneOf) {
                            chosen = Some(field);
                        }
                        return Ok(());
                    }
                    Err(Stop::Mismatch) => {
                        out.truncate(len);
                        *cursor = at;
                    }
                    Err(fault) => return Err(fault),
                }
            }
            rest.push(start);
            cursor.skip().map_err(Stop::Fault)
        })?;
        if let Some(start) = tag {
            let mut at = begin.moved(start);
            let kind = read_member(&mut at);
            match chosen {
                Some(field) if kind.is_some_and(|kind| kind.is(field.json)) => {}
                // A kind that the field does not tell: all of it is in `extra`.
                Some(_) => {
                    *cursor = begin;
                    out.truncate(before);
                    return self.object(message, cursor, out, false);
                }
                None => rest.push(start),
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        if !message.has_extra() {
            return Err(Stop::Mismatch);
        }
        put_nested(EXTRA, out, |out| {
            rest.iter().try_for_each(|start| {
                let mut at = begin.moved(*start);
                let key = at.string()?;
                at.colon();
                entry(key, &mut at, out, 1)
            })
        })
    }

    fn field(&self, field: &Field, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Done {
        match field.shape {
            Shape::Repeated | Shape::List => self.items(field, cursor, out),
            Shape::RepeatedOrOne if cursor.peek() == b'[' => self.items(field, cursor, out),
            Shape::Vector => vector(field.number, cursor, out),
            Shape::Map | Shape::IntMap => self.map(field, cursor, out),
            Shape::Required | Shape::Filled => {
                let start = out.len();
                self.value(field.kind, field.number, cursor, out)?;
                // What absence means is left out, as other implementations do.
                if !matches!(field.kind, Kind::Message(_) | Kind::Struct)
                    && is_zero(out.get(start..).unwrap_or_default(), field.kind)
                {
                    out.truncate(start);
                }
                Ok(())
            }
            Shape::RepeatedOrOne | Shape::Optional | Shape::Default(_) | Shape::OneOf => {
                self.value(field.kind, field.number, cursor, out)
            }
        }
    }

    fn items(&self, field: &Field, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Done {
        if cursor.peek_item() == b']' {
            return cursor.skip().map_err(Stop::Fault);
        }
        if matches!(field.kind, Kind::Int32) {
            return put_nested(field.number, out, |out| {
                cursor.array(|cursor| {
                    put_varint(int32(cursor)? as u64, out);
                    Ok(())
                })
            });
        }
        cursor.array(|cursor| {
            if !takes(field.kind, cursor) {
                return Err(Stop::Mismatch);
            }
            self.value(field.kind, field.number, cursor, out)
        })
    }

    fn map(&self, field: &Field, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Done {
        cursor.object(|cursor, _, key| {
            put_nested(field.number, out, |out| {
                if matches!(field.shape, Shape::IntMap) {
                    let id: i32 = key.plain().parse().map_err(|_| Stop::Mismatch)?;
                    put_uint(1, i64::from(id) as u64, out);
                } else {
                    put_text(1, key, out);
                }
                if !takes(field.kind, cursor) {
                    return Err(Stop::Mismatch);
                }
                self.value(field.kind, 2, cursor, out)
            })
        })
    }

    fn value(&self, kind: Kind, number: u32, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Done {
        match kind {
            Kind::Text => put_text(number, cursor.string()?, out),
            Kind::Base64 => {
                let text = cursor.string()?.plain();
                return put_nested(number, out, |out| {
                    base64::decode(text.as_bytes(), out)
                        .then_some(())
                        .ok_or(Stop::Mismatch)
                });
            }
            Kind::Octets => {
                return put_nested(number, out, |out| {
                    cursor.array(|cursor| {
                        let byte = u8::try_from(integer(cursor)?).map_err(|_| Stop::Mismatch)?;
                        out.push(byte);
                        Ok(())
                    })
                });
            }
            Kind::Bool => put_uint(number, u64::from(cursor.word()?.unwrap_or(false)), out),
            Kind::Int32 => put_uint(number, int32(cursor)? as u64, out),
            Kind::Int64 => put_uint(number, integer(cursor)? as u64, out),
            Kind::Double => put_double(number, double(cursor)?, out),
            Kind::Enum(of) => put_uint(number, variant(of, cursor.string()?)?, out),
            Kind::Message(message) => {
                return put_nested(number, out, |out| self.message(message, cursor, out));
            }
            Kind::Struct => return put_nested(number, out, |out| structure(cursor, out, 1)),
        }
        Ok(())
    }
}

impl<'a> Text<'a> {
    /// Its characters.
    fn plain(&self) -> Cow<'a, str> {
        if !self.is_escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut plain = Vec::with_capacity(self.raw.len());
        self.put(&mut plain);
        Cow::Owned(String::from_utf8(plain).unwrap_or_default())
    }
}

/// Whether the field may hold what comes next, so far as its first bytes tell.
fn accepts(field: &Field, cursor: &Cursor<'_>) -> bool {
    let mut cursor = *cursor;
    let byte = cursor.peek();
    match field.shape {
        Shape::Repeated | Shape::List | Shape::RepeatedOrOne if byte == b'[' => {
            let first = cursor.peek_item();
            first == b']' || {
                cursor.descend();
                takes(field.kind, &cursor)
            }
        }
        Shape::Repeated | Shape::List => false,
        Shape::Vector => matches!(byte, b'[' | b'"'),
        Shape::Map | Shape::IntMap => byte == b'{',
        _ => takes(field.kind, &cursor),
    }
}

/// Whether one value of the kind may begin so.
fn takes(kind: Kind, cursor: &Cursor<'_>) -> bool {
    let mut cursor = *cursor;
    let byte = cursor.peek();
    match kind {
        Kind::Text | Kind::Base64 | Kind::Enum(_) => byte == b'"',
        Kind::Octets => byte == b'[',
        Kind::Bool => matches!(byte, b't' | b'f'),
        Kind::Int32 | Kind::Int64 | Kind::Double => matches!(byte, b'-' | b'0'..=b'9'),
        Kind::Struct => byte == b'{',
        Kind::Message(message) => match (message.form, byte) {
            (Form::First, _) if byte != b'n' => message
                .fields
                .first()
                .is_some_and(|field| accepts(field, &cursor)),
            (Form::First, _)
            | (Form::TaggedOrFirst | Form::ObjectOrText, b'"')
            | (Form::ObjectOrArray, b'[') => true,
            _ => byte == b'{',
        },
    }
}

/// Whether what was written is a tag and the zero of the kind.
fn is_zero(written: &[u8], kind: Kind) -> bool {
    let zeros = if matches!(kind, Kind::Double) { 8 } else { 1 };
    // Tags of less than 16 have one byte, all others of ours two.
    let tag = 1 + usize::from(written.first().is_some_and(|byte| *byte >= 0x80));
    written.len() == tag + zeros && written.iter().skip(tag).all(|byte| *byte == 0)
}

fn put_text(number: u32, text: Text<'_>, out: &mut Vec<u8>) {
    if text.is_escaped {
        let fill = |out: &mut Vec<u8>| -> Result<(), std::convert::Infallible> {
            text.put(out);
            Ok(())
        };
        let _ = put_nested(number, out, fill);
    } else {
        put_bytes(number, text.raw.as_bytes(), out);
    }
}

fn double(cursor: &mut Cursor<'_>) -> Result<f64, Stop> {
    let value: f64 = cursor.number()?.parse().map_err(|_| Stop::Mismatch)?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Stop::Mismatch)
    }
}

fn integer(cursor: &mut Cursor<'_>) -> Result<i64, Stop> {
    if !matches!(cursor.peek(), b'-' | b'0'..=b'9') {
        return Err(Stop::Mismatch);
    }
    let digits = cursor.number()?;
    if let Ok(value) = digits.parse() {
        return Ok(value);
    }
    // `1.0` and `1e3` are integers too; above 2^53 a float does not tell which one.
    let value: f64 = digits.parse().map_err(|_| Stop::Mismatch)?;
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        Ok(value as i64)
    } else {
        Err(Stop::Mismatch)
    }
}

fn int32(cursor: &mut Cursor<'_>) -> Result<i64, Stop> {
    let value = integer(cursor)?;
    match i32::try_from(value) {
        Ok(_) => Ok(value),
        Err(_) => Err(Stop::Mismatch),
    }
}

fn variant(of: &Enum, text: Text<'_>) -> Result<u64, Stop> {
    let index = of.values.iter().position(|name| text.is(name));
    index.map(|index| index as u64 + 1).ok_or(Stop::Mismatch)
}

fn vector(number: u32, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Done {
    if cursor.peek() == b'"' {
        let text = cursor.string()?.plain();
        if text.is_empty() {
            return Ok(());
        }
        // Base64 of little-endian floats, which is what packed floats are.
        return put_nested(number, out, |out| {
            let start = out.len();
            let is_vector =
                base64::decode(text.as_bytes(), out) && (out.len() - start).is_multiple_of(4);
            is_vector.then_some(()).ok_or(Stop::Mismatch)
        });
    }
    if cursor.peek_item() == b']' {
        return cursor.skip().map_err(Stop::Fault);
    }
    put_nested(number, out, |out| {
        cursor.array(|cursor| {
            if !matches!(cursor.peek(), b'-' | b'0'..=b'9') {
                return Err(Stop::Mismatch);
            }
            let value: f32 = cursor.number()?.parse().map_err(|_| Stop::Mismatch)?;
            if !value.is_finite() {
                return Err(Stop::Mismatch);
            }
            out.extend_from_slice(&value.to_le_bytes());
            Ok(())
        })
    })
}

/// Reads past a member's key; its value, if that is a string.
fn read_member<'a>(cursor: &mut Cursor<'a>) -> Option<Text<'a>> {
    cursor.string().ok()?;
    cursor.colon();
    cursor.string().ok()
}

/// Appends a member of a Struct. One that no Struct can hold is left out.
fn entry(key: Text<'_>, cursor: &mut Cursor<'_>, out: &mut Vec<u8>, depth: u32) -> Done {
    let (len, at) = (out.len(), *cursor);
    let done = put_nested(1, out, |out| {
        put_text(1, key, out);
        put_nested(2, out, |out| any(cursor, out, depth))
    });
    if let Err(Stop::Mismatch) = done {
        out.truncate(len);
        *cursor = at;
        return cursor.skip().map_err(Stop::Fault);
    }
    done
}

/// Appends the members of a Struct.
fn structure(cursor: &mut Cursor<'_>, out: &mut Vec<u8>, depth: u32) -> Done {
    if depth > MAX_DEPTH {
        return Err(Stop::Mismatch);
    }
    cursor.object(|cursor, _, key| entry(key, cursor, out, depth))
}

/// Appends what a Value holds.
fn any(cursor: &mut Cursor<'_>, out: &mut Vec<u8>, depth: u32) -> Done {
    match cursor.peek() {
        b'{' => put_nested(5, out, |out| structure(cursor, out, depth + 1)),
        b'[' if depth >= MAX_DEPTH => Err(Stop::Mismatch),
        b'[' => put_nested(6, out, |out| {
            cursor.array(|cursor| put_nested(1, out, |out| any(cursor, out, depth + 1)))
        }),
        b'"' => {
            put_text(3, cursor.string()?, out);
            Ok(())
        }
        b't' | b'f' | b'n' => {
            match cursor.word()? {
                Some(bit) => put_uint(4, u64::from(bit), out),
                None => put_uint(1, 0, out),
            }
            Ok(())
        }
        _ => {
            put_double(2, double(cursor)?, out);
            Ok(())
        }
    }
}
