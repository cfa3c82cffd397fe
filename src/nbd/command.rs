//! Is this request legal, and what is to be done? Pure, and the only judge: what comes out of here needs no more checks.
//!
//! The order of the checks is the order in which a client learns what is wrong: the command, its flags, whether it may
//! write, the range, the length, the alignment.

use super::context::Contexts;
use super::export::Terms;
use super::limits::STATUS_PAYLOAD_BYTES_MAX;
use super::wire::{self, Errno, Framing, Request, StatusPayload};
use crate::io::{Fua, Zeroing};

/// A place on the export; lies within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u64,
}

impl Range {
    pub(super) fn end_bytes(self) -> u64 {
        self.offset_bytes + self.len_bytes
    }
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zeroes {
    pub(super) zeroing: Zeroing,
    /// Only if that is much less work than writing them.
    pub(super) fast: bool,
    pub(super) fua: Fua,
}

/// A question about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inquiry {
    pub(super) range: Range,
    pub(super) contexts: Contexts,
    /// One extent is enough.
    pub(super) one: bool,
}

/// A legal request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read(Range),
    Write(Range, Fua),
    Flush,
    Trim(Range, Fua),
    WriteZeroes(Range, Zeroes),
    /// Asks for nothing that could be done better than not at all: members are read around the kernel's cache.
    Cache,
    Status(Inquiry),
    /// So many bytes follow and say what it is about ([`Inquiry::from_payload`]).
    StatusPayload(usize),
    Disconnect,
}

/// Why a request is not done: for the client's code and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) error: Errno,
    pub(super) why: &'static str,
}

const fn failure(error: Errno, why: &'static str) -> Failure {
    Failure { error, why }
}

const NO_SUCH_COMMAND: Failure = failure(Errno::Invalid, "no such command");
const WRONG_FLAG: Failure = failure(Errno::Invalid, "this command does not take that flag");
const NO_CONTEXTS: Failure = failure(Errno::Invalid, "no meta context was chosen");
const BAD_STATUS_PAYLOAD: Failure =
    failure(Errno::Invalid, "the payload is not a length and ids of chosen contexts, each once");
const NO_RANGE: Failure = failure(Errno::Invalid, "a range of no bytes has no status");
const READ_ONLY: Failure = failure(Errno::Perm, "the export is read-only");
const PAST_END: Failure = failure(Errno::Invalid, "past the end of the export");
const NO_SPACE: Failure = failure(Errno::NoSpace, "past the end of the export");
const TOO_LONG: Failure = failure(Errno::Invalid, "longer than the largest payload");
const MISALIGNED: Failure = failure(Errno::Invalid, "not aligned to the minimum block size");

impl Command {
    /// What the request says, or why it cannot be done.
    pub(super) fn new(request: &Request, terms: &Terms) -> Result<Command, Failure> {
        if request.command == wire::CMD_DISC {
            // Whoever leaves, leaves.
            return Ok(Command::Disconnect);
        }
        let allowed = flags_allowed(request.command, terms.framing).ok_or(NO_SUCH_COMMAND)?;
        if request.flags & !allowed != 0 {
            return Err(WRONG_FLAG);
        }
        let has = |flag| request.flags & flag != 0;
        if request.command == wire::CMD_FLUSH {
            // Offset and length must be zero; a client that gets this wrong still gets its data flushed.
            return Ok(Command::Flush);
        }
        if request.command == wire::CMD_BLOCK_STATUS && terms.contexts.is_empty() {
            return Err(NO_CONTEXTS);
        }
        let one = has(wire::CMD_FLAG_REQ_ONE);
        if request.command == wire::CMD_BLOCK_STATUS && has(wire::CMD_FLAG_PAYLOAD_LEN) {
            return match usize::try_from(request.length) {
                Ok(bytes) if bytes <= STATUS_PAYLOAD_BYTES_MAX => Ok(Command::StatusPayload(bytes)),
                _ => Err(BAD_STATUS_PAYLOAD),
            };
        }
        let writes = matches!(request.command, wire::CMD_WRITE | wire::CMD_TRIM | wire::CMD_WRITE_ZEROES);
        if terms.read_only && writes {
            return Err(READ_ONLY);
        }
        let range = check_range(request, request.length, terms)?;
        let fua = if has(wire::CMD_FLAG_FUA) { Fua::Yes } else { Fua::No };
        Ok(match request.command {
            wire::CMD_READ => Command::Read(range),
            wire::CMD_WRITE => Command::Write(range, fua),
            wire::CMD_TRIM => Command::Trim(range, fua),
            wire::CMD_CACHE => Command::Cache,
            wire::CMD_BLOCK_STATUS => {
                Command::Status(Inquiry { range, contexts: terms.contexts, one }.check()?)
            }
            _ => {
                let no_hole = has(wire::CMD_FLAG_NO_HOLE);
                let zeroing = if no_hole { Zeroing::Allocate } else { Zeroing::Unmap };
                Command::WriteZeroes(range, Zeroes { zeroing, fast: has(wire::CMD_FLAG_FAST_ZERO), fua })
            }
        })
    }
}

impl Inquiry {
    /// What a BLOCK_STATUS with a payload asks.
    pub(super) fn from_payload(request: &Request, payload: &[u8], terms: &Terms) -> Result<Inquiry, Failure> {
        let payload = StatusPayload::parse(payload).ok_or(BAD_STATUS_PAYLOAD)?;
        let contexts = terms.contexts.with_ids(payload.ids()).ok_or(BAD_STATUS_PAYLOAD)?;
        if contexts.is_empty() {
            return Err(BAD_STATUS_PAYLOAD);
        }
        let range = check_range(request, payload.length, terms)?;
        let one = request.flags & wire::CMD_FLAG_REQ_ONE != 0;
        Inquiry { range, contexts, one }.check()
    }

    fn check(self) -> Result<Inquiry, Failure> {
        if self.range.len_bytes == 0 { Err(NO_RANGE) } else { Ok(self) }
    }
}

/// The flags that a command may have; `None` if there is no such command.
fn flags_allowed(command: u16, framing: Framing) -> Option<u16> {
    let in_chunks = |flag| if framing == Framing::Simple { 0 } else { flag };
    let extended = |flag| if framing == Framing::Extended { flag } else { 0 };
    let own = match command {
        wire::CMD_READ => in_chunks(wire::CMD_FLAG_DF), // data always leaves in one chunk
        wire::CMD_WRITE => extended(wire::CMD_FLAG_PAYLOAD_LEN),
        wire::CMD_FLUSH | wire::CMD_TRIM | wire::CMD_CACHE => 0,
        wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO,
        wire::CMD_BLOCK_STATUS => wire::CMD_FLAG_REQ_ONE | extended(wire::CMD_FLAG_PAYLOAD_LEN),
        _ => return None,
    };
    // FUA is legal everywhere once it is offered, and means nothing where nothing is written.
    Some(own | wire::CMD_FLAG_FUA)
}

/// The range of a request of so many bytes, if it is one.
fn check_range(request: &Request, len_bytes: u64, terms: &Terms) -> Result<Range, Failure> {
    let end = request.offset.checked_add(len_bytes);
    if end.is_none_or(|end| end > terms.size_bytes) {
        return Err(match request.command {
            wire::CMD_WRITE | wire::CMD_WRITE_ZEROES => NO_SPACE,
            _ => PAST_END,
        });
    }
    let has_payload = matches!(request.command, wire::CMD_READ | wire::CMD_WRITE);
    if has_payload && len_bytes > u64::from(terms.payload_bytes_max) {
        return Err(TOO_LONG);
    }
    if !(request.offset | len_bytes).is_multiple_of(u64::from(terms.block_bytes)) {
        return Err(MISALIGNED);
    }
    Ok(Range { offset_bytes: request.offset, len_bytes })
}

/// Bytes that follow the request's header, whatever becomes of it.
pub(super) fn payload_bytes(request: &Request, framing: Framing) -> u64 {
    let says_so = framing == Framing::Extended && request.flags & wire::CMD_FLAG_PAYLOAD_LEN != 0;
    if says_so || request.command == wire::CMD_WRITE { request.length } else { 0 }
}

/// A WRITE with an extended header that does not say that a payload follows. By the protocol none does, but QEMU (10.0,
/// for one) sends them so, and the payload behind.
pub(super) fn may_lack_payload(request: &Request, framing: Framing) -> bool {
    framing == Framing::Extended
        && request.command == wire::CMD_WRITE
        && request.flags & wire::CMD_FLAG_PAYLOAD_LEN == 0
        && request.length > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ExtentKind;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 30;
    const READ_WRITE: Terms = Terms {
        size_bytes: SIZE,
        flags: 0,
        read_only: false,
        block_bytes: 1,
        preferred_bytes: 4096,
        payload_bytes_advertised: 32 << 20,
        payload_bytes_max: 64 << 20,
        read_block_bytes: 512,
        framing: Framing::Simple,
        contexts: Contexts::NONE,
        resends: false,
    };

    fn judge(terms: &Terms, command: u16, flags: u16, offset: u64, length: u64) -> Result<Command, Errno> {
        Command::new(&Request { flags, command, cookie: 0, offset, length }, terms)
            .map_err(|failure| failure.error)
    }

    #[test]
    fn the_table_of_errors() {
        use wire::*;
        let beyond = [(SIZE, 1), (SIZE - 1, 2), (1 << 63, 1), (u64::MAX, 1), (u64::MAX - 4095, 8192)];
        for (offset, length) in beyond {
            for (command, error) in [
                (CMD_READ, Errno::Invalid),
                (CMD_TRIM, Errno::Invalid),
                (CMD_WRITE, Errno::NoSpace),
                (CMD_WRITE_ZEROES, Errno::NoSpace),
            ] {
                assert_eq!(judge(&READ_WRITE, command, 0, offset, length), Err(error), "{command}");
            }
        }
        let read_only = Terms { read_only: true, ..READ_WRITE };
        for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            assert_eq!(judge(&read_only, command, 0, 0, 4096), Err(Errno::Perm));
        }
        assert!(judge(&read_only, CMD_READ, 0, 0, 4096).is_ok());
        assert!(judge(&read_only, CMD_FLUSH, 0, 0, 0).is_ok());
        let coarse = Terms { block_bytes: 512, ..READ_WRITE };
        for command in [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            assert_eq!(judge(&coarse, command, 0, 1, 512), Err(Errno::Invalid));
            assert_eq!(judge(&coarse, command, 0, 512, 511), Err(Errno::Invalid));
            assert!(judge(&coarse, command, 0, 512, 512).is_ok());
        }
        for command in [7, 8, 9, 100, u16::MAX] {
            assert_eq!(judge(&READ_WRITE, command, 0, 0, 0), Err(Errno::Invalid));
        }
        for command in [CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES] {
            for flag in (1..16).map(|bit| 1 << bit) {
                let allowed =
                    command == CMD_WRITE_ZEROES && [CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO].contains(&flag);
                assert_eq!(judge(&READ_WRITE, command, flag, 0, 0).is_ok(), allowed, "{command} {flag:#x}");
            }
            assert!(judge(&READ_WRITE, command, CMD_FLAG_FUA, 0, 4096).is_ok());
            assert!(judge(&READ_WRITE, command, 0, SIZE, 0).is_ok());
        }
        for command in [CMD_READ, CMD_WRITE] {
            assert_eq!(judge(&READ_WRITE, command, 0, 0, (64 << 20) + 1), Err(Errno::Invalid));
            assert!(judge(&READ_WRITE, command, 0, 0, 64 << 20).is_ok());
            assert_eq!(judge(&READ_WRITE.strict(), command, 0, 0, (32 << 20) + 1), Err(Errno::Invalid));
        }
        for command in [CMD_TRIM, CMD_WRITE_ZEROES] {
            assert!(judge(&READ_WRITE, command, 0, 0, 1 << 30).is_ok());
        }
        assert_eq!(judge(&READ_WRITE, CMD_DISC, 0xffff, 1, 1), Ok(Command::Disconnect));
    }

    #[test]
    fn what_a_framing_brings() {
        use wire::*;
        let contexts = Contexts::of(&[ExtentKind::Allocation, ExtentKind::Health]);
        let structured = Terms { framing: Framing::Structured, contexts, ..READ_WRITE };
        let extended = Terms { framing: Framing::Extended, ..structured };
        assert!(judge(&structured, CMD_READ, CMD_FLAG_DF, 0, 4096).is_ok());
        assert_eq!(judge(&structured, CMD_WRITE, CMD_FLAG_DF, 0, 4096), Err(Errno::Invalid));
        assert_eq!(judge(&structured, CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, 0, 4096), Err(Errno::Invalid));
        for flags in [0, CMD_FLAG_PAYLOAD_LEN] {
            assert!(judge(&extended, CMD_WRITE, flags, 0, 4096).is_ok());
            let request = Request { flags, command: CMD_WRITE, cookie: 0, offset: 0, length: 4096 };
            assert_eq!(payload_bytes(&request, Framing::Extended), 4096);
            assert_eq!(may_lack_payload(&request, Framing::Extended), flags == 0);
        }
        for command in [CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES] {
            assert_eq!(judge(&extended, command, CMD_FLAG_PAYLOAD_LEN, 0, 512), Err(Errno::Invalid));
        }
        let huge = Terms { size_bytes: 1 << 50, ..extended };
        for command in [CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS] {
            assert!(judge(&huge, command, 0, 0, 1 << 50).is_ok());
            assert!(judge(&huge, command, 0, 512, 1 << 50).is_err());
            assert!(judge(&huge, command, 0, 512, u64::MAX).is_err());
        }
        assert_eq!(judge(&huge, CMD_READ, 0, 0, 1 << 40), Err(Errno::Invalid));

        let range = Range { offset_bytes: 512, len_bytes: 1024 };
        let status = Command::Status(Inquiry { range, contexts, one: true });
        assert_eq!(judge(&structured, CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 512, 1024), Ok(status));
        assert_eq!(judge(&structured, CMD_BLOCK_STATUS, 0, 0, 0), Err(Errno::Invalid));
        assert_eq!(judge(&structured, CMD_BLOCK_STATUS, 0, SIZE, 1), Err(Errno::Invalid));
        let none = Terms { contexts: Contexts::NONE, ..structured };
        assert_eq!(judge(&none, CMD_BLOCK_STATUS, 0, 0, 512), Err(Errno::Invalid));
    }

    #[test]
    fn a_status_payload_chooses_among_the_chosen() {
        let contexts = Contexts::of(&[ExtentKind::Allocation, ExtentKind::Health]);
        let terms = Terms { framing: Framing::Extended, contexts, ..READ_WRITE };
        let flags = wire::CMD_FLAG_PAYLOAD_LEN;
        let ask = |offset: u64, length: u64, ids: &[u32]| {
            let mut payload = length.to_be_bytes().to_vec();
            payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
            let length = payload.len() as u64;
            let request = Request { flags, command: wire::CMD_BLOCK_STATUS, cookie: 0, offset, length };
            let command = Command::new(&request, &terms).unwrap();
            assert_eq!(command, Command::StatusPayload(length as usize));
            Inquiry::from_payload(&request, &payload, &terms).map_err(|failure| failure.error)
        };
        let range = Range { offset_bytes: 512, len_bytes: 1024 };
        let contexts = Contexts::of(&[ExtentKind::Health]);
        assert_eq!(ask(512, 1024, &[2]), Ok(Inquiry { range, contexts, one: false }));
        for (offset, length, ids) in [
            (0, 512, &[3][..]),
            (0, 512, &[1, 1]),
            (0, 512, &[]),
            (SIZE, 512, &[1]),
            (0, 0, &[1]),
            (1, u64::MAX, &[1]),
        ] {
            assert_eq!(ask(offset, length, ids), Err(Errno::Invalid), "{offset} {length} {ids:?}");
        }
        let long = Request { flags, command: wire::CMD_BLOCK_STATUS, cookie: 0, offset: 0, length: 1 << 20 };
        assert_eq!(Command::new(&long, &terms), Err(BAD_STATUS_PAYLOAD));
    }

    proptest! {
        #[test]
        fn what_is_legal_lies_within(command in 0u16..9, flags in 0u16..4, offset: u64, length: u64) {
            for (offset, length) in [(offset, length), (offset % (2 * SIZE), length % (2 * SIZE))] {
                match judge(&READ_WRITE, command, flags, offset, length) {
                    Ok(Command::Read(range) | Command::Write(range, _)) => {
                        prop_assert!(range.len_bytes <= u64::from(READ_WRITE.payload_bytes_max));
                        prop_assert!(range.end_bytes() <= SIZE);
                    }
                    Ok(Command::Trim(range, _) | Command::WriteZeroes(range, _)) => {
                        prop_assert!(range.end_bytes() <= SIZE);
                    }
                    _ => (),
                }
            }
        }
    }
}
