//! Is this request legal, and what is to be done? Pure, and the only judge: what comes out of here needs no more checks.
//!
//! The order of the checks is the order in which a client learns what is wrong: the command, its flags, whether it may
//! write, the range, the length, the alignment.

use super::export::Terms;
use super::wire::{self, Errno, Request};
use crate::io::{Fua, Zeroing};

/// A place on the export; lies within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u32,
}

/// A legal request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read(Range),
    Write(Range, Fua),
    Flush,
    Trim(Range, Fua),
    WriteZeroes(Range, Zeroing, Fua),
    Disconnect,
}

impl Command {
    /// What the request says, or why it cannot be done.
    pub(super) fn new(request: &Request, terms: &Terms) -> Result<Command, Errno> {
        let flags_allowed = match request.command {
            // Whoever leaves, leaves.
            wire::CMD_DISC => return Ok(Command::Disconnect),
            // FUA is legal everywhere once it is offered, and means nothing where nothing is written.
            wire::CMD_READ | wire::CMD_WRITE | wire::CMD_FLUSH | wire::CMD_TRIM => wire::CMD_FLAG_FUA,
            wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_FUA | wire::CMD_FLAG_NO_HOLE,
            _ => return Err(Errno::Invalid),
        };
        if request.flags & !flags_allowed != 0 {
            return Err(Errno::Invalid);
        }
        if request.command == wire::CMD_FLUSH {
            // Offset and length must be zero; a client that gets this wrong still gets its data flushed.
            return Ok(Command::Flush);
        }
        if terms.read_only && request.command != wire::CMD_READ {
            return Err(Errno::Perm);
        }
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > terms.size_bytes) {
            return Err(match request.command {
                wire::CMD_WRITE | wire::CMD_WRITE_ZEROES => Errno::NoSpace,
                _ => Errno::Invalid,
            });
        }
        let has_payload = matches!(request.command, wire::CMD_READ | wire::CMD_WRITE);
        if has_payload && request.length > terms.payload_bytes_max {
            return Err(Errno::Invalid);
        }
        if !(request.offset | u64::from(request.length)).is_multiple_of(u64::from(terms.block_bytes)) {
            return Err(Errno::Invalid);
        }

        let range = Range { offset_bytes: request.offset, len_bytes: request.length };
        let fua = if request.flags & wire::CMD_FLAG_FUA != 0 { Fua::Yes } else { Fua::No };
        let no_hole = request.flags & wire::CMD_FLAG_NO_HOLE != 0;
        let zeroing = if no_hole { Zeroing::Allocate } else { Zeroing::Unmap };
        Ok(match request.command {
            wire::CMD_READ => Command::Read(range),
            wire::CMD_WRITE => Command::Write(range, fua),
            wire::CMD_TRIM => Command::Trim(range, fua),
            _ => Command::WriteZeroes(range, zeroing, fua),
        })
    }
}

/// Bytes that follow the request's header, whatever becomes of it.
pub(super) fn payload_bytes(request: &Request) -> u32 {
    if request.command == wire::CMD_WRITE { request.length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    };

    fn judge(terms: &Terms, command: u16, flags: u16, offset: u64, length: u32) -> Result<Command, Errno> {
        Command::new(&Request { flags, command, cookie: 0, offset, length }, terms)
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
        for command in [5, 7, 8, 9, 100, u16::MAX] {
            assert_eq!(judge(&READ_WRITE, command, 0, 0, 0), Err(Errno::Invalid));
        }
        for command in [CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES] {
            for flag in (1..16).map(|bit| 1 << bit) {
                let allowed = command == CMD_WRITE_ZEROES && flag == CMD_FLAG_NO_HOLE;
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

    proptest! {
        #[test]
        fn what_is_legal_lies_within(command in 0u16..9, flags in 0u16..4, offset: u64, length: u32) {
            for offset in [offset, offset % (2 * SIZE)] {
                match judge(&READ_WRITE, command, flags, offset, length) {
                    Ok(Command::Read(range) | Command::Write(range, _)) => {
                        prop_assert!(range.len_bytes <= READ_WRITE.payload_bytes_max);
                        prop_assert!(range.offset_bytes + u64::from(range.len_bytes) <= SIZE);
                    }
                    Ok(Command::Trim(range, _) | Command::WriteZeroes(range, ..)) => {
                        prop_assert!(range.offset_bytes + u64::from(range.len_bytes) <= SIZE);
                    }
                    _ => (),
                }
            }
        }
    }
}
