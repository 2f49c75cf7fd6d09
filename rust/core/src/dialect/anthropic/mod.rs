//! Anthropic's Messages.
//!
//! Source: anthropic-sdk-python @009b0353, `types/`, `_streaming.py`.
mod answer;
mod block;
mod count;
mod message;
mod parse;
mod read;
mod render;
mod tools;
mod write;

pub(super) use answer::{parse_answer, render_answer};
pub(super) use parse::parse_request;
pub(super) use read::Reader;
pub(super) use render::render_request;
pub(super) use write::Writer;
