//! `Core.asks` and `Core.reply`: what the core asks the store, served by an event loop.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use forebay_core::port::{Port, Question};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

/// Questions that were taken and wait for their answer.
#[derive(Default)]
pub(crate) struct Taken {
    questions: Mutex<HashMap<u64, Question>>,
    next: AtomicU64,
}

impl Taken {
    /// The questions that wait, as `(ticket, kind, payload)` each.
    pub(crate) fn poll<'py>(
        &self,
        py: Python<'py>,
        port: &Port,
        cx: &Context<'_>,
    ) -> PyResult<Poll<Bound<'py, PyAny>>> {
        let Poll::Ready(asked) = port.poll_questions(cx) else {
            return Ok(Poll::Pending);
        };
        let list = PyList::empty(py);
        let mut questions = self.questions.lock();
        // Nobody waits any more for some that were never answered.
        questions.retain(|_, question| !question.is_moot());
        for question in asked {
            let ticket = self.next.fetch_add(1, Ordering::Relaxed);
            list.append((ticket, question.kind, PyBytes::new(py, &question.json)))?;
            questions.insert(ticket, question);
        }
        Ok(Poll::Ready(list.into_any()))
    }

    /// Answers one; `None`: it has failed. One that nobody waits for any more is gone.
    pub(crate) fn answer(&self, ticket: u64, payload: Option<&[u8]>) {
        let question = self.questions.lock().remove(&ticket);
        if let (Some(question), Some(payload)) = (question, payload) {
            question.answer(bytes::Bytes::copy_from_slice(payload));
        }
    }
}
