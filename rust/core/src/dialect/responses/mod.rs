//! OpenAI's Responses.
//!
//! Source: openai-python 3.3.1, `types/responses`. Beyond it: sampling parameters that engines take
//! (`top_k`, `seed`, `stop`, penalties); signatures of other providers' thoughts as `encrypted_content`
//! of reasoning items (`<signer>:<signature>`), and Gemini's of calls as `extra_content`, as in chat.
mod answer;
mod asked;
mod bridge;
mod items;
mod native;
mod output;
mod parse;
mod read;
mod recall;
mod render;
mod tools;
mod write;

pub(crate) use answer::tell;
pub(super) use answer::{parse_answer, render_answer};
pub(crate) use asked::Asked;
pub(crate) use bridge::{Bridged, Places, bridge};
pub(crate) use native::{Kept, Native, id_of};
pub(crate) use output::Failed;
pub(super) use parse::parse_request;
pub(super) use read::Reader;
pub(crate) use recall::{Loaded, Needs, expand, input_of, native_body, needs};
pub(super) use render::render_request;
pub(crate) use write::Writer;
