//! Futures of the event loop, and what resolves them.
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::bridge::{Queue, Token};
use crate::exchange::{Exchange, Want};

/// What resolves a future.
pub(crate) enum Source {
    /// An exchange has what is wanted.
    Exchange(Py<Exchange>, Want),
    /// The store is asked something.
    Port,
}

/// A future that the event loop awaits, and what will resolve it.
struct Wait {
    future: Py<PyAny>,
    source: Source,
}

/// All of one event loop.
pub(crate) struct Waits {
    queue: Arc<Queue>,
    event_loop: OnceLock<Py<PyAny>>,
    new_future: OnceLock<Py<PyAny>>,
    open: Mutex<HashMap<u64, Wait>>,
}

impl Waits {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            event_loop: OnceLock::new(),
            new_future: OnceLock::new(),
            open: Mutex::new(HashMap::new()),
        }
    }

    /// Has the event loop call `drain` when something is ready. Once.
    pub(crate) fn attach(
        &self,
        event_loop: &Bound<'_, PyAny>,
        drain: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = event_loop.py();
        if self.event_loop.set(event_loop.clone().unbind()).is_err() {
            return Err(PyRuntimeError::new_err("the core is attached already"));
        }
        let new_future = event_loop.getattr(pyo3::intern!(py, "create_future"))?;
        // Set once, as the line above allows one attach.
        let _ = self.new_future.set(new_future.unbind());
        event_loop.call_method1(pyo3::intern!(py, "add_reader"), (self.queue.fd(), drain))?;
        Ok(())
    }

    /// Says that `id` is ready.
    pub(crate) fn waker(&self, id: u64) -> Waker {
        Waker::from(Arc::new(Token {
            queue: Arc::clone(&self.queue),
            id,
        }))
    }

    /// A future that resolves when its source has what is wanted.
    pub(crate) fn begin<'py>(
        &self,
        py: Python<'py>,
        id: u64,
        source: Source,
    ) -> PyResult<Bound<'py, PyAny>> {
        let new_future = self
            .new_future
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("the core is not attached to an event loop"))?;
        // A wait that was given up by its task may be followed by another.
        let earlier = self.open.lock().remove(&id);
        if let Some(earlier) = earlier {
            let given_up = is_done(py, &earlier.future)?;
            if !given_up {
                self.open.lock().insert(id, earlier);
                return Err(PyRuntimeError::new_err("it is awaited already"));
            }
        }
        let future = new_future.bind(py).call0()?;
        let waiting = Wait {
            future: future.clone().unbind(),
            source,
        };
        self.open.lock().insert(id, waiting);
        Ok(future)
    }

    /// Ends the wait of what was cancelled.
    pub(crate) fn forget(&self, py: Python<'_>, id: u64) -> PyResult<()> {
        let wait = self.open.lock().remove(&id);
        if let Some(wait) = wait {
            resolve(py, &wait.future, py.None().into_bound(py))?;
        }
        Ok(())
    }

    /// Resolves every future whose source, asked by `poll`, has what is wanted. The last error is
    /// raised, after the others were served.
    pub(crate) fn drain<'py>(
        &self,
        py: Python<'py>,
        poll: impl Fn(u64, &Source) -> PyResult<Poll<Bound<'py, PyAny>>>,
    ) -> PyResult<()> {
        let mut failed = None;
        self.queue.take(|id| {
            if let Err(error) = self.complete(py, id, &poll) {
                failed = Some(error);
            }
        });
        failed.map_or(Ok(()), Err)
    }

    fn complete<'py>(
        &self,
        py: Python<'py>,
        id: u64,
        poll: impl Fn(u64, &Source) -> PyResult<Poll<Bound<'py, PyAny>>>,
    ) -> PyResult<()> {
        let Some(wait) = self.open.lock().remove(&id) else {
            return Ok(());
        };
        match poll(id, &wait.source)? {
            Poll::Ready(value) => resolve(py, &wait.future, value),
            Poll::Pending => {
                self.open.lock().insert(id, wait);
                Ok(())
            }
        }
    }

    /// Leaves the event loop: what is still awaited is cancelled.
    pub(crate) fn close(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(event_loop) = self.event_loop.get() {
            event_loop.call_method1(py, pyo3::intern!(py, "remove_reader"), (self.queue.fd(),))?;
        }
        let waits: Vec<Wait> = self.open.lock().drain().map(|(_, wait)| wait).collect();
        for wait in waits {
            wait.future.call_method0(py, pyo3::intern!(py, "cancel"))?;
        }
        Ok(())
    }
}

fn resolve(py: Python<'_>, future: &Py<PyAny>, value: Bound<'_, PyAny>) -> PyResult<()> {
    // The task that awaited it may have been cancelled.
    if !is_done(py, future)? {
        future.call_method1(py, pyo3::intern!(py, "set_result"), (value,))?;
    }
    Ok(())
}

fn is_done(py: Python<'_>, future: &Py<PyAny>) -> PyResult<bool> {
    future
        .bind(py)
        .call_method0(pyo3::intern!(py, "done"))?
        .is_truthy()
}
