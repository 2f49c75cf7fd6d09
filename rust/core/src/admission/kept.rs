//! A request as a front end handed it over, kept for longer than that call.
use std::time::Duration;

use crate::door::Front;
use crate::gateway::Request;

/// A request that outlives its front end's call.
pub(crate) struct Kept {
    fields: [Option<Vec<u8>>; 10],
    front: Front,
    deadline: Option<Duration>,
}

impl Kept {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        let fields = [
            request.authorization,
            request.content_type,
            request.request_id,
            request.traceparent,
            request.tracestate,
            request.tags,
            request.session,
            request.api_key,
            request.idempotency_key,
            request.beta,
        ];
        Self {
            fields: fields.map(|field| field.map(<[u8]>::to_vec)),
            front: request.front,
            deadline: request.deadline,
        }
    }

    pub(crate) fn request(&self) -> Request<'_> {
        let [
            authorization,
            content_type,
            request_id,
            traceparent,
            tracestate,
            tags,
            session,
            api_key,
            idempotency_key,
            beta,
        ] = self.fields.each_ref().map(Option::as_deref);
        Request {
            authorization,
            content_type,
            request_id,
            traceparent,
            tracestate,
            tags,
            session,
            api_key,
            idempotency_key,
            beta,
            front: self.front,
            deadline: self.deadline,
        }
    }
}
