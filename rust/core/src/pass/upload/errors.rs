//! What is wrong with a form, as its sender is told.
use crate::error::{Error, Kind};
use crate::pass::multipart::Fault;

fn refused(message: String) -> Error {
    Error::new(Kind::InvalidRequest, message)
}

/// Its type is not a form's.
pub(super) fn unsupported(fault: Fault) -> Error {
    refused(format!("We could not read the request: {fault}."))
        .param("content-type")
        .code("unsupported_content_type")
}

/// It is no form, or not one of ours.
pub(super) fn malformed(fault: Fault) -> Error {
    let error = refused(format!("We could not read the form: {fault}."));
    match fault {
        Fault::Model | Fault::Models => error.param("model").code("invalid_value"),
        Fault::Control => error.code("unsupported_parameter"),
        _ => error.code("invalid_form"),
    }
}

/// It names no model.
pub(super) fn missing() -> Error {
    refused("You must provide a model parameter.".to_owned())
        .param("model")
        .code("missing_required_parameter")
}

/// The model did not come within so many bytes.
pub(super) fn late(bytes: usize) -> Error {
    refused(format!(
        "The field 'model' did not come within the first {bytes} bytes of the form. Put it before the file, or name the model in the header x-forebay-model."
    ))
    .param("model")
    .code("missing_required_parameter")
}

/// It has more bytes than may be.
pub(super) fn too_large(limit: u64) -> Error {
    Error::new(
        Kind::PayloadTooLarge,
        format!("The request body is over the limit of {limit} bytes."),
    )
}

/// Its sender paused for too long.
pub(super) fn too_slow() -> Error {
    refused("The request body did not arrive in time.".to_owned()).code("slow_body")
}

/// It ended, or broke off, before its end.
pub(super) fn broken() -> Error {
    refused("The request body is incomplete or malformed.".to_owned()).code("bad_body")
}
