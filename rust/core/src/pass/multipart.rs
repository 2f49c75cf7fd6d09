//! `multipart/form-data` as it goes by (RFC 7578, RFC 2046 §5.1): the model's name is found, and
//! replaced by the target's. Sans-io; holds no more of a body than a part's head or a boundary.
//!
//! Stricter than the standards: what two readers could take apart differently is refused, as the
//! gateway decides by the model that it finds, and the engine runs the one that it finds. So there is
//! no preamble, no padding after a boundary, no half line end before one and nothing after the last.
use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

use super::part::{self, Part};

/// Longest boundary (RFC 2046 §5.1.1).
const MAX_BOUNDARY: usize = 70;
/// Largest head of one part, bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Most parts of a form.
const MAX_PARTS: u32 = 256;
/// Longest name of a model, bytes.
pub const MAX_MODEL: usize = 256;

/// Why a form is refused. The text of each is safe to show to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The content type has no boundary, or one that is none.
    #[error("the content type must be multipart/form-data with one boundary")]
    Boundary,
    /// Something else where a boundary has to be, or stands after one.
    #[error("a boundary is missing or malformed")]
    Delimiter,
    /// A part's head that is none, or may be read in two ways.
    #[error("a part has a malformed head")]
    Head,
    /// A field that is not for clients to set.
    #[error("a field is not for clients to set")]
    Control,
    /// The model is a file, encoded, too long, or not UTF-8.
    #[error("the field 'model' must be a short text")]
    Model,
    /// The model is given more than once, differently.
    #[error("the model is given more than once")]
    Models,
    /// Too many parts.
    #[error("the form has too many fields")]
    Parts,
    /// It ends before its last boundary.
    #[error("the form ends too early")]
    Early,
}

/// The boundary in a `content-type` of a form.
///
/// Errors: another type, or no one boundary of 1 to 70 characters.
pub fn boundary(content_type: &[u8]) -> Result<String, Fault> {
    let text = std::str::from_utf8(content_type).map_err(|_| Fault::Boundary)?;
    let mut parts = text.split(';');
    let media = parts.next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("multipart/form-data") {
        return Err(Fault::Boundary);
    }
    let mut found = None;
    for part in parts {
        let Some((key, value)) = part.split_once('=') else {
            if part.trim().is_empty() {
                continue;
            }
            return Err(Fault::Boundary);
        };
        if !key.trim().eq_ignore_ascii_case("boundary") {
            continue;
        }
        let value = value.trim();
        let bare = value
            .strip_prefix('"')
            .map_or(Some(value), |rest| rest.strip_suffix('"'))
            .ok_or(Fault::Boundary)?;
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
        let fits = (1..=MAX_BOUNDARY).contains(&bare.len()) && bare.bytes().all(is_good);
        if !fits || found.replace(bare.to_owned()).is_some() {
            return Err(Fault::Boundary);
        }
    }
    found.ok_or(Fault::Boundary)
}

/// What a scanner does about the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every byte passes; the model is only found.
    Find,
    /// The model's name becomes this one.
    Replace(String),
    /// There is no model: it is named elsewhere. This field is put first, and a field of the form is
    /// left out, if it is the same as `named`.
    Put {
        /// What the client named elsewhere.
        named: String,
        /// What is put.
        model: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Start,
    /// Right after a boundary.
    Bound,
    /// In the head of a part.
    Head,
    /// In the content of a part; `fresh` while nothing of it has been taken out of the buffer.
    Content { part: Part, fresh: bool },
    /// After the last boundary; so many bytes of its line end have come.
    End(u8),
}

/// Goes through a form as it comes.
pub struct Scanner {
    /// `--` and the boundary.
    bound: Bytes,
    finder: Finder<'static>,
    rule: Rule,
    state: State,
    /// What has come and is not decided.
    buffer: BytesMut,
    /// A boundary that has come, whose part may be left out.
    held: BytesMut,
    /// The model's name so far, while it is being read.
    name: Vec<u8>,
    model: Option<String>,
    parts: u32,
}

impl Scanner {
    /// For a form with this boundary.
    pub fn new(boundary: &str, rule: Rule) -> Self {
        let bound = format!("--{boundary}");
        Self {
            finder: Finder::new(bound.as_bytes()).into_owned(),
            bound: Bytes::from(bound),
            rule,
            state: State::Start,
            buffer: BytesMut::new(),
            held: BytesMut::new(),
            name: Vec::new(),
            model: None,
            parts: 0,
        }
    }

    /// The model that the form names, once its field has ended.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Whether the last boundary has come.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::End(_))
    }

    /// Takes bytes of the form; what is to be sent on goes to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        self.buffer.extend_from_slice(bytes);
        while self.step(out)? {}
        Ok(())
    }

    /// The form has ended.
    pub fn end(&self) -> Result<(), Fault> {
        if matches!(self.state, State::End(0 | 2)) && self.buffer.is_empty() {
            Ok(())
        } else {
            Err(Fault::Early)
        }
    }

    /// Decides about what has come, as far as one state goes. Whether there may be more to decide.
    fn step(&mut self, out: &mut BytesMut) -> Result<bool, Fault> {
        match self.state {
            State::Start => self.start(out),
            State::Bound => self.bounded(out),
            State::Head => self.head(out),
            State::Content { part, fresh } => self.content(part, fresh, out),
            State::End(seen) => self.after(seen, out),
        }
    }

    fn start(&mut self, out: &mut BytesMut) -> Result<bool, Fault> {
        let seen = self.buffer.len().min(self.bound.len());
        if self.buffer.get(..seen) != self.bound.get(..seen) {
            return Err(Fault::Delimiter);
        }
        if seen < self.bound.len() {
            return Ok(false);
        }
        if let Rule::Put { model, .. } = &self.rule {
            out.extend_from_slice(&self.bound);
            out.extend_from_slice(b"\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n");
            out.extend_from_slice(model.as_bytes());
            self.held.extend_from_slice(b"\r\n");
        }
        let bound = self.buffer.split_to(seen);
        self.held.extend_from_slice(&bound);
        self.state = State::Bound;
        Ok(true)
    }

    fn bounded(&mut self, out: &mut BytesMut) -> Result<bool, Fault> {
        match self.buffer.get(..2) {
            None => match self.buffer.first() {
                None | Some(b'\r' | b'-') => Ok(false),
                Some(_) => Err(Fault::Delimiter),
            },
            Some(b"\r\n") => {
                let end = self.buffer.split_to(2);
                self.held.extend_from_slice(&end);
                self.parts += 1;
                if self.parts > MAX_PARTS {
                    return Err(Fault::Parts);
                }
                self.state = State::Head;
                Ok(true)
            }
            Some(b"--") => {
                let end = self.buffer.split_to(2);
                self.held.extend_from_slice(&end);
                out.unsplit(std::mem::take(&mut self.held));
                self.state = State::End(0);
                Ok(true)
            }
            Some(_) => Err(Fault::Delimiter),
        }
    }

    fn head(&mut self, out: &mut BytesMut) -> Result<bool, Fault> {
        let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") else {
            return if self.buffer.len() > MAX_HEAD {
                Err(Fault::Head)
            } else {
                Ok(false)
            };
        };
        if end > MAX_HEAD {
            return Err(Fault::Head);
        }
        let part = part::read(self.buffer.get(..end).unwrap_or_default())?;
        let head = self.buffer.split_to(end + 4);
        let is_left_out = part == Part::Model && matches!(self.rule, Rule::Put { .. });
        if is_left_out {
            self.held.clear();
        } else {
            out.unsplit(std::mem::take(&mut self.held));
            out.unsplit(head);
        }
        if part == Part::Model {
            if self.model.is_some() {
                return Err(Fault::Models);
            }
            self.name.clear();
        }
        self.state = State::Content { part, fresh: true };
        Ok(true)
    }

    fn content(&mut self, part: Part, fresh: bool, out: &mut BytesMut) -> Result<bool, Fault> {
        let mut from = 0;
        while let Some(at) = self
            .buffer
            .get(from..)
            .and_then(|rest| self.finder.find(rest))
            .map(|at| at + from)
        {
            // Two bytes before it are still there, unless the content begins with it.
            let before = self.buffer.get(..at).unwrap_or_default();
            if before.ends_with(b"\r\n") {
                let content = self.buffer.split_to(at - 2);
                self.take(part, content, out)?;
                self.close(part, out)?;
                let bound = self.buffer.split_to(2 + self.bound.len());
                self.held.extend_from_slice(&bound);
                self.state = State::Bound;
                return Ok(true);
            }
            if matches!(before.last(), Some(b'\r' | b'\n')) || (fresh && before.is_empty()) {
                return Err(Fault::Delimiter);
            }
            from = at + 1;
        }
        // The beginning of a boundary may have come, and the line end before it.
        let keep = self.bound.len() + 1;
        let sure = self.buffer.len().saturating_sub(keep);
        if sure > 0 {
            let content = self.buffer.split_to(sure);
            self.take(part, content, out)?;
            self.state = State::Content { part, fresh: false };
        }
        Ok(false)
    }

    /// Content of a part that is no boundary.
    fn take(&mut self, part: Part, content: BytesMut, out: &mut BytesMut) -> Result<(), Fault> {
        if part == Part::Model {
            self.name.extend_from_slice(&content);
            if self.name.len() > MAX_MODEL {
                return Err(Fault::Model);
            }
            if self.rule != Rule::Find {
                return Ok(());
            }
        }
        out.unsplit(content);
        Ok(())
    }

    /// A part has ended.
    fn close(&mut self, part: Part, out: &mut BytesMut) -> Result<(), Fault> {
        if part != Part::Model {
            return Ok(());
        }
        let name = String::from_utf8(std::mem::take(&mut self.name)).map_err(|_| Fault::Model)?;
        match &self.rule {
            Rule::Replace(model) => out.extend_from_slice(model.as_bytes()),
            Rule::Put { named, .. } if *named != name => return Err(Fault::Models),
            Rule::Put { .. } | Rule::Find => {}
        }
        self.model = Some(name);
        Ok(())
    }

    fn after(&mut self, seen: u8, out: &mut BytesMut) -> Result<bool, Fault> {
        let Some(first) = self.buffer.first() else {
            return Ok(false);
        };
        match (seen, first) {
            (0, b'\r') | (1, b'\n') => {
                out.unsplit(self.buffer.split_to(1));
                self.state = State::End(seen + 1);
                Ok(true)
            }
            _ => Err(Fault::Delimiter),
        }
    }
}
