//! `Exchange`: one request's answer, awaited from an event loop.
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use forebay_core::slot::Slot;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::convert;
use crate::core::Core;

/// What the event loop waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Head,
    Body,
}

/// A future that the event loop awaits, and what will resolve it.
pub(crate) struct Wait {
    pub(crate) future: Py<PyAny>,
    pub(crate) source: Source,
}

/// What resolves a future.
pub(crate) enum Source {
    /// An exchange has what is wanted.
    Exchange(Py<Exchange>, Want),
    /// The store is asked something.
    Port,
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
            .get_or_insert_with(|| self.core.get().waker(self.id))
            .clone();
        let mut cx = Context::from_waker(&waker);
        let ready = match want {
            Want::Head => match self.slot.poll_head(&mut cx) {
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
                this.core.get().wait(py, this.id, source)
            }
        }
    }
}

#[pymethods]
impl Exchange {
    /// `(status, headers, body, more)`, or a future of it.
    fn start<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::take(slf, Want::Head)
    }

    /// All bytes that are ready in one piece, `None` at the end, or a future of either.
    fn next<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::take(slf, Want::Body)
    }

    /// The client has gone: stop the engine, book what was delivered. Takes anything, so that it
    /// can be a future's done-callback.
    #[pyo3(signature = (*_args))]
    fn cancel(&self, py: Python<'_>, _args: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.slot.cancel();
        self.core.get().forget(py, self.id)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.slot.cancel();
    }
}
