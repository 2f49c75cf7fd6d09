//! What came before a request, and the request as an upstream with Responses gets it.
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Kind};

use super::super::carry::invalid;
use super::super::json::{self, List, Members, Object, Path, Text, each_once, pairs};
use super::items::signed;

/// Most responses whose items one request may refer to.
const MAX_REFERRED: usize = 64;

/// What has to be loaded before a request can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// `previous_response_id`.
    pub(crate) previous: Option<String>,
    /// The responses of items that are referred to.
    pub(crate) referred: Vec<String>,
    /// `model`.
    pub(crate) model: Option<String>,
}

/// What a request needs; `None` for most. Errors: `InvalidRequest` that names the field.
pub(crate) fn needs(body: &str) -> Result<Option<Needs>, Error> {
    let finds = |what: &str| memchr::memmem::find(body.as_bytes(), what.as_bytes()).is_some();
    if !finds("previous_response_id") && !finds("item_reference") {
        return Ok(None);
    }
    let at = &Path::ROOT;
    let mut members = Members::read(body, at)?;
    let mut needs = Needs {
        previous: members
            .text("previous_response_id", at)?
            .map(Cow::into_owned),
        referred: Vec::new(),
        model: members.text("model", at)?.map(Cow::into_owned),
    };
    if needs.previous.as_deref() == Some("") {
        return Err(at
            .key("previous_response_id")
            .has_to_be("the id of a response"));
    }
    if let Some(input) = members.take("input").filter(|raw| !json::is_text(raw)) {
        let at = &at.key("input");
        for (i, raw) in json::list(input, at)?.into_iter().enumerate() {
            let Some(id) = reference(raw, &at.index(i))? else {
                continue;
            };
            let Some(response) = response_of(&id) else {
                continue;
            };
            if needs.referred.contains(&response) {
                continue;
            }
            if needs.referred.len() == MAX_REFERRED {
                let message =
                    format!("Items of more than {MAX_REFERRED} responses are referred to.");
                return Err(invalid("input", message));
            }
            needs.referred.push(response);
        }
    }
    Ok((needs.previous.is_some() || !needs.referred.is_empty()).then_some(needs))
}

/// The id that an item refers to another by.
fn reference<'a>(raw: &'a RawValue, at: &Path<'_>) -> Result<Option<Cow<'a, str>>, Error> {
    if memchr::memmem::find(raw.get().as_bytes(), b"item_reference").is_none() {
        return Ok(None);
    }
    let mut item = Members::read(raw.get(), at)?;
    if item.text("type", at)?.as_deref() != Some("item_reference") {
        return Ok(None);
    }
    item.need_text("id", at).map(Some)
}

/// The response that an item of ours is of: `msg_<response><number>`.
fn response_of(item: &str) -> Option<String> {
    let (_, own) = item.split_once('_')?;
    let response = own.get(..own.len().checked_sub(4)?)?;
    (response.len() == 32 && response.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| format!("resp_{response}"))
}

/// What was loaded: the items of a response's `input` and of its `output`, as JSON lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) input: String,
    pub(crate) output: String,
}

/// A request with all that came before it in `input`: the JSON, and how many items stand before the
/// client's own. most: bytes that all of it may add to the request.
///
/// Errors: `InvalidRequest`; `NotFound` for an item that is in none of the `referred`;
/// `PayloadTooLarge`; `Internal` for what was loaded and cannot be read.
pub(crate) fn expand(
    body: &str,
    previous: Option<&Loaded>,
    referred: &[Loaded],
    most: usize,
) -> Result<(Bytes, u32), Error> {
    let mut known = HashMap::new();
    for loaded in referred.iter().chain(previous) {
        for item in items(&loaded.output)? {
            if let Some(id) = id_of(item) {
                known.entry(id).or_insert(item);
            }
        }
    }
    let mut before = Vec::new();
    if let Some(previous) = previous {
        before.extend(items(&previous.input)?);
        before.extend(items(&previous.output)?);
    }
    let count = before.len() as u32;
    let loaded: usize = before.iter().map(|raw| raw.get().len() + 1).sum();
    let mut room = most.checked_sub(loaded).ok_or_else(too_large)?;
    let mut out = BytesMut::with_capacity(body.len() + loaded + 128);
    Object::write(&mut out, |object| {
        for (name, raw) in pairs(body, &Path::ROOT)? {
            if name != "input" || raw.get() == "null" {
                object.put_named(&name, raw);
                continue;
            }
            object.list("input", |list| {
                for raw in &before {
                    list.item().extend_from_slice(raw.get().as_bytes());
                }
                own(raw, &known, &mut room, list)
            })?;
        }
        Ok::<(), Error>(())
    })?;
    Ok((out.freeze(), count))
}

/// The client's own items, those that it refers to in their place. room: bytes that these may have.
fn own(
    input: &RawValue,
    known: &HashMap<Cow<'_, str>, &RawValue>,
    room: &mut usize,
    list: &mut List<'_>,
) -> Result<(), Error> {
    let at = &Path::ROOT.key("input");
    if json::is_text(input) {
        list.object(|item| {
            item.put("type", "message");
            item.put("role", "user");
            item.put("content", input);
        });
        return Ok(());
    }
    for (i, raw) in json::list(input, at)?.into_iter().enumerate() {
        let at = &at.index(i);
        let mut item = raw;
        if let Some(id) = reference(raw, at)? {
            item = known.get(&*id).copied().ok_or_else(|| {
                let message = format!("There is no item with the id '{id}'.");
                Error::new(Kind::NotFound, message)
                    .param(at.key("id").to_string())
                    .code("item_not_found")
            })?;
            // One item may be referred to again and again.
            let length = item.get().len();
            *room = room.checked_sub(length).ok_or_else(too_large)?;
        }
        list.item().extend_from_slice(item.get().as_bytes());
    }
    Ok(())
}

fn id_of(item: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default)]
        id: Option<Text<'a>>,
    }
    let named: Named<'_> = serde_json::from_str(item.get()).ok()?;
    named.id.map(|id| id.0)
}

fn too_large() -> Error {
    Error::new(
        Kind::PayloadTooLarge,
        "The items that came before or are referred to are too large.",
    )
}

fn items(list: &str) -> Result<Vec<&RawValue>, Error> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(list).map_err(|cause| {
        let message = "The previous response could not be read.";
        Error::new(Kind::Internal, message).cause(cause)
    })
}

/// A request's input as a list of items. Empty where there is none.
pub(crate) fn input_of(body: &str) -> String {
    let mut members = Members::read(body, &Path::ROOT).unwrap_or_default();
    let Some(input) = members.take("input") else {
        return "[]".to_owned();
    };
    let mut out = BytesMut::new();
    let written = List::write(&mut out, |list| own(input, &HashMap::new(), &mut 0, list));
    match written {
        Ok(()) => String::from_utf8(out.into()).unwrap_or_default(),
        Err(_) => "[]".to_owned(),
    }
}

/// A request as an upstream with Responses gets it: it keeps nothing, so that any other one can take
/// the next turn; nor does it hear of whose turn it is or of requests' ids, which are the gateway's to
/// say. Thoughts travel sealed; those that this upstream cannot open are left out. Gives the
/// JSON and where in it the model's name stands, quotes included.
pub(crate) fn native_body(body: &str, stored: bool) -> Result<(Bytes, Range<usize>), Error> {
    let members = pairs(body, &Path::ROOT)?;
    each_once(&members, &Path::ROOT)?;
    let mut out = BytesMut::with_capacity(body.len() + 64);
    let mut model = 0..0;
    Object::write(&mut out, |object| {
        let mut included = false;
        for (name, raw) in members {
            match &*name {
                "store" | "previous_response_id" | "background" | "priority" | "rid" => {}
                "model" => {
                    let place = object.member("model");
                    let start = place.len();
                    place.extend_from_slice(raw.get().as_bytes());
                    model = start..place.len();
                }
                "include" if stored && raw.get() != "null" => {
                    included = true;
                    include(raw, object)?;
                }
                "input" if !json::is_text(raw) => {
                    object.list("input", |list| thoughtful(raw, list))?;
                }
                _ => object.put_named(&name, raw),
            }
        }
        if stored && !included {
            object.put("include", [SEALED]);
        }
        object.put("store", false);
        Ok::<(), Error>(())
    })?;
    Ok((out.freeze(), model))
}

const SEALED: &str = "reasoning.encrypted_content";

fn include(raw: &RawValue, object: &mut Object<'_>) -> Result<(), Error> {
    let at = &Path::ROOT.key("include");
    let mut names = Vec::new();
    for (i, raw) in json::list(raw, at)?.into_iter().enumerate() {
        names.push(json::text(raw, &at.index(i))?);
    }
    if names.iter().all(|name| name != SEALED) {
        names.push(SEALED.into());
    }
    object.put("include", names);
    Ok(())
}

/// The items but for thoughts that are not sealed, or by another provider.
fn thoughtful(input: &RawValue, list: &mut List<'_>) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Thought<'a> {
        #[serde(borrow, default)]
        r#type: Option<Text<'a>>,
        #[serde(borrow, default)]
        encrypted_content: Option<Text<'a>>,
    }
    for raw in json::list(input, &Path::ROOT.key("input"))? {
        let foreign = serde_json::from_str::<Thought<'_>>(raw.get()).is_ok_and(|item| {
            let sealed = item.encrypted_content;
            item.r#type.is_some_and(|kind| kind.0 == "reasoning")
                && sealed.is_none_or(|sealed| signed(&sealed.0).is_some())
        });
        if !foreign {
            list.item().extend_from_slice(raw.get().as_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tree(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap_or_default()
    }

    #[test]
    fn most_requests_need_nothing() {
        for body in [
            json!({"model": "m", "input": "previous_response_id, item_reference"}),
            json!({"model": "m", "input": [], "previous_response_id": null}),
            json!({"model": "m", "input": [{"type": "item_reference", "id": "msg_theirs"}]}),
        ] {
            assert_eq!(needs(&body.to_string()).ok(), Some(None), "{body}");
        }
    }

    #[test]
    fn what_is_needed_is_named_once() {
        let hex = "0123456789abcdef0123456789abcdef";
        let item = |n| json!({"type": "item_reference", "id": format!("msg_{hex}000{n}")});
        let body =
            json!({"model": "m", "previous_response_id": "resp_1", "input": [item(0), item(1)]});
        let expected = Needs {
            previous: Some("resp_1".to_owned()),
            referred: vec![format!("resp_{hex}")],
            model: Some("m".to_owned()),
        };
        assert_eq!(needs(&body.to_string()).ok(), Some(Some(expected)));
    }

    #[test]
    fn what_came_before_stands_before_and_references_are_replaced() {
        let previous = Loaded {
            input: r#"[{"role":"user","content":"1"}]"#.to_owned(),
            output: r#"[{"id":"msg_1","type":"message"}]"#.to_owned(),
        };
        let body = json!({"input": [{"type": "item_reference", "id": "msg_1"}], "store": null});
        let (whole, before) =
            expand(&body.to_string(), Some(&previous), &[], 1 << 10).unwrap_or_default();
        assert_eq!(before, 2);
        assert_eq!(
            tree(&whole),
            json!({"store": null, "input": [
                {"role": "user", "content": "1"},
                {"id": "msg_1", "type": "message"},
                {"id": "msg_1", "type": "message"},
            ]})
        );
        let unknown = json!({"input": [{"type": "item_reference", "id": "msg_2"}]}).to_string();
        let refused = expand(&unknown, Some(&previous), &[], 1 << 10).err();
        assert_eq!(
            refused.and_then(|error| error.param),
            Some("input[0].id".into())
        );
    }

    #[test]
    fn what_is_referred_to_again_and_again_has_a_bound() {
        let text = "x".repeat(60_000);
        let previous = Loaded {
            input: String::new(),
            output: json!([{"id": "msg_1", "content": text}]).to_string(),
        };
        let times = |n| {
            let items = vec![json!({"type": "item_reference", "id": "msg_1"}); n];
            let body = json!({"input": items}).to_string();
            expand(&body, Some(&previous), &[], 1 << 20)
        };
        assert!(times(10).is_ok());
        let refused = times(20).err().map(|error| error.kind);
        assert_eq!(refused, Some(Kind::PayloadTooLarge));
    }

    #[test]
    fn an_upstream_reads_what_was_admitted() {
        let twice = r#"{"model":"m","input":"x","mo\u0064el":"n"}"#;
        let refused = native_body(twice, false).err();
        assert_eq!(refused.and_then(|error| error.param), Some("model".into()));
    }

    #[test]
    fn an_upstream_keeps_nothing() {
        let body = r#"{"input":"x","model":"a \"b\"","store":true,"previous_response_id":"r","include":["x"],"priority":9,"rid":"theirs"}"#;
        let (own, at) = native_body(body, true).unwrap_or_default();
        assert_eq!(own.get(at), Some(&br#""a \"b\"""#[..]));
        assert_eq!(
            tree(&own),
            json!({"input": "x", "model": "a \"b\"", "store": false,
                   "include": ["x", "reasoning.encrypted_content"]})
        );
    }
}
