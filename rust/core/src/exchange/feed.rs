//! What an upstream sends of a stream, as the client gets it: OpenAI's as it is, other dialects turned
//! into it first; and what carries another engine's stream on, joined to that.
use bytes::{Bytes, BytesMut};

use super::Job;
use super::body::speaks;
use super::native::{Tee, native};
use crate::dialect::{Dialect, Transcoder};
use crate::error::Error;
use crate::relay::StreamRelay;
use crate::resume::Splice;
use crate::snapshot::Target;
use crate::usage::Usage;

/// What an answer's stream goes through on its way to the client.
pub(super) enum Path {
    /// A relay of its own; with `true` it is remembered what was passed on of one choice.
    Fresh(bool),
    /// The join, and the relay of a stream that broke off.
    Rejoined(Box<(Splice, StreamRelay)>),
}

/// One stream in flight.
pub(super) struct Feed {
    transcoder: Option<Box<Transcoder>>,
    /// The client gets what the target sends, not what that is turned into.
    tee: Option<Box<Tee>>,
    splice: Option<Splice>,
    relay: StreamRelay,
    /// Events with content before this engine's, where another one began the stream.
    before: Option<u64>,
}

impl Feed {
    /// A stream of this target's at its start.
    pub(super) fn new(job: &Job, target: &Target, path: Path) -> Self {
        // Another engine's stream is carried on in the words in which it began.
        let whole = matches!(path, Path::Fresh(_));
        let own = native(job, target).filter(|_| whole);
        let dialect = own.map_or_else(|| speaks(job, target), |own| own.dialect);
        let transcoder = (dialect != Dialect::OpenAi).then(|| {
            let most = job.shape.max_event_bytes;
            Box::new(Transcoder::new(
                dialect,
                Dialect::OpenAi,
                job.context(),
                most,
            ))
        });
        let tee = own
            .is_some()
            .then(|| Box::new(Tee::new(job.shape.max_event_bytes)));
        let (splice, relay) = match path {
            // What was passed on is not what another engine could go on from.
            Path::Fresh(_) if tee.is_some() => (None, StreamRelay::new(job.shape)),
            Path::Fresh(true) if job.single => (None, StreamRelay::new(job.shape).followed()),
            Path::Fresh(_) => (None, StreamRelay::new(job.shape)),
            Path::Rejoined(join) => (Some(join.0), join.1),
        };
        Self {
            transcoder,
            tee,
            before: splice.as_ref().map(|_| relay.content_events()),
            splice,
            relay,
        }
    }

    /// As [`StreamRelay::feed`]. Of a stream in the client's own words `out` gets OpenAI's; the client
    /// gets [`Feed::told`].
    pub(super) fn feed(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        let Some(transcoder) = &mut self.transcoder else {
            return self.join(chunk, out);
        };
        if let Some(tee) = &mut self.tee {
            let relay = &mut self.relay;
            if relay.is_done() {
                return Ok(());
            }
            return tee.feed(chunk, transcoder, |turned| {
                relay.feed(turned, out)?;
                Ok(relay.is_done())
            });
        }
        let mut turned = BytesMut::new();
        let fed = transcoder.feed(chunk, &mut turned);
        // What came before a failure is the client's.
        self.join(turned.freeze(), out)?;
        fed
    }

    /// Through the join, if there is one, to the relay.
    fn join(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        let Some(splice) = &mut self.splice else {
            return self.relay.feed(chunk, out);
        };
        let mut joined = BytesMut::new();
        let fed = splice.feed(chunk, &mut joined);
        self.relay.feed(joined.freeze(), out)?;
        fed
    }

    /// As [`StreamRelay::end`].
    pub(super) fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        if let Some(transcoder) = &mut self.transcoder
            && let Some(tee) = &mut self.tee
            && !self.relay.is_done()
        {
            let relay = &mut self.relay;
            tee.end(transcoder, |turned| {
                relay.feed(turned, out)?;
                Ok(relay.is_done())
            })?;
        } else if let Some(transcoder) = &mut self.transcoder
            && !self.relay.is_done()
        {
            let mut turned = BytesMut::new();
            let ended = transcoder.end(&mut turned);
            self.join(turned.freeze(), out)?;
            ended?;
        }
        if let Some(splice) = &mut self.splice {
            let mut joined = BytesMut::new();
            splice.end(&mut joined)?;
            self.relay.feed(joined.freeze(), out)?;
        }
        self.relay.end(out)
    }

    /// Whether the client gets what the target sends.
    pub(super) const fn is_native(&self) -> bool {
        self.tee.is_some()
    }

    /// How much the client gets and has not, where that is not what was fed; bytes.
    pub(super) fn waiting(&self) -> usize {
        self.tee.as_ref().map_or(0, |tee| tee.waiting())
    }

    /// What the client gets and has not, where that is not what was fed.
    pub(super) fn told(&mut self) -> Option<BytesMut> {
        self.tee.as_mut().map(|tee| tee.take())
    }

    /// The relay alone, with all that it has passed on.
    pub(super) fn into_relay(self) -> StreamRelay {
        self.relay
    }

    /// The stream was ended at its join, of which the engine does not know.
    pub(super) fn ended_at_join(&self) -> bool {
        self.splice.as_ref().is_some_and(Splice::is_done)
    }

    /// As [`StreamRelay::is_done`].
    pub(super) const fn is_done(&self) -> bool {
        self.relay.is_done()
    }

    /// As [`StreamRelay::is_started`], of this engine's part.
    pub(super) fn is_started(&self) -> bool {
        let ended = || self.relay.is_done() || self.relay.finish_reason().is_some();
        match self.before {
            None => self.relay.is_started(),
            Some(before) => self.relay.content_events() > before || ended(),
        }
    }

    /// As [`StreamRelay::content_events`].
    pub(super) const fn content_events(&self) -> u64 {
        self.relay.content_events()
    }

    /// As [`StreamRelay::usage`]. Of a stream that is turned, what was told on its way where no usage
    /// has come: some tell the input at the start, and OpenAI's words for that come at the end.
    pub(super) fn usage(&self) -> Option<(Usage, bool)> {
        self.relay.usage().or_else(|| {
            let told = self.transcoder.as_ref()?.usage()?;
            let completion = told.completion.max(self.relay.content_events());
            Some((Usage { completion, ..told }, false))
        })
    }

    /// As [`StreamRelay::finish_reason`].
    pub(super) fn finish_reason(&self) -> Option<&str> {
        self.relay.finish_reason()
    }
}
