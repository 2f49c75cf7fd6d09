//! Messages of `forebay.v1` and OpenAI's JSON turned into each other: for tests and tools.
use forebay_core::door::grpc::{self, Method};
use forebay_core::error::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn named(path: &str) -> PyResult<Method> {
    Method::of_path(path).ok_or_else(|| PyValueError::new_err(format!("no method {path:?}")))
}

fn refused(error: &Error) -> PyErr {
    PyValueError::new_err((
        error.message.to_string(),
        error.kind.name(),
        error.param.as_deref().map(str::to_owned),
    ))
}

/// A message as JSON: a request's as engines get it, or an answer's.
#[pyfunction]
#[pyo3(signature = (method, message, *, answer=false))]
pub(crate) fn grpc_to_json<'py>(
    py: Python<'py>,
    method: &str,
    message: &[u8],
    answer: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let method = named(method)?;
    let done = if answer {
        grpc::answer_to_json(method, message)
    } else {
        grpc::request(method, message)
    };
    Ok(PyBytes::new(py, &done.map_err(|error| refused(&error))?))
}

/// JSON as a message: an answer's as clients get it, or a request's.
#[pyfunction]
#[pyo3(signature = (method, json, *, answer=false))]
pub(crate) fn json_to_grpc<'py>(
    py: Python<'py>,
    method: &str,
    json: &[u8],
    answer: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let method = named(method)?;
    let done = if answer {
        grpc::answer_from_json(method, json)
    } else {
        grpc::request_from_json(method, json)
    };
    Ok(PyBytes::new(py, &done.map_err(|error| refused(&error))?))
}

/// Which field is which member: JSON.
#[pyfunction]
pub(crate) fn grpc_table(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, grpc::describe().to_string().as_bytes())
}
