//! Blocks of content, written.
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::calls::arguments;
use super::super::chat::{Content, Media, Raw, Signature, ToolCall, ToolResult};
use super::super::json::{List, Object, Text};
use super::super::media::{format_of_type, type_of_url};
use super::wire::own;

/// Longest id of a call.
const MAX_ID: usize = 64;

/// What of a message Converse has no place for.
pub(super) struct Unsayable(pub(super) &'static str);

/// Text.
pub(super) fn put_text(list: &mut List<'_>, text: &str) {
    list.object(|block| block.put("text", text));
}

/// A thought.
pub(super) fn put_thought(list: &mut List<'_>, text: &str, signature: Option<&Signature<'_>>) {
    list.object(|block| {
        block.object("reasoningContent", |reasoning| {
            reasoning.object("reasoningText", |inner| {
                inner.put("text", text);
                inner.put_some("signature", own(signature));
            });
        });
    });
}

/// A thought that only its provider can read.
pub(super) fn put_redacted(list: &mut List<'_>, data: &str) {
    list.object(|block| {
        block.object("reasoningContent", |reasoning| {
            reasoning.put("redactedContent", data);
        });
    });
}

/// A call; false, and nothing, if its arguments are no JSON object.
pub(super) fn put_call(list: &mut List<'_>, call: &ToolCall<'_>) -> bool {
    let Some(input) = arguments(&call.arguments) else {
        return false;
    };
    list.object(|block| {
        block.object("toolUse", |tool| {
            tool.put("toolUseId", call_id(&call.id));
            tool.put("name", &call.name);
            tool.put("input", input);
        });
    });
    true
}

/// A result. names: of documents, so far.
pub(super) fn put_result(
    list: &mut List<'_>,
    result: &ToolResult<'_>,
    names: &mut Names,
) -> Result<(), Unsayable> {
    list.object(|block| {
        block.object("toolResult", |tool| {
            tool.put("toolUseId", call_id(&result.id));
            if result.is_error {
                tool.put("status", "error");
            }
            tool.list("content", |list| {
                for content in &result.content {
                    match content {
                        Content::Text(text) if is_blank(text) => {}
                        Content::Text(text) => put_text(list, text),
                        Content::Image(_) | Content::Document { .. } => {
                            put_media(list, content, names)?;
                        }
                        _ => return Err(Unsayable("such result of a tool")),
                    }
                }
                Ok(())
            })
        })
    })
}

/// Converse refuses text of white space alone.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Names of a request's documents: each has to have one of its own.
#[derive(Default)]
pub(super) struct Names {
    taken: HashSet<String>,
    /// The last number that was put behind each.
    numbers: HashMap<String, u32>,
}

impl Names {
    /// A name that Converse takes: letters, digits, single spaces, hyphens and brackets.
    fn name(&mut self, name: Option<&str>) -> String {
        let stem = name.map_or("document", |name| match name.rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => stem,
            _ => name,
        });
        let mut clean: String = stem
            .chars()
            .map(|c| match c {
                ' ' | '-' | '(' | ')' | '[' | ']' => c,
                c if c.is_ascii_alphanumeric() => c,
                _ => '-',
            })
            .take(180)
            .collect();
        while clean.contains("  ") {
            clean = clean.replace("  ", " ");
        }
        let number = self.numbers.entry(clean.clone()).or_insert(1);
        let mut name = clean.clone();
        while self.taken.contains(&name) {
            *number += 1;
            name = format!("{clean} ({number})");
        }
        self.taken.insert(name.clone());
        name
    }
}

/// An image, a document or a sound.
pub(super) fn put_media(
    list: &mut List<'_>,
    content: &Content<'_>,
    names: &mut Names,
) -> Result<(), Unsayable> {
    let (key, media, name) = match content {
        Content::Image(media) => ("image", media, None),
        Content::Audio(media) => ("audio", media, None),
        Content::Document { media, name } => ("document", media, Some(names.name(name.as_deref()))),
        _ => return Err(Unsayable("such content")),
    };
    let (media_type, source) = match media {
        Media::Base64 { media_type, data } => (&**media_type, Ok(data)),
        Media::Url { url, media_type } if url.starts_with("s3://") => {
            let guess = || type_of_url(url).unwrap_or_default();
            (media_type.as_deref().unwrap_or_else(guess), Err(url))
        }
        Media::Url { .. } => return Err(Unsayable("file by its URL, other than on S3")),
        Media::File(_) => return Err(Unsayable("file by its id")),
    };
    let kind = media_type.split('/').next().unwrap_or_default();
    let format = format_of_type(media_type)
        .filter(|_| match key {
            "document" => matches!(kind, "application" | "text"),
            "image" => matches!(
                media_type,
                "image/png" | "image/jpeg" | "image/gif" | "image/webp"
            ),
            _ => kind == key,
        })
        .ok_or(Unsayable("file of this type"))?;
    list.object(|block| {
        block.object(key, |object| {
            object.put("format", format);
            object.put_some("name", name);
            object.object("source", |place| match source {
                Ok(data) => place.put("bytes", data),
                Err(url) => place.object("s3Location", |s3| s3.put("uri", url)),
            });
        });
    });
    Ok(())
}

#[derive(Deserialize)]
struct CacheControl<'a> {
    #[serde(borrow, default)]
    ttl: Option<Text<'a>>,
}

/// The prompt is cached up to here, as Anthropic's `cache_control` asks.
pub(super) fn put_cache_point(list: &mut List<'_>, cache: Option<&Raw<'_>>) {
    let Some(cache) = cache else {
        return;
    };
    let control = serde_json::from_str::<CacheControl<'_>>(cache.get()).ok();
    let ttl = control.and_then(|control| control.ttl).map(|ttl| ttl.0);
    list.object(|block| {
        block.object("cachePoint", |point| {
            point.put("type", "default");
            point.put_some("ttl", ttl);
        });
    });
}

/// An id that Converse takes, the same for a call and its result.
pub(super) fn call_id(id: &str) -> Cow<'_, str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    if id.len() <= MAX_ID && !id.is_empty() && id.chars().all(fits) {
        return Cow::Borrowed(id);
    }
    let clean: String = id
        .chars()
        .map(|c| if fits(c) { c } else { '_' })
        .take(MAX_ID - 9)
        .collect();
    // What was cut or replaced may be all that told two ids apart.
    let sum = crc32fast::hash(id.as_bytes());
    Cow::Owned(format!("{clean}-{sum:08x}"))
}

/// `{"json": schema}`, of an object without members where there is none.
pub(super) fn put_schema(tool: &mut Object<'_>, schema: Option<&RawValue>) {
    tool.object("inputSchema", |object| match schema {
        Some(schema) => object.put("json", schema),
        None => object.object("json", |inner| {
            inner.put("type", "object");
            inner.object("properties", |_| ());
        }),
    });
}
