//! Forebay's core: everything per byte and per request, without Python.
//!
//! Pure (no sockets, files or clock): [`sse`], [`limit`], [`peek`], [`relay`], [`usage`],
//! [`scrub`], [`estimate`], [`edits`], [`headers`], [`error`], [`mod@copy`], [`tags`], [`price`],
//! [`queue`], [`adaptive`], [`health`], [`route`], [`resume`], [`dialect`], [`door`], [`guard`], `endpoint`,
//! [`idempotency`] but for its `once`.
//! Effects: [`upstream`] alone opens sockets, [`spool`] alone writes
//! files, [`gate`] lets requests in to it;
//! [`exchange`] alone composes; [`listener`] takes HTTP requests in. [`gateway`] is where a front end
//! comes in, [`slot`] where an answer goes out, [`port`] where the store is asked.
pub mod adaptive;
mod admission;
pub mod alarm;
mod arrival;
pub mod attempts;
pub mod copy;
mod count;
pub mod counters;
pub mod dialect;
pub mod dispatch;
pub mod door;
pub mod edits;
mod endpoint;
pub mod error;
pub mod estimate;
pub mod events;
pub mod exchange;
pub mod gate;
pub mod gateway;
pub mod guard;
mod handshake;
pub mod headers;
pub mod health;
pub mod idempotency;
pub mod keys;
pub mod limit;
pub mod linger;
pub mod listener;
pub mod live;
pub mod metrics;
mod note;
pub mod pass;
pub mod peek;
pub mod port;
pub mod price;
pub mod prompt_log;
pub mod queue;
pub mod record;
mod refusals;
pub mod relay;
pub mod resume;
pub mod retry;
pub mod route;
pub mod scrub;
mod shadow;
pub mod slot;
pub mod snapshot;
pub mod spool;
pub mod sse;
pub mod subjects;
pub mod tags;
pub mod trace;
pub mod upstream;
pub mod usage;
pub mod watch;
