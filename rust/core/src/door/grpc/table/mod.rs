//! Which field of a message is which member of OpenAI's JSON: one table for both directions.
//!
//! A test compares it with the protos, name by name and number by number.
mod chat;
mod completion;
mod embed;
mod rerank;
mod shared;

pub(super) use chat::{CHAT_COMPLETION_CHUNK, CHAT_COMPLETION_REQUEST, CHAT_COMPLETION_RESPONSE};
pub(super) use completion::{COMPLETION_CHUNK, COMPLETION_REQUEST, COMPLETION_RESPONSE};
pub(super) use embed::{EMBED_REQUEST, EMBED_RESPONSE};
pub(super) use rerank::{RERANK_REQUEST, RERANK_RESPONSE};

/// The number of the field `extra`, in every message that is an object in JSON.
pub(super) const EXTRA: u32 = 15;

/// Most fields of a message, `extra` apart.
pub(super) const MAX_FIELDS: usize = 40;

/// A message, and the JSON that it stands for.
pub(super) struct Message {
    /// Its name in `forebay.v1`.
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// In the order in which the JSON has them.
    pub(super) fields: &'static [Field],
    /// A member that the JSON always has with the same value, which the message does not tell.
    pub(super) fixed: Option<(&'static str, &'static str)>,
}

/// What a message is in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// An object of its fields and of what is in `extra`.
    Object,
    /// The same; `type` is the name of the member that is set of those that exclude each other.
    Tagged,
    /// The same; or, with the first field set, that field's value alone.
    TaggedOrFirst,
    /// An object; from text alone the first field is read.
    ObjectOrText,
    /// An object; from an array alone the fields named are read.
    ObjectOrArray,
    /// The first field's value alone; null without one.
    First,
}

/// A field and its member.
pub(super) struct Field {
    pub(super) number: u32,
    /// Its name in the message.
    pub(super) name: &'static str,
    /// Its member's name in JSON.
    pub(super) json: &'static str,
    /// Another name that engines have for the member; read, never written.
    pub(super) alias: Option<&'static str>,
    pub(super) kind: Kind,
    pub(super) shape: Shape,
}

/// What a value is.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// Bytes that are base64 in JSON.
    Base64,
    /// Bytes that are an array of numbers in JSON.
    Octets,
    Bool,
    Int32,
    Int64,
    Double,
    Enum(&'static Enum),
    Message(&'static Message),
    /// Any JSON object, as `google.protobuf.Struct`.
    Struct,
}

/// How many values there are, and what absence means.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// One that is always in the JSON: absent on the wire is zero or empty.
    Required,
    /// One that is left out of the JSON where it is zero, empty or a message that is absent.
    Filled,
    /// One that is absent or there, whatever its value.
    Optional,
    /// The same; absent, the JSON has this.
    Default(&'static str),
    /// One of those that exclude each other; there, whatever its value.
    OneOf,
    /// Several; left out of the JSON where there are none.
    Repeated,
    /// Several; an empty array where there are none.
    List,
    /// Several; text alone is one of them.
    RepeatedOrOne,
    /// Packed floats; an array of numbers or base64 in JSON.
    Vector,
    /// A map from text to the kind.
    Map,
    /// A map from 32-bit integers to the kind.
    IntMap,
}

/// An enum's names in JSON. The zero value is absence.
pub(super) struct Enum {
    /// Its name in `forebay.v1`.
    pub(super) name: &'static str,
    /// From 1 on.
    pub(super) values: &'static [&'static str],
}

impl Message {
    const fn object(name: &'static str, fields: &'static [Field]) -> Self {
        Self {
            name,
            form: Form::Object,
            fields,
            fixed: None,
        }
    }

    const fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    const fn fixed(mut self, name: &'static str, value: &'static str) -> Self {
        self.fixed = Some((name, value));
        self
    }

    /// Whether it has a field `extra`.
    pub(super) const fn has_extra(&self) -> bool {
        !matches!(self.form, Form::First)
    }

    /// Whether `type` tells which member is set.
    pub(super) const fn is_tagged(&self) -> bool {
        matches!(self.form, Form::Tagged | Form::TaggedOrFirst)
    }
}

impl Field {
    const fn new(number: u32, name: &'static str, kind: Kind, shape: Shape) -> Self {
        Self {
            number,
            name,
            json: name,
            alias: None,
            kind,
            shape,
        }
    }

    const fn json(mut self, json: &'static str) -> Self {
        self.json = json;
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }
}

const fn required(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::Required)
}

const fn filled(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::Filled)
}

const fn optional(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::Optional)
}

const fn one_of(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::OneOf)
}

const fn repeated(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::Repeated)
}

const fn list(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::List)
}

const fn map(number: u32, name: &'static str, kind: Kind) -> Field {
    Field::new(number, name, kind, Shape::Map)
}
