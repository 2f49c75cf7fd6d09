//! Answers that pass as they are, but for what the gateway answers for: what is kept.
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::Error;
use crate::sse::{Decoder, Frame};

use super::super::json::{self, Object, Path, Text, pairs};
use super::output::Failed;

/// A response's own id.
pub(crate) fn id_of(response: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        id: Text<'a>,
    }
    let named: Named<'_> = serde_json::from_str(response).ok()?;
    Some(named.id.0.into_owned())
}

/// What the gateway says of a response in the upstream's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// Whether it can be named as a previous response.
    pub(crate) stored: bool,
    /// The one before it.
    pub(crate) previous: Option<String>,
}

impl Kept {
    /// An upstream's response as the client gets it.
    pub(crate) fn response(&self, json: &str) -> Result<Vec<u8>, Error> {
        let mut out = BytesMut::with_capacity(json.len() + 64);
        Object::write(&mut out, |object| {
            let (mut stored, mut previous) = (false, false);
            for (name, raw) in pairs(json, &Path::ROOT)? {
                match &*name {
                    "store" => {
                        stored = true;
                        object.put("store", self.stored);
                    }
                    "previous_response_id" => {
                        previous = true;
                        object.put("previous_response_id", self.previous.as_deref());
                    }
                    _ => object.put_named(&name, raw),
                }
            }
            if !stored {
                object.put("store", self.stored);
            }
            if !previous {
                object.put("previous_response_id", self.previous.as_deref());
            }
            Ok::<(), Error>(())
        })?;
        Ok(out.into())
    }
}

/// An upstream's stream on its way to the client. Its last event waits until it is known whether the
/// response was stored.
pub(crate) struct Native {
    decoder: Decoder,
    kept: Kept,
    /// The last event, and its response.
    last: Option<(Bytes, String)>,
    /// The response as it was told last.
    begun: Option<Vec<u8>>,
    /// Of the next event.
    sequence: u64,
}

#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(default)]
    sequence_number: Option<u64>,
}

impl Native {
    /// A stream at its start. max_event_bytes: the longest event taken.
    pub(crate) fn new(kept: Kept, max_event_bytes: usize) -> Self {
        Self {
            decoder: Decoder::new(max_event_bytes),
            kept,
            last: None,
            begun: None,
            sequence: 0,
        }
    }

    /// Takes bytes of the stream and appends what the client gets.
    pub(crate) fn feed(&mut self, chunk: Bytes, out: &mut BytesMut) -> Result<(), Error> {
        let overflow = self.decoder.feed(chunk).err();
        while let Some(frame) = self.decoder.next() {
            self.frame(&frame, out)?;
        }
        overflow.map_or(Ok(()), |cause| Err(Error::oversized_event(cause)))
    }

    fn frame(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        let data = frame.data();
        let told = data
            .as_ref()
            .and_then(|data| serde_json::from_slice::<Told<'_>>(data).ok());
        if let Some(number) = told.as_ref().and_then(|told| told.sequence_number) {
            self.sequence = number.saturating_add(1);
        }
        let response = told.as_ref().and_then(|told| told.response);
        let (Some(told), Some(response)) = (&told, response) else {
            out.extend_from_slice(&frame.raw);
            return Ok(());
        };
        if matches!(
            &*told.r#type.0,
            "response.completed" | "response.incomplete"
        ) {
            let data = data.clone().unwrap_or_default();
            self.last = Some((data, response.get().to_owned()));
            return Ok(());
        }
        self.begun = Some(self.kept.response(response.get())?);
        let data = data.as_deref().unwrap_or_default();
        self.event(data, out)
    }

    /// Appends that it failed.
    pub(crate) fn fail(&mut self, failed: &Failed<'_>, out: &mut BytesMut) {
        let sequence = self.sequence;
        out.extend_from_slice(b"event: error\ndata: ");
        Object::write(out, |event| {
            event.put("type", "error");
            event.put("sequence_number", sequence);
            failed.event(event);
        });
        out.extend_from_slice(b"\n\n");
        let begun = self.begun.take().unwrap_or_default();
        let begun = simdutf8::basic::from_utf8(&begun).unwrap_or_default();
        let Ok(begun) = pairs(begun, &Path::ROOT) else {
            return;
        };
        out.extend_from_slice(b"event: response.failed\ndata: ");
        Object::write(out, |event| {
            event.put("type", "response.failed");
            event.put("sequence_number", sequence + 1);
            event.object("response", |response| {
                for (name, raw) in begun {
                    match &*name {
                        "status" => response.put("status", "failed"),
                        "error" => response.object("error", |error| {
                            error.put("code", failed.kind);
                            error.put("message", failed.message);
                        }),
                        _ => response.put_named(&name, raw),
                    }
                }
            });
        });
        out.extend_from_slice(b"\n\n");
    }

    fn event(&self, data: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let json = simdutf8::basic::from_utf8(data).unwrap_or_default();
        let told = pairs(json, &Path::ROOT)?;
        out.extend_from_slice(b"event: ");
        let name = told.iter().find(|(name, _)| name == "type");
        let name = name.and_then(|(_, raw)| json::text(raw, &Path::ROOT).ok());
        out.extend_from_slice(name.unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\ndata: ");
        Object::write(out, |object| {
            for (name, raw) in told {
                if name == "response" {
                    let response = self.kept.response(raw.get())?;
                    object.member("response").extend_from_slice(&response);
                } else {
                    object.put_named(&name, raw);
                }
            }
            Ok::<(), Error>(())
        })?;
        out.extend_from_slice(b"\n\n");
        Ok(())
    }

    /// The response that waits to be stored.
    pub(crate) fn waiting(&self) -> Option<&str> {
        self.last.as_ref().map(|(_, response)| response.as_str())
    }

    /// Appends the last event.
    pub(crate) fn last(&mut self, stored: bool, out: &mut BytesMut) -> Result<(), Error> {
        self.kept.stored = stored;
        match self.last.take() {
            Some((data, _)) => self.event(&data, out),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tree(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap_or_default()
    }

    #[test]
    fn a_stream_in_pieces_passes_whole_and_its_end_waits() {
        let event = |kind: &str, rest: Value| {
            let mut value = json!({"type": kind, "sequence_number": 3});
            value["response"] = rest;
            format!("event: {kind}\ndata: {value}\n\n")
        };
        let delta = "event: d\ndata: {\"type\":\"d\",  \"x\":1}\n\n";
        let ended = json!({"id": "resp_1", "store": false, "error": null});
        let stream = format!("{delta}{}", event("response.completed", ended));
        for cut in [1, 7, 1000] {
            let kept = Kept {
                stored: true,
                previous: Some("resp_0".to_owned()),
            };
            let mut native = Native::new(kept, 1 << 16);
            let mut out = BytesMut::new();
            for piece in stream.as_bytes().chunks(cut) {
                assert!(native.feed(Bytes::copy_from_slice(piece), &mut out).is_ok());
            }
            assert_eq!(out, delta.as_bytes());
            assert!(native.waiting().is_some());
            out.clear();
            assert!(native.last(false, &mut out).is_ok());
            let text = String::from_utf8_lossy(&out).into_owned();
            let data = text.split_once("data: ").map_or("", |(_, data)| data);
            let response = &tree(data.as_bytes())["response"];
            let told = json!({"id": "resp_1", "store": false, "error": null,
                              "previous_response_id": "resp_0"});
            assert_eq!(*response, told);
        }
    }
}
