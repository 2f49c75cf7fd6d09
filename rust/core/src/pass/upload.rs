//! A form that is sent on while it comes: read once, with back-pressure, and sent anew to another
//! target as long as all of it that was read is still there.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::multipart::{self, Rule, Scanner};
use crate::error::{Error, Kind};
use errors::{broken, late, malformed, missing, too_large, too_slow, unsupported};

mod body;
mod errors;

pub use body::{Unread, UploadBody};

/// How much of a body is kept so that it can be sent once more, bytes.
pub const REPLAY_BYTES: usize = 1 << 20;
/// Chunks below this are kept joined, bytes: each alone would cost more than what is in it.
const SMALL: usize = 4096;
/// How much of a refused body is read, and for how long, so that its sender gets to read why.
const DRAIN_BYTES: u64 = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// A client's body. Its error says nothing that is to be told.
pub type Source = UnsyncBoxBody<Bytes, ()>;

/// The bounds of a body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of it.
    pub bytes: u64,
    /// Most of them that are held until the model is known.
    pub head_bytes: usize,
    /// Longest pause of its sender, and longest wait for the model's name.
    pub idle: Duration,
}

/// Who names the model.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    /// A field of the form, of so many bytes.
    Inside(usize),
    /// A header or the query.
    Outside,
    /// There is none.
    Nobody,
}

/// A body that is being read.
pub struct Upload {
    boundary: String,
    content_type: HeaderValue,
    /// Bytes of the whole body, where its sender told.
    length: Option<u64>,
    model: String,
    named: Named,
    limits: Limits,
    /// The sender waits to be asked for the body.
    waits: bool,
    state: Mutex<State>,
}

struct State {
    source: Option<Source>,
    /// Its end has been read.
    ended: bool,
    /// What was read, as long as it is kept.
    kept: Option<Kept>,
    kept_bytes: usize,
    read: u64,
    /// Which body of those that were made is the one that reads.
    reader: u64,
    fault: Option<Error>,
    moved: Instant,
}

/// What is kept of a body.
#[derive(Default)]
struct Kept {
    chunks: Vec<Bytes>,
    /// Behind them: small ones.
    tail: BytesMut,
}

/// How far what is kept has been sent: chunks, and bytes of the next one or of the tail.
#[derive(Clone, Copy, Default)]
struct At {
    chunks: usize,
    bytes: usize,
}

/// A body that is refused.
pub struct Refused {
    /// Why.
    pub error: Error,
    /// What is left of it.
    pub rest: Option<Source>,
}

impl Upload {
    /// A form whose model is `named` elsewhere, or is found in it: then it is read up to there.
    ///
    /// `content_type` is the client's. Errors name what is wrong with the form.
    pub async fn open(
        mut source: Source,
        content_type: Option<&[u8]>,
        named: Option<String>,
        limits: Limits,
        waits: bool,
    ) -> Result<Arc<Self>, Box<Refused>> {
        let refused = |error: Error, source: Source| {
            Box::new(Refused {
                error,
                rest: Some(source),
            })
        };
        let boundary = match multipart::boundary(content_type.unwrap_or_default()) {
            Ok(boundary) => boundary,
            Err(fault) => return Err(refused(unsupported(fault), source)),
        };
        let length = source.size_hint().exact();
        if length.is_some_and(|length| length > limits.bytes) {
            return Err(refused(too_large(limits.bytes), source));
        }
        let mut state = State::new();
        let (model, named) = if let Some(model) = named {
            (model, Named::Outside)
        } else {
            // However small its pieces are, and however often they come.
            let found = find(&mut source, &boundary, limits, &mut state);
            let found = tokio::time::timeout(limits.idle, found).await;
            match found.unwrap_or_else(|_| Err(too_slow())) {
                Ok(model) => {
                    let inside = Named::Inside(model.len());
                    (model, inside)
                }
                Err(error) => return Err(refused(error, source)),
            }
        };
        state.source = Some(source);
        Self::of(state, boundary, length, (model, named), limits, waits)
    }

    /// A form that is sent on as it is.
    pub fn raw(
        source: Source,
        content_type: Option<&[u8]>,
        limits: Limits,
        waits: bool,
    ) -> Result<Arc<Self>, Box<Refused>> {
        let length = source.size_hint().exact();
        let error = match multipart::boundary(content_type.unwrap_or_default()) {
            Ok(_) if length.is_some_and(|length| length > limits.bytes) => too_large(limits.bytes),
            Ok(boundary) => {
                let mut state = State::new();
                state.source = Some(source);
                let named = (String::new(), Named::Nobody);
                return Self::of(state, boundary, length, named, limits, waits);
            }
            Err(fault) => unsupported(fault),
        };
        Err(Box::new(Refused {
            error,
            rest: Some(source),
        }))
    }

    fn of(
        state: State,
        boundary: String,
        length: Option<u64>,
        (model, named): (String, Named),
        limits: Limits,
        waits: bool,
    ) -> Result<Arc<Self>, Box<Refused>> {
        let quoted = boundary
            .bytes()
            .any(|byte| b"()<>@,;:\\\"/[]?=".contains(&byte));
        let mark = if quoted { "\"" } else { "" };
        let text = format!("multipart/form-data; boundary={mark}{boundary}{mark}");
        let content_type = HeaderValue::try_from(text).map_err(|cause| {
            Box::new(Refused {
                error: Error::new(Kind::Internal, "The request could not be read.").cause(cause),
                rest: None,
            })
        })?;
        Ok(Arc::new(Self {
            boundary,
            content_type,
            length,
            model,
            named,
            limits,
            waits,
            state: Mutex::new(state),
        }))
    }

    /// The model's name as the client wrote it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What the form is sent as.
    pub fn content_type(&self) -> &HeaderValue {
        &self.content_type
    }

    /// Bytes of the whole body, or of what has come of it.
    pub fn size(&self) -> u64 {
        self.length.unwrap_or_else(|| self.state.lock().read)
    }

    /// Why it could not be read to its end.
    pub fn fault(&self) -> Option<Error> {
        self.state.lock().fault.clone()
    }

    /// When something of it came last.
    pub fn moved(&self) -> Instant {
        self.state.lock().moved
    }

    /// Whether its end has been read.
    pub fn is_read(&self) -> bool {
        self.state.lock().ended
    }

    /// Whether it can be sent once more.
    pub fn is_kept(&self) -> bool {
        let state = self.state.lock();
        state.kept.is_some() && state.fault.is_none()
    }

    /// The body for a target that knows the model by this name; what was made before sends nothing
    /// more. None where something of it is gone.
    pub fn body(self: &Arc<Self>, model: &str) -> Option<UploadBody> {
        let mut state = self.state.lock();
        if state.kept.is_none() || state.fault.is_some() {
            return None;
        }
        state.reader += 1;
        let rule = match &self.named {
            Named::Nobody => None,
            Named::Inside(_) => Some(Rule::Replace(model.to_owned())),
            Named::Outside => Some(Rule::Put {
                named: self.model.clone(),
                model: model.to_owned(),
            }),
        };
        let remaining = match &self.named {
            Named::Nobody => self.length,
            Named::Inside(old) => self
                .length
                .and_then(|length| (length + model.len() as u64).checked_sub(*old as u64)),
            // What of it will be left out is not known.
            Named::Outside => None,
        };
        let scanner = rule.map(|rule| Scanner::new(&self.boundary, rule));
        Some(UploadBody::new(
            Arc::clone(self),
            state.reader,
            scanner,
            remaining,
        ))
    }
}

impl Drop for Upload {
    /// What its sender still sends is read, so that it gets to read the answer.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if state.ended || state.fault.is_some() || (self.waits && state.read == 0) {
            return;
        }
        if let Some(source) = state.source.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(drain(source));
        }
    }
}

impl State {
    fn new() -> Self {
        Self {
            source: None,
            ended: false,
            kept: Some(Kept::default()),
            kept_bytes: 0,
            read: 0,
            reader: 0,
            fault: None,
            moved: Instant::now(),
        }
    }

    /// Something has come. It is kept while that is little.
    fn came(&mut self, chunk: &Bytes, most: usize) {
        self.read += chunk.len() as u64;
        self.moved = Instant::now();
        self.kept_bytes += chunk.len();
        if self.kept_bytes > most {
            self.kept = None;
        }
        if let Some(kept) = &mut self.kept {
            kept.push(chunk);
        }
    }
}

impl Kept {
    fn push(&mut self, chunk: &Bytes) {
        let is_small = chunk.len() < SMALL;
        if is_small {
            self.tail.extend_from_slice(chunk);
        }
        if self.tail.len() >= SMALL || !(is_small || self.tail.is_empty()) {
            self.chunks.push(self.tail.split().freeze());
        }
        if !is_small {
            self.chunks.push(chunk.clone());
        }
    }

    fn end(&self) -> At {
        At {
            chunks: self.chunks.len(),
            bytes: self.tail.len(),
        }
    }

    /// What comes after `at`, which moves behind it.
    fn next(&self, at: &mut At) -> Option<Bytes> {
        if let Some(chunk) = self.chunks.get(at.chunks) {
            at.chunks += 1;
            return Some(chunk.slice(std::mem::take(&mut at.bytes).min(chunk.len())..));
        }
        let rest = self.tail.get(at.bytes..).filter(|rest| !rest.is_empty())?;
        at.bytes = self.tail.len();
        Some(Bytes::copy_from_slice(rest))
    }
}

/// Reads a form until its model is known.
async fn find(
    source: &mut Source,
    boundary: &str,
    limits: Limits,
    state: &mut State,
) -> Result<String, Error> {
    let mut scanner = Scanner::new(boundary, Rule::Find);
    let mut passed = BytesMut::new();
    loop {
        let Some(chunk) = next(source).await? else {
            scanner.end().map_err(malformed)?;
            return Err(missing());
        };
        state.came(&chunk, usize::MAX);
        if state.read > limits.bytes {
            return Err(too_large(limits.bytes));
        }
        scanner.feed(&chunk, &mut passed).map_err(malformed)?;
        passed.clear();
        if let Some(model) = scanner.model() {
            return Ok(model.to_owned());
        }
        if scanner.is_over() {
            return Err(missing());
        }
        if state.kept_bytes > limits.head_bytes {
            return Err(late(limits.head_bytes));
        }
    }
}

async fn next(source: &mut Source) -> Result<Option<Bytes>, Error> {
    std::future::poll_fn(|cx| poll_next(source, cx)).await
}

/// The next data of a body.
fn poll_next(source: &mut Source, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
    loop {
        match Pin::new(&mut *source).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Poll::Ready(Ok(Some(data)));
                }
            }
            Poll::Ready(Some(Err(()))) => return Poll::Ready(Err(broken())),
            Poll::Ready(None) => return Poll::Ready(Ok(None)),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Reads and drops what a body still has.
pub async fn drain(mut source: Source) {
    let reading = async {
        let mut left = DRAIN_BYTES;
        while let Ok(Some(chunk)) = next(&mut source).await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    // A sender that takes longer sees its connection closed instead.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

#[cfg(test)]
#[expect(clippy::panic, reason = "tests")]
mod tests {
    use futures_util::StreamExt;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    const LIMITS: Limits = Limits {
        bytes: 1 << 20,
        head_bytes: 1 << 20,
        idle: Duration::from_secs(30),
    };
    const TYPE: Option<&[u8]> = Some(b"multipart/form-data; boundary=x");

    fn form(file: usize) -> Vec<u8> {
        let mut form = b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n".to_vec();
        form.extend(vec![b'f'; file]);
        form.extend(
            b"\r\n--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x--\r\n",
        );
        form
    }

    /// A body of pieces of these sizes, in turn, each after a pause.
    fn pieces(bytes: Vec<u8>, sizes: &'static [usize], pause: Duration) -> Source {
        let mut rest = Bytes::from(bytes);
        let mut sizes = sizes.iter().cycle();
        let pieces = std::iter::from_fn(move || {
            let size = (*sizes.next()?).min(rest.len());
            (size > 0).then(|| rest.split_to(size))
        });
        let frames = futures_util::stream::iter(pieces).then(move |piece| async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            Ok(Frame::data(piece))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    #[tokio::test]
    async fn small_pieces_are_kept_joined_and_sent_in_order() {
        for sizes in [&[1][..], &[1, 5000, 7], &[4096], &[4095, 1, 1]] {
            let source = pieces(form(20_000), sizes, Duration::ZERO);
            let opened = Upload::open(source, TYPE, None, LIMITS, false).await;
            let Ok(upload) = opened else {
                panic!("{sizes:?}");
            };
            assert_eq!(upload.model(), "m");
            for _ in 0..2 {
                let body = upload.body("m").map(BodyExt::collect);
                let Some(Ok(body)) = (match body {
                    Some(body) => Some(body.await),
                    None => None,
                }) else {
                    panic!("{sizes:?}");
                };
                assert_eq!(body.to_bytes(), form(20_000), "{sizes:?}");
            }
            let state = upload.state.lock();
            let chunks = state.kept.as_ref().map(|kept| kept.chunks.len());
            assert!(
                chunks.is_some_and(|chunks| chunks <= 12),
                "{sizes:?}: {chunks:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_takes_too_long_to_come_is_not_waited_for() {
        let source = pieces(form(1000), &[1], Duration::from_secs(1));
        let since = Instant::now();
        let refused = Upload::open(source, TYPE, None, LIMITS, false).await;
        let code = refused.err().and_then(|refused| refused.error.code);
        assert_eq!(code.as_deref(), Some("slow_body"));
        assert_eq!(since.elapsed(), LIMITS.idle);
    }
}
