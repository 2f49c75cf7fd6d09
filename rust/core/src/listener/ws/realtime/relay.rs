//! The relay of a Realtime session: what one side sends goes to the other as it is, and no side is read
//! while the other does not take what it has.
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::peer::{Came, Gone, Peer};
use super::books::{Books, Cut, MAX_OPEN};
use super::events::{self, FromClient, FromProvider};
use crate::admission::{Asking, Session};
use crate::error::{Error, Kind};
use crate::gateway::Gateway;
use crate::record::Record;
use crate::snapshot::Target;

/// How often a session is looked at: whether its key still holds, and whether it is idle.
const LOOK: Duration = Duration::from_secs(1);

/// A client that does not take what it is told of its own events is not heard either: so many messages.
const MAX_TOLD: usize = 8;

/// So many messages of a side are read before they are written: those that are there leave together.
const AT_ONCE: usize = 16;

/// A response being admitted: nothing is read meanwhile, 60 ms at most.
struct Admitting {
    admitted: Pin<Box<dyn Future<Output = Result<Record, Error>> + Send>>,
    what: What,
}

/// What is admitted.
enum What {
    /// The client's event, which is held, and its name.
    Asked(Message, Option<String>),
    /// A response that runs.
    Begun(String),
}

/// Why a session ends.
enum End {
    Client(Gone),
    Provider(Gone),
    /// By us.
    Close(CloseCode, &'static str),
    /// The gateway does not wait any longer.
    Halted,
}

/// A session whose two sides stand.
pub(super) struct Relay<C, P> {
    pub(super) client: Peer<C>,
    pub(super) provider: Peer<P>,
    pub(super) session: Arc<Session>,
    pub(super) target: Target,
    pub(super) gateway: Arc<Gateway>,
    /// How long nothing may pass.
    pub(super) idle: Duration,
}

struct Running<C, P> {
    relay: Relay<C, P>,
    books: Books,
    admitting: Option<Admitting>,
    look: Pin<Box<Sleep>>,
    moved_at: Instant,
    /// The key no longer holds: the session ends once that is said.
    out: Option<&'static str>,
}

impl<C, P> Relay<C, P>
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    /// Relays until either side ends it. Gives the tokens that its responses used.
    pub(super) async fn run(self) -> u64 {
        let gateway = Arc::clone(&self.gateway);
        let mut running = Running {
            relay: self,
            books: Books::default(),
            admitting: None,
            look: Box::pin(sleep(LOOK)),
            moved_at: Instant::now(),
            out: None,
        };
        let mut halts = pin!(gateway.halting());
        let end = poll_fn(|cx| {
            if halts.as_mut().poll(cx).is_ready() || gateway.is_halted() {
                return Poll::Ready(End::Halted);
            }
            running.poll(cx)
        })
        .await;
        running.end(end).await
    }
}

impl<C, P> Running<C, P>
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // A side that has said all it had is not asked again: it wakes this task once it has more.
        let (mut is_client_heard, mut is_provider_heard) = (false, false);
        loop {
            if let Some(end) = self.look(cx) {
                return Poll::Ready(end);
            }
            let to_client = match self.relay.client.poll_write(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(gone)) => return Poll::Ready(End::Client(gone)),
                Poll::Pending => false,
            };
            let to_provider = match self.relay.provider.poll_write(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(gone)) => return Poll::Ready(End::Provider(gone)),
                Poll::Pending => false,
            };
            if to_client && let Some(reason) = self.out {
                return Poll::Ready(End::Close(CloseCode::Policy, reason));
            }
            if let Some(admitting) = &mut self.admitting {
                let Poll::Ready(admitted) = admitting.admitted.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                if let Some(admitting) = self.admitting.take() {
                    self.admitted(admitting.what, admitted);
                }
                continue;
            }
            let mut moved = false;
            for _ in 0..AT_ONCE {
                if !to_client || is_provider_heard || self.is_held() {
                    break;
                }
                let Poll::Ready(came) = self.relay.provider.poll_read(cx) else {
                    is_provider_heard = true;
                    break;
                };
                moved = true;
                if let Some(gone) = self.heard_provider(came) {
                    return Poll::Ready(End::Provider(gone));
                }
            }
            for _ in 0..AT_ONCE {
                if !to_provider
                    || is_client_heard
                    || self.is_held()
                    || self.relay.client.waiting() >= MAX_TOLD
                {
                    break;
                }
                let Poll::Ready(came) = self.relay.client.poll_read(cx) else {
                    is_client_heard = true;
                    break;
                };
                moved = true;
                if let Some(gone) = self.heard_client(came) {
                    return Poll::Ready(End::Client(gone));
                }
            }
            if !moved {
                return Poll::Pending;
            }
            self.moved_at = Instant::now();
        }
    }

    /// Whether nothing is read for now: a response is being admitted, or the session ends.
    fn is_held(&self) -> bool {
        self.admitting.is_some() || self.out.is_some()
    }

    /// Looks once a second whether the session may go on.
    fn look(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let mut is_time = false;
        while self.look.as_mut().poll(cx).is_ready() {
            is_time = true;
            self.look.as_mut().reset(Instant::now() + LOOK);
        }
        if !is_time || self.out.is_some() {
            return None;
        }
        if self.relay.gateway.is_draining() {
            let is_idle = self.books.open() == 0 && self.admitting.is_none();
            return is_idle.then_some(End::Close(CloseCode::Away, "the gateway is shutting down"));
        }
        if let Err(error) = self.relay.session.check()
            && error.kind == Kind::Unauthenticated
        {
            self.refuse(&error, None);
        }
        let is_idle = self.moved_at.elapsed() >= self.relay.idle && self.books.open() == 0;
        is_idle.then_some(End::Close(
            CloseCode::Normal,
            "nothing was said for too long",
        ))
    }

    fn heard_client(&mut self, came: Came) -> Option<Gone> {
        let message = match came {
            Came::Text(text) => Message::Text(text),
            Came::Binary(bytes) => Message::Binary(bytes),
            Came::Flushed => return None,
            Came::Gone(gone) => return Some(gone),
        };
        let FromClient::Create { event, output } = events::from_client(bytes_of(&message)) else {
            self.relay.provider.push(message);
            return None;
        };
        if self.books.open() >= MAX_OPEN {
            let error = Error::new(
                Kind::RateLimited,
                "Too many responses run in this session. Wait for one to end.",
            );
            self.refuse(&error, event.as_deref());
            return None;
        }
        self.admit(What::Asked(message, event), output);
        None
    }

    fn heard_provider(&mut self, came: Came) -> Option<Gone> {
        let message = match came {
            Came::Text(text) => Message::Text(text),
            Came::Binary(bytes) => Message::Binary(bytes),
            Came::Flushed => return None,
            Came::Gone(gone) => return Some(gone),
        };
        match events::from_provider(bytes_of(&message)) {
            FromProvider::Created { id } => {
                if !self.books.begin(&id) {
                    self.admit(What::Begun(id), None);
                }
            }
            FromProvider::Delta => self.books.delta(),
            FromProvider::Done(done) => self.books.done(&done),
            FromProvider::Error { event } => self.books.fail(event.as_deref()),
            FromProvider::Other => {}
        }
        self.relay.client.push(message);
        None
    }

    fn admit(&mut self, what: What, output: Option<u64>) {
        let (session, target) = (Arc::clone(&self.relay.session), self.relay.target.clone());
        let asking = Asking {
            prompt: self.books.context(),
            output,
        };
        self.admitting = Some(Admitting {
            admitted: Box::pin(async move { session.respond(&target, asking).await }),
            what,
        });
    }

    fn admitted(&mut self, what: What, admitted: Result<Record, Error>) {
        match (what, admitted) {
            (What::Asked(message, event), Ok(record)) => {
                self.books.ask(event, record);
                self.relay.provider.push(message);
            }
            (What::Asked(_, event), Err(error)) => self.refuse(&error, event.as_deref()),
            (What::Begun(id), Ok(record)) => self.books.adopt(&id, record),
            (What::Begun(id), Err(error)) => {
                self.refuse(&error, None);
                self.relay.provider.push(Message::Text(events::cancel(&id)));
                // It costs something all the same.
                let context = self.books.context();
                match self.relay.session.owed(&self.relay.target, context) {
                    Ok(record) => self.books.adopt(&id, record),
                    Err(error) => self.relay.gateway.note(&error, &[]),
                }
            }
        }
    }

    /// Tells the client of an error; a key that no longer holds ends the session.
    fn refuse(&mut self, error: &Error, about: Option<&str>) {
        self.relay.gateway.note(error, &[]);
        self.relay
            .client
            .push(Message::Text(events::error(error, about)));
        if error.kind == Kind::Unauthenticated {
            self.out = Some("the API key is no longer valid");
        }
    }

    /// Ends both sides, each as the other one did.
    async fn end(self, end: End) -> u64 {
        let Relay {
            mut client,
            provider,
            gateway,
            ..
        } = self.relay;
        let used = self.books.used();
        let cut = match &end {
            End::Client(_) => Cut::Client,
            End::Provider(_) => Cut::Provider,
            End::Close(..) | End::Halted => Cut::Gateway,
        };
        // Before goodbyes are said: the client's next request finds its place free.
        self.books.end(cut);
        match end {
            End::Client(gone) => match gone {
                Gone::Closed(frame) => {
                    let (code, reason) = passed_on(frame.as_ref());
                    tokio::join!(client.end(), provider.close(code, reason));
                }
                Gone::Wrong(code, reason) => {
                    tokio::join!(
                        client.close(code, reason),
                        provider.close(CloseCode::Away, "")
                    );
                }
                Gone::Silent => {
                    tokio::join!(
                        client.close(CloseCode::Error, "no sign of life"),
                        provider.close(CloseCode::Away, "")
                    );
                }
                Gone::Lost => provider.close(CloseCode::Away, "").await,
            },
            End::Provider(Gone::Closed(frame)) => {
                let (code, reason) = passed_on(frame.as_ref());
                tokio::join!(client.close(code, reason), provider.end());
            }
            End::Provider(gone) => {
                let text = "The provider broke the session off.";
                let error = Error::new(Kind::UpstreamError, text).cause(format!("{gone:?}"));
                gateway.note(&error, &[]);
                client.push(Message::Text(events::error(&error, None)));
                client
                    .close(CloseCode::Error, "the provider broke off")
                    .await;
            }
            End::Close(code, reason) => {
                tokio::join!(
                    client.close(code, reason),
                    provider.close(CloseCode::Away, "")
                );
            }
            End::Halted => {
                let wait = sleep_until(Instant::now() + LOOK);
                tokio::select! {
                    () = client.close(CloseCode::Restart, "the gateway has stopped") => {}
                    () = wait => {}
                }
            }
        }
        used
    }
}

/// A close as it is passed on: codes that stand for no code are none to send (RFC 6455 §7.4.1).
fn passed_on(frame: Option<&CloseFrame>) -> (CloseCode, &str) {
    match frame {
        Some(frame) if frame.code.is_allowed() => (frame.code, frame.reason.as_str()),
        _ => (CloseCode::Normal, ""),
    }
}

fn bytes_of(message: &Message) -> &[u8] {
    match message {
        Message::Text(text) => text.as_bytes(),
        Message::Binary(bytes) => bytes,
        _ => &[],
    }
}
