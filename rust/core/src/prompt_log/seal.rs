//! Encryption of what is written down: AES-256-GCM.
//!
//! `nonce (12 bytes) ‖ ciphertext ‖ tag (16 bytes)`; associated data are the event's id and which
//! text it is, so that none can be put in another one's place. Nonces are random: one key seals 2³²
//! texts before two alike are to be feared (NIST SP 800-38D §8.3).
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// Which of an entry's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the client sent.
    Request = 0,
    /// What it got.
    Answer = 1,
}

/// A key, and the name by which a reader finds it.
pub struct Sealer {
    name: Arc<str>,
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    /// Of a key of 32 bytes in base64; an error on any other.
    pub fn new(name: &str, key: &str) -> Result<Self, String> {
        let bytes = base64(key)
            .filter(|bytes| bytes.len() == 32)
            .ok_or_else(|| format!("key {name}: not 32 bytes in base64"))?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| format!("key {name}: not 32 bytes in base64"))?;
        Ok(Self {
            name: Arc::from(name),
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
        })
    }

    /// The key's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The text, sealed; `None` when the system gives no random bytes.
    pub fn seal(&self, event_id: &[u8; 16], part: Part, text: &str) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut out = Vec::with_capacity(NONCE_LEN + text.len() + AES_256_GCM.tag_len());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(text.as_bytes());
        let sealed = out.get_mut(NONCE_LEN..)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(event_id, part)),
                sealed,
            )
            .ok()?;
        out.extend_from_slice(tag.as_ref());
        Some(out)
    }

    /// The text of what [`Sealer::seal`] gave; `None` if any of it, its event or its part differs.
    pub fn open(&self, event_id: &[u8; 16], part: Part, sealed: &[u8]) -> Option<String> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let mut rest = rest.to_vec();
        let text = self
            .key
            .open_in_place(
                Nonce::try_assume_unique_for_key(nonce).ok()?,
                Aad::from(associated(event_id, part)),
                &mut rest,
            )
            .ok()?;
        String::from_utf8(text.to_vec()).ok()
    }
}

fn associated(event_id: &[u8; 16], part: Part) -> [u8; 17] {
    let mut data = [part as u8; 17];
    if let Some(id) = data.first_chunk_mut() {
        *id = *event_id;
    }
    data
}

/// Standard base64, padded or not (RFC 4648 §4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let bytes = bits.to_be_bytes();
        let count = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        out.extend(bytes.iter().skip(1).take(count));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_rfc_4648_has_it() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYmFy", b"foobar"),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(base64("Zg="), Some(b"f".to_vec()));
        for bad in ["Z", "Zm9v!", "Zm9vY"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }
}
