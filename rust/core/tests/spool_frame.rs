//! The framing of the spool's records.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
use forebay_core::spool::frame::*;
use proptest::prelude::*;

fn record(kind: Kind, seq: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(0);
    let mut out = header(kind, seq, len, crc32c::crc32c(payload)).to_vec();
    out.extend_from_slice(payload);
    out.resize(size(kind, payload.len()), 0);
    out
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Begin, Kind::Attempt, Kind::End, Kind::Entry])
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        records in prop::collection::vec((kinds(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
    ) {
        let mut bytes: Vec<u8> = records
            .iter()
            .flat_map(|(kind, seq, payload)| record(*kind, *seq, payload))
            .collect();
        bytes.extend([0; 512]);
        let mut at = 0;
        for (kind, seq, payload) in &records {
            let frame = read(&bytes, at).unwrap().unwrap();
            prop_assert_eq!((frame.kind, frame.seq), (*kind, *seq));
            prop_assert_eq!(&bytes[frame.at..frame.at + frame.len], &payload[..]);
            at = frame.end();
        }
        prop_assert_eq!(read(&bytes, at), Ok(None));
    }

    /// Any torn or flipped record is told, or is not there at all; what follows is found.
    #[test]
    fn damage_is_told(
        payload in prop::collection::vec(any::<u8>(), 1..200),
        cut in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        let whole = record(Kind::End, 7, &payload);
        let covered = HEADER + payload.len();
        let mut torn = whole.clone();
        let at = cut.index(covered);
        torn[at..].fill(0);
        torn.extend(record(Kind::Entry, 8, b"next"));
        match read(&torn, 0) {
            Ok(None) | Err(Damaged) => {}
            // Zeros were torn off.
            Ok(Some(_)) => prop_assert_eq!(&torn[..whole.len()], &whole[..]),
        }
        let mut flipped = whole.clone();
        // The zero bytes of the header say nothing.
        let at = if (17..HEADER).contains(&at) { 16 } else { at };
        flipped[at] ^= flip;
        prop_assert_ne!(read(&flipped, 0).map(|f| f.map(|f| f.seq)), Ok(Some(7)));
        flipped.extend(record(Kind::Entry, 8, b"next"));
        if read(&flipped, 0) == Err(Damaged) {
            prop_assert_eq!(resync(&flipped, 8), Some(whole.len()));
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0_usize..2100) {
        let _ = read(&bytes, at);
        let _ = resync(&bytes, at);
    }
}
