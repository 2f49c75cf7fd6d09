//! The core's pure parts on their own: for tests, benches and tools.
use bytes::Bytes;
use std::sync::Arc;

use forebay_core::limit::{Limits, Meter, Region, Table};

use crate::limits::region;
use forebay_core::prompt_log::Redactor;
use forebay_core::upstream::{AwsCredentials, sigv4};
use forebay_core::{peek as core_peek, sse};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// Limits of many keys, all alike, by number. Time is passed in: monotonic nanoseconds.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct Limiter {
    limits: Limits,
    region: Arc<Region>,
    table: Table<Meter>,
}

impl Limiter {
    fn meter(&self, key: u64) -> Arc<Meter> {
        // No row has the id 0.
        let make = || Meter::with_id(&self.region, key.wrapping_add(1).max(1), &self.limits);
        self.table.get_or_insert_with(key, make)
    }
}

#[pymethods]
impl Limiter {
    #[new]
    #[pyo3(signature = (
        *, rpm=None, rpm_burst=None, tpm=None, tpm_burst=None, concurrency=None, limits_fd=None,
        worker=0
    ))]
    fn new(
        rpm: Option<u64>,
        rpm_burst: Option<u64>,
        tpm: Option<u64>,
        tpm_burst: Option<u64>,
        concurrency: Option<u32>,
        limits_fd: Option<i32>,
        worker: usize,
    ) -> PyResult<Self> {
        Ok(Self {
            limits: Limits {
                rpm,
                rpm_burst,
                tpm,
                tpm_burst,
                concurrency,
                ..Limits::default()
            },
            region: region(limits_fd, worker)?,
            table: Table::new(64),
        })
    }

    /// Admits a request of `key` that reserves `tokens`: 0 if allowed, else the wait in
    /// nanoseconds, or -1 if no wait cures it.
    fn admit(&self, key: u64, tokens: u64, now: u64) -> i64 {
        let decide = |meter: &Arc<Meter>| match meter.admit(now, tokens) {
            Ok(_) => 0,
            Err(refusal) => refusal
                .retry_after
                .map_or(-1, |wait| i64::try_from(wait.max(1)).unwrap_or(i64::MAX)),
        };
        match self.table.with(key, decide) {
            Some(answer) => answer,
            None => decide(&self.meter(key)),
        }
    }

    /// Ends a request: `used` tokens of `reserved` are kept, its permit comes back.
    fn settle(&self, key: u64, reserved: u64, used: u64) {
        if let Some(meter) = self.table.get(key) {
            meter.settle(reserved, used);
            meter.release();
        }
    }

    /// `(remaining requests, remaining tokens, in flight)`; `None` where there is no limit.
    fn state(&self, key: u64, now: u64) -> (Option<u64>, Option<u64>, u64) {
        let state = self.meter(key).state(now);
        (
            state.requests.map(|s| s.remaining),
            state.tokens.map(|s| s.remaining),
            state.in_flight,
        )
    }

    fn __len__(&self) -> usize {
        self.table.len()
    }
}

/// An event-stream decoder (WHATWG HTML §9.2).
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct SseDecoder {
    decoder: Mutex<sse::Decoder>,
}

#[pymethods]
impl SseDecoder {
    #[new]
    #[pyo3(signature = (max_event_bytes=1_048_576))]
    fn new(max_event_bytes: usize) -> Self {
        Self {
            decoder: Mutex::new(sse::Decoder::new(max_event_bytes)),
        }
    }

    /// The data of each event that `chunk` completes. Raises ValueError if one is too large.
    fn feed<'py>(&self, py: Python<'py>, chunk: &[u8]) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let mut decoder = self.decoder.lock();
        decoder
            .feed(Bytes::copy_from_slice(chunk))
            .map_err(|e| PyValueError::new_err(e.to_string()))?;
        let mut events = Vec::new();
        while let Some(frame) = decoder.next() {
            if let Some(data) = frame.data() {
                events.push(PyBytes::new(py, &data));
            }
        }
        Ok(events)
    }
}

/// What admission reads of a request body. Raises ValueError that names the byte offset.
#[pyfunction]
pub(crate) fn peek<'py>(py: Python<'py>, body: &[u8]) -> PyResult<Bound<'py, PyDict>> {
    let seen = core_peek::peek(body).map_err(|e| PyValueError::new_err(e.to_string()))?;
    let out = PyDict::new(py);
    out.set_item("model", seen.model.as_deref())?;
    out.set_item("stream", seen.stream)?;
    out.set_item("n", seen.n)?;
    out.set_item("output_cap", seen.output_cap())?;
    out.set_item("user", seen.user.as_deref())?;
    out.set_item("prompt_bytes", seen.prompt_bytes)?;
    out.set_item("prompt_token_ids", seen.prompt_token_ids)?;
    out.set_item("prompt_items", seen.prompt_items)?;
    Ok(out)
}

/// What is wrong with patterns for the prompt log: which one, and why.
#[pyfunction]
pub(crate) fn bad_pattern(
    py: Python<'_>,
    patterns: Vec<String>,
) -> Option<(Option<usize>, String)> {
    let bad = py.detach(move || Redactor::new(&patterns).err())?;
    Some((bad.at, bad.reason))
}

/// The headers that AWS Signature Version 4 adds to a request.
#[pyfunction]
#[pyo3(signature = (
    method, host, path, query, headers, body, *, access_key, secret_key, session_token, region,
    service, unix_s
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of one call")]
#[expect(clippy::needless_pass_by_value, reason = "as PyO3 hands them over")]
pub(crate) fn sign_v4(
    method: &str,
    host: &str,
    path: &str,
    query: &str,
    headers: Vec<(String, String)>,
    body: Vec<Vec<u8>>,
    access_key: String,
    secret_key: String,
    session_token: Option<String>,
    region: &str,
    service: &str,
    unix_s: u64,
) -> Vec<(&'static str, String)> {
    let keys = AwsCredentials {
        access_key,
        secret_key,
        session_token,
    };
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let request = sigv4::Signable {
        method,
        host,
        path,
        query,
        headers: &headers,
        body: &sigv4::hash(body.iter().map(Vec::as_slice)),
    };
    let scope = sigv4::Scope { region, service };
    let signature = sigv4::sign(&request, &keys, scope, unix_s);
    let mut out = vec![
        ("authorization", signature.authorization),
        ("x-amz-date", signature.date),
    ];
    out.extend(
        keys.session_token
            .map(|token| ("x-amz-security-token", token)),
    );
    out
}
