//! Requests and answers turned from one dialect into another: for tests and tools.
use forebay_core::dialect::{self, Context, Dialect, Options};
use forebay_core::error::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn named(name: &str) -> PyResult<Dialect> {
    Ok(match name {
        "open_ai" => Dialect::OpenAi,
        "anthropic" => Dialect::Anthropic,
        "gemini" => Dialect::Gemini,
        "converse" => Dialect::Converse,
        "responses" => Dialect::Responses,
        _ => return Err(PyValueError::new_err(format!("no dialect {name:?}"))),
    })
}

fn refused(error: &Error) -> PyErr {
    PyValueError::new_err((
        error.message.to_string(),
        error.kind.name(),
        error.param.as_deref().map(str::to_owned),
    ))
}

/// A request in another dialect, and the fields that are not in it.
#[pyfunction]
#[pyo3(signature = (
    source, target, body, *, model, stream=false, drop_params=false, max_output_tokens=4096
))]
#[expect(clippy::too_many_arguments, reason = "named in Python")]
pub(crate) fn translate_request<'py>(
    py: Python<'py>,
    source: &str,
    target: &str,
    body: &[u8],
    model: &str,
    stream: bool,
    drop_params: bool,
    max_output_tokens: u32,
) -> PyResult<(Bound<'py, PyBytes>, Vec<String>)> {
    let options = Options {
        model,
        stream,
        drop_params,
        max_output_tokens,
    };
    let done = dialect::request(named(source)?, named(target)?, body, &options)
        .map_err(|error| refused(&error))?;
    Ok((PyBytes::new(py, &done.body), done.dropped))
}

/// A whole answer in another dialect.
#[pyfunction]
#[pyo3(signature = (source, target, body, *, id, model, created))]
pub(crate) fn translate_answer<'py>(
    py: Python<'py>,
    source: &str,
    target: &str,
    body: &[u8],
    id: String,
    model: String,
    created: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let context = Context { id, model, created };
    let body = dialect::answer(named(source)?, named(target)?, body, &context)
        .map_err(|error| refused(&error))?;
    Ok(PyBytes::new(py, &body))
}
