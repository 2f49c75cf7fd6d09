//! From a message's bytes to OpenAI's JSON.
use std::fmt;

use bytes::Bytes;

use crate::dialect::json::Path;
use crate::error::{Error, Kind as ErrorKind};

use super::json::{put_float, put_integer, put_number, put_string};
use super::table::{EXTRA, Enum, Field, Form, Kind, MAX_FIELDS, Message, Shape};
use super::wire::{Broken, Reader, Value};
use super::{base64, extra};

/// The JSON may be so many times as long as the message, and [`ROOM`] more: a message of nothing but
/// empty parts would grow far beyond the limit of bodies.
const GROWTH: usize = 8;
const ROOM: usize = 64 * 1024;

/// What a request's JSON has that its message does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// It is to be answered in one piece: `stream_options` has no meaning.
    Whole,
    /// It is to be answered as a stream, with the usage at its end unless that is refused.
    Stream,
    /// It is no request.
    Answer,
}

/// The JSON of a message.
///
/// Errors: the kind invalid_request names the field; payload_too_large.
pub(super) fn to_json(message: &Message, bytes: &[u8], root: Root) -> Result<Bytes, Error> {
    let mut writer = Writer {
        out: Vec::with_capacity(bytes.len() + bytes.len() / 2 + 128),
        most: bytes.len().saturating_mul(GROWTH).saturating_add(ROOM),
        root,
    };
    writer.message(message, bytes, &Path::ROOT)?;
    Ok(Bytes::from(writer.out))
}

/// Where on the wire a field is.
#[derive(Clone, Copy, Default)]
struct Found {
    /// The first occurrence, and the end of the last one.
    start: usize,
    end: usize,
    count: usize,
}

pub(super) struct Writer {
    pub(super) out: Vec<u8>,
    most: usize,
    root: Root,
}

/// Longest path that an error names, bytes: keys of `extra` may be of any length.
const MAX_PATH: usize = 256;

/// The error that names the field.
pub(super) fn invalid(path: &Path<'_>, what: impl fmt::Display) -> Error {
    let mut path = path.to_string();
    if path.len() > MAX_PATH {
        let end = (0..=MAX_PATH).rev().find(|at| path.is_char_boundary(*at));
        path.truncate(end.unwrap_or(0));
        path.push('…');
    }
    if path.is_empty() {
        return Error::new(ErrorKind::InvalidRequest, format!("The message {what}."));
    }
    Error::new(ErrorKind::InvalidRequest, format!("`{path}` {what}."))
        .param(path)
        .code("invalid_value")
}

pub(super) fn unreadable(path: &Path<'_>, broken: Broken) -> Error {
    invalid(path, format_args!("is no protobuf message: {broken}"))
}

impl Writer {
    fn message(&mut self, message: &Message, bytes: &[u8], path: &Path<'_>) -> Result<(), Error> {
        let mut found = [Found::default(); MAX_FIELDS];
        let extras = scan(message, bytes, &mut found).map_err(|broken| unreadable(path, broken))?;
        if let Some((first, place)) = message.fields.iter().zip(&found).next() {
            let alone = match message.form {
                Form::First => true,
                Form::TaggedOrFirst => place.count > 0,
                _ => false,
            };
            if alone && extras.count > 0 {
                let what = format!("cannot be given together with `{}`", first.name);
                return Err(invalid(&path.key("extra"), what));
            }
            if alone {
                return self.first(first, place, bytes, path);
            }
        }
        self.out.push(b'{');
        let start = self.out.len();
        // Which fields are in the JSON.
        let mut written = 0_u64;
        if let Some((name, value)) = message.fixed {
            self.key(name, start);
            put_string(value, &mut self.out);
        }
        for (index, (field, place)) in message.fields.iter().zip(&found).enumerate() {
            if self.root != Root::Answer && field.name == "stream_options" {
                self.stream(field, place, bytes, path, start)?;
            } else if self.member(message, field, place, bytes, path, start)? {
                written |= 1 << index;
                excludes(message, index, written, path)?;
            }
        }
        if extras.count > 0 {
            self.extra(message, &extras, bytes, written, path, start)?;
        }
        self.out.push(b'}');
        self.bounded()
    }

    fn bounded(&self) -> Result<(), Error> {
        if self.out.len() <= self.most {
            return Ok(());
        }
        let message = "The request is too large once it is written as JSON.";
        Err(Error::new(ErrorKind::PayloadTooLarge, message))
    }

    /// Writes a member's key, and a comma where one stands before it.
    fn key(&mut self, name: &str, start: usize) {
        if self.out.len() > start {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A message that is the JSON of its first field alone.
    fn first(
        &mut self,
        field: &Field,
        place: &Found,
        bytes: &[u8],
        path: &Path<'_>,
    ) -> Result<(), Error> {
        if place.count > 0 {
            return self.field(field, place, bytes, path);
        }
        let nothing: &[u8] = match field.shape {
            Shape::List => b"[]",
            _ => b"null",
        };
        self.out.extend_from_slice(nothing);
        Ok(())
    }

    /// What a request has about its stream.
    fn stream(
        &mut self,
        options: &Field,
        place: &Found,
        bytes: &[u8],
        path: &Path<'_>,
        start: usize,
    ) -> Result<(), Error> {
        if self.root == Root::Whole {
            return Ok(());
        }
        self.key("stream", start);
        self.out.extend_from_slice(b"true");
        self.key(options.json, start);
        if place.count > 0 {
            return self.field(options, place, bytes, &path.key(options.name));
        }
        self.out.extend_from_slice(br#"{"include_usage":true}"#);
        Ok(())
    }

    /// Writes a field's member, if it has one. Gives whether it has.
    fn member(
        &mut self,
        message: &Message,
        field: &Field,
        place: &Found,
        bytes: &[u8],
        path: &Path<'_>,
        start: usize,
    ) -> Result<bool, Error> {
        if place.count == 0 {
            let nothing = match field.shape {
                Shape::Required => zero(field.kind),
                Shape::Default(json) => json,
                Shape::List | Shape::Vector => "[]",
                _ => return Ok(false),
            };
            self.key(field.json, start);
            self.out.extend_from_slice(nothing.as_bytes());
            return Ok(true);
        }
        if matches!(field.shape, Shape::Filled) && is_zero(last(field, place, bytes)) {
            return Ok(false);
        }
        if message.is_tagged() && matches!(field.shape, Shape::OneOf) {
            self.key("type", start);
            put_string(field.json, &mut self.out);
        }
        self.key(field.json, start);
        self.field(field, place, bytes, &path.key(field.name))?;
        Ok(true)
    }

    /// Writes the value of a field that is there.
    fn field(
        &mut self,
        field: &Field,
        place: &Found,
        bytes: &[u8],
        path: &Path<'_>,
    ) -> Result<(), Error> {
        match field.shape {
            Shape::Repeated | Shape::List | Shape::RepeatedOrOne | Shape::Vector => {
                self.items(field, place, bytes, path)
            }
            Shape::Map | Shape::IntMap => self.map(field, place, bytes, path),
            _ if place.count > 1 && matches!(field.kind, Kind::Message(_) | Kind::Struct) => {
                // Several are merged, which is what their bytes behind each other mean.
                let merged = joined(field.number, place, bytes);
                self.value(field.kind, Value::Bytes(&merged), path)
            }
            _ => match last(field, place, bytes) {
                Some(value) => self.value(field.kind, value, path),
                None => Err(invalid(path, "is no protobuf message")),
            },
        }
    }

    fn items(
        &mut self,
        field: &Field,
        place: &Found,
        bytes: &[u8],
        path: &Path<'_>,
    ) -> Result<(), Error> {
        self.out.push(b'[');
        let mut reader = Reader::between(bytes, place.start, place.end);
        let mut index = 0;
        while let Ok(Some((number, value))) = reader.next() {
            if number != field.number || !fits(field, value) {
                continue;
            }
            match value {
                Value::Bytes(packed) if is_packable(field) => {
                    self.packed(field, packed, &mut index, path)?;
                }
                _ => self.item(field, value, &mut index, path)?,
            }
        }
        self.out.push(b']');
        Ok(())
    }

    fn item(
        &mut self,
        field: &Field,
        value: Value<'_>,
        index: &mut usize,
        path: &Path<'_>,
    ) -> Result<(), Error> {
        if *index > 0 {
            self.out.push(b',');
        }
        let path = path.index(*index);
        *index += 1;
        self.bounded()?;
        match (field.shape, value) {
            (Shape::Vector, Value::Fixed32(four)) => {
                if put_float(f32::from_le_bytes(four), &mut self.out) {
                    return Ok(());
                }
                Err(invalid(&path, "has to be a finite number"))
            }
            _ => self.value(field.kind, value, &path),
        }
    }

    fn packed(
        &mut self,
        field: &Field,
        packed: &[u8],
        index: &mut usize,
        path: &Path<'_>,
    ) -> Result<(), Error> {
        let mut reader = Reader::new(packed);
        while !reader.is_empty() {
            let value = match (field.shape, field.kind) {
                (Shape::Vector, _) => reader.fixed().map(Value::Fixed32),
                (_, Kind::Double) => reader.fixed().map(Value::Fixed64),
                _ => reader.varint().map(Value::Varint),
            };
            let value = value.map_err(|broken| unreadable(path, broken))?;
            self.item(field, value, index, path)?;
        }
        Ok(())
    }

    fn map(
        &mut self,
        field: &Field,
        place: &Found,
        bytes: &[u8],
        path: &Path<'_>,
    ) -> Result<(), Error> {
        let mut entries = Vec::new();
        let mut reader = Reader::between(bytes, place.start, place.end);
        while let Ok(Some((number, value))) = reader.next() {
            let (true, Value::Bytes(entry)) = (number == field.number, value) else {
                continue;
            };
            let (mut number, mut name, mut held) = (0_i32, "", None);
            let mut inner = Reader::new(entry);
            while let Some(part) = inner.next().map_err(|broken| unreadable(path, broken))? {
                match part {
                    (1, Value::Varint(key)) => number = key as i32,
                    (1, Value::Bytes(key)) => name = extra::text(key, path)?,
                    (2, value) if wire_of(field.kind, value) => {
                        held = Some(value);
                    }
                    _ => {}
                }
            }
            if entries.len() >= extra::MAX_MEMBERS {
                return Err(extra::too_many(path));
            }
            entries.push((number, name, held));
        }
        let is_int = matches!(field.shape, Shape::IntMap);
        self.out.push(b'{');
        let start = self.out.len();
        for (number, name, value) in
            extra::last_of_each(entries, |(number, name, _)| (*number, *name))
        {
            if self.out.len() > start {
                self.out.push(b',');
            }
            let number = number.to_string();
            let name = if is_int { &number } else { name };
            put_string(name, &mut self.out);
            self.out.push(b':');
            match value {
                Some(value) => self.value(field.kind, value, &path.key(name))?,
                None => self.out.extend_from_slice(zero(field.kind).as_bytes()),
            }
            self.bounded()?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn value(&mut self, kind: Kind, value: Value<'_>, path: &Path<'_>) -> Result<(), Error> {
        match (kind, value) {
            (Kind::Message(message), Value::Bytes(bytes)) => self.message(message, bytes, path),
            (Kind::Text, Value::Bytes(bytes)) => {
                put_string(extra::text(bytes, path)?, &mut self.out);
                Ok(())
            }
            (Kind::Struct, Value::Bytes(bytes)) => self.structure(bytes, path, 1),
            (Kind::Base64, Value::Bytes(bytes)) => {
                self.out.push(b'"');
                base64::encode(bytes, &mut self.out);
                self.out.push(b'"');
                Ok(())
            }
            (Kind::Octets, Value::Bytes(bytes)) => {
                self.octets(bytes);
                Ok(())
            }
            (Kind::Bool, Value::Varint(bit)) => {
                let word: &[u8] = if bit == 0 { b"false" } else { b"true" };
                self.out.extend_from_slice(word);
                Ok(())
            }
            (Kind::Int32, Value::Varint(int)) => {
                put_integer(i64::from(int as i32), &mut self.out);
                Ok(())
            }
            (Kind::Int64, Value::Varint(int)) => {
                put_integer(int.cast_signed(), &mut self.out);
                Ok(())
            }
            (Kind::Double, Value::Fixed64(eight)) => {
                if put_number(f64::from_le_bytes(eight), &mut self.out) {
                    return Ok(());
                }
                Err(invalid(path, "has to be a finite number"))
            }
            (Kind::Enum(of), Value::Varint(value)) => self.name(of, value as i32, path),
            _ => Err(invalid(path, "is no protobuf message")),
        }
    }

    fn name(&mut self, of: &Enum, value: i32, path: &Path<'_>) -> Result<(), Error> {
        let name = usize::try_from(value)
            .ok()
            .and_then(|value| of.values.get(value.checked_sub(1)?));
        let Some(name) = name else {
            let what = format!("has to be a value of {}, not {value}", of.name);
            return Err(invalid(path, what));
        };
        put_string(name, &mut self.out);
        Ok(())
    }

    fn octets(&mut self, bytes: &[u8]) {
        self.out.push(b'[');
        for (index, byte) in bytes.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            put_integer(i64::from(*byte), &mut self.out);
        }
        self.out.push(b']');
    }

    /// Writes the members that are in `extra`.
    fn extra(
        &mut self,
        message: &Message,
        place: &Found,
        bytes: &[u8],
        written: u64,
        path: &Path<'_>,
        start: usize,
    ) -> Result<(), Error> {
        let merged;
        let held = if place.count > 1 {
            merged = joined(EXTRA, place, bytes);
            merged.as_slice()
        } else {
            match Reader::between(bytes, place.start, place.end).next() {
                Ok(Some((_, Value::Bytes(held)))) => held,
                _ => &[],
            }
        };
        let path = path.key("extra");
        let is_root = matches!(path.to_string().as_str(), "extra");
        let has = |key: &str| {
            let tagged = message.is_tagged().then_some("type").into_iter();
            let fixed = message.fixed.map(|(name, _)| name).into_iter();
            let is_set = |shape| matches!(shape, Shape::OneOf);
            let mut fields = message.fields.iter().enumerate();
            let has_tag = fields
                .clone()
                .any(|(index, field)| written >> index & 1 == 1 && is_set(field.shape));
            tagged
                .filter(|_| has_tag)
                .chain(fixed)
                .any(|name| name == key)
                || fields.any(|(index, field)| written >> index & 1 == 1 && field.json == key)
                || is_root
                    && self.root != Root::Answer
                    && matches!(key, "stream" | "stream_options")
        };
        let entries = extra::entries(held, &path)?;
        if let Some((key, _)) = entries.iter().find(|(key, _)| has(key)) {
            let what = "cannot be given: the message has a field for it";
            return Err(invalid(&path.key(key), what));
        }
        for (key, value) in entries {
            if self.out.len() > start {
                self.out.push(b',');
            }
            put_string(key, &mut self.out);
            self.out.push(b':');
            self.any(value, &path.key(key), 1)?;
            self.bounded()?;
        }
        Ok(())
    }
}

/// Finds the fields of a message, and gives where `extra` is.
fn scan(message: &Message, bytes: &[u8], found: &mut [Found]) -> Result<Found, Broken> {
    let mut extras = Found::default();
    let mut chosen = None;
    let mut expected = 0;
    let mut reader = Reader::new(bytes);
    loop {
        let start = reader.at();
        let Some((number, value)) = reader.next()? else {
            return Ok(extras);
        };
        let end = reader.at();
        let fields = message.fields;
        let is_it = |index: &usize| fields.get(*index).is_some_and(|f| f.number == number);
        // Fields mostly come in the table's order, and several of a list behind each other.
        let index = Some(expected)
            .filter(is_it)
            .or_else(|| (0..fields.len()).find(is_it));
        let place = match index.and_then(|index| Some((index, fields.get(index)?))) {
            Some((index, field)) if fits(field, value) => {
                expected = index + usize::from(!is_list(field.shape));
                if matches!(field.shape, Shape::OneOf) && chosen.replace(index) != Some(index) {
                    // Of those that exclude each other the last one counts.
                    for (place, other) in found.iter_mut().zip(fields) {
                        if matches!(other.shape, Shape::OneOf) {
                            *place = Found::default();
                        }
                    }
                }
                found.get_mut(index)
            }
            None if number == EXTRA && message.has_extra() && matches!(value, Value::Bytes(_)) => {
                Some(&mut extras)
            }
            // Fields of later versions, and of other types than ours, mean nothing.
            _ => None,
        };
        if let Some(place) = place {
            if place.count == 0 {
                place.start = start;
            }
            place.end = end;
            place.count += 1;
        }
    }
}

const fn is_list(shape: Shape) -> bool {
    matches!(
        shape,
        Shape::Repeated | Shape::List | Shape::RepeatedOrOne | Shape::Map | Shape::IntMap
    )
}

/// Whether numbers of the field may come packed.
const fn is_packable(field: &Field) -> bool {
    matches!(field.shape, Shape::Vector)
        || is_list(field.shape)
            && matches!(
                field.kind,
                Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Double | Kind::Enum(_)
            )
}

/// Whether one value of the kind is so on the wire.
const fn wire_of(kind: Kind, value: Value<'_>) -> bool {
    match kind {
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Enum(_) => matches!(value, Value::Varint(_)),
        Kind::Double => matches!(value, Value::Fixed64(_)),
        Kind::Text | Kind::Base64 | Kind::Octets | Kind::Message(_) | Kind::Struct => {
            matches!(value, Value::Bytes(_))
        }
    }
}

/// Whether the field is so on the wire.
const fn fits(field: &Field, value: Value<'_>) -> bool {
    match (field.shape, value) {
        (Shape::Map | Shape::IntMap, value) => matches!(value, Value::Bytes(_)),
        (Shape::Vector, value) => matches!(value, Value::Bytes(_) | Value::Fixed32(_)),
        (_, Value::Bytes(_)) if is_packable(field) => true,
        (_, value) => wire_of(field.kind, value),
    }
}

/// The last value of a field, which counts.
fn last<'a>(field: &Field, place: &Found, bytes: &'a [u8]) -> Option<Value<'a>> {
    let mut reader = Reader::between(bytes, place.start, place.end);
    let mut found = None;
    while let Ok(Some((number, value))) = reader.next() {
        if number == field.number && fits(field, value) {
            found = Some(value);
        }
    }
    found
}

/// All occurrences of a message, one behind the other.
fn joined(number: u32, place: &Found, bytes: &[u8]) -> Vec<u8> {
    let mut joined = Vec::new();
    let mut reader = Reader::between(bytes, place.start, place.end);
    while let Ok(Some((at, value))) = reader.next() {
        if let (true, Value::Bytes(part)) = (at == number, value) {
            joined.extend_from_slice(part);
        }
    }
    joined
}

/// Whether a value is the one that absence means.
const fn is_zero(value: Option<Value<'_>>) -> bool {
    match value {
        Some(Value::Varint(value)) => value == 0,
        Some(Value::Bytes(bytes)) => bytes.is_empty(),
        Some(Value::Fixed64(eight)) => u64::from_le_bytes(eight) == 0,
        Some(Value::Fixed32(four)) => u32::from_le_bytes(four) == 0,
        Some(Value::Group) | None => true,
    }
}

/// What a field that is always there is in JSON where it is absent on the wire.
const fn zero(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Base64 => "\"\"",
        Kind::Octets => "[]",
        Kind::Bool => "false",
        Kind::Int32 | Kind::Int64 | Kind::Double => "0",
        Kind::Enum(_) => "null",
        Kind::Message(_) | Kind::Struct => "{}",
    }
}

/// A field may not be there beside one for the same member in another shape.
fn excludes(message: &Message, index: usize, written: u64, path: &Path<'_>) -> Result<(), Error> {
    let fields = message.fields.iter().enumerate().rev();
    let mut earlier = fields.skip(message.fields.len().saturating_sub(index + 1));
    let Some((_, field)) = earlier.next() else {
        return Ok(());
    };
    // They stand beside each other in the table.
    let other = earlier
        .take_while(|(_, other)| other.json == field.json)
        .find(|(other, _)| written >> other & 1 == 1);
    match other {
        Some((_, other)) => {
            let what = format!("cannot be given together with `{}`", other.name);
            Err(invalid(&path.key(field.name), what))
        }
        None => Ok(()),
    }
}
