//! The head of one part of a form: its name, read so strictly that no two readers differ.
use super::multipart::Fault;
use crate::peek::CONTROL_FIELDS;

/// What a part is, as far as the gateway acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The field `model`.
    Model,
    /// Any other.
    Other,
}

/// Reads a part's head, without the empty line after it.
///
/// Errors: no field's head, or one that may be read in two ways as far as `model` is concerned: what
/// the gateway takes for the model and what the engine takes for it must be the same.
pub(super) fn read(head: &[u8]) -> Result<Part, Fault> {
    let mut name = None;
    let mut is_file = false;
    let mut is_encoded = false;
    for line in lines(head) {
        let line = line?;
        let colon = memchr::memchr(b':', line).ok_or(Fault::Head)?;
        let (field, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        if field.is_empty() || !field.iter().all(|byte| is_token(*byte)) {
            return Err(Fault::Head);
        }
        if field.eq_ignore_ascii_case(b"content-disposition") {
            if name.is_some() {
                return Err(Fault::Head);
            }
            let (named, file) = disposition(value)?;
            (name, is_file) = (Some(named), file);
        }
        is_encoded |= field.eq_ignore_ascii_case(b"content-transfer-encoding");
    }
    let name = name.ok_or(Fault::Head)?;
    if CONTROL_FIELDS.iter().any(|field| name == field.as_bytes()) {
        return Err(Fault::Control);
    }
    if name != b"model" {
        // What some reader may take for it once it has undone escapes of its own.
        return if may_be_model(&name) {
            Err(Fault::Head)
        } else {
            Ok(Part::Other)
        };
    }
    if is_file || is_encoded {
        return Err(Fault::Model);
    }
    Ok(Part::Model)
}

/// The lines of a head. A line that is folded, or ended by half a line end, is an error.
fn lines(head: &[u8]) -> impl Iterator<Item = Result<&[u8], Fault>> {
    let mut rest = Some(head);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = memchr::memmem::find(text, b"\r\n");
        let line = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
        rest = end.and_then(|end| text.get(end + 2..));
        let folded = matches!(line.first(), None | Some(b' ' | b'\t'));
        let control = line
            .iter()
            .any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7F);
        Some(if folded || control {
            Err(Fault::Head)
        } else {
            Ok(line)
        })
    })
}

/// The name in a `content-disposition`, and whether the part is a file (RFC 7578 §4.2).
fn disposition(value: &[u8]) -> Result<(Vec<u8>, bool), Fault> {
    let mut rest = value.trim_ascii();
    let kind = rest.get(..9).ok_or(Fault::Head)?;
    if !kind.eq_ignore_ascii_case(b"form-data") {
        return Err(Fault::Head);
    }
    rest = rest.get(9..).unwrap_or_default().trim_ascii();
    let (mut name, mut is_file) = (None, false);
    while let Some(after) = rest.strip_prefix(b";") {
        let after = after.trim_ascii_start();
        if after.is_empty() {
            // A semicolon at the end says nothing.
            rest = after;
            break;
        }
        let equals = memchr::memchr(b'=', after).ok_or(Fault::Head)?;
        let (key, after) = after.split_at(equals);
        if key.is_empty() || !key.iter().all(|byte| is_token(*byte)) {
            return Err(Fault::Head);
        }
        let (value, after) = parameter(after.get(1..).unwrap_or_default())?;
        rest = after.trim_ascii_start();
        if key.eq_ignore_ascii_case(b"name") {
            if name.replace(value).is_some() {
                return Err(Fault::Head);
            }
        } else if key.to_ascii_lowercase().starts_with(b"name") {
            // name*, name*0: which of them counts is read in several ways.
            return Err(Fault::Head);
        } else {
            is_file |= key.to_ascii_lowercase().starts_with(b"filename");
        }
    }
    if !rest.is_empty() {
        return Err(Fault::Head);
    }
    Ok((name.ok_or(Fault::Head)?, is_file))
}

/// A parameter's value as it stands, and what follows it.
fn parameter(text: &[u8]) -> Result<(Vec<u8>, &[u8]), Fault> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| !is_token(*byte));
        let (value, rest) = text.split_at(end.unwrap_or(text.len()));
        return if value.is_empty() {
            Err(Fault::Head)
        } else {
            Ok((value.to_vec(), rest))
        };
    };
    let mut escaped = false;
    for (at, byte) in quoted.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let (value, rest) = quoted.split_at(at);
                return Ok((value.to_vec(), rest.get(1..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(Fault::Head)
}

/// Whether a name that is not `model` becomes it by undoing escapes, or dropping space or case.
fn may_be_model(name: &[u8]) -> bool {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' | b' ' | b'\t' | b'"' | b'\'' => {}
            b'%' => {
                let digit = |at: usize| {
                    let digit = after.get(at).map(|byte| char::from(*byte));
                    digit.and_then(|digit| digit.to_digit(16))
                };
                match (digit(0), digit(1)) {
                    (Some(high), Some(low)) => {
                        plain.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                        rest = after.get(2..).unwrap_or_default();
                    }
                    _ => plain.push(b'%'),
                }
            }
            byte => plain.push(*byte),
        }
    }
    plain.eq_ignore_ascii_case(b"model")
}

/// A character of a token (RFC 9110 §5.6.2).
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(disposition: &str) -> Result<Part, Fault> {
        read(format!("Content-Disposition: {disposition}").as_bytes())
    }

    #[test]
    fn the_model_is_told_from_other_fields() {
        for text in [
            "form-data; name=\"model\"",
            "form-data; name=model",
            "Form-Data;name=\"model\";",
        ] {
            assert_eq!(of(text), Ok(Part::Model), "{text}");
        }
        for text in [
            "form-data; name=\"file\"; filename=\"a;b=\\\"c.wav\"",
            "form-data; name=\"models\"",
            "form-data; name=\"timestamp_granularities[]\"",
            "form-data; name=\"file\"; filename=\"name=\\\"model\\\"\"",
            "form-data; name=\"file\"; filename*=UTF-8''a.wav",
        ] {
            assert_eq!(of(text), Ok(Part::Other), "{text}");
        }
    }

    #[test]
    fn what_may_be_read_in_two_ways_is_refused() {
        for text in [
            "form-data; name=\"mod\\el\"",
            "form-data; name=\"%6dodel\"",
            "form-data; name=\" model\"",
            "form-data; name=\"Model\"",
            "form-data; name=\"file\"; name=\"model\"",
            "form-data; name=\"file\"; name*=utf-8''model",
            "form-data; name=\"model",
            "form-data; name=",
            "form-data; name=\"a\"b",
            "form-data",
            "attachment; name=\"model\"",
            "form-data; name=\"file\" name=\"model\"",
        ] {
            assert_eq!(of(text), Err(Fault::Head), "{text}");
        }
        assert_eq!(
            of("form-data; name=\"model\"; filename=\"m\""),
            Err(Fault::Model)
        );
        let coded =
            b"Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: base64";
        assert_eq!(read(coded), Err(Fault::Model));
        assert_eq!(of("form-data; name=\"lora_path\""), Err(Fault::Control));
    }

    #[test]
    fn a_head_is_lines_of_fields() {
        for head in [
            "",
            "Content-Type: text/plain",
            "Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"b\"",
            "Content-Disposition: form-data;\r\n name=\"a\"",
            "Content-Disposition: form-data; name=\"a\"\nX: y",
            "Content-Disposition: form-data; name=\"a\"\rX: y",
            "Content-Disposition : form-data; name=\"a\"",
            "Content-Disposition: form-data; name=\"a\"\r\n",
            "no field",
        ] {
            assert_eq!(read(head.as_bytes()), Err(Fault::Head), "{head:?}");
        }
    }
}
