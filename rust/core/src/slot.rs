//! Where an exchange's answer waits for its reader: one side fills it, the other takes.
//!
//! The driver writes on the runtime's thread, the front end reads on its own. Bounded: a reader
//! that stops also stops the driver's reading of the engine.
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::door::{Door, Voice};
use crate::error::{Error, Kind};
use crate::linger::Linger;
use crate::relay;

/// Above this many waiting bytes the driver stops reading.
const HIGH_WATER: usize = 64 * 1024;

/// The answer's start: status, headers, and for an answer that is complete its body.
#[derive(Debug)]
pub struct Head {
    /// HTTP status.
    pub status: u16,
    /// Headers in order.
    pub headers: Headers,
    /// The whole body, or empty when `more`.
    pub body: Bytes,
    /// The body follows in batches.
    pub more: bool,
}

/// An answer's headers, in order.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// The headers of an error's answer.
pub fn error_headers(error: &Error) -> Headers {
    let mut headers = vec![(
        HeaderName::from_static("content-type"),
        HeaderValue::from_static("application/json"),
    )];
    headers.extend(
        error
            .headers()
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), header_text(value))),
    );
    headers
}

/// A header's value from text of ours; text that no header can carry becomes empty.
pub fn header_text(text: impl Into<String>) -> HeaderValue {
    HeaderValue::try_from(text.into()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[derive(Default)]
struct State {
    head: Option<Head>,
    out: BytesMut,
    /// The head has been delivered, or waits in `head`.
    started: bool,
    ended: bool,
    cancelled: bool,
    /// What happens when the reader goes: `None` stops the driver.
    linger: Option<Linger>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Waits for the reader to go.
    watcher: Option<Waker>,
    /// How the answer is told in the reader's words; absent where it is told as it is.
    telling: Option<Telling>,
    /// Why the answer, or what is left of it, is an error.
    failure: Option<Error>,
    form: Form,
}

/// What an answer that breaks off ends with.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    /// An event that is an error.
    #[default]
    Events,
    /// Nothing: it is no stream of events.
    Raw,
    /// It has broken off, and its reader must not take what it has for the whole.
    Broken,
}

/// How an answer is told in the reader's words.
struct Telling {
    voice: Box<dyn Voice>,
    /// What comes is in the reader's words already; errors are not.
    native: bool,
    /// The voice has failed at this.
    trouble: Option<Error>,
}

impl Telling {
    /// Appends what OpenAI's bytes come to, or those in the reader's words. After a trouble there is
    /// nothing more to tell.
    fn feed(&mut self, said: Bytes, out: &mut BytesMut) {
        if !said.is_empty() && self.trouble.is_none() {
            let told = if self.native {
                self.voice.pass(said, out)
            } else {
                self.voice.feed(said, out)
            };
            self.trouble = told.err();
        }
    }
}

impl State {
    /// Nothing more will come: a driver that was stopped says no end itself.
    const fn is_over(&self) -> bool {
        self.ended || self.cancelled
    }

    /// Nobody reads, and the driver is not to go on for that.
    const fn is_given_up(&self) -> bool {
        self.cancelled && self.linger.is_none()
    }

    /// Lets `fill` append to what the reader gets, in its words.
    fn say<T>(&mut self, fill: impl FnOnce(&mut BytesMut) -> T) -> T {
        let Some(telling) = &mut self.telling else {
            return fill(&mut self.out);
        };
        let mut said = BytesMut::new();
        let filled = fill(&mut said);
        telling.feed(said.freeze(), &mut self.out);
        filled
    }

    /// Ends with `error` as the last event.
    fn cut(&mut self, error: &Error) {
        match &mut self.telling {
            // Nothing that could be added would be told from the answer.
            _ if self.form != Form::Events => self.form = Form::Broken,
            Some(telling) => telling.voice.cut(error, &mut self.out),
            None => relay::error_event(error, &mut self.out),
        }
        self.failure = Some(error.clone());
        self.ended = true;
    }
}

/// The promise to answer a slot: one that is dropped before the end leaves an error there.
pub struct Answering(pub Arc<Slot>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abandon(&stopped());
    }
}

/// The gateway, or the task that worked on a request, has ended before it was answered.
pub fn stopped() -> Error {
    Error::new(
        Kind::Unavailable,
        "The gateway stopped before the answer was complete. Please try again.",
    )
}

/// One exchange's mailbox.
#[derive(Default)]
pub struct Slot {
    state: Mutex<State>,
    driver: OnceLock<AbortHandle>,
    door: Door,
    /// The answer is told in other words than OpenAI's.
    voiced: bool,
}

impl Slot {
    /// An empty slot, read as it is written.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty slot, read at `door` as `voice` tells what is written.
    pub fn of(door: Door, voice: Option<Box<dyn Voice>>) -> Self {
        Self {
            door,
            voiced: voice.is_some() || door == Door::Responses,
            state: Mutex::new(State {
                telling: voice.map(|voice| Telling {
                    voice,
                    native: false,
                    trouble: None,
                }),
                ..State::default()
            }),
            ..Self::default()
        }
    }

    /// Where it is read.
    pub const fn door(&self) -> Door {
        self.door
    }

    /// Whether the answer is told in other words than OpenAI's.
    pub const fn is_voiced(&self) -> bool {
        self.voiced
    }

    /// What is written from now on is in the reader's words already.
    pub fn speak_native(&self) {
        if let Some(telling) = &mut self.state.lock().telling {
            telling.native = true;
        }
    }

    /// The answer is no stream of events: an error cannot be told in it.
    pub fn speak_raw(&self) {
        self.state.lock().form = Form::Raw;
    }

    /// The answer broke off, and its reader must not take what it has for the whole.
    pub fn is_broken(&self) -> bool {
        self.state.lock().form == Form::Broken
    }

    /// A whole answer of OpenAI's in the reader's words. Errors: it cannot be told.
    pub fn turned(&self, body: &Bytes) -> Result<Bytes, Error> {
        match &self.state.lock().telling {
            Some(telling) => telling.voice.answer(body),
            None => Ok(body.clone()),
        }
    }

    /// A whole answer that is in the reader's words already, with what the gateway has to say of it.
    /// Errors: it is none.
    pub fn own(&self, body: Bytes) -> Result<Bytes, Error> {
        match &self.state.lock().telling {
            Some(telling) => telling.voice.own(body),
            None => Ok(body),
        }
    }

    /// Says how the answer is told, where that was not known at first.
    pub fn tell(&self, voice: Option<Box<dyn Voice>>) {
        self.state.lock().telling = voice.map(|voice| Telling {
            voice,
            native: false,
            trouble: None,
        });
    }

    /// What is to be kept of an answer before its end is told, a JSON object. whole: the answer, where it
    /// is no stream.
    pub fn keeps(&self, whole: Option<&Bytes>) -> Option<Bytes> {
        self.state.lock().telling.as_ref()?.voice.keeps(whole)
    }

    /// Says whether the store has it; a whole answer tells that.
    pub fn kept(&self, stored: bool, whole: Option<Bytes>) -> Option<Bytes> {
        match &mut self.state.lock().telling {
            Some(telling) => telling.voice.kept(stored, whole),
            None => whole,
        }
    }

    /// An error as this reader names its fields.
    fn named(&self, error: &Error) -> Option<Error> {
        let state = self.state.lock();
        state.telling.as_ref()?.voice.named(error)
    }

    /// Why the answer, or what is left of it, is an error.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
    }

    /// What of the answer could not be told in the reader's words.
    pub fn trouble(&self) -> Option<Error> {
        if !self.voiced {
            return None;
        }
        let state = self.state.lock();
        state.telling.as_ref()?.trouble.clone()
    }

    /// The answer's start, once.
    pub fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Option<Head>> {
        let mut state = self.state.lock();
        if let Some(head) = state.head.take() {
            return Poll::Ready(Some(head));
        }
        if state.is_over() {
            return Poll::Ready(None);
        }
        register(&mut state.reader, cx);
        Poll::Pending
    }

    /// All body bytes that are ready, handed to `take` in one piece; `None` at the end.
    pub fn poll_body<T>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<Option<T>> {
        self.poll_out(cx, |out| {
            let taken = take(out);
            out.clear();
            taken
        })
    }

    /// The body bytes that are ready, without a copy; `None` at the end.
    pub fn poll_bytes(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_out(cx, |out| out.split().freeze())
    }

    fn poll_out<T>(
        &self,
        cx: &mut Context<'_>,
        empty: impl FnOnce(&mut BytesMut) -> T,
    ) -> Poll<Option<T>> {
        let mut state = self.state.lock();
        if !state.out.is_empty() {
            let taken = empty(&mut state.out);
            let writer = state.writer.take();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(taken));
        }
        if state.is_over() {
            return Poll::Ready(None);
        }
        register(&mut state.reader, cx);
        Poll::Pending
    }

    /// Whether the answer's body is complete and taken.
    pub fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.ended && state.out.is_empty() && state.form != Form::Broken
    }

    /// The reader has gone: the driver is dropped at its next step, and with it the connection; or it
    /// goes on without a reader, as [`Slot::lingers`] said last.
    pub fn cancel(&self) {
        let (wakers, places) = {
            let mut state = self.state.lock();
            if state.is_over() {
                return;
            }
            state.cancelled = true;
            let Some(linger) = &state.linger else {
                let wakers = [state.writer.take(), state.watcher.take()];
                drop(state);
                if let Some(driver) = self.driver.get() {
                    driver.abort();
                }
                // Who fills a slot without being its driver goes on.
                for waker in wakers.into_iter().flatten() {
                    waker.wake();
                }
                return;
            };
            let places = Arc::clone(&linger.places);
            state.head = None;
            state.out = BytesMut::new();
            ([state.writer.take(), state.watcher.take()], places)
        };
        places.give_back();
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// Whether the reader has gone before the end.
    pub fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// From now on the driver goes on when the reader goes, or with `None` does not. Whether the
    /// reader is still there; if it is not, this changes nothing.
    pub fn lingers(&self, linger: Option<Linger>) -> bool {
        let mut state = self.state.lock();
        if !state.cancelled {
            state.linger = linger;
        }
        !state.cancelled
    }

    /// Ready once the reader of a driver that lingers has gone.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Linger> {
        let mut state = self.state.lock();
        if state.cancelled
            && let Some(linger) = &state.linger
        {
            return Poll::Ready(linger.clone());
        }
        register(&mut state.watcher, cx);
        Poll::Pending
    }

    /// Ready once the reader has gone before the end.
    pub fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.cancelled {
            return Poll::Ready(());
        }
        register(&mut state.watcher, cx);
        Poll::Pending
    }

    /// The answer, or what is left of it, is an error that is told in its bytes.
    pub fn failed(&self, error: Error) {
        self.state.lock().failure = Some(error);
    }

    /// Names the task that `cancel` stops.
    pub fn driven_by(&self, driver: AbortHandle) {
        // A slot has one driver.
        let _ = self.driver.set(driver);
        // Asked after it is set, so that a cancel in between finds it or is seen here.
        if self.state.lock().is_given_up()
            && let Some(driver) = self.driver.get()
        {
            driver.abort();
        }
    }

    /// Delivers the start; with `more` false also the end.
    pub fn start(&self, head: Head) {
        let reader = {
            let mut state = self.state.lock();
            state.ended |= !head.more;
            state.started = true;
            state.head = (!state.cancelled).then_some(head);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Lets `fill` append to what waits, which is nothing once the reader has gone. The reader is
    /// told by [`Slot::notify`].
    pub fn write<T>(&self, fill: impl FnOnce(&mut BytesMut) -> T) -> T {
        let mut state = self.state.lock();
        let filled = state.say(fill);
        if state.cancelled {
            state.out.clear();
        }
        filled
    }

    /// Tells the reader if anything waits.
    pub fn notify(&self) {
        let reader = {
            let mut state = self.state.lock();
            if state.out.is_empty() {
                None
            } else {
                state.reader.take()
            }
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Answers with `error`. `headers`: the answer's, which begin with the request's id.
    pub fn refuse(&self, error: &Error, mut headers: Headers) {
        let named = self.named(error);
        let error = named.as_ref().unwrap_or(error);
        let body = self.door.refuse(error, &mut headers);
        self.state.lock().failure = Some(error.clone());
        self.start(Head {
            status: error.kind.status(),
            headers,
            body,
            more: false,
        });
    }

    /// Tells the reader that the exchange is alive.
    pub fn keep_alive(&self, comment: &[u8]) {
        {
            let mut state = self.state.lock();
            let State { telling, out, .. } = &mut *state;
            match telling {
                Some(telling) => telling.voice.keep_alive(out),
                None => out.extend_from_slice(comment),
            }
            if state.cancelled {
                state.out.clear();
            }
        }
        self.notify();
    }

    /// No more will come: the answer was whole. One that could not be told ends with that error.
    pub fn finish(&self) {
        let reader = {
            let mut state = self.state.lock();
            state.ended = true;
            let State { telling, out, .. } = &mut *state;
            let ended = telling.as_mut().map(|telling| {
                // Its driver could not ask for it in time: the end came with what it is about.
                if let Some(trouble) = telling.trouble.clone() {
                    Err(trouble)
                } else if telling.native {
                    telling.voice.passed(out)
                } else {
                    telling.voice.end(out)
                }
            });
            if let Some(Err(error)) = ended {
                state.cut(&error);
            }
            if state.cancelled {
                state.out.clear();
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// No more will come: the answer broke off with `error`, which is its last event.
    pub fn cut(&self, error: &Error) {
        let reader = {
            let mut state = self.state.lock();
            state.cut(error);
            if state.cancelled {
                state.out.clear();
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The driver has gone without an end. `error` becomes the answer, or the last event of one that
    /// has begun; an answer that had ended stays as it is.
    pub fn abandon(&self, error: &Error) {
        let reader = {
            let mut state = self.state.lock();
            if state.is_over() {
                return;
            }
            if state.started {
                state.cut(error);
            } else {
                state.started = true;
                let mut headers = Headers::new();
                let body = self.door.refuse(error, &mut headers);
                state.head = Some(Head {
                    status: error.kind.status(),
                    headers,
                    body,
                    more: false,
                });
                state.failure = Some(error.clone());
                state.ended = true;
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Ready while there is room for more.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.out.len() < HIGH_WATER || state.cancelled {
            return Poll::Ready(());
        }
        register(&mut state.writer, cx);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Poll::Pending
    }
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
