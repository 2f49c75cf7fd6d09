//! Forebay's core: everything per byte and per request, without Python.
//!
//! Pure (no sockets, files or clock): [`sse`], [`limit`], [`peek`], [`relay`], [`usage`],
//! [`scrub`], [`estimate`], [`edits`], [`headers`], [`error`], [`price`],
//! [`queue`], [`adaptive`]. Effects: [`upstream`] alone opens sockets, [`gate`] lets requests in to it;
//! [`exchange`] alone composes; [`listener`] takes HTTP requests in. [`gateway`] is where a front end
//! comes in, [`slot`] where an answer goes out.
pub mod adaptive;
mod admission;
mod alarm;
pub mod counters;
mod dispatch;
pub mod edits;
pub mod error;
pub mod estimate;
pub mod events;
pub mod exchange;
pub mod gate;
pub mod gateway;
pub mod headers;
pub mod keys;
pub mod limit;
pub mod listener;
pub mod live;
pub mod metrics;
pub mod peek;
pub mod price;
pub mod queue;
pub mod record;
mod refusals;
pub mod relay;
pub mod scrub;
pub mod slot;
pub mod snapshot;
pub mod sse;
pub mod subjects;
pub mod upstream;
pub mod usage;
