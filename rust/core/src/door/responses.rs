//! OpenAI's Responses, `/v1/responses`: over an upstream that has it, or bridged over chat.
//!
//! **State** is the gateway's own, whichever upstream answered: every upstream gets the whole
//! conversation and `store: false`, so that any of them can take the next turn. A response that is to
//! be stored (`store`, by default true) is saved before the client is told that it is complete, and is
//! loaded for a request that names it as `previous_response_id`. Both ask the port to the store
//! (`Gateway::ask`) with JSON:
//!
//! `response.load`, when a request names a previous response:
//! ```json
//! {"account": "acme", "id": "resp_0190…"}
//! ```
//! Answer, where the account has that response and it has not expired:
//! ```json
//! {"input": [/* items */], "response": {"id": "resp_0190…", "output": [/* items */], …}}
//! ```
//! and otherwise `{}` (unknown, another account's, expired, deleted: the client gets the 404
//! `previous_response_not_found`). No answer at all (`None`) is a 503: it may be there.
//!
//! `response.save`, when a response is complete (`status` `completed` or `incomplete`; failed ones are
//! not stored):
//! ```json
//! {"account": "acme", "key_id": "k3J9…", "id": "resp_0190…", "model": "llama-3-8b",
//!  "previous_response_id": "resp_018f…" /* or null */, "created_at": 1764150000,
//!  "input": [/* items */], "response": {/* the object as the client gets it */}}
//! ```
//! `input` is everything that the model was given: the items of the previous responses, theirs and the
//! model's, and then this request's own; without `instructions`, which are not carried over. So a
//! response can be deleted or expire without breaking those that came after it. Each input item has an
//! `id` where the client or the model gave it one. How long it is kept is the store's to say. Both
//! together are at most [`MAX_STORED`] bytes; what is longer is not saved. `key_id` is the
//! key's id as `usage_events` has it. Answer: `{"saved": true}`. Anything else, or none, is a failure: the response is then
//! told with `store: false`.
//!
//! `GET /v1/responses/{id}` gives back `response` as it was saved, `…/input_items` lists `input`.
mod voice;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::dialect::responses::{Bridged, bridge, native_body};
use crate::dialect::{Context, Dialect, Unsaid};
use crate::error::{Error, Kind};
use crate::peek::bounded;
use crate::refusals::unreadable;

use super::{Entered, Native};

pub(crate) use crate::dialect::responses::{Loaded, Needs, expand, needs};
use voice::Told;

/// Most bytes that are kept of one response and all that came before it.
pub(crate) const MAX_STORED: usize = 8 << 20;

/// A request's text. Errors: it is none.
pub(crate) fn text(body: &Bytes) -> Result<&str, Error> {
    simdutf8::basic::from_utf8(body)
        .map_err(|_| Error::new(Kind::InvalidRequest, "The body is not UTF-8."))
}

/// Reads a request whose `input` holds all that came before it. before: how many of its items are not
/// the client's own.
///
/// Errors: `InvalidRequest`, or `NotFound` for what is referred to and not there; `param` is the field
/// as the client named it.
pub(crate) fn enter(body: &Bytes, before: u32) -> Result<Entered, Error> {
    let json = text(body)?;
    bounded(body).map_err(|error| unreadable(&error))?;
    let told = bridge(json).map_err(|error| own_place(error, before))?;
    let Bridged {
        chat,
        asked,
        places,
        native_only,
        model,
        store,
        previous,
    } = told;
    let (own, at) = native_body(json, store)?;
    let native = Native {
        dialect: Dialect::Responses,
        model: at,
        unsaid: native_only.map(|error| Unsaid {
            error: own_place(error, before),
            droppable: false,
        }),
        beta: None,
        body: own,
    };
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let context = Context {
        id: format!("resp_{}", uuid::Uuid::now_v7().simple()),
        model,
        created: created.map_or(0, |since| since.as_secs()),
    };
    let told =
        Told::new(context, asked, places.after(before)).keeping(body.clone(), store, previous);
    Ok(Entered {
        body: chat.into(),
        native: Some(native),
        voice: Some(Box::new(told)),
    })
}

/// An error's field by its number among the client's own items, of which some came before.
fn own_place(mut error: Error, before: u32) -> Error {
    if before == 0 {
        return error;
    }
    let Some(field) = error.param.as_deref() else {
        return error;
    };
    let number = field
        .strip_prefix("input[")
        .and_then(|rest| rest.split_once(']'))
        .and_then(|(number, rest)| Some((number.parse::<u32>().ok()?, rest)));
    let Some((number, rest)) = number else {
        return error;
    };
    let own = match number.checked_sub(before) {
        Some(number) => format!("input[{number}]{rest}"),
        None => "previous_response_id".to_owned(),
    };
    error.message = error.message.replace(field, &own).into();
    error.param = Some(own.into());
    error
}
