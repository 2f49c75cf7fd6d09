//! Forms as they go by: the model found and replaced, whatever the pieces; nothing else changed.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
use bytes::BytesMut;
use forebay_core::pass::multipart::{Fault, Rule, Scanner, boundary};
use proptest::prelude::*;

const BOUND: &str = "X-9";

/// One field of a form.
fn part(name: &str, more: &str, content: &[u8]) -> Vec<u8> {
    let mut out =
        format!("--{BOUND}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n")
            .into_bytes();
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
    out
}

fn form(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut out = parts.concat();
    out.extend_from_slice(format!("--{BOUND}--\r\n").as_bytes());
    out
}

/// What a scanner makes of a form in pieces of these sizes.
fn scan(rule: &Rule, bytes: &[u8], sizes: &[usize]) -> Result<(Vec<u8>, Option<String>), Fault> {
    let mut scanner = Scanner::new(BOUND, rule.clone());
    let mut out = BytesMut::new();
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = (*sizes.next().unwrap_or(&1)).clamp(1, rest.len());
        let (piece, after) = rest.split_at(size);
        scanner.feed(piece, &mut out)?;
        rest = after;
    }
    scanner.end()?;
    Ok((out.to_vec(), scanner.model().map(str::to_owned)))
}

fn replace(model: &str) -> Rule {
    Rule::Replace(model.to_owned())
}

fn put(named: &str, model: &str) -> Rule {
    Rule::Put {
        named: named.to_owned(),
        model: model.to_owned(),
    }
}

fn file(content: &[u8]) -> Vec<u8> {
    part(
        "file",
        "; filename=\"a.wav\"\r\nContent-Type: audio/wav",
        content,
    )
}

#[test]
fn the_model_is_found_and_replaced_wherever_it_stands_cut_at_every_byte() {
    let content = b"RIFF\r\n--X-8\r\n\r\n--X\r\r\n-\0\xff";
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let with = |model: &str| {
            let parts = [
                part("model", "", model.as_bytes()),
                file(content),
                part("prompt", "", b""),
            ];
            form(&order.map(|at| parts[at].clone()))
        };
        let bytes = with("whisper");
        let wanted = with("openai/whisper-large-v3");
        for cut in 0..bytes.len() {
            let sizes = [cut.max(1), bytes.len()];
            let found = scan(&replace("openai/whisper-large-v3"), &bytes, &sizes).unwrap();
            assert_eq!(found, (wanted.clone(), Some("whisper".to_owned())), "{cut}");
            let same = scan(&Rule::Find, &bytes, &sizes).unwrap();
            assert_eq!(same, (bytes.clone(), Some("whisper".to_owned())));
        }
        let single = scan(&replace("openai/whisper-large-v3"), &bytes, &[1]).unwrap();
        assert_eq!(single.0, wanted);
    }
}

#[test]
fn a_model_that_is_named_elsewhere_is_put_first_and_its_field_left_out() {
    let wanted = form(&[part("model", "", b"m-1"), file(b"abc")]);
    for bytes in [
        form(&[file(b"abc")]),
        form(&[file(b"abc"), part("model", "", b"m")]),
        form(&[part("model", "", b"m"), file(b"abc")]),
    ] {
        for cut in 1..bytes.len() {
            let (out, _) = scan(&put("m", "m-1"), &bytes, &[cut, bytes.len()]).unwrap();
            assert_eq!(
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&wanted)
            );
        }
    }
    let other = form(&[file(b"abc"), part("model", "", b"other")]);
    assert_eq!(scan(&put("m", "m-1"), &other, &[7]), Err(Fault::Models));
}

#[test]
fn what_two_readers_could_take_apart_differently_is_refused() {
    let good = part("model", "", b"m");
    let cases: Vec<(Vec<u8>, Fault)> = vec![
        // A preamble, which a reader may skip or not.
        (
            [b"\r\n".to_vec(), form(std::slice::from_ref(&good))].concat(),
            Fault::Delimiter,
        ),
        (
            [b"hello\r\n".to_vec(), form(std::slice::from_ref(&good))].concat(),
            Fault::Delimiter,
        ),
        // Padding after a boundary, and half a line end before one.
        (
            b"--X-9 \r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--X-9--".to_vec(),
            Fault::Delimiter,
        ),
        (
            b"--X-9\nContent-Disposition: form-data; name=\"a\"\n\nb\n--X-9--".to_vec(),
            Fault::Delimiter,
        ),
        (
            form(&[part(
                "a",
                "",
                b"b\n--X-9\nContent-Disposition: form-data; name=\"model\"",
            )]),
            Fault::Delimiter,
        ),
        (form(&[part("a", "", b"b\r--X-9--")]), Fault::Delimiter),
        // A longer boundary that begins with this one.
        (form(&[part("a", "", b"b\r\n--X-99")]), Fault::Delimiter),
        // A boundary right after a head, which shares its line end.
        (
            b"--X-9\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n--X-9--\r\n".to_vec(),
            Fault::Delimiter,
        ),
        // Something after the end.
        (
            [form(std::slice::from_ref(&good)), b"x".to_vec()].concat(),
            Fault::Delimiter,
        ),
        (
            [form(std::slice::from_ref(&good)), good.clone()].concat(),
            Fault::Delimiter,
        ),
        (form(&[good.clone(), good.clone()]), Fault::Models),
        (
            form(&[part("model", "; filename=\"m\"", b"m")]),
            Fault::Model,
        ),
        (form(&[part("model", "", &[b'm'; 300])]), Fault::Model),
        (form(&[part("model", "", b"\xff")]), Fault::Model),
        (form(&[part("mod\\el", "", b"m")]), Fault::Head),
        (form(&[part("lora_path", "", b"m")]), Fault::Control),
        (part("model", "", b"m"), Fault::Early),
        (
            b"--X-9\r\nContent-Disposition: form-data; name=\"a\"".to_vec(),
            Fault::Early,
        ),
        (b"".to_vec(), Fault::Early),
        (vec![part("a", "", b"b"); 300].concat(), Fault::Parts),
    ];
    for (bytes, fault) in cases {
        for size in [1, 5, bytes.len().max(1)] {
            let found = scan(&replace("other"), &bytes, &[size]);
            assert_eq!(found, Err(fault), "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn a_head_that_does_not_end_is_not_held() {
    let mut scanner = Scanner::new(BOUND, Rule::Find);
    let mut out = BytesMut::new();
    scanner.feed(b"--X-9\r\n", &mut out).unwrap();
    let line = vec![b'a'; 1024];
    let fault = (0..100).find_map(|_| scanner.feed(&line, &mut out).err());
    assert_eq!(fault, Some(Fault::Head));
}

#[test]
fn boundaries_are_read_from_the_content_type() {
    for (text, found) in [
        ("multipart/form-data; boundary=abc", Some("abc")),
        ("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"", None),
        ("multipart/form-data;boundary=\"a:b\"", Some("a:b")),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ("multipart/form-data; boundary=\"abc", None),
        ("multipart/mixed; boundary=abc", None),
        ("application/json", None),
    ] {
        assert_eq!(boundary(text.as_bytes()).ok().as_deref(), found, "{text}");
    }
    let long = format!("multipart/form-data; boundary={}", "a".repeat(71));
    assert_eq!(boundary(long.as_bytes()), Err(Fault::Boundary));
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    // Made of what boundaries are made of, so that many come near to one.
    let piece = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"--X-8".to_vec()),
        Just(b"-".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"--X".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Any contents in any pieces: the model is replaced, every other byte is as it was.
    #[test]
    fn only_the_model_changes(
        contents in proptest::collection::vec(content(), 0..4),
        at in 0_usize..4,
        model in "[a-z0-9/:._-]{1,40}",
        target in "[a-z0-9/:._-]{1,40}",
        sizes in proptest::collection::vec(1_usize..40, 1..6),
    ) {
        let with = |model: &str| {
            let mut parts: Vec<_> = contents.iter().map(|content| file(content)).collect();
            parts.insert(at.min(parts.len()), part("model", "", model.as_bytes()));
            form(&parts)
        };
        prop_assume!(contents.iter().all(|content| {
            !content.windows(5).any(|window| window == b"--X-9")
        }));
        let found = scan(&replace(&target), &with(&model), &sizes).unwrap();
        prop_assert_eq!(found, (with(&target), Some(model)));
    }

    /// Whatever comes, in whatever pieces: the same decision, the same bytes, and no panic.
    #[test]
    fn pieces_do_not_matter(
        noise in content(),
        cut in 0_usize..400,
        sizes in proptest::collection::vec(1_usize..40, 1..6),
    ) {
        let mut bytes = form(&[part("model", "", b"m"), file(b"abc")]);
        let at = cut.min(bytes.len());
        bytes.splice(at..at, noise);
        for rule in [Rule::Find, replace("n"), put("m", "n")] {
            let whole = scan(&rule, &bytes, &[usize::MAX]);
            prop_assert_eq!(whole, scan(&rule, &bytes, &sizes));
        }
    }
}
