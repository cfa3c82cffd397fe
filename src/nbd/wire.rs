//! The bytes of the protocol: constants, message layouts, parsing and encoding. Pure: no I/O, no policy.
//!
//! Everything on the wire is big-endian. Nothing here panics or allocates by what a peer claims: what does not parse is
//! `None`, and what to do about that is decided by who asked.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const GREETING_MAGIC: [u8; 8] = *b"NBDMAGIC";
pub(super) const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags of the server and, with the same values, of the client.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_LIST: u32 = 3;
pub(super) const OPT_STARTTLS: u32 = 5;
pub(super) const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
/// Set in the type of every reply that is an error.
pub(super) const REP_ERROR: u32 = 1 << 31;
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR + 1;
pub(super) const REP_ERR_INVALID: u32 = REP_ERROR + 3;
pub(super) const REP_ERR_UNKNOWN: u32 = REP_ERROR + 6;
pub(super) const REP_ERR_SHUTDOWN: u32 = REP_ERROR + 7;
pub(super) const REP_ERR_TOO_BIG: u32 = REP_ERROR + 9;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const FLAG_HAS_FLAGS: u16 = 1 << 0;
pub(super) const FLAG_READ_ONLY: u16 = 1 << 1;
pub(super) const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub(super) const FLAG_SEND_FUA: u16 = 1 << 3;
pub(super) const FLAG_ROTATIONAL: u16 = 1 << 4;
pub(super) const FLAG_SEND_TRIM: u16 = 1 << 5;
pub(super) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;

pub(super) const CMD_FLAG_FUA: u16 = 1 << 0;
pub(super) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;

/// The errors that may be on the wire; the values are Linux's, whatever the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// EPERM: the export is read-only.
    Perm = 1,
    /// EIO: the device failed.
    Io = 5,
    /// ENOMEM.
    NoMem = 12,
    /// EINVAL: the request is not legal.
    Invalid = 22,
    /// ENOSPC: no space, or past the end.
    NoSpace = 28,
    /// EOVERFLOW: too long.
    Overflow = 75,
    /// ENOTSUP: legal only in answer to FAST_ZERO.
    NotSupported = 95,
    /// ESHUTDOWN: the server is stopping.
    Shutdown = 108,
}

impl Errno {
    /// The error of that value; any that the protocol does not know is EINVAL, as the protocol says.
    pub(super) fn parse(value: u32) -> Option<Errno> {
        Some(match value {
            0 => return None,
            1 => Errno::Perm,
            5 => Errno::Io,
            12 => Errno::NoMem,
            28 => Errno::NoSpace,
            75 => Errno::Overflow,
            95 => Errno::NotSupported,
            108 => Errno::Shutdown,
            _ => Errno::Invalid,
        })
    }
}

/// What the server says first.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Greeting {
    pub(super) magic: [u8; 8],
    pub(super) option_magic: [u8; 8],
    pub(super) flags: U16,
}

/// In front of every option.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct OptionHeader {
    pub(super) magic: [u8; 8],
    pub(super) option: U32,
    pub(super) length: U32,
}

/// In front of every answer to an option.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct OptionReplyHeader {
    pub(super) magic: U64,
    pub(super) option: U32,
    pub(super) kind: U32,
    pub(super) length: U32,
}

/// What EXPORT_NAME is answered with, and what INFO_EXPORT carries.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ExportFacts {
    pub(super) size_bytes: U64,
    pub(super) flags: U16,
}

/// What INFO_BLOCK_SIZE carries.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BlockSizes {
    pub(super) minimum: U32,
    pub(super) preferred: U32,
    pub(super) maximum: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestBytes {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SimpleReplyBytes {
    magic: U32,
    error: U32,
    cookie: U64,
}

pub(super) const CLIENT_FLAGS_BYTES: usize = 4;
pub(super) const EXPORT_NAME_PADDING_BYTES: usize = 124;
pub(super) const OPTION_HEADER_BYTES: usize = size_of::<OptionHeader>();
pub(super) const REQUEST_BYTES: usize = size_of::<RequestBytes>();
pub(super) const SIMPLE_REPLY_BYTES: usize = size_of::<SimpleReplyBytes>();

const _: () = {
    assert!(size_of::<Greeting>() == 18);
    assert!(OPTION_HEADER_BYTES == 16);
    assert!(size_of::<OptionReplyHeader>() == 20);
    assert!(size_of::<ExportFacts>() == 10);
    assert!(size_of::<BlockSizes>() == 12);
    assert!(REQUEST_BYTES == 28);
    assert!(SIMPLE_REPLY_BYTES == 16);
};

/// A request's header, not yet checked against anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// The client's; echoed, never looked at.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    /// `None` if the magic is wrong: the stream is out of step for good.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
        let request = RequestBytes::ref_from_bytes(bytes).ok()?;
        (request.magic.get() == REQUEST_MAGIC).then(|| Request {
            flags: request.flags.get(),
            command: request.command.get(),
            cookie: request.cookie.get(),
            offset: request.offset.get(),
            length: request.length.get(),
        })
    }

    pub(super) fn encode(&self) -> [u8; REQUEST_BYTES] {
        zerocopy::transmute!(RequestBytes {
            magic: REQUEST_MAGIC.into(),
            flags: self.flags.into(),
            command: self.command.into(),
            cookie: self.cookie.into(),
            offset: self.offset.into(),
            length: self.length.into(),
        })
    }
}

/// A simple reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimpleReply {
    pub(super) cookie: u64,
    pub(super) error: Option<Errno>,
}

impl SimpleReply {
    /// `None` if the magic is wrong.
    pub(super) fn parse(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Option<SimpleReply> {
        let reply = SimpleReplyBytes::ref_from_bytes(bytes).ok()?;
        (reply.magic.get() == SIMPLE_REPLY_MAGIC)
            .then(|| SimpleReply { cookie: reply.cookie.get(), error: Errno::parse(reply.error.get()) })
    }

    pub(super) fn encode(&self) -> [u8; SIMPLE_REPLY_BYTES] {
        zerocopy::transmute!(SimpleReplyBytes {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: self.error.map_or(0, |error| error as u32).into(),
            cookie: self.cookie.into(),
        })
    }
}

/// What an INFO or GO option asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a [u8],
    requests: &'a [U16],
}

impl InfoRequest<'_> {
    /// `None` if the lengths inside do not fit the option's exactly.
    pub(super) fn parse(data: &[u8]) -> Option<InfoRequest<'_>> {
        let (name_bytes, rest) = U32::ref_from_prefix(data).ok()?;
        let (name, rest) = rest.split_at_checked(usize::try_from(name_bytes.get()).ok()?)?;
        let (count, rest) = U16::ref_from_prefix(rest).ok()?;
        let requests = <[U16]>::ref_from_bytes(rest).ok()?;
        (requests.len() == usize::from(count.get())).then_some(InfoRequest { name, requests })
    }

    pub(super) fn wants(&self, info: u16) -> bool {
        self.requests.iter().any(|request| request.get() == info)
    }
}

/// The data of an INFO or GO option.
pub(super) fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = Vec::with_capacity(6 + name.len() + 2 * wanted.len());
    data.extend_from_slice(U32::new(name.len() as u32).as_bytes());
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(U16::new(wanted.len() as u16).as_bytes());
    for &info in wanted {
        data.extend_from_slice(U16::new(info).as_bytes());
    }
    data
}

/// An option, ready to be sent.
pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let header =
        OptionHeader { magic: OPTION_MAGIC, option: option.into(), length: (data.len() as u32).into() };
    [header.as_bytes(), data].concat()
}

/// Appends the answer to an option; its data comes in parts.
pub(super) fn push_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let header = OptionReplyHeader {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        length: (length as u32).into(),
    };
    out.extend_from_slice(header.as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_as_the_kernel_sends_it() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0x10, 0,
        ];
        let request = Request::parse(&bytes).unwrap();
        let expected = Request {
            flags: CMD_FLAG_FUA,
            command: CMD_WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0200,
            length: 4096,
        };
        assert_eq!(request, expected);
        assert_eq!(request.encode(), bytes);
        let mut wrong = bytes;
        wrong[3] = 0x14;
        assert_eq!(Request::parse(&wrong), None);
    }

    #[test]
    fn a_reply_as_clients_expect_it() {
        let reply = SimpleReply { cookie: 7, error: Some(Errno::Shutdown) };
        let bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 108, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(reply.encode(), bytes);
        assert_eq!(SimpleReply::parse(&bytes), Some(reply));
    }

    #[test]
    fn info_requests_fit_exactly_or_not_at_all() {
        let good = info_request("vol0", &[INFO_BLOCK_SIZE, 0x7777]);
        let parsed = InfoRequest::parse(&good).unwrap();
        assert_eq!(parsed.name, b"vol0");
        assert!(parsed.wants(INFO_BLOCK_SIZE) && parsed.wants(0x7777) && !parsed.wants(INFO_NAME));
        for cut in 0..good.len() {
            assert_eq!(InfoRequest::parse(&good[..cut]), None, "cut at {cut}");
        }
        for tail in [&b"z"[..], b"zz"] {
            assert_eq!(InfoRequest::parse(&[&good, tail].concat()), None);
        }
        assert_eq!(InfoRequest::parse(&[0xff, 0xff, 0xff, 0xff, b'x', 0, 0]), None);
    }

    proptest! {
        #[test]
        fn info_requests_never_panic(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(parsed) = InfoRequest::parse(&data) {
                prop_assert_eq!(parsed.name.len() + 2 * parsed.requests.len() + 6, data.len());
            }
        }

        #[test]
        fn requests_come_back_as_they_went(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32,
        ) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::parse(&request.encode()), Some(request));
        }
    }
}
