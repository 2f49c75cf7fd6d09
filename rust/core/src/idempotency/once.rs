//! The course of a request that has a key: asked about, then worked on or answered from the store.
//!
//! What works on it is an exchange as any other, read by a task in the client's place: it copies what
//! it reads to the client and to what is kept. So the exchange goes on when its client leaves, and at
//! the pace of a client that is there. The end of an answer reaches the client once it is kept.
use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use uuid::Uuid;

use super::wire::{AnswerHead, Begin, Begun, Finish, Leave, begun, pack};
use super::{
    Keeping, Kept, busy, check, crowded, fingerprint, replayed, reused, too_large, unknown,
    unsupported,
};
use crate::admission::Kept as KeptRequest;
use crate::door::{Door, Front, Way};
use crate::error::Error;
use crate::gateway::{Gateway, Request};
use crate::headers::request_id_header;
use crate::pass::object::Object;
use crate::peek::peek;
use crate::slot::{Answering, Head, Slot, stopped};

/// How long a request waits for another one where its model does not say.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most bytes of bodies that wait in a process for another one's answer.
const MAX_WAITING: usize = 64 << 20;
/// How much longer the store may take to say so.
const MARGIN: Duration = Duration::from_secs(10);
/// How long an end may take to be written down before the client is told without that.
const SETTLE: Duration = Duration::from_secs(5);

impl Gateway {
    /// Starts a request that has a key. `None`: it has none, or is refused whatever its key.
    pub(crate) fn once(
        self: &Arc<Self>,
        entry: Entry,
        request: Request<'_>,
        body: &Bytes,
    ) -> Option<Arc<Slot>> {
        let key = request.idempotency_key?;
        // A session of many requests has no one answer.
        if request.front == Front::WebSocket {
            return None;
        }
        let account = Arc::clone(&self.whose(&request).ok()?.account);
        let id = request_id_header(request.request_id, &Uuid::now_v7());
        let door = entry.door();
        let key = match check(key) {
            Ok(key) => key.to_owned(),
            Err(error) => return Some(Arc::new(self.refusal(door, &error, door.greeting(id)))),
        };
        let Some(held) = Held::of(body.len()) else {
            let error = crowded();
            return Some(Arc::new(self.refusal(door, &error, door.greeting(id))));
        };
        let client = Arc::new(Slot::of(door, None));
        let course = Course {
            claim: Claim {
                gateway: Arc::clone(self),
                owner: Uuid::now_v7(),
                visits: self.port.visits(),
                told: false,
            },
            entry,
            key,
            account,
            request: KeptRequest::of(&request),
            id,
            body: body.clone(),
            client: Arc::clone(&client),
        };
        // Not the slot's driver: a client that leaves does not end it.
        self.runtime.spawn(course.run(held));
        Some(client)
    }

    /// The refusal of a request that has a key and a body that is not kept: nobody could say whether
    /// a repeat is the same.
    pub(crate) fn unrepeatable(&self, request: &Request<'_>) -> Option<Arc<Slot>> {
        request.idempotency_key?;
        self.whose(request).ok()?;
        let id = request_id_header(request.request_id, &Uuid::now_v7());
        let door = Door::OpenAi;
        Some(Arc::new(self.refusal(
            door,
            &unsupported(),
            door.greeting(id),
        )))
    }

    /// How long a request waits for another one: as long as it would for an answer.
    fn patience(&self, request: &Request<'_>, body: &[u8]) -> Duration {
        let model = peek(body).ok().and_then(|body| self.model(&body.model?));
        let total = model.map_or(PATIENCE, |model| model.timeouts.total);
        request
            .deadline
            .map_or(total, |deadline| deadline.min(total))
    }
}

/// Where a request came in.
pub(crate) enum Entry {
    /// At one of the ways in.
    Way(&'static Way),
    /// With files or batches.
    Object(Object),
}

impl Entry {
    const fn door(&self) -> Door {
        match self {
            Self::Way(way) => way.door,
            Self::Object(_) => Door::OpenAi,
        }
    }

    /// What of a repeat must be the same besides its body.
    fn path(&self) -> Cow<'static, str> {
        match self {
            Self::Way(way) => way.path.into(),
            Self::Object(object) => {
                let path = object.endpoint.path();
                format!("{path}{}?{}", object.below(), object.query).into()
            }
        }
    }

    fn start(&self, gateway: &Arc<Gateway>, request: Request<'_>, body: Bytes) -> Arc<Slot> {
        match self {
            Self::Way(way) => gateway.enter(way, request, body),
            Self::Object(object) => gateway.admit_object(object.clone(), request, body),
        }
    }
}

/// A request about which the store was asked: one that is dropped without a word is given up.
struct Claim {
    gateway: Arc<Gateway>,
    owner: Uuid,
    /// How often the store's questions had been taken before.
    visits: u64,
    told: bool,
}

impl Claim {
    /// Tells the store what came of it. Where that fails the answer is not given again: its lease
    /// lapses, and a repeat is worked on anew. Where it is only late it is written down all the same.
    async fn settle(mut self, kept: Kept) {
        self.told = true;
        let (head, body) = match &kept {
            Kept::Nothing => return leave(&self.gateway, self.owner).await,
            Kept::Answer(head, body) => (Some(head), &body[..]),
            Kept::TooLarge => (None, &[][..]),
        };
        let finish = Finish {
            owner: self.owner,
            answer: head,
        };
        let asked = self
            .gateway
            .ask("idempotency.finish", pack(&finish, body), SETTLE);
        if let Err(error) = asked.await {
            self.gateway.note(&error, &[]);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Of what was never taken the store knows nothing: there is no ending without a beginning.
        if !self.told && self.gateway.port.visits() != self.visits {
            let (gateway, owner) = (Arc::clone(&self.gateway), self.owner);
            let left = async move { leave(&gateway, owner).await };
            self.gateway.runtime.spawn(left);
        }
    }
}

/// Gives a request up.
async fn leave(gateway: &Gateway, owner: Uuid) {
    let asked = gateway.ask("idempotency.leave", pack(&Leave { owner }, &[]), SETTLE);
    if let Err(error) = asked.await {
        gateway.note(&error, &[]);
    }
}

/// The exchange that a task reads: without the task it is stopped.
struct Inner(Arc<Slot>);

impl Drop for Inner {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Bytes of the bodies of requests that wait to be told what is to be done with them.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A part of these.
struct Held(usize);

impl Held {
    /// `None`: too much waits already. One body alone may wait, however large.
    fn of(bytes: usize) -> Option<Self> {
        let more = |waiting: usize| {
            let with = waiting.checked_add(bytes)?;
            (waiting == 0 || with <= MAX_WAITING).then_some(with)
        };
        WAITING
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
            // Made only then: one that is dropped gives back.
            .then(|| Self(bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// One request with a key, on its way.
struct Course {
    claim: Claim,
    entry: Entry,
    key: String,
    account: Arc<str>,
    request: KeptRequest,
    id: (HeaderName, HeaderValue),
    body: Bytes,
    client: Arc<Slot>,
}

impl Course {
    async fn run(self, held: Held) {
        let answering = Answering(Arc::clone(&self.client));
        let asked = tokio::select! {
            asked = self.ask() => asked,
            // Nothing has begun for it.
            () = poll_fn(|cx| self.client.poll_left(cx)) => return,
        };
        drop(held);
        let metrics = &self.claim.gateway.metrics;
        match asked {
            Ok((Begun::Run { max_bytes }, _)) => {
                metrics.repeated("first");
                self.work(max_bytes).await;
            }
            Ok((Begun::Replay { answer }, body)) => {
                metrics.repeated("replayed");
                self.replay(&answer, &body);
            }
            Ok((Begun::Reused, _)) => self.refuse("reused", &reused()),
            Ok((Begun::TooLarge, _)) => self.refuse("too_large", &too_large()),
            Ok((Begun::Busy, _)) => self.refuse("busy", &busy()),
            Ok((Begun::Left, _)) => {}
            Err(error) => self.refuse("unknown", &unknown(&error)),
        }
        drop(answering);
    }

    /// What is to be done?
    async fn ask(&self) -> Result<(Begun, Bytes), Error> {
        let gateway = &self.claim.gateway;
        let wait = gateway.patience(&self.request.request(), &self.body);
        let begin = Begin {
            account: &self.account,
            key: &self.key,
            fingerprint: fingerprint(&self.entry.path(), &self.body),
            owner: self.claim.owner,
            wait_s: wait.as_secs_f64(),
        };
        let asked = gateway.ask("idempotency.begin", pack(&begin, &[]), wait + MARGIN);
        let answer = asked.await?;
        begun(&answer).map_err(|error| unknown(&stopped()).cause(error))
    }

    fn refuse(mut self, outcome: &str, error: &Error) {
        // There is nothing to give up, unless nobody can say so.
        self.claim.told = outcome != "unknown";
        let gateway = &self.claim.gateway;
        gateway.metrics.repeated(outcome);
        let headers = self.entry.door().greeting(self.id.clone());
        gateway.note(error, &headers);
        self.client.refuse(error, headers);
    }

    fn replay(mut self, answer: &AnswerHead, body: &Bytes) {
        self.claim.told = true;
        let headers = replayed(answer, self.entry.door().greeting(self.id.clone()));
        self.client.start(Head {
            status: answer.status,
            headers,
            body: if answer.stream {
                Bytes::new()
            } else {
                body.clone()
            },
            more: answer.stream,
        });
        if answer.stream {
            self.client.write(|out| out.extend_from_slice(body));
            self.client.notify();
            self.client.finish();
        }
    }

    /// Works on it.
    async fn work(self, max_bytes: usize) {
        let gateway = &self.claim.gateway;
        let request = Request {
            idempotency_key: None,
            request_id: Some(self.id.1.as_bytes()),
            ..self.request.request()
        };
        let inner = Inner(self.entry.start(gateway, request, self.body.clone()));
        let Some(head) = poll_fn(|cx| inner.0.poll_head(cx)).await else {
            return;
        };
        let mut keeping = Keeping::new(&head, max_bytes);
        if !head.more {
            self.claim.settle(keeping.end(true)).await;
            finish(&self.client, &inner.0, Some(head));
            return;
        }
        self.client.start(head);
        while let Some(bytes) = poll_fn(|cx| inner.0.poll_bytes(cx)).await {
            keeping.take(&bytes);
            self.client.write(|out| out.extend_from_slice(&bytes));
            self.client.notify();
            poll_fn(|cx| self.client.poll_room(cx)).await;
        }
        let whole = inner.0.failure().is_none();
        self.claim.settle(keeping.end(whole)).await;
        finish(&self.client, &inner.0, None);
    }
}

/// Ends the client's answer as the exchange's has ended.
fn finish(client: &Slot, inner: &Slot, head: Option<Head>) {
    if let Some(error) = inner.failure() {
        if inner.is_broken() {
            // Half an answer that goes by is not a whole one for this client either.
            client.speak_raw();
            client.cut(&error);
            return;
        }
        client.failed(error);
    }
    match head {
        Some(head) => client.start(head),
        None => client.finish(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_has_a_bound() {
        let first = Held::of(MAX_WAITING + 1);
        assert!(first.is_some());
        assert!(Held::of(1).is_none());
        drop(first);
        let both = (Held::of(MAX_WAITING - 1), Held::of(1));
        assert!(both.0.is_some() && both.1.is_some());
        assert!(Held::of(1).is_none());
    }
}
