//! Admission of a session that holds a place while it lasts, and of each response in it: what a Realtime
//! connection is.
use std::sync::Arc;
use std::time::Duration;

use super::Cost;
use crate::arrival::Arrival;
use crate::door::Front;
use crate::error::{Error, Kind};
use crate::gateway::{Endpoint, Gateway, Request};
use crate::keys::{Key, KeyId};
use crate::limit::{Ask, Declined, GRANT_WAIT, Part, Reservation};
use crate::record::{Opening, Record};
use crate::refusals::{permitted, unpriced};
use crate::route::{self, Prefix};
use crate::slot::Slot;
use crate::snapshot::{Model, Target};
use crate::tags;

/// Who asks, for as long as a connection lasts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// As a bearer token.
    pub(crate) authorization: Vec<u8>,
    /// `x-forebay-tags`.
    pub(crate) tags: Option<Box<str>>,
    /// `x-session-id`.
    pub(crate) session: Option<Vec<u8>>,
}

impl Caller {
    /// Of a request. Errors: its tags are malformed.
    pub(crate) fn of(request: &Request<'_>) -> Result<Self, Error> {
        Ok(Self {
            authorization: request.authorization.unwrap_or_default().to_vec(),
            tags: match request.tags {
                Some(header) => tags::parse(header)?,
                None => None,
            },
            session: request.session.map(<[u8]>::to_vec),
        })
    }
}

/// What a response is expected to use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asking {
    /// Input, tokens.
    pub(crate) prompt: u64,
    /// The bound on its output, tokens; `None`: what the model's answers usually are.
    pub(crate) output: Option<u64>,
}

/// A session that was let in. It gives its permits back when it is dropped.
pub(crate) struct Session {
    gateway: Arc<Gateway>,
    client: Caller,
    account: Arc<str>,
    key_id: KeyId,
    model: Arc<Model>,
    asked: String,
    _place: Reservation,
}

impl Session {
    /// Lets a session in: its key may use the model, and has a place free.
    ///
    /// Errors: as for a request.
    pub(crate) async fn open(
        gateway: &Arc<Gateway>,
        client: Caller,
        asked: &str,
    ) -> Result<Self, Error> {
        let key = gateway.may_ask(&client)?;
        let model = gateway.model_for(&key, asked)?;
        let none = Cost {
            prompt: 0,
            output: 0,
            reserve: 0,
        };
        let place = gateway
            .take_part((&key, &model), &none, Part::Place)
            .await?;
        Ok(Self {
            gateway: Arc::clone(gateway),
            client,
            account: Arc::clone(&key.account),
            key_id: key.id,
            model,
            asked: asked.to_owned(),
            _place: place,
        })
    }

    /// The model that it is with.
    pub(crate) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What routing has to know of it.
    ///
    /// Errors: its key is no longer good.
    pub(crate) fn ask(&self) -> Result<route::Ask, Error> {
        let key = self.gateway.may_ask(&self.client)?;
        let sticky = self.model.router.sticky();
        let session = sticky.map(|(sticky, _)| {
            route::session(
                sticky.by,
                key.id.as_str(),
                self.client.session.as_deref(),
                None,
            )
        });
        Ok(route::Ask {
            queue: self.gateway.standing(&key, 0).0,
            endpoint: Endpoint::Realtime,
            context_tokens: 0,
            session,
            prefix: Prefix::default(),
            pricing: None,
            seed: Arrival::now().id.as_u64_pair().1,
        })
    }

    /// Whether its key still opens the API, and the gateway goes on.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.gateway.may_ask(&self.client).map(|_| ())
    }

    /// Admits a response, which `target` makes: one request, and the tokens that it may use.
    ///
    /// Errors: as for a request.
    pub(crate) async fn respond(&self, target: &Target, asking: Asking) -> Result<Record, Error> {
        let key = self.gateway.may_ask(&self.client)?;
        permitted(&key, &self.asked, &self.model)?;
        let usual = || self.model.estimator.output_tokens();
        let output = asking.output.unwrap_or_else(usual);
        let meters = self.gateway.meters(&key, &self.model);
        let bursts = meters.iter().flatten().filter_map(|m| m.token_burst());
        let wanted = asking.prompt.saturating_add(output);
        let cost = Cost {
            prompt: asking.prompt,
            output,
            // What is in the session already is a guess, and refuses none.
            reserve: match (bursts.min(), asking.output) {
                (None, _) => wanted,
                (Some(burst), Some(_)) => wanted.min(burst),
                (Some(burst), None) => wanted.min(burst / 2),
            },
        };
        let model = (&*key, &*self.model);
        let reservation = self.gateway.take_part(model, &cost, Part::Use).await?;
        self.record(target, reservation, asking.prompt)
    }

    /// Records a response that is being made already, whatever the limits say.
    ///
    /// Errors: there is no room for the record.
    pub(crate) fn owed(&self, target: &Target, prompt: u64) -> Result<Record, Error> {
        let none = [None, None, None, None];
        let admitted = Reservation::admit_part(none, self.gateway.now(), Ask::default(), Part::Use);
        let (reservation, _) =
            admitted.map_err(|_| Error::new(Kind::Internal, "Nothing refuses it."))?;
        self.record(target, reservation, prompt)
    }

    fn record(
        &self,
        target: &Target,
        reservation: Reservation,
        prompt_estimate: u64,
    ) -> Result<Record, Error> {
        let arrival = Arrival::now();
        let opening = Opening {
            arrival,
            trace: None,
            tags: self.client.tags.clone(),
            request_id: format!("req_{}", arrival.id.simple()),
            account: Arc::clone(&self.account),
            key_id: self.key_id,
            model_asked: self.asked.clone(),
            endpoint: Endpoint::Realtime,
            front: Front::WebSocket,
            stream: true,
            prompt_estimate,
            prompt_bytes: 0,
        };
        // Nobody reads it: the answer goes by in the session.
        let slot = Arc::new(Slot::new());
        let mut record = Record::open(&self.gateway, &slot, &self.model, reservation, opening)?;
        record.attempt(target);
        record.contacted();
        Ok(record)
    }
}

impl Gateway {
    /// The key of a client that may ask for anything at all, now.
    fn may_ask(&self, client: &Caller) -> Result<Arc<Key>, Error> {
        let given = Request {
            authorization: Some(&*client.authorization).filter(|text| !text.is_empty()),
            ..Request::default()
        };
        let key = self.authenticate(&given)?;
        if key.admin {
            let text = "An admin key does not open the inference API.";
            return Err(Error::new(Kind::Forbidden, text));
        }
        if self.is_draining() {
            let text = "The gateway is shutting down. Please try again.";
            return Err(Error::new(Kind::Unavailable, text).retry_after(Duration::from_secs(1)));
        }
        Ok(key)
    }

    /// Takes a part of every limit that applies, asking the store that machines share where need be.
    async fn take_part(
        &self,
        (key, model): (&Key, &Model),
        cost: &Cost,
        part: Part,
    ) -> Result<Reservation, Error> {
        let arrival = Arrival::now();
        let mut asked = 0;
        loop {
            let meters = self.meters(key, model);
            let nano = if part == Part::Use && meters.iter().flatten().any(|m| m.has_budget()) {
                self.dearest(key, model, cost, arrival.unix_us)
                    .ok_or_else(|| unpriced(&model.name))?
            } else {
                0
            };
            let ask = Ask {
                tokens: cost.reserve,
                nano,
            };
            let now = self.now();
            let refusal = match Reservation::admit_part(meters, now, ask, part) {
                Ok((reservation, _)) => return Ok(reservation),
                Err(Declined::Refused(refusal)) => refusal,
                Err(Declined::Wanting(wanting)) => {
                    let left = GRANT_WAIT.saturating_sub(arrival.at.elapsed());
                    if asked < super::MAX_ASKS && !left.is_zero() {
                        wanting.answered(left, || self.now().mono).await;
                        asked += 1;
                        continue;
                    }
                    wanting.into_refusal()
                }
            };
            return Err(self.refused(&refusal, cost.reserve, now, &mut Vec::new()));
        }
    }
}
