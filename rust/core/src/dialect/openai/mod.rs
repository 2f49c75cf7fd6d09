//! OpenAI's chat completions.
//!
//! Source: openai-python 3.3.1, `types/chat`. Beyond it: `reasoning_content` and `reasoning_details`
//! (OpenRouter's form) for thoughts and their signatures, `extra_content.google.thought_signature`
//! (Gemini's compatible API) on tool calls, `cache_control` on parts and tools, `thinking` and `top_k`.
mod answer;
mod format;
mod message;
mod parse;
mod read;
mod render;
mod write;

pub(super) use answer::{extra, parse_answer, render_answer};
pub(super) use message::{audio, media, thought_signature};
pub(super) use parse::parse_request;
pub(super) use read::Reader;
pub(super) use render::render_request;
pub(super) use write::Writer;
