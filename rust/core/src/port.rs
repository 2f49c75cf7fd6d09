//! The port to the store: what the core has to ask whoever speaks to the database.
//!
//! Rare and slow next to a request: an answer that was given before, a conversation that goes on. The
//! asker waits; what serves the port takes the questions in batches.
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, Kind};
use crate::gateway::Gateway;

/// Questions that may wait to be taken; one more is refused, but for [`ENDINGS`].
const MAX_WAITING: usize = 10_000;
/// What ends something that the server holds until it is told so, whoever waits for the answer: these
/// are always taken. There are no more of them than the server has been told to begin.
const ENDINGS: [&str; 2] = ["idempotency.finish", "idempotency.leave"];

/// One question. Dropped without an answer, it has failed.
pub struct Question {
    /// What is asked.
    pub kind: &'static str,
    /// Its particulars, JSON.
    pub json: Bytes,
    answer: oneshot::Sender<Bytes>,
}

impl Question {
    /// Answers it. Whoever asked may have left.
    pub fn answer(self, json: Bytes) {
        let _ = self.answer.send(json);
    }

    /// Nobody waits for the answer any more.
    pub fn is_moot(&self) -> bool {
        self.answer.is_closed()
    }

    /// Whether it has to be taken all the same.
    fn is_ending(&self) -> bool {
        ENDINGS.contains(&self.kind)
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Question>,
    server: Option<Waker>,
    /// Someone has come for questions before.
    served: bool,
    /// How often questions were taken.
    visits: u64,
}

/// Where questions wait.
#[derive(Default)]
pub struct Port {
    state: Mutex<State>,
}

impl Port {
    /// The questions that wait, oldest first; at least one.
    pub fn poll_questions(&self, cx: &Context<'_>) -> Poll<Vec<Question>> {
        let mut state = self.state.lock();
        state.served = true;
        state
            .waiting
            .retain(|question| question.is_ending() || !question.is_moot());
        if state.waiting.is_empty() {
            state.server = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.visits += 1;
        Poll::Ready(state.waiting.drain(..).collect())
    }

    /// How often questions were taken. One that was asked since, and that nobody waits for any more, will
    /// never be taken unless that has changed.
    pub(crate) fn visits(&self) -> u64 {
        self.state.lock().visits
    }

    /// Whether someone has ever come for questions.
    pub fn is_served(&self) -> bool {
        self.state.lock().served
    }

    /// Adds a question. False: nobody serves the port, or too many wait.
    fn add(&self, question: Question) -> bool {
        let server = {
            let mut state = self.state.lock();
            let has_room = state.waiting.len() < MAX_WAITING || question.is_ending();
            if !state.served || !has_room {
                return false;
            }
            state.waiting.push_back(question);
            state.server.take()
        };
        if let Some(server) = server {
            server.wake();
        }
        true
    }
}

impl Gateway {
    /// Asks the store. `json`: the question's particulars; the answer is JSON too.
    ///
    /// Errors: `Unavailable` where nobody serves the port, the store has failed, or has not answered
    /// `within` this time.
    pub async fn ask(
        &self,
        kind: &'static str,
        json: Bytes,
        within: Duration,
    ) -> Result<Bytes, Error> {
        let failed = |cause: &'static str| {
            Error::new(
                Kind::Unavailable,
                "The gateway's store cannot be reached now. Please try again.",
            )
            .code("store_unavailable")
            .cause(format_args!("{kind}: {cause}"))
        };
        let (answer, answered) = oneshot::channel();
        if !self.port.add(Question { kind, json, answer }) {
            return Err(failed("nobody serves it"));
        }
        match tokio::time::timeout(within, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(failed("it failed")),
            Err(_) => Err(failed("no answer in time")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> (Question, oneshot::Receiver<Bytes>) {
        of_kind("x")
    }

    fn of_kind(kind: &'static str) -> (Question, oneshot::Receiver<Bytes>) {
        let (answer, answered) = oneshot::channel();
        let question = Question {
            kind,
            json: Bytes::new(),
            answer,
        };
        (question, answered)
    }

    #[test]
    fn a_port_that_nobody_serves_takes_nothing() {
        assert!(!Port::default().add(question().0));
    }

    #[test]
    fn questions_are_taken_once_and_in_order_and_only_while_someone_waits() {
        let port = Port::default();
        let cx = Context::from_waker(Waker::noop());
        assert!(port.poll_questions(&cx).is_pending());
        let (kept, mut waits) = question();
        let (left, gone) = question();
        assert!(port.add(left) && port.add(kept));
        drop(gone);
        let Poll::Ready(taken) = port.poll_questions(&cx) else {
            unreachable!("a question waits");
        };
        assert_eq!(taken.len(), 1);
        for question in taken {
            question.answer(Bytes::from_static(b"yes"));
        }
        assert_eq!(waits.try_recv(), Ok(Bytes::from_static(b"yes")));
        assert!(port.poll_questions(&cx).is_pending());
        assert_eq!(port.visits(), 1);
    }

    #[test]
    fn an_ending_is_taken_though_nobody_waits_and_there_is_no_room() {
        let port = Port::default();
        let cx = Context::from_waker(Waker::noop());
        assert!(port.poll_questions(&cx).is_pending());
        let waits: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let (one, waits) = question();
                assert!(port.add(one));
                waits
            })
            .collect();
        assert!(!port.add(question().0));
        for ending in ENDINGS {
            assert!(port.add(of_kind(ending).0), "{ending}");
        }
        drop(waits);
        let Poll::Ready(taken) = port.poll_questions(&cx) else {
            unreachable!("two wait");
        };
        let kinds: Vec<_> = taken.iter().map(|question| question.kind).collect();
        assert_eq!(kinds, ENDINGS);
    }
}
