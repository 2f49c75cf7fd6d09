//! Bedrock's Converse and ConverseStream.
//!
//! Source: botocore's `bedrock-runtime/2023-09-30/service-2.json`; AWS, Amazon Bedrock user guide:
//! "Prompt caching" for what counts as input, "Extended thinking" and "Inference parameters" for what
//! models take beyond Converse.
mod answer;
mod block;
mod family;
mod messages;
mod parse;
mod read;
mod render;
mod wire;
mod write;

pub(super) use answer::{parse_answer, render_answer};
pub(super) use parse::parse_request;
pub(super) use read::Reader;
pub(super) use render::render_request;
pub(super) use write::Writer;
