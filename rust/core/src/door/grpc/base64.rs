//! Base64 (RFC 4648 §4), padded, both ways.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What each byte stands for; 64 and more: nothing.
const VALUES: [u8; 256] = {
    let mut values = [0xFF; 256];
    let mut index = 0;
    while index < 64 {
        #[expect(clippy::indexing_slicing, reason = "at compile time")]
        {
            values[ALPHABET[index] as usize] = index as u8;
        }
        index += 1;
    }
    values
};

/// Appends `bytes` as base64.
pub(super) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut word = 0_u32;
        for byte in three {
            word = word << 8 | u32::from(*byte);
        }
        word <<= 8 * (3 - three.len());
        let mut four = [b'='; 4];
        for (index, place) in four.iter_mut().take(three.len() + 1).enumerate() {
            let six = word >> (18 - 6 * index) & 63;
            *place = ALPHABET.get(six as usize).copied().unwrap_or(b'=');
        }
        out.extend_from_slice(&four);
    }
}

/// Appends what `text` stands for. False: it is no base64, and what was appended means nothing.
///
/// Strict: whole groups of four, padding only at the end, no bits in it that say nothing.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> bool {
    if !text.len().is_multiple_of(4) {
        return false;
    }
    let padding = text
        .iter()
        .rev()
        .take(2)
        .filter(|byte| **byte == b'=')
        .count();
    let Some(body) = text.get(..text.len() - padding) else {
        return false;
    };
    out.reserve(text.len() / 4 * 3);
    for four in body.chunks(4) {
        let mut word = 0_u32;
        for byte in four {
            let six = VALUES.get(usize::from(*byte)).copied().unwrap_or(0xFF);
            if six >= 64 {
                return false;
            }
            word = word << 6 | u32::from(six);
        }
        word <<= 6 * (4 - four.len());
        let [_, bytes @ ..] = word.to_be_bytes();
        let (whole, rest) = bytes.split_at(four.len() - 1);
        if rest.iter().any(|byte| *byte != 0) {
            return false;
        }
        out.extend_from_slice(whole);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            encode(plain.as_bytes(), &mut out);
            assert_eq!(out, coded.as_bytes());
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "Zg", "Zg=", "Zh==", "Zm9=", "====", "Z===", "Zg==Zg==", "Zm 9", "Zm-_",
        ] {
            assert!(!decode(text.as_bytes(), &mut Vec::new()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(bytes: Vec<u8>) {
            let (mut text, mut back) = (Vec::new(), Vec::new());
            encode(&bytes, &mut text);
            prop_assert!(decode(&text, &mut back));
            prop_assert_eq!(back, bytes);
        }
    }
}
