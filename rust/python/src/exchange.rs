//! `Exchange`: one request's answer, awaited from an event loop.
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use forebay_core::slot::Slot;
use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::convert;
use crate::core::Core;
use crate::waits::Source;

/// What the event loop waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Head,
    Call,
    Body,
    Messages,
}

/// One admitted (or refused) request. Its answer is taken with `start`, then `next` until `None`.
/// Dropping it before the end cancels the request.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct Exchange {
    slot: Arc<Slot>,
    core: Py<Core>,
    id: u64,
    waker: Mutex<Option<Waker>>,
}

impl Exchange {
    pub(crate) fn new(slot: Arc<Slot>, core: Py<Core>, id: u64) -> Self {
        Self {
            slot,
            core,
            id,
            waker: Mutex::new(None),
        }
    }

    /// What is ready, without waiting. Registers for a wake-up if nothing is.
    pub(crate) fn poll<'py>(
        &self,
        py: Python<'py>,
        want: Want,
    ) -> PyResult<Poll<Bound<'py, PyAny>>> {
        let waker = self
            .waker
            .lock()
            .get_or_insert_with(|| self.core.get().waits().waker(self.id))
            .clone();
        let mut cx = Context::from_waker(&waker);
        let ready = match want {
            Want::Head | Want::Call => match self.slot.poll_head(&mut cx) {
                Poll::Ready(Some(head)) if want == Want::Call => convert::call_head(py, &head)?,
                Poll::Ready(Some(head)) => convert::head(py, &head)?,
                Poll::Ready(None) => py.None().into_bound(py),
                Poll::Pending => return Ok(Poll::Pending),
            },
            Want::Body => match self
                .slot
                .poll_body(&mut cx, |bytes| PyBytes::new(py, bytes))
            {
                Poll::Ready(Some(bytes)) => bytes.into_any(),
                Poll::Ready(None) => py.None().into_bound(py),
                Poll::Pending => return Ok(Poll::Pending),
            },
            Want::Messages => match self.slot.poll_body(&mut cx, |bytes| messages(py, bytes)) {
                Poll::Ready(Some(list)) => list?.into_any(),
                Poll::Ready(None) => py.None().into_bound(py),
                Poll::Pending => return Ok(Poll::Pending),
            },
        };
        Ok(Poll::Ready(ready))
    }

    fn take<'py>(slf: &Bound<'py, Self>, want: Want) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        match this.poll(py, want)? {
            Poll::Ready(value) => Ok(value),
            Poll::Pending => {
                let source = Source::Exchange(slf.clone().unbind(), want);
                this.core.get().waits().begin(py, this.id, source)
            }
        }
    }
}

/// The messages in a batch of gRPC's frames: a flag, the length in four bytes, the message.
/// The driver writes whole frames under one lock, so a batch never ends within one.
fn messages<'py>(py: Python<'py>, mut batch: &[u8]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    while let Some((head, rest)) = batch.split_first_chunk::<5>() {
        let [_, length @ ..] = *head;
        let (message, rest) = usize::try_from(u32::from_be_bytes(length))
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .ok_or_else(|| PyRuntimeError::new_err("a batch ends within a message"))?;
        list.append(PyBytes::new(py, message))?;
        batch = rest;
    }
    Ok(list)
}

#[pymethods]
impl Exchange {
    /// `(status, headers, body, more)`, or a future of it.
    fn start<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::take(slf, Want::Head)
    }

    /// As `start`, for gRPC: `(initial metadata, trailing metadata, message, more)`.
    fn start_call<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::take(slf, Want::Call)
    }

    /// All bytes that are ready in one piece, `None` at the end, or a future of either.
    fn next<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::take(slf, Want::Body)
    }

    /// As `next`, for an answer in gRPC's frames: the messages that are ready, one by one.
    fn next_messages<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::take(slf, Want::Messages)
    }

    /// Why the answer, or what is left of it, is an error, as gRPC has it: `(code, message,
    /// details)`; `None` while it is none. `request_id` is told in the details.
    #[pyo3(signature = (request_id=""))]
    fn failure<'py>(
        &self,
        py: Python<'py>,
        request_id: &str,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.slot
            .failure()
            .map(|error| convert::grpc_status(py, &error, request_id))
            .transpose()
    }

    /// The client has gone: stop the engine, book what was delivered. Takes anything, so that it
    /// can be a future's done-callback.
    #[pyo3(signature = (*_args))]
    fn cancel(&self, py: Python<'_>, _args: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.slot.cancel();
        self.core.get().waits().forget(py, self.id)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.slot.cancel();
    }
}
