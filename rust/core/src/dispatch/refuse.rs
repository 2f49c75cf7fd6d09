//! What a request is told that no target takes.
use std::time::Duration;

use super::trail::{Trail, is_too_dear};
use crate::error::{Error, Kind};
use crate::gateway::monotonic;
use crate::route::Ask;
use crate::snapshot::Model;

/// When to ask again for an engine that is being started.
const STARTING: Duration = Duration::from_secs(5);

/// None of the model's targets may serve the request.
pub(super) fn forbidden(model: &Model, ask: &Ask) -> Error {
    let offered = |target: &&crate::snapshot::Target| target.offers(ask.endpoint);
    let mut offering = model.targets.iter().filter(offered).peekable();
    if offering.peek().is_none() {
        let message = format!(
            "The model '{}' does not offer {}.",
            model.name,
            ask.endpoint.path()
        );
        return Error::new(Kind::InvalidRequest, message)
            .param("model")
            .code("unsupported_endpoint");
    }
    if offering.all(|target| is_too_dear(model, target, ask)) {
        let message = "This request may cost more than it is allowed to at any place that serves the model. Shorten it, or ask for fewer tokens.";
        return Error::new(Kind::InvalidRequest, message).code("cost_limit");
    }
    Error::new(Kind::Internal, "There is no target left.")
}

/// No target could take the request. `refused`: what the last queue said.
pub(super) fn unavailable(model: &Model, trail: &Trail, refused: Option<Error>) -> Error {
    if let Some(refused) = refused {
        return refused;
    }
    if trail.held_since.is_some() {
        let message = "The model is still being started. Please try again later.";
        return Error::new(Kind::Unavailable, message)
            .code("engine_starting")
            .retry_after(STARTING);
    }
    let now = monotonic();
    let back = model
        .targets
        .iter()
        .filter_map(|target| target.upstream.health.back_at(now))
        .min();
    let mut error = Error::new(
        Kind::Unavailable,
        "No engine can take the request now. Please try again later.",
    );
    error.retry_after = back.map(|at| Duration::from_nanos(at.saturating_sub(now)));
    error
}
