//! Copies of requests for a shadow: sent beside the request, answered for nobody.
//!
//! A copy takes no permit, is not tried twice, is not booked and not billed; a client that leaves does
//! not stop it. At most [`crate::snapshot::ShadowSpec::max_in_flight`] are under way; more are not
//! made.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::dialect::{self, Dialect, Options};
use crate::edits::{Edits, Wanted};
use crate::error::Error;
use crate::exchange::Job;
use crate::gateway::{Endpoint, Gateway};
use crate::route::shadow::Copied;
use crate::upstream::{Call, Rope};

/// What of a request its copy is made of.
pub(crate) struct Copy {
    endpoint: Endpoint,
    stream: bool,
    model_asked: String,
    body: Bytes,
    edits: Edits,
    headers: HeaderMap,
    time: Duration,
}

impl Copy {
    /// Of a request that is about to run.
    pub(crate) fn of(job: &Job) -> Self {
        Self {
            endpoint: job.endpoint,
            stream: job.stream,
            model_asked: job.model_asked.clone(),
            body: job.body.clone(),
            edits: job.edits.clone(),
            headers: job.headers.clone(),
            time: job.model.timeouts.total,
        }
    }
}

impl Copy {
    /// The body as the shadow needs it; an error where its dialect has no words for it.
    fn body(&self, shadow: &Copied) -> Result<Rope, Error> {
        let upstream = &shadow.upstream;
        if self.endpoint == Endpoint::Chat && upstream.dialect != Dialect::OpenAi {
            let options = Options {
                model: &shadow.model,
                stream: self.stream,
                drop_params: upstream.drop_params,
                max_output_tokens: upstream.max_output_tokens,
            };
            let body = dialect::request(Dialect::OpenAi, upstream.dialect, &self.body, &options)?;
            return Ok(Rope::new(vec![Bytes::from(body.body)]));
        }
        let wanted = Wanted {
            model: (*shadow.model != *self.model_asked).then_some(&*shadow.model),
            rid: None,
            hides_rid: upstream.traits.rid,
            usage: [false; 2],
        };
        Ok(Rope::new(self.edits.apply(&self.body, &wanted)))
    }
}

/// Sends a copy to the shadow and reads its answer to the end, within the time that the request has.
pub(crate) async fn send(gateway: Arc<Gateway>, shadow: Copied, copy: Copy) {
    let upstream = Arc::clone(&shadow.upstream);
    let call = Call {
        endpoint: copy.endpoint,
        stream: copy.stream,
        model: &shadow.model,
        responses: false,
        object: None,
    };
    let exchange = async {
        let body = copy.body(&shadow).ok()?;
        let response = upstream.post(&call, &copy.headers, body, None).await.ok()?;
        let is_ok = response.status().is_success();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.ok()?;
        }
        is_ok.then_some(())
    };
    let ended = tokio::select! {
        biased;
        ended = timeout(copy.time, exchange) => ended.ok().flatten(),
        () = gateway.halting() => None,
    };
    gateway.metrics.copied(&upstream.name, ended.is_some());
}
