//! What routing, queues and logs have to know of a request, found at its admission.
use std::sync::Arc;

use bytes::Bytes;

use super::Cost;
use crate::arrival::Arrival;
use crate::exchange::Job;
use crate::gateway::{Endpoint, Gateway, Request};
use crate::keys::Key;
use crate::peek::Peek;
use crate::prompt_log::Choice;
use crate::queue::{self, Priority};
use crate::route::{self, Prefix, Pricing};
use crate::shadow;
use crate::snapshot::{Model, StickyBy};
use crate::usage::Usage;

/// A request as it came.
pub(super) struct Seen<'a> {
    pub(super) request: Request<'a>,
    pub(super) bytes: &'a Bytes,
    pub(super) body: &'a Peek<'a>,
    pub(super) endpoint: Endpoint,
    pub(super) arrival: &'a Arrival,
}

/// What routing looks at of a request.
#[derive(Default)]
struct Looks {
    prompts: bool,
    sessions: Option<StickyBy>,
    cost: bool,
}

impl Looks {
    fn add(&mut self, model: &Model) {
        self.prompts |= model.router.looks_at_prompts();
        self.cost |= model.is_cost_bound();
        let sticky = || model.router.sticky().map(|(sticky, _)| sticky.by);
        self.sessions = self.sessions.or_else(sticky);
    }
}

impl Gateway {
    /// How a request stands in queues and what routing has to know of it, no more than the routing of
    /// its model and of that one's fallbacks looks at; and what of it is logged.
    pub(super) fn place(
        &self,
        key: &Key,
        model: &Model,
        seen: &Seen<'_>,
        cost: &Cost,
    ) -> (route::Ask, Choice) {
        let (queue, choice) = self.standing(key, cost.reserve);
        let Seen { body, arrival, .. } = seen;
        let looks = self.looks(model);
        let prefix = match &body.prompt_span {
            Some(span) if looks.prompts => {
                Prefix::of(seen.bytes.get(span.clone()).unwrap_or_default())
            }
            _ => Prefix::default(),
        };
        let session = looks.sessions.map(|by| {
            let user = body.user.as_deref();
            route::session(by, key.id.as_str(), seen.request.session, user)
        });
        let pricing = looks.cost.then(|| Pricing {
            book: Arc::clone(&self.prices()),
            account: Arc::clone(&key.account),
            admitted_us: arrival.unix_us,
            usage: Usage {
                prompt: cost.prompt,
                completion: cost.output,
                ..Usage::default()
            },
        });
        let ask = route::Ask {
            queue,
            endpoint: seen.endpoint,
            context_tokens: cost.prompt.saturating_add(body.output_cap().unwrap_or(0)),
            session,
            prefix,
            pricing,
            seed: arrival.id.as_u64_pair().1,
        };
        (ask, choice)
    }

    /// What the routing of a model and of its fallbacks looks at.
    fn looks(&self, model: &Model) -> Looks {
        let mut looks = Looks::default();
        looks.add(model);
        for other in model.fallbacks().filter_map(|name| self.model(name)) {
            looks.add(&other);
        }
        looks
    }

    /// How a request of `tokens` stands in a queue, and what of it is logged.
    pub(super) fn standing(&self, key: &Key, tokens: u64) -> (queue::Ask, Choice) {
        let subjects = self.subjects.load();
        let account = subjects.accounts.get(&*key.account);
        let choice = key
            .log
            .or(account.map(|account| account.log).unwrap_or_default());
        let ask = queue::Ask {
            account: Arc::clone(&key.account),
            weight: account.map_or(1.0, |account| account.weight),
            priority: if key.batch {
                Priority::Batch
            } else {
                Priority::Interactive
            },
            tokens,
        };
        (ask, choice)
    }

    /// Sends a copy of a request to its model's shadow, if it is to be.
    pub(super) fn copy_to_shadow(self: &Arc<Self>, job: &Job) {
        if job.upload.is_some() {
            // It comes only once.
            return;
        }
        // Of what OpenAI's dialect cannot say the copy would be of something else.
        let said = job.native.as_ref().is_none_or(|own| own.unsaid.is_none());
        if let Some(copied) = job.model.shadow().filter(|_| said) {
            let copy = shadow::Copy::of(job);
            self.runtime
                .spawn(shadow::send(Arc::clone(self), copied, copy));
        }
    }
}
