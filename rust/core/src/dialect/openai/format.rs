//! Thoughts in OpenRouter's form, `reasoning_details`: the one in which signatures travel through a
//! client that speaks OpenAI's dialect.
//!
//! `{"type": "reasoning.text", "text", "signature", "format", "index"}`, `{"type":
//! "reasoning.encrypted", "data", "format", "index"}`, `{"type": "reasoning.summary", "summary", …}`.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;

use super::super::chat::{Content, Signature, Signer};
use super::super::json::{Members, Object, Path};

/// What one adds to a stream.
pub(super) enum Piece<'a> {
    Thought {
        text: Option<Cow<'a, str>>,
        signature: Option<Signature<'a>>,
    },
    Redacted(Signature<'a>),
    Nothing,
}

/// One of them, as it came.
pub(super) struct Detail<'a> {
    pub(super) index: Option<u32>,
    text: Option<Cow<'a, str>>,
    signature: Option<Cow<'a, str>>,
    data: Option<Cow<'a, str>>,
    by: Option<Signer>,
}

impl<'a> Detail<'a> {
    pub(super) fn parse(raw: &'a RawValue, at: &Path<'_>) -> Result<Self, Error> {
        let mut members = Members::read(raw.get(), at)?;
        let mut detail = Self {
            index: members.count("index", at)?,
            text: None,
            signature: members.text("signature", at)?,
            data: None,
            by: members
                .text("format", at)?
                .and_then(|name| Signer::from_name(&name)),
        };
        match &*members.need_text("type", at)? {
            "reasoning.text" => detail.text = members.text("text", at)?,
            "reasoning.summary" => detail.text = members.text("summary", at)?,
            "reasoning.encrypted" => detail.data = Some(members.need_text("data", at)?),
            _ => {}
        }
        Ok(detail)
    }

    /// Adds it to the thought that it continues; false if it does not continue one.
    pub(super) fn append_to(&self, content: &mut Content<'a>) -> bool {
        let Content::Thinking { text, signature } = content else {
            return false;
        };
        if self.data.is_some() || signature.is_some() {
            return false;
        }
        if let Some(more) = &self.text {
            text.to_mut().push_str(more);
        }
        *signature = self.signed(self.signature.clone());
        true
    }

    /// What it adds to a stream.
    pub(super) fn into_piece(self) -> Piece<'a> {
        if self.data.is_some() {
            let data = self.data.clone();
            return self.signed(data).map_or(Piece::Nothing, Piece::Redacted);
        }
        let signature = self.signed(self.signature.clone());
        Piece::Thought {
            text: self.text,
            signature,
        }
    }

    /// What it says; nothing for an encrypted thought of who knows whom.
    pub(super) fn into_content(self) -> Option<Content<'a>> {
        if self.data.is_some() {
            let data = self.data.clone();
            return self.signed(data).map(Content::Redacted);
        }
        let signature = self.signed(self.signature.clone());
        let text = self.text.unwrap_or_default();
        (!text.is_empty() || signature.is_some()).then_some(Content::Thinking { text, signature })
    }

    fn signed(&self, value: Option<Cow<'a, str>>) -> Option<Signature<'a>> {
        Some(Signature {
            value: value?,
            by: self.by?,
        })
    }
}

/// Writes a thought, or a piece of one.
pub(super) fn text(
    detail: &mut Object<'_>,
    index: u32,
    text: Option<&str>,
    signature: Option<&Signature<'_>>,
) {
    detail.put("type", "reasoning.text");
    detail.put_some("text", text);
    if let Some(signature) = signature {
        detail.put("signature", &signature.value);
        detail.put("format", signature.by.name());
    }
    detail.put("index", index);
}

/// Writes an encrypted thought.
pub(super) fn encrypted(detail: &mut Object<'_>, index: u32, thought: &Signature<'_>) {
    detail.put("type", "reasoning.encrypted");
    detail.put("data", &thought.value);
    detail.put("format", thought.by.name());
    detail.put("index", index);
}
