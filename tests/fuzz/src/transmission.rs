//! Anything at all from a client that has chosen an export and a framing properly.
//!
//! Every request that has arrived whole before the connection is over must be answered once and completely; what is one is
//! decided here by a second, independent reading of the protocol.

use std::collections::BTreeMap;

use crate::session::{Reader, Surroundings, feed, number};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

/// A request that was sent whole.
struct Sent {
    command: u16,
    length: u64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const STATUS: u16 = 7;
const PAYLOAD_LEN: u16 = 32;

/// The first byte says how the world is, the second what the client has chosen, the rest is what it sends then.
pub fn transmission(data: &[u8]) {
    let [world, choice, bytes @ ..] = data else { return };
    let framing = [Framing::Simple, Framing::Structured, Framing::Extended][usize::from(choice % 3)];
    let asks = framing != Framing::Simple && choice & 0x40 != 0;
    let mut said = opening(framing, asks, choice & 0x80 != 0);
    let mut bytes = bytes.to_vec();
    let sent = split(framing, &mut bytes);
    said.extend(bytes);
    let answered = feed(Surroundings::new(*world), said);
    let mut answered = Reader(&answered);
    skip_opening(&mut answered);
    check(framing, asks, sent, answered);
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn opening(framing: Framing, asks: bool, wants_sizes: bool) -> Vec<u8> {
    let mut said = 3_u32.to_be_bytes().to_vec();
    match framing {
        Framing::Simple => {}
        Framing::Structured => said.extend(option(8, b"")),
        Framing::Extended => said.extend(option(11, b"")),
    }
    if asks {
        let text = |text: &[u8]| [&(text.len() as u32).to_be_bytes(), text].concat();
        let names = [&b"base:allocation"[..], b"raidd:health", b"raidd:dirty"].map(text).concat();
        said.extend(option(10, &[text(b"vol0"), 3_u32.to_be_bytes().to_vec(), names].concat()));
    }
    let infos: &[u8] = if wants_sizes { &[0, 1, 0, 3] } else { &[0, 0] };
    said.extend(option(7, &[&[0, 0, 0, 4], &b"vol0"[..], infos].concat()));
    said
}

/// Everything up to the ACK of GO.
fn skip_opening(answered: &mut Reader<'_>) {
    answered.take(18).expect("a greeting");
    loop {
        let header = answered.take(20).expect("answers to the options");
        answered.take(number(&header[16..]) as usize).expect("their data");
        let kind = number(&header[12..16]);
        assert!(kind < 0x8000_0000, "the opening is in order, but: {kind:#x}");
        if (number(&header[8..12]), kind) == (7, 1) {
            return;
        }
    }
}

/// The requests among these bytes that are whole, by their cookies, which are made unique.
fn split(framing: Framing, bytes: &mut [u8]) -> BTreeMap<u64, Sent> {
    let (header_len, magic) = match framing {
        Framing::Extended => (32, 0x21e4_1c71),
        Framing::Simple | Framing::Structured => (28, 0x2560_9513),
    };
    let mut sent = BTreeMap::new();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + header_len) {
        let (flags, command) = (number(&header[4..6]) as u16, number(&header[6..8]) as u16);
        let length = number(&header[24..]);
        if number(&header[..4]) != magic || command == DISC {
            break;
        }
        let cookie = 1 + sent.len() as u64;
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        let announced = framing == Framing::Extended && flags & PAYLOAD_LEN != 0;
        let payload = if command == WRITE || announced { length } else { 0 };
        at += header_len;
        match usize::try_from(payload).ok().and_then(|payload| at.checked_add(payload)) {
            Some(end) if end <= bytes.len() => at = end,
            _ => break,
        }
        sent.insert(cookie, Sent { command, length });
    }
    sent
}

fn check(framing: Framing, asks: bool, mut sent: BTreeMap<u64, Sent>, mut answered: Reader<'_>) {
    while !answered.0.is_empty() {
        match framing {
            Framing::Simple => check_simple(&mut sent, &mut answered),
            Framing::Structured | Framing::Extended => check_chunk(framing, asks, &mut sent, &mut answered),
        }
        .expect("a reply is whole");
    }
    assert!(sent.is_empty(), "{} requests were not answered", sent.len());
}

fn check_simple(sent: &mut BTreeMap<u64, Sent>, answered: &mut Reader<'_>) -> Option<()> {
    let header = answered.take(16)?;
    assert_eq!(number(&header[..4]), 0x6744_6698);
    let request = sent.remove(&number(&header[8..])).expect("a reply to a request");
    let error = check_error(number(&header[4..8]));
    if request.command == READ && error == 0 {
        answered.take(usize::try_from(request.length).expect("a READ that was done"))?;
    }
    Some(())
}

fn check_chunk(
    framing: Framing,
    asks: bool,
    sent: &mut BTreeMap<u64, Sent>,
    answered: &mut Reader<'_>,
) -> Option<()> {
    let is_extended = framing == Framing::Extended;
    let header = answered.take(if is_extended { 32 } else { 20 })?;
    assert_eq!(number(&header[..4]), if is_extended { 0x6e8a_278c } else { 0x668e_33ef });
    let (flags, kind, cookie) = (number(&header[4..6]), number(&header[6..8]), number(&header[8..16]));
    let length = number(if is_extended { &header[24..] } else { &header[16..] }) as usize;
    let payload = answered.take(length)?;
    let request = sent.get(&cookie).expect("a chunk for a request");
    match kind {
        0 => assert!(payload.is_empty() && (request.command != READ || request.length == 0)),
        1 => assert!(request.command == READ && request.length + 8 == length as u64),
        5 | 6 => {
            assert!(request.command == STATUS && asks && (kind == 6) == is_extended);
            let (head, width) = if is_extended { (8, 8) } else { (4, 4) };
            let extents = payload[head..].chunks_exact(2 * width);
            assert!(extents.len() > 0 && extents.remainder().is_empty());
            assert!(extents.map(|extent| number(&extent[..width])).all(|len| len > 0));
        }
        0x8001 => {
            assert!(check_error(number(&payload[..4])) != 0);
            assert_eq!(number(&payload[4..6]) as usize, payload.len() - 6);
        }
        _ => panic!("a chunk of kind {kind:#x}"),
    }
    assert!(flags <= 1 && (flags == 1 || matches!(kind, 5 | 6)));
    if flags == 1 {
        sent.remove(&cookie);
    }
    Some(())
}

fn check_error(error: u64) -> u64 {
    assert!([0, 1, 5, 12, 22, 28, 75, 95, 108].contains(&error), "error {error} is none of the protocol's");
    error
}
