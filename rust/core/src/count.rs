//! How many tokens a request of Anthropic's Messages would have: `/v1/messages/count_tokens`.
//!
//! It is admitted as a request, of no tokens and no money, and leaves no usage behind. An engine of the
//! model's that can count is asked; where none can, the answer is estimated and says so.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;

use crate::admission::permitted_model;
use crate::arrival::Arrival;
use crate::door::{self, Native, Way};
use crate::error::{Error, Kind};
use crate::exchange::fetch;
use crate::gateway::{Gateway, Request, monotonic};
use crate::health::Availability;
use crate::limit::{Ask, Declined, GRANT_WAIT, Meters, Reservation};
use crate::peek::peek;
use crate::refusals::{json_content, unreadable};
use crate::scrub::{self, Asked};
use crate::slot::{Answering, Head, Headers, Slot, header_text};
use crate::snapshot::{Model, Target};
use crate::upstream::BETA;

/// Longest wait for one engine's count.
const WITHIN: Duration = Duration::from_secs(5);

/// Most engines that are asked for one count.
const MAX_ASKED: usize = 2;

/// Largest count that is believed.
const MAX_TOKENS: u64 = 1 << 40;

/// An engine's answer.
#[derive(Deserialize)]
struct Counted {
    input_tokens: u64,
}

/// What is to be counted.
struct Counting {
    model: Arc<Model>,
    native: Native,
    meters: Meters,
    /// As far as it can be known without an engine.
    estimate: u64,
}

impl Gateway {
    /// Counts the tokens of a request, or refuses to.
    pub(crate) fn count(
        self: &Arc<Self>,
        way: &'static Way,
        request: Request<'_>,
        body: Bytes,
        arrival: &Arrival,
    ) -> Arc<Slot> {
        let id = crate::headers::request_id_header(request.request_id, &arrival.id);
        let mut headers = way.door.greeting(id);
        let counting = match self.counting(way, &request, body) {
            Ok(counting) => counting,
            Err(error) => return Arc::new(self.refusal(way.door, &error, headers)),
        };
        let slot = Arc::new(Slot::of(way.door, None));
        let (gateway, answer) = (Arc::clone(self), Answering(Arc::clone(&slot)));
        let task = self.runtime.spawn(async move {
            let counted = gateway.counted(counting, &mut headers).await;
            answer.0.door().limits(&mut headers, gateway.now().unix_s);
            match counted {
                Ok(tokens) => {
                    headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
                    answer.0.start(Head {
                        status: 200,
                        headers,
                        body: format!("{{\"input_tokens\":{tokens}}}").into(),
                        more: false,
                    });
                }
                Err(error) => {
                    gateway.note(&error, &headers);
                    answer.0.refuse(&error, headers);
                }
            }
        });
        slot.driven_by(task.abort_handle());
        slot
    }

    fn counting(&self, way: &Way, request: &Request<'_>, body: Bytes) -> Result<Counting, Error> {
        let key = self.whose(request)?;
        json_content(request.content_type)?;
        let entered = door::enter(way, body, "")?;
        let native = entered
            .native
            .ok_or_else(|| Error::new(Kind::Internal, "Such requests cannot be counted."))?
            .asking(request.beta);
        let seen = peek(&entered.body).map_err(|error| unreadable(&error))?;
        let snapshot = self.snapshot.load();
        let (_, model) = permitted_model(&snapshot, &key, &seen)?;
        Ok(Counting {
            meters: self.meters(&key, model),
            estimate: model.estimator.prompt_tokens(seen.prompt_bytes),
            model: Arc::clone(model),
            native,
        })
    }

    async fn counted(&self, counting: Counting, headers: &mut Headers) -> Result<u64, Error> {
        let reservation = self.one_request(&counting.meters, headers).await?;
        let counted = self.ask_for_count(&counting, headers).await;
        reservation.settle(0, 0);
        counted
    }

    /// One request of no tokens, from every limit that applies.
    async fn one_request(
        &self,
        meters: &Meters,
        headers: &mut Headers,
    ) -> Result<Reservation, Error> {
        let ask = Ask { tokens: 0, nano: 0 };
        let mut waited = false;
        loop {
            match Reservation::admit(meters.clone(), self.now(), ask) {
                Ok((reservation, fill)) => {
                    crate::headers::rate_headers(&fill, headers);
                    return Ok(reservation);
                }
                Err(Declined::Refused(refusal)) => {
                    return Err(self.refused(&refusal, 0, self.now(), headers));
                }
                Err(Declined::Wanting(wanting)) if waited => {
                    return Err(self.refused(&wanting.into_refusal(), 0, self.now(), headers));
                }
                Err(Declined::Wanting(wanting)) => {
                    waited = true;
                    wanting.answered(GRANT_WAIT, || self.now().mono).await;
                }
            }
        }
    }

    /// What an engine says, else the estimate. Errors: an engine that speaks as the client does found
    /// fault with the request.
    async fn ask_for_count(
        &self,
        counting: &Counting,
        headers: &mut Headers,
    ) -> Result<u64, Error> {
        let open = |target: &&Target| {
            matches!(
                target.upstream.health.availability(monotonic()),
                Availability::Open { .. }
            )
        };
        let targets = counting.model.targets.iter().filter(open);
        let counters = targets
            .filter_map(|target| Some((target, target.upstream.count_tokens.as_deref()?)))
            .take(MAX_ASKED);
        for (target, path) in counters {
            match self.count_at(counting, target, path).await {
                Ok(tokens) => {
                    let name = HeaderName::from_static("x-forebay-upstream");
                    headers.push((name, header_text(&*target.upstream.name)));
                    return Ok(tokens);
                }
                Err(error)
                    if error.kind == Kind::InvalidRequest
                        && target.upstream.dialect == counting.native.dialect =>
                {
                    return Err(error);
                }
                // Another engine may count, or none: what is said then is not of this one.
                Err(_) => {}
            }
        }
        if let Some(unsaid) = &counting.native.unsaid {
            // No engine that could take it was there to count it, and of less than all nothing is said.
            return Err(unsaid.error.clone());
        }
        let name = HeaderName::from_static("x-forebay-estimated");
        headers.push((name, HeaderValue::from_static("true")));
        Ok(counting.estimate)
    }

    async fn count_at(
        &self,
        counting: &Counting,
        target: &Target,
        path: &str,
    ) -> Result<u64, Error> {
        let upstream = &target.upstream;
        let mut more = HeaderMap::new();
        if let Some(beta) = counting
            .native
            .beta
            .as_ref()
            .filter(|_| upstream.dialect == counting.native.dialect)
        {
            more.insert(HeaderName::from_static(BETA), beta.clone());
        }
        let body = counting.native.for_model(&target.model);
        let (status, body) = fetch(upstream, Method::POST, path, (&more, body), WITHIN).await?;
        if status != 200 {
            let asked = Asked::default();
            let none = HeaderMap::new();
            return Err(scrub::upstream_error(
                status,
                &none,
                &body,
                &upstream.rules,
                asked,
            ));
        }
        let counted: Counted = serde_json::from_slice(&body).map_err(|cause| {
            Error::new(Kind::UpstreamError, "The engine's count could not be read.").cause(cause)
        })?;
        Ok(counted.input_tokens.min(MAX_TOKENS))
    }
}
