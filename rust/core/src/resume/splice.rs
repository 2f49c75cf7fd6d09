//! The second engine's events, rewritten so that the client sees one stream.
use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;

use crate::error::{Error, Kind};
use crate::resume::chunk::{Chunk, Delta, Edit, is_something, quoted, text};
use crate::resume::delivered::Delivered;
use crate::resume::stops::{Stops, Straddle};
use crate::resume::usage::{Before, ending};
use crate::sse::{Decoder, Frame};
use crate::usage::Usage;

/// Rewrites a continuation's events: id, creation time, model and fingerprint are those of the
/// first event, the role comes once, usage is that of the whole answer. Bytes in, bytes out; what
/// comes out goes through the relay like any engine's stream.
///
/// The engine was given the text without the white space at its end, so white space that it begins
/// with is repeated as far as it is the same: that is taken out. Nothing else is taken for a
/// repetition, as a text may well repeat itself.
#[derive(Clone)]
pub struct Splice {
    decoder: Decoder,
    before: Before,
    /// White space that was delivered and not given to the engine.
    owed: String,
    straddle: Option<Straddle>,
    /// The role was delivered.
    has_role: bool,
    /// The engine's latest usage.
    part: Option<Usage>,
    events: u64,
    done: bool,
}

impl Splice {
    pub(super) fn new(
        delivered: &Delivered,
        completions: bool,
        stops: Stops,
        max_event_bytes: usize,
    ) -> Self {
        let solid = delivered.solid_text().len();
        Self {
            decoder: Decoder::new(max_event_bytes),
            before: Before {
                head: delivered.head.clone().unwrap_or_default(),
                completions,
                usage: delivered.usage,
                tokens: delivered.solid,
            },
            owed: delivered.text().get(solid..).unwrap_or_default().to_owned(),
            straddle: Straddle::new(stops, delivered.text()),
            has_role: delivered.head.is_some(),
            part: None,
            events: 0,
            done: false,
        }
    }

    /// Takes what the engine sent and appends what the relay is to be fed.
    ///
    /// Errors: an event that is too large, or one that shows that the engine does not carry the
    /// answer on. `out` holds what came before.
    pub fn feed(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        if self.done {
            return Ok(());
        }
        let overflow = self.decoder.feed(chunk).err();
        while let Some(frame) = self.decoder.next() {
            self.frame(&frame, out)?;
            if self.done {
                return Ok(());
            }
        }
        overflow.map_or(Ok(()), |cause| Err(Error::oversized_event(cause)))
    }

    /// The engine closed its side: an event that lacks only its blank line counts.
    pub fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        if self.done {
            return Ok(());
        }
        match self.decoder.finish() {
            Some(frame) if frame.data().is_some_and(|data| is_whole(&data)) => {
                self.frame(&frame, out)
            }
            _ => Ok(()),
        }
    }

    /// The answer ended at the join, which the engine does not know: stop it.
    pub const fn is_done(&self) -> bool {
        self.done
    }

    fn frame(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        let Some(data) = frame.data() else {
            out.extend_from_slice(&frame.raw);
            return Ok(());
        };
        let Some(chunk) = Chunk::parse(&data) else {
            // The end marker; and what is no event of an answer the relay judges.
            out.extend_from_slice(&frame.raw);
            return Ok(());
        };
        if chunk.choices.is_none() && chunk.usage.is_none() {
            out.extend_from_slice(&frame.raw);
            return Ok(());
        }
        if let Some(usage) = chunk.usage.and_then(|raw| Usage::parse(raw.get())) {
            self.part = Some(usage);
        }
        let mut edit = Edit::new(&data);
        let head = &self.before.head;
        for (value, first) in [
            (chunk.id, &head.id),
            (chunk.created, &head.created),
            (chunk.model, &head.model),
            (chunk.system_fingerprint, &head.fingerprint),
        ] {
            if let (Some(value), Some(first)) = (value, first) {
                edit.replace(value, &**first);
            }
        }
        if let Some(usage) = chunk.usage
            && let Some(whole) = self.before.rewritten(usage)
        {
            edit.replace(usage, whole);
        }
        let choice = chunk.choices.as_deref().and_then(<[_]>::first);
        let Some(choice) = choice else {
            edit.write(out);
            return Ok(());
        };
        let delta = choice.delta.as_ref();
        if delta.is_some_and(Delta::reasons) && self.before.tokens > 0 {
            return Err(Error::new(
                Kind::UpstreamError,
                "The answer broke off and could not be continued.",
            )
            .cause("the engine reasons where it should have gone on with its text"));
        }
        let said = choice.said();
        let spoken = is_something(said);
        let mut left = spoken;
        if let Some(raw) = said.filter(|_| spoken)
            && let Some(piece) = text(raw)
        {
            self.events += 1;
            let fresh = self.unowed(&piece);
            if let Some(kept) = self.straddle.as_mut().and_then(|it| it.end(fresh)) {
                let kept = fresh.get(..kept).unwrap_or_default().to_owned();
                self.stop(raw, &kept, edit, chunk.usage.is_some(), out);
                return Ok(());
            }
            if self.straddle.as_ref().is_some_and(Straddle::is_past) {
                self.straddle = None;
            }
            if fresh.len() < piece.len() {
                edit.replace(raw, quoted(fresh));
                left = !fresh.is_empty();
            }
        }
        let more = left
            || is_something(choice.finish_reason)
            || delta.is_some_and(|delta| delta.reasons() || delta.calls() || delta.other());
        // A second role, and an event that only repeats, say nothing new.
        let idle = spoken || delta.is_some_and(|delta| is_something(delta.role));
        if !more && idle && self.has_role {
            return Ok(());
        }
        edit.write(out);
        Ok(())
    }

    /// What of `piece` was not delivered before.
    fn unowed<'p>(&mut self, piece: &'p str) -> &'p str {
        if self.owed.is_empty() {
            return piece;
        }
        let owed = std::mem::take(&mut self.owed);
        let same: usize = piece
            .chars()
            .zip(owed.chars())
            .take_while(|(now, then)| now == then)
            .map(|(now, _)| now.len_utf8())
            .sum();
        if same == piece.len() {
            owed.get(same..)
                .unwrap_or_default()
                .clone_into(&mut self.owed);
        }
        piece.get(same..).unwrap_or_default()
    }

    /// Ends the answer within this event, of which `kept` is left.
    fn stop(
        &mut self,
        raw: &RawValue,
        kept: &str,
        mut edit: Edit<'_>,
        counted: bool,
        out: &mut BytesMut,
    ) {
        if !kept.is_empty() {
            edit.replace(raw, quoted(kept));
            edit.write(out);
        }
        let usage = match (self.part, self.before.usage) {
            (Some(part), _) if counted => Some(self.before.whole(&part)),
            (Some(part), _) => Some(Usage {
                completion: self.before.tokens + part.completion.max(self.events),
                ..self.before.whole(&part)
            }),
            (None, Some(first)) => Some(Usage {
                completion: self.before.tokens + self.events,
                ..first
            }),
            (None, None) => None,
        };
        ending(
            &self.before.head,
            self.before.completions,
            Some("stop"),
            usage,
            out,
        );
        self.done = true;
    }
}

fn is_whole(data: &[u8]) -> bool {
    data.starts_with(b"[DONE]") || serde_json::from_slice::<&RawValue>(data).is_ok()
}
