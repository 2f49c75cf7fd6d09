//! The gRPC door: messages of `forebay.v1` for OpenAI's JSON, both ways, without a tree between them.
//!
//! Pure. `table` says which field is which member; `to_json` turns requests in, `to_proto` answers out.
//! The contract is in `protos/forebay/v1`, the mapping explained in `docs/grpc-messages.md`.
mod base64;
mod describe;
mod extra;
mod fields;
mod json;
mod method;
mod status;
mod table;
mod to_json;
mod to_proto;
mod voice;
mod wire;

use bytes::Bytes;

use crate::error::{Error, Kind};

pub use describe::describe;
pub use method::Method;
pub(super) use status::error_metadata;
pub use status::{DOMAIN, status_details};
pub use voice::Voice;

use to_json::{Root, to_json};
use to_proto::{Nulls, to_proto};

/// A request's message as the JSON of the method's endpoint. A stream's has `"stream":true` and asks for
/// the usage, unless the message says otherwise.
///
/// Errors: invalid_request with the field's path, such as `messages[0].parts[1].text`;
/// payload_too_large.
pub fn request(method: Method, message: &[u8]) -> Result<Bytes, Error> {
    let root = if method.streams() {
        Root::Stream
    } else {
        Root::Whole
    };
    to_json(method.request(), message, root)
}

/// A request's JSON as a message: the other way round, for clients and tests. `stream` is not in
/// messages, the method tells it.
///
/// Errors: invalid_request; it is no JSON object.
pub fn request_from_json(method: Method, json: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(json.len());
    to_proto(method.request(), json, Nulls::Kept, &mut out).map_err(|fault| {
        Error::new(
            Kind::InvalidRequest,
            format!("The JSON could not be read: {fault}."),
        )
    })?;
    Ok(out)
}

/// An answer's message, or a chunk's, as JSON: the other way round, for clients and tests.
///
/// Errors: invalid_request with the field's path; it is no message.
pub fn answer_to_json(method: Method, message: &[u8]) -> Result<Bytes, Error> {
    to_json(method.answer(), message, Root::Answer)
}

/// An answer's JSON, or a chunk's, as a message without its prefix.
///
/// Errors: invalid_request; it is no JSON, or of another form.
pub fn answer_from_json(method: Method, json: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(json.len());
    to_proto(method.answer(), json, Nulls::Dropped, &mut out).map_err(|fault| {
        Error::new(
            Kind::InvalidRequest,
            format!("The JSON could not be read: {fault}."),
        )
    })?;
    Ok(out)
}
