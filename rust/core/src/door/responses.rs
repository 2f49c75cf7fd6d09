//! OpenAI's Responses, `/v1/responses`: over an upstream that has it, or bridged over chat.
//!
//! **State** is the gateway's own, whichever upstream answered: every upstream gets the whole
//! conversation and `store: false`, so that any of them can take the next turn. A response that is to
//! be stored (`store`, by default true) is saved before the client is told that it is complete, and is
//! loaded for a request that names it as `previous_response_id`. Both ask the port to the store
//! (`Gateway::ask`) with JSON:
//!
//! `response.load`, when a request names a previous response:
//! ```json
//! {"account": "acme", "id": "resp_0190…"}
//! ```
//! Answer, where the account has that response and it has not expired:
//! ```json
//! {"input": [/* items */], "response": {"id": "resp_0190…", "output": [/* items */], …}}
//! ```
//! and otherwise `{}` (unknown, another account's, expired, deleted: the client gets the 404
//! `previous_response_not_found`). No answer at all (`None`) is a 503: it may be there.
//!
//! `response.save`, when a response is complete (`status` `completed` or `incomplete`; failed ones are
//! not stored):
//! ```json
//! {"account": "acme", "key_id": "k3J9…", "id": "resp_0190…", "model": "llama-3-8b",
//!  "previous_response_id": "resp_018f…" /* or null */, "created_at": 1764150000,
//!  "input": [/* items */], "response": {/* the object as the client gets it */}}
//! ```
//! `input` is everything that the model was given: the items of the previous responses, theirs and the
//! model's, and then this request's own; without `instructions`, which are not carried over. So a
//! response can be deleted or expire without breaking those that came after it. Each input item has an
//! `id` where the client or the model gave it one. How long it is kept is the store's to say. Both
//! together are at most [`MAX_STORED`] bytes; what is longer is not saved. `key_id` is the
//! key's id as `usage_events` has it. Answer: `{"saved": true}`. Anything else, or none, is a failure: the response is then
//! told with `store: false`.
//!
//! `GET /v1/responses/{id}` gives back `response` as it was saved, `…/input_items` lists `input`.
