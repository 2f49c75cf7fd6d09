//! The table as JSON, for the test that compares it with the protos and for the documentation.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Method;
use super::table::{Enum, Field, Kind, Message, Shape};

/// Every message and enum that the methods reach: `{"methods": …, "messages": …, "enums": …}`.
///
/// A message has its `form` and `fields`; a field its `name`, `number`, `json`, `alias`, `kind`, the
/// message or enum that it is `of`, and `shape`.
pub fn describe() -> Value {
    let mut known = Known::default();
    let methods: BTreeMap<_, _> = Method::ALL
        .into_iter()
        .map(|method| {
            known.message(method.request());
            known.message(method.answer());
            let told = json!({
                "http": method.http_path(),
                "stream": method.streams(),
                "request": method.request().name,
                "answer": method.answer().name,
            });
            (method.path(), told)
        })
        .collect();
    json!({"methods": methods, "messages": known.messages, "enums": known.enums})
}

#[derive(Default)]
struct Known {
    messages: BTreeMap<&'static str, Value>,
    enums: BTreeMap<&'static str, Value>,
}

impl Known {
    fn message(&mut self, message: &'static Message) {
        if self.messages.contains_key(message.name) {
            return;
        }
        self.messages.insert(message.name, Value::Null);
        let fields: Vec<Value> = message
            .fields
            .iter()
            .map(|field| self.field(field))
            .collect();
        let told = json!({
            "form": format!("{:?}", message.form),
            "extra": message.has_extra(),
            "fixed": message.fixed,
            "fields": fields,
        });
        self.messages.insert(message.name, told);
    }

    fn field(&mut self, field: &'static Field) -> Value {
        let (kind, of) = match field.kind {
            Kind::Text => ("string", None),
            Kind::Base64 => ("base64", None),
            Kind::Octets => ("octets", None),
            Kind::Bool => ("bool", None),
            Kind::Int32 => ("int32", None),
            Kind::Int64 => ("int64", None),
            Kind::Double => ("double", None),
            Kind::Struct => ("struct", None),
            Kind::Enum(of) => {
                self.variants(of);
                ("enum", Some(of.name))
            }
            Kind::Message(of) => {
                self.message(of);
                ("message", Some(of.name))
            }
        };
        let shape = match field.shape {
            Shape::Required => "required",
            Shape::Filled => "filled",
            Shape::Optional => "optional",
            Shape::Default(_) => "default",
            Shape::OneOf => "oneof",
            Shape::Repeated => "repeated",
            Shape::List => "list",
            Shape::RepeatedOrOne => "repeated_or_one",
            Shape::Vector => "vector",
            Shape::Map => "map",
            Shape::IntMap => "int_map",
        };
        json!({
            "name": field.name,
            "number": field.number,
            "json": field.json,
            "alias": field.alias,
            "kind": kind,
            "of": of,
            "shape": shape,
        })
    }

    fn variants(&mut self, of: &'static Enum) {
        self.enums.insert(of.name, json!(of.values));
    }
}
