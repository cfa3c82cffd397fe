//! What is said after the handshake: requests and replies, in the three framings that a client may have chosen.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, Errno, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
};
use crate::io::Extent;

/// How requests and replies look. A client chooses it with STRUCTURED_REPLY or EXTENDED_HEADERS, or leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(in crate::nbd) enum Framing {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, replies in chunks.
    Structured,
    /// Requests with 64-bit lengths, replies in chunks with the same.
    Extended,
}

impl Framing {
    /// Bytes of a request's header.
    pub(in crate::nbd) const fn request_bytes(self) -> usize {
        match self {
            Framing::Simple | Framing::Structured => size_of::<CompactRequest>(),
            Framing::Extended => size_of::<ExtendedRequest>(),
        }
    }

    fn chunk_header_bytes(self) -> usize {
        match self {
            Framing::Simple => 0,
            Framing::Structured => size_of::<StructuredHeader>(),
            Framing::Extended => size_of::<ExtendedHeader>(),
        }
    }
}

/// A request's header, not yet checked against anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nbd) struct Request {
    pub(in crate::nbd) flags: u16,
    pub(in crate::nbd) command: u16,
    /// The client's; echoed, never looked at.
    pub(in crate::nbd) cookie: u64,
    pub(in crate::nbd) offset: u64,
    /// What the command is about, or with PAYLOAD_LEN what follows.
    pub(in crate::nbd) length: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CompactRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtendedRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SimpleHeader {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StructuredHeader {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtendedHeader {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

pub(in crate::nbd) const SIMPLE_REPLY_BYTES: usize = size_of::<SimpleHeader>();

const _: () = {
    assert!(size_of::<CompactRequest>() == 28);
    assert!(size_of::<ExtendedRequest>() == 32);
    assert!(size_of::<SimpleHeader>() == 16);
    assert!(size_of::<StructuredHeader>() == 20);
    assert!(size_of::<ExtendedHeader>() == 32);
};

impl Request {
    /// From exactly [`Framing::request_bytes`]. `None` if the magic is wrong: the stream is out of step for good.
    pub(in crate::nbd) fn parse(framing: Framing, bytes: &[u8]) -> Option<Request> {
        if framing == Framing::Extended {
            let request = ExtendedRequest::ref_from_bytes(bytes).ok()?;
            return (request.magic.get() == EXTENDED_REQUEST_MAGIC).then(|| Request {
                flags: request.flags.get(),
                command: request.command.get(),
                cookie: request.cookie.get(),
                offset: request.offset.get(),
                length: request.length.get(),
            });
        }
        let request = CompactRequest::ref_from_bytes(bytes).ok()?;
        (request.magic.get() == REQUEST_MAGIC).then(|| Request {
            flags: request.flags.get(),
            command: request.command.get(),
            cookie: request.cookie.get(),
            offset: request.offset.get(),
            length: request.length.get().into(),
        })
    }

    /// In the compact form, as our client sends it. Panics if the length does not fit.
    pub(in crate::nbd) fn encode(&self) -> [u8; size_of::<CompactRequest>()] {
        zerocopy::transmute!(CompactRequest {
            magic: REQUEST_MAGIC.into(),
            flags: self.flags.into(),
            command: self.command.into(),
            cookie: self.cookie.into(),
            offset: self.offset.into(),
            length: u32::try_from(self.length).expect("a compact request is of less than 4 GiB").into(),
        })
    }
}

/// The payload of a BLOCK_STATUS with PAYLOAD_LEN.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::nbd) struct StatusPayload<'a> {
    /// Bytes that it is about.
    pub(in crate::nbd) length: u64,
    ids: &'a [U32],
}

impl StatusPayload<'_> {
    /// `None` if it has no such form.
    pub(in crate::nbd) fn parse(bytes: &[u8]) -> Option<StatusPayload<'_>> {
        let (length, rest) = U64::read_from_prefix(bytes).ok()?;
        Some(StatusPayload { length: length.get(), ids: <[U32]>::ref_from_bytes(rest).ok()? })
    }

    pub(in crate::nbd) fn ids(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().map(|id| id.get())
    }
}

/// A simple reply's header, as our client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nbd) struct SimpleReply {
    pub(in crate::nbd) cookie: u64,
    pub(in crate::nbd) error: Option<Errno>,
}

impl SimpleReply {
    /// `None` if the magic is wrong.
    pub(in crate::nbd) fn parse(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Option<SimpleReply> {
        let reply = SimpleHeader::ref_from_bytes(bytes).ok()?;
        (reply.magic.get() == SIMPLE_REPLY_MAGIC)
            .then(|| SimpleReply { cookie: reply.cookie.get(), error: Errno::parse(reply.error.get()) })
    }
}

const CHUNK_DONE: u16 = 1 << 0;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
const CHUNK_ERROR: u16 = 0x8001;

/// Longest text that goes with an error.
const TEXT_BYTES_MAX: usize = 160;

/// No reply has more in front of its data.
pub(in crate::nbd) const HEAD_BYTES_MAX: usize = size_of::<ExtendedHeader>() + 6 + TEXT_BYTES_MAX;

/// What a reply begins with, or all of it where there is no data. One chunk at the most: an answer is whole when it leaves.
#[derive(Clone, Copy)]
pub(in crate::nbd) struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    /// In front of so many bytes from `offset` on (0 where there is no data).
    pub(in crate::nbd) fn success(framing: Framing, cookie: u64, offset: u64, data_bytes: usize) -> Head {
        let mut head = Head { bytes: [0; HEAD_BYTES_MAX], len: 0 };
        if framing == Framing::Simple {
            head.push_simple(cookie, 0);
        } else if data_bytes == 0 {
            head.push_chunk(framing, CHUNK_NONE, cookie, offset, 0);
        } else {
            head.push_chunk(framing, CHUNK_OFFSET_DATA, cookie, offset, size_of::<U64>() + data_bytes);
            head.push(U64::new(offset).as_bytes());
        }
        head
    }

    /// All of the reply to a request that was not done. A simple one has no place for the text.
    pub(in crate::nbd) fn failure(
        framing: Framing,
        cookie: u64,
        offset: u64,
        error: Errno,
        why: &str,
    ) -> Head {
        let mut head = Head { bytes: [0; HEAD_BYTES_MAX], len: 0 };
        let error = error as u32;
        if framing == Framing::Simple {
            head.push_simple(cookie, error);
            return head;
        }
        let ends = why.char_indices().map(|(at, c)| at + c.len_utf8());
        let text = &why.as_bytes()[..ends.take_while(|&end| end <= TEXT_BYTES_MAX).last().unwrap_or(0)];
        head.push_chunk(framing, CHUNK_ERROR, cookie, offset, size_of::<(U32, U16)>() + text.len());
        head.push(U32::new(error).as_bytes());
        head.push(U16::new(text.len() as u16).as_bytes());
        head.push(text);
        head
    }

    pub(in crate::nbd) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn push_simple(&mut self, cookie: u64, error: u32) {
        let magic = SIMPLE_REPLY_MAGIC.into();
        self.push(SimpleHeader { magic, error: error.into(), cookie: cookie.into() }.as_bytes());
    }

    fn push_chunk(&mut self, framing: Framing, kind: u16, cookie: u64, offset: u64, payload_bytes: usize) {
        let len = framing.chunk_header_bytes();
        write_chunk_header(
            &mut self.bytes[self.len..][..len],
            framing,
            CHUNK_DONE,
            kind,
            cookie,
            offset,
            payload_bytes,
        );
        self.len += len;
    }
}

fn write_chunk_header(
    out: &mut [u8],
    framing: Framing,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    payload_bytes: usize,
) {
    let (flags, kind, cookie) = (flags.into(), kind.into(), cookie.into());
    match framing {
        Framing::Simple => unreachable!("a simple reply has no chunks"),
        Framing::Structured => {
            let magic = STRUCTURED_REPLY_MAGIC.into();
            let length = u32::try_from(payload_bytes).expect("a chunk is of less than 4 GiB").into();
            out.copy_from_slice(StructuredHeader { magic, flags, kind, cookie, length }.as_bytes());
        }
        Framing::Extended => {
            let (magic, length) = (EXTENDED_REPLY_MAGIC.into(), (payload_bytes as u64).into());
            let header = ExtendedHeader { magic, flags, kind, cookie, offset: offset.into(), length };
            out.copy_from_slice(header.as_bytes());
        }
    }
}

/// What [`write_status`] needs at most for so many extents.
pub(in crate::nbd) const fn status_bytes_max(extents: usize) -> usize {
    size_of::<ExtendedHeader>() + size_of::<(U32, U32)>() + extents * size_of::<(U64, U64)>()
}

/// Writes one chunk of a reply to BLOCK_STATUS to the start of `out`; how long it is. Lengths fit 32 bits unless the
/// framing is extended.
pub(in crate::nbd) fn write_status(
    out: &mut [u8],
    framing: Framing,
    request: (u64, u64),
    context: u32,
    extents: &[Extent],
    is_last: bool,
) -> usize {
    let (cookie, offset) = request;
    let header_bytes = framing.chunk_header_bytes();
    let (header, payload) = out.split_at_mut(header_bytes);
    let mut at = 0;
    let mut push = |bytes: &[u8]| {
        payload[at..][..bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    push(U32::new(context).as_bytes());
    let kind = if framing == Framing::Extended {
        push(U32::new(extents.len() as u32).as_bytes());
        for extent in extents {
            push(U64::new(extent.len_bytes).as_bytes());
            push(U64::new(extent.state.into()).as_bytes());
        }
        CHUNK_BLOCK_STATUS_EXT
    } else {
        for extent in extents {
            let len_bytes = u32::try_from(extent.len_bytes).expect("no longer than the request");
            push(U32::new(len_bytes).as_bytes());
            push(U32::new(extent.state).as_bytes());
        }
        CHUNK_BLOCK_STATUS
    };
    let flags = if is_last { CHUNK_DONE } else { 0 };
    write_chunk_header(header, framing, flags, kind, cookie, offset, at);
    header_bytes + at
}

#[cfg(test)]
mod tests {
    use super::super::{CMD_FLAG_FUA, CMD_WRITE};
    use super::*;
    use proptest::prelude::*;

    const REQUEST: Request = Request {
        flags: CMD_FLAG_FUA,
        command: CMD_WRITE,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1_0000_0200,
        length: 4096,
    };

    #[test]
    fn a_request_as_the_kernel_sends_it() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0x10, 0,
        ];
        assert_eq!(Request::parse(Framing::Simple, &bytes), Some(REQUEST));
        assert_eq!(Request::parse(Framing::Structured, &bytes), Some(REQUEST));
        assert_eq!(Request::parse(Framing::Extended, &bytes), None);
        assert_eq!(REQUEST.encode(), bytes);
        let mut wrong = bytes;
        wrong[3] = 0x14;
        assert_eq!(Request::parse(Framing::Simple, &wrong), None);
    }

    #[test]
    fn a_request_with_an_extended_header() {
        let mut bytes =
            vec![0x21, 0xe4, 0x1c, 0x71, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0];
        bytes.extend([0, 0, 0, 0, 0, 0, 0x10, 0]);
        assert_eq!(Request::parse(Framing::Extended, &bytes), Some(REQUEST));
        assert_eq!(Request::parse(Framing::Simple, &bytes[..28]), None);
    }

    #[test]
    fn replies_as_clients_expect_them() {
        let simple = Head::failure(Framing::Simple, 7, 99, Errno::Shutdown, "not sent");
        let bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 108, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(simple.bytes(), bytes);
        assert_eq!(SimpleReply::parse(&bytes), Some(SimpleReply { cookie: 7, error: Some(Errno::Shutdown) }));

        let chunk = Head::failure(Framing::Structured, 7, 99, Errno::Io, "out");
        let expected = [
            &[0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9][..],
            &[0, 0, 0, 5, 0, 3],
            b"out",
        ];
        assert_eq!(chunk.bytes(), expected.concat());

        let data = Head::success(Framing::Extended, 7, 0x200, 0x1000);
        let expected = [
            &[0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7][..],
            &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x10, 8],
            &[0, 0, 0, 0, 0, 0, 2, 0],
        ];
        assert_eq!(data.bytes(), expected.concat());

        let none = Head::success(Framing::Structured, 7, 0, 0);
        assert_eq!(none.bytes()[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0]);
        assert_eq!(none.bytes()[16..], [0; 4]);
    }

    #[test]
    fn the_longest_text_fits_and_is_cut_between_characters() {
        let long = "ä".repeat(TEXT_BYTES_MAX);
        let head = Head::failure(Framing::Extended, 1, 2, Errno::Io, &format!("x{long}"));
        assert!(head.bytes().len() <= HEAD_BYTES_MAX);
        std::str::from_utf8(&head.bytes()[size_of::<ExtendedHeader>() + 6..]).unwrap();
    }

    #[test]
    fn a_status_in_both_forms() {
        let extents = [Extent { len_bytes: 0x1000, state: 3 }, Extent { len_bytes: 0x200, state: 0 }];
        let mut out = [0xee; 200];
        let len = write_status(&mut out, Framing::Structured, (7, 0), 2, &extents, false);
        let expected = [
            &[0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 20][..],
            &[0, 0, 0, 2, 0, 0, 0x10, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0],
        ];
        assert_eq!(out[..len], expected.concat());
        let len = write_status(&mut out, Framing::Extended, (7, 0x100), 2, &extents, true);
        assert_eq!(len, status_bytes_max(2));
        assert_eq!(out[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6]);
        assert_eq!(out[32..48], [0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x10, 0]);
    }

    #[test]
    fn status_payloads_fit_or_not() {
        let bytes = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 3];
        let payload = StatusPayload::parse(&bytes).unwrap();
        assert_eq!((payload.length, payload.ids().collect::<Vec<_>>()), (512, vec![1, 3]));
        assert_eq!(StatusPayload::parse(&bytes[..8]).unwrap().ids().count(), 0);
        assert_eq!(StatusPayload::parse(&bytes[..11]), None);
        assert_eq!(StatusPayload::parse(&bytes[..7]), None);
    }

    proptest! {
        #[test]
        fn requests_come_back_as_they_went(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length: length.into() };
            prop_assert_eq!(Request::parse(Framing::Simple, &request.encode()), Some(request));
        }
    }
}
