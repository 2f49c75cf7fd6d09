//! Where on the wire the fields of a message are.
use super::table::{EXTRA, Field, Kind, Message, Shape};
use super::wire::{Broken, Reader, Value};

/// Where on the wire a field is.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    /// The first occurrence, and the end of the last one.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) count: usize,
}

/// Finds the fields of a message, and gives where `extra` is.
pub(super) fn scan(message: &Message, bytes: &[u8], found: &mut [Found]) -> Result<Found, Broken> {
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

pub(super) const fn is_list(shape: Shape) -> bool {
    matches!(
        shape,
        Shape::Repeated | Shape::List | Shape::RepeatedOrOne | Shape::Map | Shape::IntMap
    )
}

/// Whether numbers of the field may come packed.
pub(super) const fn is_packable(field: &Field) -> bool {
    matches!(field.shape, Shape::Vector)
        || is_list(field.shape)
            && matches!(
                field.kind,
                Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Double | Kind::Enum(_)
            )
}

/// Whether one value of the kind is so on the wire.
pub(super) const fn wire_of(kind: Kind, value: Value<'_>) -> bool {
    match kind {
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Enum(_) => matches!(value, Value::Varint(_)),
        Kind::Double => matches!(value, Value::Fixed64(_)),
        Kind::Text | Kind::Base64 | Kind::Octets | Kind::Message(_) | Kind::Struct => {
            matches!(value, Value::Bytes(_))
        }
    }
}

/// Whether the field is so on the wire.
pub(super) const fn fits(field: &Field, value: Value<'_>) -> bool {
    match (field.shape, value) {
        (Shape::Map | Shape::IntMap, value) => matches!(value, Value::Bytes(_)),
        (Shape::Vector, value) => matches!(value, Value::Bytes(_) | Value::Fixed32(_)),
        (_, Value::Bytes(_)) if is_packable(field) => true,
        (_, value) => wire_of(field.kind, value),
    }
}

/// The last value of a field, which counts.
pub(super) fn last<'a>(field: &Field, place: &Found, bytes: &'a [u8]) -> Option<Value<'a>> {
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
pub(super) fn joined(number: u32, place: &Found, bytes: &[u8]) -> Vec<u8> {
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
pub(super) const fn is_zero(value: Option<Value<'_>>) -> bool {
    match value {
        Some(Value::Varint(value)) => value == 0,
        Some(Value::Bytes(bytes)) => bytes.is_empty(),
        Some(Value::Fixed64(eight)) => u64::from_le_bytes(eight) == 0,
        Some(Value::Fixed32(four)) => u32::from_le_bytes(four) == 0,
        Some(Value::Group) | None => true,
    }
}
