//! `google.protobuf.Struct` to JSON.
//!
//! Source: google/protobuf/struct.proto. A number without a fraction is written as an integer: engines
//! take `5` where they refuse `5.0`.
use crate::dialect::json::Path;
use crate::error::Error;

use super::json::{put_number, put_string};
use super::to_json::{Writer, invalid, unreadable};
use super::wire::{Reader, Value};

/// Containers within containers, the outermost one included.
const MAX_DEPTH: u32 = 100;

/// Most members of an object; as many tokens as no vocabulary has. While it is written, a member takes
/// far more memory than its two bytes on the wire.
pub(super) const MAX_MEMBERS: usize = 1 << 18;

pub(super) fn too_many(path: &Path<'_>) -> Error {
    let what = format!("has more than {MAX_MEMBERS} members");
    invalid(path, what)
}

/// Text that has to be UTF-8.
pub(super) fn text<'a>(bytes: &'a [u8], path: &Path<'_>) -> Result<&'a str, Error> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| invalid(path, "has to be UTF-8"))
}

/// Of entries with the same key the last one, in the order of the wire.
pub(super) fn last_of_each<T, K: Ord>(entries: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut order: Vec<(K, usize)> = entries.iter().map(&key).zip(0..).collect();
    order.sort_unstable();
    let followers = order.iter().skip(1).map(|(key, _)| Some(key)).chain([None]);
    let mut keeps = vec![true; entries.len()];
    let mut has_twice = false;
    for ((key, index), next) in order.iter().zip(followers) {
        if next == Some(key)
            && let Some(keep) = keeps.get_mut(*index)
        {
            *keep = false;
            has_twice = true;
        }
    }
    drop(order);
    if !has_twice {
        return entries;
    }
    let kept = entries.into_iter().zip(keeps);
    kept.filter_map(|(entry, keep)| keep.then_some(entry))
        .collect()
}

/// The members of a Struct: names, and the bytes of their Values.
pub(super) fn entries<'a>(
    bytes: &'a [u8],
    path: &Path<'_>,
) -> Result<Vec<(&'a str, &'a [u8])>, Error> {
    let broken = |broken| unreadable(path, broken);
    let mut found = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some(part) = reader.next().map_err(broken)? {
        let (1, Value::Bytes(entry)) = part else {
            continue;
        };
        let (mut key, mut value): (&str, &[u8]) = ("", &[]);
        let mut inner = Reader::new(entry);
        while let Some(part) = inner.next().map_err(broken)? {
            match part {
                (1, Value::Bytes(bytes)) => key = text(bytes, path)?,
                (2, Value::Bytes(bytes)) => value = bytes,
                _ => {}
            }
        }
        if found.len() >= MAX_MEMBERS {
            return Err(too_many(path));
        }
        found.push((key, value));
    }
    if found.len() < 2 {
        return Ok(found);
    }
    Ok(last_of_each(found, |(key, _)| *key))
}

impl Writer {
    /// Writes a Struct as an object.
    pub(super) fn structure(
        &mut self,
        bytes: &[u8],
        path: &Path<'_>,
        depth: u32,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        self.out.push(b'{');
        for (index, (key, value)) in entries(bytes, path)?.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            put_string(key, &mut self.out);
            self.out.push(b':');
            self.any(value, &path.key(key), depth)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Writes a Value; one that says nothing is null.
    pub(super) fn any(&mut self, bytes: &[u8], path: &Path<'_>, depth: u32) -> Result<(), Error> {
        let mut last = None;
        let mut reader = Reader::new(bytes);
        while let Some(part) = reader.next().map_err(|broken| unreadable(path, broken))? {
            match part {
                (1 | 4, Value::Varint(_))
                | (2, Value::Fixed64(_))
                | (3 | 5 | 6, Value::Bytes(_)) => last = Some(part),
                _ => {}
            }
        }
        match last {
            Some((2, Value::Fixed64(eight))) => {
                if !put_number(f64::from_le_bytes(eight), &mut self.out) {
                    return Err(invalid(path, "has to be a finite number"));
                }
            }
            Some((3, Value::Bytes(bytes))) => put_string(text(bytes, path)?, &mut self.out),
            Some((4, Value::Varint(bit))) => {
                let word: &[u8] = if bit == 0 { b"false" } else { b"true" };
                self.out.extend_from_slice(word);
            }
            Some((5, Value::Bytes(bytes))) => self.structure(bytes, path, depth + 1)?,
            Some((6, Value::Bytes(bytes))) => self.values(bytes, path, depth + 1)?,
            _ => self.out.extend_from_slice(b"null"),
        }
        Ok(())
    }

    /// Writes a ListValue as an array.
    fn values(&mut self, bytes: &[u8], path: &Path<'_>, depth: u32) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        self.out.push(b'[');
        let mut index = 0;
        let mut reader = Reader::new(bytes);
        while let Some(part) = reader.next().map_err(|broken| unreadable(path, broken))? {
            if let (1, Value::Bytes(value)) = part {
                if index > 0 {
                    self.out.push(b',');
                }
                self.any(value, &path.index(index), depth)?;
                index += 1;
            }
        }
        self.out.push(b']');
        Ok(())
    }
}

/// No path: it would be as long as the message.
fn too_deep() -> Error {
    let what = format!("has values nested more than {MAX_DEPTH} levels deep");
    invalid(&Path::ROOT, what)
}
