//! An answer in the client's own dialect: passed on as it came, while it is also turned into OpenAI's,
//! by which it is judged and booked.
use bytes::{Bytes, BytesMut};

use super::Job;
use super::body::speaks;
use crate::dialect::{Dialect, Transcoder};
use crate::door::Native;
use crate::error::Error;
use crate::snapshot::Target;
use crate::sse::Decoder;

/// The client's own request, if this target speaks as it does, in all that it says or beside chat.
pub(super) fn native<'j>(job: &'j Job, target: &Target) -> Option<&'j Native> {
    let dialect = speaks(job, target);
    job.native.as_ref().filter(|native| {
        let beside = native.dialect == Dialect::Responses && target.upstream.offers_responses();
        beside || (native.dialect == dialect && dialect != Dialect::OpenAi)
    })
}

/// Passes a stream on, event by event: none of them before the transcoder has taken it, so that an
/// error's is not the client's.
pub(super) struct Tee {
    decoder: Decoder,
    /// What the client gets and has not.
    out: BytesMut,
}

impl Tee {
    /// max_event_bytes: the longest event taken.
    pub(super) fn new(max_event_bytes: usize) -> Self {
        Self {
            decoder: Decoder::new(max_event_bytes),
            out: BytesMut::new(),
        }
    }

    /// Takes bytes; what `transcoder` makes of each event goes to `judge`, which says whether it was
    /// the last.
    pub(super) fn feed(
        &mut self,
        chunk: Bytes,
        transcoder: &mut Transcoder,
        mut judge: impl FnMut(Bytes) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let overflow = self.decoder.feed(chunk).err();
        while let Some(frame) = self.decoder.next() {
            if self.event(&frame.raw, transcoder, &mut judge)? {
                return Ok(());
            }
        }
        overflow.map_or(Ok(()), |cause| Err(Error::oversized_event(cause)))
    }

    /// The stream's end: an event that lacks only its blank line is one all the same.
    pub(super) fn end(
        &mut self,
        transcoder: &mut Transcoder,
        mut judge: impl FnMut(Bytes) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if let Some(frame) = self.decoder.finish() {
            let mut whole = BytesMut::from(&frame.raw[..]);
            let ended = whole.ends_with(b"\n");
            whole.extend_from_slice(if ended { b"\n" } else { b"\n\n" });
            if self.event(&whole.freeze(), transcoder, &mut judge)? {
                return Ok(());
            }
        }
        let mut turned = BytesMut::new();
        let ended = transcoder.end(&mut turned);
        judge(turned.freeze())?;
        ended
    }

    fn event(
        &mut self,
        raw: &Bytes,
        transcoder: &mut Transcoder,
        judge: &mut impl FnMut(Bytes) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut turned = BytesMut::new();
        let fed = transcoder.feed(raw.clone(), &mut turned);
        let last = judge(turned.freeze())?;
        fed?;
        self.out.extend_from_slice(raw);
        Ok(last)
    }

    /// How much the client gets and has not, bytes.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// What the client gets and has not.
    pub(super) fn take(&mut self) -> BytesMut {
        std::mem::take(&mut self.out)
    }
}
