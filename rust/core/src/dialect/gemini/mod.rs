//! Gemini's `generateContent` and `streamGenerateContent?alt=sse`, of Google AI Studio and Vertex AI.
//!
//! Source: googleapis/python-genai 2.19.0, `types.py`, `models.py`, `_api_client.py`;
//! ai.google.dev/gemini-api/docs: thinking, thought-signatures, function-calling.
mod answer;
mod config;
mod contents;
mod generation;
mod parse;
mod read;
mod render;
mod schema;
mod wire;
mod write;

pub(super) use answer::{parse_answer, render_answer};
pub(super) use parse::parse_request;
pub(super) use read::Reader;
pub(super) use render::render_request;
pub(super) use write::Writer;
