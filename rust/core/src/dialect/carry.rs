//! What a dialect cannot say: refused by name, or left out and listed.
use std::borrow::Cow;

use crate::error::{Error, Kind};

use super::Dialect;
use super::chat::{Content, Param, Request, Spot};

/// Most fields that are listed of one request.
pub(crate) const MAX_LISTED: usize = 100;

/// Keeps account of what is left out of one request.
pub(crate) struct Carry {
    from: Dialect,
    drop: bool,
    dropped: Vec<String>,
}

impl Carry {
    /// from: the client's dialect, whose names are used. drop: leave out instead of refusing.
    pub(crate) const fn new(from: Dialect, drop: bool) -> Self {
        Self {
            from,
            drop,
            dropped: Vec::new(),
        }
    }

    /// The client's dialect.
    pub(crate) const fn from(&self) -> Dialect {
        self.from
    }

    /// A field that cannot be carried over. Errors: `InvalidRequest`, unless it may be left out.
    pub(crate) fn leave(&mut self, field: impl Into<String>) -> Result<(), Error> {
        let field = field.into();
        if !self.drop {
            return Err(unsupported(field));
        }
        self.hint(field);
        Ok(())
    }

    /// [`Carry::leave`] for a parameter.
    pub(crate) fn leave_param(&mut self, param: Param) -> Result<(), Error> {
        self.leave(param.name(self.from))
    }

    /// A part of a message that cannot be carried over; never left out, as the answer would be to
    /// another question.
    pub(crate) fn refuse(&self, spot: Spot, content: &Content<'_>, what: &str) -> Error {
        let mut path = spot.path(self.from);
        path.push_str(match (self.from, content) {
            (Dialect::OpenAi, Content::Image(_)) => ".image_url.url",
            (Dialect::OpenAi, Content::Document { .. }) => ".file",
            (Dialect::OpenAi | Dialect::Responses, Content::Audio(_)) => ".input_audio",
            (
                Dialect::Anthropic,
                Content::Image(_) | Content::Document { .. } | Content::Audio(_),
            ) => ".source",
            (Dialect::Converse, Content::Image(_)) => ".image",
            (Dialect::Converse, Content::Document { .. }) => ".document",
            (Dialect::Responses, Content::Image(_)) => ".image_url",
            (Dialect::Responses, Content::Document { .. }) => ".file_data",
            _ => "",
        });
        invalid(
            path.clone(),
            format!("The model behind this name takes no {what} (`{path}`)."),
        )
    }

    /// A field that is left out in any case, as the answer is the same without it. The first
    /// [`MAX_LISTED`] are listed.
    pub(crate) fn hint(&mut self, field: impl Into<String>) {
        if self.dropped.len() < MAX_LISTED {
            let field = field.into();
            if !self.dropped.contains(&field) {
                self.dropped.push(field);
            }
        }
    }

    /// The signature of a call of another provider's model, which is of no use to this one.
    pub(crate) fn signature(&mut self, spot: Spot) {
        let name = match self.from {
            Dialect::OpenAi | Dialect::Responses => "extra_content",
            Dialect::Gemini => "thoughtSignature",
            Dialect::Anthropic | Dialect::Converse => "signature",
        };
        self.hint(format!("{}.{name}", spot.path(self.from)));
    }

    /// A document's name.
    pub(crate) fn file_name(&mut self, spot: Spot) {
        let name = match self.from {
            Dialect::OpenAi => "file.filename",
            Dialect::Responses => "filename",
            Dialect::Anthropic => "title",
            Dialect::Gemini => "displayName",
            Dialect::Converse => "document.name",
        };
        self.hint(format!("{}.{name}", spot.path(self.from)));
    }

    /// What no other dialect than the client's has. A tool or a part of a message is never left out:
    /// the answer would be to another question.
    pub(crate) fn unknown(&mut self, request: &Request<'_>) -> Result<(), Error> {
        for (name, _) in &request.other {
            if name.contains('[') {
                return Err(unsupported(name.clone().into_owned()));
            }
            self.leave(&**name)?;
        }
        for hint in &request.hints {
            self.hint(&**hint);
        }
        Ok(())
    }

    /// Everything left out.
    pub(crate) fn into_dropped(self) -> Vec<String> {
        self.dropped
    }
}

/// A field that has no place in the upstream's dialect.
pub(crate) fn unsupported(field: String) -> Error {
    let message = format!("The model behind this name does not support `{field}`.");
    // Another target may speak a dialect that has it.
    invalid(field, message)
        .code("unsupported_parameter")
        .sibling(true)
}

/// A request's fault, named by its field.
pub(crate) fn invalid(
    param: impl Into<Cow<'static, str>>,
    message: impl Into<Cow<'static, str>>,
) -> Error {
    Error::new(Kind::InvalidRequest, message).param(param)
}

/// An answer that is none.
pub(crate) fn broken(cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::UpstreamError,
        "The engine's answer could not be read.",
    )
    .cause(cause)
}
