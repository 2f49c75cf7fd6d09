//! What holds of the dialects for every input; shared by fuzzing and tests.
use bytes::{Bytes, BytesMut};
use forebay_core::dialect::{self, Context, Dialect, Options, Transcoder};
use serde_json::Value;

const DIALECTS: [Dialect; 5] = [
    Dialect::OpenAi,
    Dialect::Anthropic,
    Dialect::Gemini,
    Dialect::Converse,
    Dialect::Responses,
];

/// What tests ask for unless they say otherwise.
pub(crate) const fn options() -> Options<'static> {
    Options {
        model: "some-model",
        stream: false,
        drop_params: false,
        max_output_tokens: 4096,
    }
}

/// Transcode `stream` cut into pieces of the lengths in `cuts`, repeated; no cuts, or a 0, is all that
/// is left. Gives what came out, and the error's kind and message.
pub(crate) fn transcode(
    from: Dialect,
    to: Dialect,
    stream: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Option<(&'static str, String)>) {
    let context = Context {
        id: "answer-1".to_owned(),
        model: "any \"model\"".to_owned(),
        created: 1_700_000_000,
    };
    let mut transcoder = Transcoder::new(from, to, context, 1 << 20);
    let mut out = BytesMut::new();
    let mut rest = Bytes::copy_from_slice(stream);
    let mut cuts = cuts.iter().cycle();
    let mut result = Ok(());
    while !rest.is_empty() && result.is_ok() {
        let cut = cuts.next().copied().filter(|cut| *cut > 0);
        let chunk = rest.split_to(cut.unwrap_or(usize::MAX).min(rest.len()));
        result = transcoder.feed(chunk, &mut out);
    }
    let result = result.and_then(|()| transcoder.end(&mut out));
    let error = result.err();
    let error = error.map(|error| (error.kind.name(), error.message.into_owned()));
    (out.into(), error)
}

/// A stream says the same in every chunking.
pub(crate) fn check_stream(stream: &[u8], cuts: &[usize]) {
    for from in DIALECTS {
        for to in DIALECTS {
            let whole = transcode(from, to, stream, &[]);
            assert_eq!(
                whole,
                transcode(from, to, stream, cuts),
                "{from:?} to {to:?}"
            );
        }
    }
}

/// Requests and answers are JSON or an error that can be shown; what is refused is named.
pub(crate) fn check(input: &[u8], cuts: &[usize]) {
    let context = Context::default();
    for from in DIALECTS {
        match dialect::enter(from, input, &options()) {
            Ok(entry) => {
                let body: Value = serde_json::from_slice(&entry.body).expect("JSON");
                let messages = body["messages"].as_array().expect("messages");
                assert!(!messages.is_empty());
            }
            Err(error) => assert!(!error.message.is_empty()),
        }
        for to in DIALECTS {
            for drop_params in [false, true] {
                let options = Options {
                    drop_params,
                    ..options()
                };
                match dialect::request(from, to, input, &options) {
                    Ok(done) => {
                        serde_json::from_slice::<Value>(&done.body).expect("JSON");
                    }
                    Err(error) => assert!(!error.message.is_empty()),
                }
            }
            if let Ok(body) = dialect::answer(from, to, input, &context) {
                serde_json::from_slice::<Value>(&body).expect("JSON");
            }
        }
    }
    check_stream(input, cuts);
}
