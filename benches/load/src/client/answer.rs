//! Reading and judging one answer.

use std::io;

use memchr::memmem;

use super::{Failure, Plan};
use crate::shapes::read_stamp;
use crate::stats::{Fault, Stats};
use crate::wire::{Dechunker, EventSplitter, Framing, bad, framing};

/// One answer on its way in.
pub(super) struct Answer<'a> {
    plan: &'a Plan,
    status: u16,
    pub(super) framing: Framing,
    left: usize,
    decoder: Dechunker,
    splitter: EventSplitter,
    body: Vec<u8>,
    counts: Counts,
    in_body: bool,
    pub(super) ended: bool,
    touched: bool,
}

#[derive(Default)]
struct Counts {
    content: u64,
    last_ns: Option<u64>,
    done: bool,
    stray: bool,
    error_event: Option<String>,
    any: bool,
}

impl<'a> Answer<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            status: 0,
            framing: Framing::default(),
            left: 0,
            decoder: Dechunker::default(),
            splitter: EventSplitter::default(),
            body: Vec::new(),
            counts: Counts::default(),
            in_body: false,
            ended: false,
            touched: false,
        }
    }

    pub(super) fn untouched(&self) -> bool {
        !self.touched
    }

    pub(super) fn feed(
        &mut self,
        buffer: &mut Vec<u8>,
        now: u64,
        began: u64,
    ) -> Result<(), Failure> {
        let wrong = |error: io::Error| (Fault::Body, error.to_string());
        {
            let mut stats = self.plan.stats.borrow_mut();
            stats.reads += 1;
            if !self.touched {
                stats.first_byte.saturating_record(now - began);
            }
        }
        self.touched = true;
        if !self.in_body {
            let Some(end) = self.head(buffer).map_err(wrong)? else {
                return Ok(());
            };
            buffer.drain(..end);
        }
        let input = std::mem::take(buffer);
        let outcome = self.body(&input, now, began).map_err(wrong);
        *buffer = input;
        buffer.clear();
        outcome
    }

    /// Reads the head when it is whole: its length.
    fn head(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(length) = parsed
                .parse(buffer)
                .map_err(|_| bad("malformed response head"))?
            else {
                return Ok(None);
            };
            self.status = parsed.code.unwrap_or(0);
            self.framing = framing(parsed.headers)?;
            if (100..200).contains(&self.status) {
                buffer.drain(..length);
                continue;
            }
            self.in_body = true;
            self.left = self.framing.length.unwrap_or(usize::MAX);
            // With neither length nor chunks the body ends with the connection.
            self.framing.close |= self.framing.length.is_none() && !self.framing.chunked;
            return Ok(Some(length));
        }
    }

    fn body(&mut self, input: &[u8], now: u64, began: u64) -> io::Result<()> {
        let events = self.plan.options.workload.streams() && self.status == 200;
        let mut stats = self.plan.stats.borrow_mut();
        let (body, splitter, counts) = (&mut self.body, &mut self.splitter, &mut self.counts);
        let mut outcome = Ok(());
        let mut sink = |part: &[u8]| {
            stats.bytes += part.len() as u64;
            if !events {
                body.extend_from_slice(part);
            } else if outcome.is_ok() {
                outcome = splitter.feed(part, |event| counts.event(event, &mut stats, now, began));
            }
        };
        if self.framing.chunked {
            self.decoder.feed(input, &mut sink)?;
            self.ended = self.decoder.done();
        } else {
            let part = input.get(..self.left.min(input.len())).unwrap_or_default();
            sink(part);
            if self.framing.length.is_some() {
                self.left -= part.len();
                self.ended = self.left == 0;
            }
        }
        outcome
    }

    /// The connection was closed: whole only when the body had no other end.
    pub(super) fn at_close(&self) -> Result<(), Failure> {
        if self.in_body && self.framing.length.is_none() && !self.framing.chunked {
            return self.judge();
        }
        Err((Fault::Io, String::from("closed before the answer's end")))
    }

    /// Whether a whole answer is a right one.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        let counts = &self.counts;
        let text =
            || String::from_utf8_lossy(self.body.get(..200).unwrap_or(&self.body)).into_owned();
        if self.status != 200 {
            return Err((Fault::Status, format!("{}: {}", self.status, text())));
        }
        if !self.plan.options.workload.streams() {
            let body = self.body.trim_ascii();
            let whole = body.starts_with(b"{")
                && body.ends_with(b"}")
                && memmem::find(body, b"\"usage\"").is_some();
            return if whole {
                Ok(())
            } else {
                Err((Fault::Body, text()))
            };
        }
        if let Some(error) = &counts.error_event {
            return Err((Fault::Body, error.clone()));
        }
        if counts.stray {
            return Err((
                Fault::Body,
                String::from("something that is no event of this stream"),
            ));
        }
        if !counts.done || self.splitter.held() > 0 {
            let message = format!(
                "no [DONE] at the end: {} content events, {} bytes of an unfinished one",
                counts.content,
                self.splitter.held()
            );
            return Err((Fault::NoDone, message));
        }
        let want = self.plan.options.expected_events();
        if counts.content != want {
            return Err((
                Fault::Short,
                format!("{} of {want} content events", counts.content),
            ));
        }
        Ok(())
    }
}

impl Counts {
    fn event(&mut self, event: &[u8], stats: &mut Stats, now: u64, began: u64) {
        let Some(data) = event.strip_prefix(b"data:") else {
            // Comments are allowed anywhere.
            self.stray |= !event.starts_with(b":");
            return;
        };
        if !self.any {
            self.any = true;
            stats.first_event.saturating_record(now - began);
        }
        self.stray |= self.done;
        let data = data.trim_ascii_start();
        if let Some((sent, late)) = read_stamp(data) {
            self.content += 1;
            stats.event_at(now);
            stats.delay.saturating_record(now.saturating_sub(sent));
            stats.late.saturating_record(late);
            if let Some(last) = self.last_ns.replace(now) {
                stats.gap.saturating_record(now - last);
            }
        } else if data.starts_with(b"[DONE]") {
            self.done = true;
        } else if data.starts_with(b"{\"error\"") {
            self.error_event = Some(String::from_utf8_lossy(data).into_owned());
        }
    }
}
