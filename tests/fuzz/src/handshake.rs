//! Anything at all from the first byte of a connection on.

use crate::session::{Reader, Surroundings, feed, number};

/// The first byte says how the world is, the rest is what the client sends. Answers to options must be whole, until the
/// transmission phase begins.
pub fn handshake(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    let answered = feed(Surroundings::new(first), bytes.to_vec());
    let mut answered = Reader(&answered);
    assert_eq!(answered.take(18), Some(&b"NBDMAGICIHAVEOPT\0\x03"[..]));
    while !answered.0.is_empty() {
        let Some(header) = answered.take(20).filter(|header| number(&header[..8]) == 0x0003_e889_0455_65a9)
        else {
            // EXPORT_NAME is answered in a form of its own.
            return;
        };
        let (option, kind) = (number(&header[8..12]), number(&header[12..16]));
        let data = answered.take(number(&header[16..]) as usize).expect("an answer is whole");
        assert!(matches!(kind, 1..=4) || (0x8000_0001..=0x8000_000a).contains(&kind), "kind {kind:#x}");
        assert!(kind != 1 || data.is_empty(), "an ACK has no data");
        assert!(kind < 0x8000_0000 || std::str::from_utf8(data).is_ok(), "texts are UTF-8");
        if (option, kind) == (7, 1) {
            return;
        }
    }
}
