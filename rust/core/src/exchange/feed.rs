//! What an upstream sends of a stream, as the client gets it: OpenAI's as it is, other dialects turned
//! into it first.
use bytes::{Bytes, BytesMut};

use super::Job;
use super::body::speaks;
use crate::dialect::{Dialect, Transcoder};
use crate::error::Error;
use crate::relay::StreamRelay;
use crate::snapshot::Target;
use crate::usage::Usage;

/// One stream in flight.
pub(super) struct Feed {
    transcoder: Option<Box<Transcoder>>,
    relay: StreamRelay,
}

impl Feed {
    /// A stream of this target's at its start.
    pub(super) fn new(job: &Job, target: &Target) -> Self {
        let dialect = speaks(job, target);
        let transcoder = (dialect != Dialect::OpenAi).then(|| {
            let most = job.shape.max_event_bytes;
            Box::new(Transcoder::new(
                dialect,
                Dialect::OpenAi,
                job.context(),
                most,
            ))
        });
        Self {
            transcoder,
            relay: StreamRelay::new(job.shape),
        }
    }

    /// As [`StreamRelay::feed`].
    pub(super) fn feed(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        let Some(transcoder) = &mut self.transcoder else {
            return self.relay.feed(chunk, out);
        };
        let mut turned = BytesMut::new();
        let fed = transcoder.feed(chunk, &mut turned);
        // What came before a failure is the client's.
        self.relay.feed(turned.freeze(), out)?;
        fed
    }

    /// As [`StreamRelay::end`].
    pub(super) fn end(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        if let Some(transcoder) = &mut self.transcoder
            && !self.relay.is_done()
        {
            let mut turned = BytesMut::new();
            let ended = transcoder.end(&mut turned);
            self.relay.feed(turned.freeze(), out)?;
            ended?;
        }
        self.relay.end(out)
    }

    /// As [`StreamRelay::is_done`].
    pub(super) const fn is_done(&self) -> bool {
        self.relay.is_done()
    }

    /// As [`StreamRelay::is_started`].
    pub(super) const fn is_started(&self) -> bool {
        self.relay.is_started()
    }

    /// As [`StreamRelay::content_events`].
    pub(super) const fn content_events(&self) -> u64 {
        self.relay.content_events()
    }

    /// As [`StreamRelay::usage`].
    pub(super) const fn usage(&self) -> Option<(Usage, bool)> {
        self.relay.usage()
    }

    /// As [`StreamRelay::finish_reason`].
    pub(super) fn finish_reason(&self) -> Option<&str> {
        self.relay.finish_reason()
    }
}
