//! Files and the like that a request names by their id at an upstream whose one account they are all in.
use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Kind};
use crate::snapshot::{Model, Snapshot};

/// Members that name such things.
const NAMES: [&str; 5] = [
    "container",
    "file_id",
    "file_ids",
    "vector_store_id",
    "vector_store_ids",
];

/// Members whose insides are the client's own data or tell of an answer that it has.
const DATA: [&str; 8] = [
    "annotations",
    "arguments",
    "input_schema",
    "metadata",
    "parameters",
    "properties",
    "results",
    "schema",
];

/// Refuses a request that names what may be another account's, where it may come to the upstream that
/// has the files of all: nobody has checked whose it is.
pub(super) fn check(snapshot: &Snapshot, model: &Model, body: &[u8]) -> Result<(), Error> {
    let Some(files) = &snapshot.files else {
        return Ok(());
    };
    let there = |model: &Model| {
        let is_theirs = |name: &str| {
            files
                .targets
                .iter()
                .any(|file| *file.upstream.name == *name)
        };
        let mut targets = model.targets.iter();
        targets.any(|target| is_theirs(&target.upstream.name))
    };
    let others = || {
        let mut models = model
            .fallbacks()
            .filter_map(|name| snapshot.models.get(name));
        models.any(|model| there(model))
    };
    if !(there(model) || others()) {
        return Ok(());
    }
    let refused =
        |message: String| Error::new(Kind::InvalidRequest, message).code("id_not_checked");
    match named(body) {
        Ok(None) => Ok(()),
        Ok(Some(name)) => Err(refused(format!(
            "`{name}` cannot be used with this model: the gateway does not know whose that is. Send \
             contents instead."
        ))
        .param(name)),
        Err(cause) => {
            let message = "It cannot be told whether the request names a file by its id.";
            Err(refused(message.to_owned()).cause(cause))
        }
    }
}

/// The first of these members that a body has.
fn named(body: &[u8]) -> Result<Option<&'static str>, serde_json::Error> {
    let has = |what: &str| memchr::memmem::find(body, what.as_bytes()).is_some();
    // A name may be written with escapes.
    let words = ["container", "file_id", "vector_store_id", "\\u00"];
    let mut found = None;
    if words.into_iter().any(has) {
        let walk = Walk {
            found: &mut found,
            of: None,
        };
        walk.deserialize(&mut serde_json::Deserializer::from_slice(body))?;
    }
    Ok(found)
}

/// Looks through a value. One reader for all of it, so that its bound on depth holds.
struct Walk<'f> {
    /// The first member that names something.
    found: &'f mut Option<&'static str>,
    /// The value is of this member: an id, or a list that is not empty, names something.
    of: Option<&'static str>,
}

impl Walk<'_> {
    fn inside(&mut self, of: Option<&'static str>) -> Walk<'_> {
        Walk {
            found: self.found,
            of,
        }
    }

    fn names(&mut self) {
        if let Some(name) = self.of {
            self.found.get_or_insert(name);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(mut self, _: &str) -> Result<(), E> {
        self.names();
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.inside(None))?.is_some() {
            self.names();
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if DATA.contains(&&*name) {
                map.next_value::<IgnoredAny>()?;
            } else {
                let known = NAMES.into_iter().find(|known| **known == *name);
                map.next_value_seed(self.inside(known))?;
            }
        }
        Ok(())
    }
}

/// A member's name, escapes undone.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_found_and_data_is_not_looked_at() {
        for (body, found) in [
            (
                r#"{"input":[{"content":[{"type":"input_file","file_id":"file-1"}]}]}"#,
                Some("file_id"),
            ),
            (r#"{"input":[{"fil\u0065_id":"file-1"}]}"#, Some("file_id")),
            (
                r#"{"tools":[{"vector_store_ids":["vs_1"]}]}"#,
                Some("vector_store_ids"),
            ),
            (r#"{"tools":[{"container":"cntr_1"}]}"#, Some("container")),
            (
                r#"{"tools":[{"container":{"type":"auto","file_ids":["f"]}}]}"#,
                Some("file_ids"),
            ),
            (
                r#"{"tools":[{"container":{"type":"auto","file_ids":[ ]}}]}"#,
                None,
            ),
            (
                r#"{"tools":[{"parameters":{"properties":{"file_id":{"type":"string"}}}}]}"#,
                None,
            ),
            (
                r#"{"messages":[{"content":"file_id container"}],"file_id":null}"#,
                None,
            ),
        ] {
            assert_eq!(named(body.as_bytes()).ok(), Some(found), "{body}");
        }
        assert!(named(br#"{"n":1e999,"file_id":"file-1"}"#).is_err());
    }

    #[test]
    fn depth_is_bounded_below_names_as_anywhere() {
        for name in ["container", "other"] {
            let open = format!("{{\"{name}\":");
            let deep = [open.repeat(100_000), "1".into(), "}".repeat(100_000)].concat();
            let body = format!(r#"{{"container":null,"x":{deep}}}"#);
            assert!(named(body.as_bytes()).is_err(), "{name}");
        }
    }
}
