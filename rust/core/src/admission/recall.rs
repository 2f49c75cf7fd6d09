//! Requests of Responses: those that go on from another response wait for it to be loaded.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::{Asked, Kept, No, permitted_model};
use crate::arrival::Arrival;
use crate::door::responses::{self, Loaded, Needs};
use crate::door::{Entered, Way};
use crate::error::{Error, Kind};
use crate::exchange::drive;
use crate::gateway::{Gateway, Request};
use crate::headers::request_id_header;
use crate::peek::Peek;
use crate::slot::{Answering, Slot};

/// How long a request waits for what came before it.
const LOAD_WAIT: Duration = Duration::from_secs(5);

/// Most bytes of all that came before a request.
const MAX_LOADED: usize = 2 * responses::MAX_STORED;

/// How many requests of a process may have loaded what came before them and are not yet read.
static LOADING: Semaphore = Semaphore::const_new(16);

/// What is asked of the store.
#[derive(Serialize)]
struct Question<'a> {
    account: &'a str,
    id: &'a str,
}

/// What the store has; nothing of it where it has none.
#[derive(Deserialize)]
struct Found<'a> {
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<Answer<'a>>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    output: &'a RawValue,
}

impl Found<'_> {
    fn loaded(self) -> Option<Loaded> {
        Some(Loaded {
            input: self.input?.get().to_owned(),
            output: self.response?.output.get().to_owned(),
        })
    }
}

impl Gateway {
    /// Decides a request of Responses and starts it, once what it goes on from is there.
    pub(super) fn respond(
        self: &Arc<Self>,
        way: &'static Way,
        request: Request<'_>,
        body: Bytes,
        arrival: Arrival,
    ) -> Arc<Slot> {
        let read = self.whose(&request).and_then(|_| {
            let needs = responses::needs(responses::text(&body)?)?;
            Ok(match needs {
                None => Err(responses::enter(&body, 0)?),
                Some(needs) => Ok(needs),
            })
        });
        match read {
            Ok(Err(entered)) => {
                let asked = Asked {
                    endpoint: way.endpoint,
                    body: entered.body,
                    native: entered.native,
                    upload: None,
                    object: None,
                };
                self.start(way.door, request, asked, entered.voice, arrival)
            }
            Ok(Ok(needs)) => {
                let slot = Arc::new(Slot::of(way.door, None));
                let kept = Kept::of(&request);
                let task =
                    Arc::clone(self).recall(way, kept, (body, needs), arrival, Arc::clone(&slot));
                slot.driven_by(self.runtime.spawn(task).abort_handle());
                slot
            }
            Err(error) => {
                let id = request_id_header(request.request_id, &arrival.id);
                Arc::new(self.refusal(way.door, &error, way.door.greeting(id)))
            }
        }
    }

    /// The rest of an admission that waits for what came before.
    async fn recall(
        self: Arc<Self>,
        way: &'static Way,
        kept: Kept,
        (body, needs): (Bytes, Needs),
        arrival: Arrival,
        slot: Arc<Slot>,
    ) {
        let answer = Answering(Arc::clone(&slot));
        let request = kept.request();
        let id = request_id_header(request.request_id, &arrival.id);
        let mut headers = way.door.greeting(id);
        let entered = match self.remembered(&request, &body, needs).await {
            Ok(entered) => entered,
            Err(error) => {
                self.note(&error, &headers);
                answer.0.refuse(&error, headers);
                return;
            }
        };
        slot.tell(entered.voice);
        let asked = Asked {
            endpoint: way.endpoint,
            body: entered.body,
            native: entered.native,
            upload: None,
            object: None,
        };
        match self.decide(&asked, request, &arrival, &mut headers, &slot) {
            Ok((job, record)) => drive(job, record).await,
            Err(No::Error(error)) => {
                self.note(&error, &headers);
                answer.0.refuse(&error, headers);
            }
            Err(No::Wanting(wanting)) => {
                Box::pin(self.admit_granted(asked, kept, arrival, slot, wanting)).await;
            }
        }
    }

    /// A request with all that came before it.
    async fn remembered(
        &self,
        request: &Request<'_>,
        body: &Bytes,
        needs: Needs,
    ) -> Result<Entered, Error> {
        let key = self.whose(request)?;
        let asked = Peek {
            model: needs.model.as_deref().map(Into::into),
            ..Peek::default()
        };
        // Nothing is loaded for who may not ask.
        permitted_model(&self.snapshot.load(), &key, &asked)?;
        let account = Arc::clone(&key.account);
        let turn = tokio::time::timeout(LOAD_WAIT, LOADING.acquire()).await;
        let _turn = turn.map_err(|_| busy())?;
        let previous = match &needs.previous {
            None => None,
            Some(id) => {
                let found = self.load(&account, id).await?;
                Some(found.ok_or_else(|| not_found(id))?)
            }
        };
        let mut referred = Vec::new();
        let mut size = 0;
        for id in &needs.referred {
            if needs.previous.as_ref() == Some(id) {
                continue;
            }
            // An item that is nowhere is told of by its own id.
            if let Some(loaded) = self.load(&account, id).await? {
                size += loaded.output.len();
                referred.push(Loaded {
                    input: String::new(),
                    ..loaded
                });
            }
            if size > MAX_LOADED {
                return Err(Error::new(
                    Kind::PayloadTooLarge,
                    "The items that are referred to are too large.",
                ));
            }
        }
        let text = responses::text(body)?;
        let (whole, before) = responses::expand(text, previous.as_ref(), &referred, MAX_LOADED)?;
        responses::enter(&whole, before)
    }

    /// A response of the account's; none where it has no such one.
    async fn load(&self, account: &str, id: &str) -> Result<Option<Loaded>, Error> {
        let question = serde_json::to_vec(&Question { account, id });
        let question = question.map_err(|cause| unreadable(&cause))?;
        let asked = self.ask("response.load", question.into(), LOAD_WAIT);
        let answer = match asked.await {
            Ok(answer) => answer,
            // Nobody keeps responses here: there is none.
            Err(error) if !self.port.is_served() => {
                self.log(&error, &[]);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let found: Found<'_> =
            serde_json::from_slice(&answer).map_err(|cause| unreadable(&cause))?;
        Ok(found.loaded())
    }
}

fn busy() -> Error {
    let message = "Too many previous responses are being loaded. Please try again.";
    Error::new(Kind::Unavailable, message).retry_after(Duration::from_secs(1))
}

fn not_found(id: &str) -> Error {
    let message = format!("Previous response with id '{id}' not found.");
    Error::new(Kind::NotFound, message)
        .param("previous_response_id")
        .code("previous_response_not_found")
}

fn unreadable(cause: &dyn std::fmt::Display) -> Error {
    let message = "The previous response could not be read.";
    Error::new(Kind::Internal, message).cause(cause)
}
