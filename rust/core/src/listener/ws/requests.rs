//! A socket of requests: one runs, few wait, and events go out as the client takes them.
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::super::Shared;
use super::super::body::Guard;
use super::Client;
use super::answer::{Answer, Piece, too_large};
use super::mode::{Asked, Mode};
use super::peer::{Came, Gone, Peer};
use super::session::{Session, Taken};
use crate::door::Way;
use crate::error::{Error, Kind};

/// How long a connection of the Responses API lasts, as at OpenAI.
const MOST_TIME: Duration = Duration::from_secs(60 * 60);
/// Refusals that may wait to be taken; until they are, nothing more is read.
const MOST_REFUSALS: usize = 8;

/// What happened.
enum Event {
    Came(Came),
    Piece(Piece),
    Drains,
    Idle,
    Old,
}

/// Why a socket is closed.
enum End {
    /// The client is gone, or has closed it.
    Over,
    /// By us.
    Close(CloseCode, &'static str),
}

/// Serves a socket to its end.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared>,
    client: &Client,
    (way, mode): (&'static Way, Mode),
    peer: Peer<S>,
) {
    let session = Session::new(mode.cancels(), shared.bounds.body_bytes);
    let mut serving = Serving {
        shared,
        client,
        way,
        mode,
        session,
        answer: None,
        idle_since: Instant::now(),
        refusals: 0,
        peer,
    };
    match serving.run().await {
        End::Over => serving.peer.end().await,
        End::Close(code, reason) => serving.peer.close(code, reason).await,
    }
}

struct Serving<'a, S> {
    shared: &'a Arc<Shared>,
    client: &'a Client,
    way: &'static Way,
    mode: Mode,
    session: Session,
    /// Of the request that runs.
    answer: Option<Answer>,
    idle_since: Instant,
    /// That have not all gone out yet.
    refusals: usize,
    peer: Peer<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Serving<'_, S> {
    async fn run(&mut self) -> End {
        let gateway = &self.shared.gateway;
        let mut drains = pin!(gateway.draining());
        drains.as_mut().enable();
        let mut is_draining = gateway.is_draining();
        let is_bounded = matches!(self.mode, Mode::Responses(_));
        let mut old = pin!(sleep_until(Instant::now() + MOST_TIME));
        let mut is_old = false;
        loop {
            if self.answer.is_none() && !self.peer.is_busy() {
                if is_draining {
                    return End::Close(CloseCode::Away, "the gateway is shutting down");
                }
                if is_old {
                    return self.too_old();
                }
                if let Some(text) = self.session.next() {
                    if let Err(end) = self.start(&text) {
                        return end;
                    }
                    continue;
                }
            }
            let idle_at = self.idle_since + self.shared.bounds.sockets.idle;
            let is_idle = self.answer.is_none() && !self.peer.is_busy();
            let takes = self.answer.is_some() && !self.peer.is_busy();
            let reads = self.refusals < MOST_REFUSALS;
            let event = tokio::select! {
                came = self.peer.came(reads) => Event::Came(came),
                piece = next_piece(&mut self.answer), if takes => Event::Piece(piece),
                () = drains.as_mut(), if !is_draining => Event::Drains,
                () = old.as_mut(), if is_bounded && !is_old => Event::Old,
                () = sleep_until(idle_at), if is_idle => Event::Idle,
            };
            match event {
                Event::Came(came) => {
                    if let Some(end) = self.take(came) {
                        return end;
                    }
                }
                Event::Piece(piece) => self.tell(piece),
                Event::Drains => is_draining = true,
                Event::Old => is_old = true,
                Event::Idle => {
                    return End::Close(CloseCode::Normal, "no request came for too long");
                }
            }
        }
    }

    /// Something came from the client.
    fn take(&mut self, came: Came) -> Option<End> {
        match came {
            Came::Text(text) => match self.session.take(text) {
                Taken::Waits => {}
                Taken::Refused(error) => {
                    self.refusals += 1;
                    let refusal = self.mode.turn_away(&error);
                    self.say(refusal);
                }
                Taken::Cancel => {
                    if self.answer.take().is_some() {
                        let error = Error::new(Kind::ClientClosed, "The request was cancelled.");
                        let end = self.mode.fail(&error);
                        self.say(end);
                        self.idle_since = Instant::now();
                    }
                }
            },
            Came::Binary(_) => {
                return Some(End::Close(
                    CloseCode::Unsupported,
                    "requests are text messages",
                ));
            }
            Came::Flushed => self.refusals = 0,
            Came::Gone(gone) => {
                // The engine stops now, not once goodbyes are said.
                self.answer = None;
                return Some(match gone {
                    Gone::Closed(_) | Gone::Lost => End::Over,
                    Gone::Wrong(code, reason) => End::Close(code, reason),
                    Gone::Silent => End::Close(CloseCode::Error, "no sign of life"),
                });
            }
        }
        None
    }

    /// Starts a request.
    fn start(&mut self, text: &Utf8Bytes) -> Result<(), End> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let id = uuid::Uuid::now_v7().simple().to_string();
        let gateway = &self.shared.gateway;
        let known = gateway.authenticate(&self.client.request());
        let read = self.mode.read(text, now, &id);
        let asked = known.and_then(|key| Ok((key, read?)));
        match asked {
            Ok((_, Asked::Exchange(body))) => {
                let slot = self.enter(body);
                self.answer = Some(Answer::new(Guard(slot)));
            }
            Ok((key, Asked::Told { model, says })) => match gateway.model_for(&key, &model) {
                Ok(_) => says.into_iter().for_each(|said| self.say(said)),
                Err(error) => self.fail(&error),
            },
            Err(error) => {
                let is_out = error.kind == Kind::Unauthenticated;
                self.fail(&error);
                if is_out {
                    return Err(End::Close(
                        CloseCode::Policy,
                        "the API key is no longer valid",
                    ));
                }
            }
        }
        self.idle_since = Instant::now();
        Ok(())
    }

    fn enter(&self, body: bytes::Bytes) -> Arc<crate::slot::Slot> {
        let request = self.client.request();
        self.shared.gateway.enter(self.way, request, body)
    }

    /// An error is the answer.
    fn fail(&mut self, error: &Error) {
        self.shared.gateway.note(error, &[]);
        let refusal = self.mode.fail(error);
        self.say(refusal);
    }

    /// Tells the client what has come of its request.
    fn tell(&mut self, piece: Piece) {
        if matches!(piece, Piece::End | Piece::TooLarge) {
            self.answer = None;
            self.idle_since = Instant::now();
        }
        if piece == Piece::TooLarge {
            return self.fail(&too_large());
        }
        for said in self.mode.tell(piece) {
            self.say(said);
        }
    }

    fn say(&mut self, said: Utf8Bytes) {
        self.peer.push(Message::Text(said));
    }

    /// The connection has lasted as long as one may.
    fn too_old(&mut self) -> End {
        let message = "The connection has reached its limit of 60 minutes. Open a new one.";
        let error =
            Error::new(Kind::InvalidRequest, message).code("websocket_connection_limit_reached");
        self.fail(&error);
        End::Close(CloseCode::Normal, "60 minutes are over")
    }
}

async fn next_piece(answer: &mut Option<Answer>) -> Piece {
    match answer {
        Some(answer) => answer.next().await,
        None => Piece::End,
    }
}
