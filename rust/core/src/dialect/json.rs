//! Reading JSON member by member, so that every fault names its field, and writing it piece by piece.
use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, BytesMut};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Kind};

use super::carry::invalid;

/// Where in a document something stands: `messages[2].content`.
#[derive(Clone, Copy)]
pub(crate) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Key(&'p str),
    Index(usize),
}

impl<'p> Path<'p> {
    /// The document.
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Root,
    };

    /// A member of it.
    pub(crate) const fn key(&'p self, key: &'p str) -> Path<'p> {
        Path {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    /// An item of it.
    pub(crate) const fn index(&'p self, index: usize) -> Path<'p> {
        Path {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// The error that says what it has to be: `"a string"`.
    pub(crate) fn has_to_be(&self, what: impl fmt::Display) -> Error {
        if matches!(self.step, Step::Root) {
            return Error::new(Kind::InvalidRequest, format!("The body has to be {what}."));
        }
        let path = self.to_string();
        let message = format!("`{path}` has to be {what}.");
        invalid(path, message)
    }

    /// The error that says that it is not there.
    pub(crate) fn is_missing(&self) -> Error {
        let path = self.to_string();
        let message = format!("`{path}` is missing.");
        invalid(path, message)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Key(key) => {
                if self
                    .parent
                    .is_some_and(|parent| !matches!(parent.step, Step::Root))
                {
                    f.write_str(".")?;
                }
                f.write_str(key)
            }
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A string that is borrowed where it has no escapes, inside of options and lists too.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Most members of an object that is read: they are searched one by one. Tools' parameters and other
/// JSON that is carried as it is may have more.
const MAX_MEMBERS: usize = 128;

/// An object's members, each to be taken once; what is null counts as absent, and of members of one
/// name the last one counts.
#[derive(Default)]
pub(crate) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The members of the object `json`.
    pub(crate) fn read(json: &'a str, path: &Path<'_>) -> Result<Self, Error> {
        serde_json::from_str(json).map_err(|cause| {
            if cause.is_data() {
                path.has_to_be(format_args!("an object of up to {MAX_MEMBERS} members"))
            } else {
                path.has_to_be("JSON").cause(cause)
            }
        })
    }

    /// The member of that name.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(at).1)
    }

    /// A member that has to be there.
    pub(crate) fn need(&mut self, name: &str, path: &Path<'_>) -> Result<&'a RawValue, Error> {
        self.take(name).ok_or_else(|| path.key(name).is_missing())
    }

    /// A string that has to be there.
    pub(crate) fn need_text(&mut self, name: &str, path: &Path<'_>) -> Result<Cow<'a, str>, Error> {
        text(self.need(name, path)?, &path.key(name))
    }

    /// A member read by `read`.
    pub(crate) fn read_with<T>(
        &mut self,
        name: &str,
        path: &Path<'_>,
        read: impl FnOnce(&'a RawValue, &Path<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.take(name)
            .map(|raw| read(raw, &path.key(name)))
            .transpose()
    }

    /// A string.
    pub(crate) fn text(
        &mut self,
        name: &str,
        path: &Path<'_>,
    ) -> Result<Option<Cow<'a, str>>, Error> {
        self.read_with(name, path, text)
    }

    /// A boolean.
    pub(crate) fn boolean(&mut self, name: &str, path: &Path<'_>) -> Result<Option<bool>, Error> {
        self.read_with(name, path, |raw, path| scalar(raw, path, "true or false"))
    }

    /// A number.
    pub(crate) fn number(&mut self, name: &str, path: &Path<'_>) -> Result<Option<f64>, Error> {
        self.read_with(name, path, |raw, path| scalar(raw, path, "a number"))
    }

    /// An integer from 0.
    pub(crate) fn count(&mut self, name: &str, path: &Path<'_>) -> Result<Option<u32>, Error> {
        self.read_with(name, path, |raw, path| {
            scalar(raw, path, "an integer that is not negative")
        })
    }

    /// An integer.
    pub(crate) fn integer(&mut self, name: &str, path: &Path<'_>) -> Result<Option<i64>, Error> {
        self.read_with(name, path, |raw, path| scalar(raw, path, "an integer"))
    }

    /// The members, those named as in protobuf (`inline_data`) named as in its JSON (`inlineData`).
    pub(crate) fn camel(mut self) -> Self {
        for (name, _) in &mut self.0 {
            if !name.contains('_') {
                continue;
            }
            let mut words = name.split('_');
            let mut camel = words.next().unwrap_or_default().to_owned();
            for word in words {
                let mut letters = word.chars();
                camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
                camel.push_str(letters.as_str());
            }
            *name = Cow::Owned(camel);
        }
        self
    }

    /// What has not been taken.
    pub(crate) fn rest(self) -> Vec<(Cow<'a, str>, &'a RawValue)> {
        self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        impl<'de> Visitor<'de> for Visit {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of up to {MAX_MEMBERS} members")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Self::Value = Vec::with_capacity(8);
                while let Some((Text(key), raw)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.retain(|(name, _)| *name != key);
                    if members.len() == MAX_MEMBERS {
                        return Err(A::Error::invalid_length(MAX_MEMBERS + 1, &self));
                    }
                    if raw.get() != "null" {
                        members.push((key, raw));
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Visit).map(Self)
    }
}

/// All members of an object as they stand, those too that are null.
pub(crate) fn pairs<'a>(
    json: &'a str,
    path: &Path<'_>,
) -> Result<Vec<(Cow<'a, str>, &'a RawValue)>, Error> {
    struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

    impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visit;

            impl<'de> Visitor<'de> for Visit {
                type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    write!(f, "an object of up to {MAX_MEMBERS} members")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut pairs: Self::Value = Vec::with_capacity(16);
                    while let Some((Text(key), raw)) =
                        map.next_entry::<Text<'de>, &'de RawValue>()?
                    {
                        if pairs.len() == MAX_MEMBERS {
                            return Err(A::Error::invalid_length(MAX_MEMBERS + 1, &self));
                        }
                        pairs.push((key, raw));
                    }
                    Ok(pairs)
                }
            }

            deserializer.deserialize_map(Visit).map(Self)
        }
    }

    serde_json::from_str::<Pairs<'a>>(json)
        .map(|pairs| pairs.0)
        .map_err(|cause| {
            path.has_to_be(format_args!("an object of up to {MAX_MEMBERS} members"))
                .cause(cause)
        })
}

/// Refuses members of one name: of these, whoever reads on may take another one.
pub(crate) fn each_once(pairs: &[(Cow<'_, str>, &RawValue)], path: &Path<'_>) -> Result<(), Error> {
    for (i, (name, _)) in pairs.iter().enumerate() {
        if pairs.iter().skip(i + 1).any(|(other, _)| other == name) {
            let path = path.key(name).to_string();
            let message = format!("`{path}` is there more than once.");
            return Err(invalid(path, message));
        }
    }
    Ok(())
}

/// A list's items.
pub(crate) fn list<'a>(raw: &'a RawValue, path: &Path<'_>) -> Result<Vec<&'a RawValue>, Error> {
    serde_json::from_str(raw.get()).map_err(|_| path.has_to_be("a list"))
}

/// A string.
pub(crate) fn text<'a>(raw: &'a RawValue, path: &Path<'_>) -> Result<Cow<'a, str>, Error> {
    serde_json::from_str::<Text<'a>>(raw.get())
        .map(|text| text.0)
        .map_err(|_| path.has_to_be("a string"))
}

/// An object, kept as it is.
pub(crate) fn object<'a>(raw: &'a RawValue, path: &Path<'_>) -> Result<&'a RawValue, Error> {
    if is_object(raw) {
        Ok(raw)
    } else {
        Err(path.has_to_be("an object"))
    }
}

/// Whether raw JSON is an object.
pub(crate) fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

/// Whether raw JSON is a string.
pub(crate) fn is_text(raw: &RawValue) -> bool {
    raw.get().starts_with('"')
}

fn scalar<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    path: &Path<'_>,
    what: &str,
) -> Result<T, Error> {
    serde_json::from_str(raw.get()).map_err(|_| path.has_to_be(what))
}

/// Writes a value that `serde` can.
pub(crate) fn value(out: &mut BytesMut, value: impl Serialize) {
    // Strings, numbers and raw JSON: nothing of it can fail to serialise, nor writing to memory.
    let _ = serde_json::to_writer(out.writer(), &value);
}

/// An object that is being written.
pub(crate) struct Object<'o> {
    out: &'o mut BytesMut,
    empty: bool,
}

impl<'o> Object<'o> {
    /// Writes one object with what `fill` gives it.
    pub(crate) fn write<T>(out: &'o mut BytesMut, fill: impl FnOnce(&mut Self) -> T) -> T {
        out.put_u8(b'{');
        let mut object = Object { out, empty: true };
        let result = fill(&mut object);
        object.out.put_u8(b'}');
        result
    }

    /// The place of a member's value. `key`: needs no escapes.
    pub(crate) fn member(&mut self, key: &str) -> &mut BytesMut {
        if !std::mem::take(&mut self.empty) {
            self.out.put_u8(b',');
        }
        self.out.put_u8(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// A member that `serde` can write.
    pub(crate) fn put(&mut self, key: &str, member: impl Serialize) {
        value(self.member(key), member);
    }

    /// A member, if there is one.
    pub(crate) fn put_some(&mut self, key: &str, member: Option<impl Serialize>) {
        if let Some(member) = member {
            self.put(key, member);
        }
    }

    /// A member of any name.
    pub(crate) fn put_named(&mut self, key: &str, member: impl Serialize) {
        if !std::mem::take(&mut self.empty) {
            self.out.put_u8(b',');
        }
        value(self.out, key);
        self.out.put_u8(b':');
        value(self.out, member);
    }

    /// Members that are written already, with commas between them.
    pub(crate) fn repeat(&mut self, members: &str) {
        if members.is_empty() {
            return;
        }
        if !std::mem::take(&mut self.empty) {
            self.out.put_u8(b',');
        }
        self.out.extend_from_slice(members.as_bytes());
    }

    /// A member that is an object.
    pub(crate) fn object<T>(&mut self, key: &str, fill: impl FnOnce(&mut Object<'_>) -> T) -> T {
        Object::write(self.member(key), fill)
    }

    /// A member that is a list.
    pub(crate) fn list<T>(&mut self, key: &str, fill: impl FnOnce(&mut List<'_>) -> T) -> T {
        List::write(self.member(key), fill)
    }
}

/// A list that is being written.
pub(crate) struct List<'o> {
    out: &'o mut BytesMut,
    empty: bool,
}

impl<'o> List<'o> {
    /// Writes one list with what `fill` gives it.
    pub(crate) fn write<T>(out: &'o mut BytesMut, fill: impl FnOnce(&mut Self) -> T) -> T {
        out.put_u8(b'[');
        let mut list = List { out, empty: true };
        let result = fill(&mut list);
        list.out.put_u8(b']');
        result
    }

    /// The place of the next item.
    pub(crate) fn item(&mut self) -> &mut BytesMut {
        if !std::mem::take(&mut self.empty) {
            self.out.put_u8(b',');
        }
        self.out
    }

    /// An item that is an object.
    pub(crate) fn object<T>(&mut self, fill: impl FnOnce(&mut Object<'_>) -> T) -> T {
        Object::write(self.item(), fill)
    }
}
