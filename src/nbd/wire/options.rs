//! What is said in the handshake: the greeting, options, and replies to them.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{OPTION_MAGIC, OPTION_REPLY_MAGIC};

/// What the server says first.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::nbd) struct Greeting {
    pub(in crate::nbd) magic: [u8; 8],
    pub(in crate::nbd) option_magic: [u8; 8],
    pub(in crate::nbd) flags: U16,
}

/// In front of every option.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::nbd) struct OptionHeader {
    pub(in crate::nbd) magic: [u8; 8],
    pub(in crate::nbd) option: U32,
    pub(in crate::nbd) length: U32,
}

/// In front of every answer to an option.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::nbd) struct OptionReplyHeader {
    pub(in crate::nbd) magic: U64,
    pub(in crate::nbd) option: U32,
    pub(in crate::nbd) kind: U32,
    pub(in crate::nbd) length: U32,
}

/// What EXPORT_NAME is answered with, and what INFO_EXPORT carries.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::nbd) struct ExportFacts {
    pub(in crate::nbd) size_bytes: U64,
    pub(in crate::nbd) flags: U16,
}

/// What INFO_BLOCK_SIZE carries.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::nbd) struct BlockSizes {
    pub(in crate::nbd) minimum: U32,
    pub(in crate::nbd) preferred: U32,
    pub(in crate::nbd) maximum: U32,
}

const _: () = {
    assert!(size_of::<Greeting>() == 18);
    assert!(size_of::<OptionHeader>() == 16);
    assert!(size_of::<OptionReplyHeader>() == 20);
    assert!(size_of::<ExportFacts>() == 10);
    assert!(size_of::<BlockSizes>() == 12);
};

/// What an INFO or GO option asks for.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::nbd) struct InfoRequest<'a> {
    pub(in crate::nbd) name: &'a [u8],
    requests: &'a [U16],
}

impl InfoRequest<'_> {
    /// `None` if the lengths inside do not fit the option's exactly.
    pub(in crate::nbd) fn parse(data: &[u8]) -> Option<InfoRequest<'_>> {
        let (name, rest) = split_string(data)?;
        let (count, rest) = U16::ref_from_prefix(rest).ok()?;
        let requests = <[U16]>::ref_from_bytes(rest).ok()?;
        (requests.len() == usize::from(count.get())).then_some(InfoRequest { name, requests })
    }

    pub(in crate::nbd) fn wants(&self, info: u16) -> bool {
        self.requests.iter().any(|request| request.get() == info)
    }
}

/// The data of an INFO or GO option.
pub(in crate::nbd) fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = Vec::with_capacity(6 + name.len() + 2 * wanted.len());
    data.extend_from_slice(U32::new(name.len() as u32).as_bytes());
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(U16::new(wanted.len() as u16).as_bytes());
    for &info in wanted {
        data.extend_from_slice(U16::new(info).as_bytes());
    }
    data
}

/// What a LIST_META_CONTEXT or SET_META_CONTEXT option asks for.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::nbd) struct MetaRequest<'a> {
    pub(in crate::nbd) name: &'a [u8],
    count: u32,
    queries: &'a [u8],
}

impl MetaRequest<'_> {
    /// `None` if the lengths inside do not fit the option's exactly.
    pub(in crate::nbd) fn parse(data: &[u8]) -> Option<MetaRequest<'_>> {
        let (name, rest) = split_string(data)?;
        let (count, queries) = U32::read_from_prefix(rest).ok()?;
        let (mut rest, mut found) = (queries, 0);
        while !rest.is_empty() {
            rest = split_string(rest)?.1;
            found += 1;
        }
        (found == count.get()).then_some(MetaRequest { name, count: found, queries })
    }

    /// No query at all: for a list, all there are; for a choice, none.
    pub(in crate::nbd) fn asks_nothing(&self) -> bool {
        self.count == 0
    }

    pub(in crate::nbd) fn queries(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.queries;
        std::iter::from_fn(move || {
            let (query, after) = split_string(rest)?;
            rest = after;
            Some(query)
        })
    }
}

/// A length and so many bytes, and what follows them.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = U32::read_from_prefix(data).ok()?;
    rest.split_at_checked(usize::try_from(length.get()).ok()?)
}

/// An option, ready to be sent.
pub(in crate::nbd) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let header =
        OptionHeader { magic: OPTION_MAGIC, option: option.into(), length: (data.len() as u32).into() };
    [header.as_bytes(), data].concat()
}

/// Appends the answer to an option; its data comes in parts.
pub(in crate::nbd) fn push_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
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
    use super::super::{INFO_BLOCK_SIZE, INFO_NAME};
    use super::*;
    use proptest::prelude::*;

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

    fn meta_request(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
        let text = |bytes: &[u8]| [U32::new(bytes.len() as u32).as_bytes(), bytes].concat();
        let mut data = [text(name), U32::new(queries.len() as u32).as_bytes().to_vec()].concat();
        data.extend(queries.iter().flat_map(|query| text(query)));
        data
    }

    #[test]
    fn meta_requests_fit_exactly_or_not_at_all() {
        let good = meta_request(b"vol0", &[b"base:", b"", b"raidd:health"]);
        let parsed = MetaRequest::parse(&good).unwrap();
        assert_eq!(parsed.name, b"vol0");
        assert_eq!(parsed.queries().collect::<Vec<_>>(), [&b"base:"[..], b"", b"raidd:health"]);
        for cut in 0..good.len() {
            assert_eq!(MetaRequest::parse(&good[..cut]), None, "cut at {cut}");
        }
        assert_eq!(MetaRequest::parse(&[&good[..], b"zzzz"].concat()), None);
        let none = meta_request(b"", &[]);
        assert!(MetaRequest::parse(&none).unwrap().asks_nothing());
        let mut wrong = good.clone();
        wrong[11] = 2; // one query fewer than there are
        assert_eq!(MetaRequest::parse(&wrong), None);
    }

    proptest! {
        #[test]
        fn info_requests_never_panic(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(parsed) = InfoRequest::parse(&data) {
                prop_assert_eq!(parsed.name.len() + 2 * parsed.requests.len() + 6, data.len());
            }
        }

        #[test]
        fn meta_requests_never_panic(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(parsed) = MetaRequest::parse(&data) {
                let queries: usize = parsed.queries().map(|query| 4 + query.len()).sum();
                prop_assert_eq!(8 + parsed.name.len() + queries, data.len());
            }
        }
    }
}
