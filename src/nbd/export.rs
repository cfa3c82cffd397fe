//! What a server has to offer, and what it tells clients about it.

use std::any::Any;

use super::context::Contexts;
use super::limits::{PAYLOAD_BYTES_ADVERTISED, Pools};
use super::stop::Stop;
use super::wire::{self, Framing};
use crate::io::{Device, DeviceInfo};

/// An export as LIST shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name: UTF-8 without NUL, at most 4096 bytes.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// An export that was found.
#[derive(Clone, Debug)]
pub struct Export<D> {
    /// Its true name, also where the client asked for the default.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
    /// What is behind it.
    pub device: D,
}

/// A client's hold on an export, from the handshake's end to the connection's.
#[derive(Debug)]
pub struct Attached {
    /// Dropped when nothing of the connection is in flight any more.
    pub guard: Box<dyn Any>,
    /// Ends the connections to this export only.
    pub stop: Stop,
}

impl Attached {
    /// A hold that nobody counts or ends.
    pub fn unguarded() -> Attached {
        Attached { guard: Box::new(()), stop: Stop::new() }
    }
}

/// The exports of a server, by name.
#[allow(async_fn_in_trait)] // connections live on one thread
pub trait Exports: Clone + 'static {
    /// What is behind the exports.
    type Device: Device + Clone + 'static;

    /// Whether clients may ask what there is.
    fn may_list(&self) -> bool {
        true
    }

    /// All that a client may know of.
    fn list(&self) -> Vec<ExportInfo>;

    /// The export of that name; the empty name means the only one, where there is one. The name is the client's: any
    /// UTF-8 without NUL, at most 4096 bytes.
    async fn open(&self, name: &str) -> Option<Export<Self::Device>>;

    /// Registers a client of the export of that (true) name; `None` if the export is going away.
    fn attach(&self, name: &str) -> Option<Attached>;
}

/// The transmission flags of a device, for a client that is not told them by a handshake: the kernel. Without zeroes, which
/// it sends by the gigabyte and wants done in the time of one request.
pub fn kernel_flags(info: &DeviceInfo) -> u16 {
    transmission_flags(info, Framing::Simple, Contexts::NONE)
        & !(wire::FLAG_SEND_WRITE_ZEROES | wire::FLAG_SEND_FAST_ZERO)
}

fn transmission_flags(info: &DeviceInfo, framing: Framing, contexts: Contexts) -> u16 {
    let mut flags = wire::FLAG_HAS_FLAGS | wire::FLAG_SEND_FLUSH | wire::FLAG_SEND_FUA;
    // Legal because a flush of the device covers what was answered on any connection.
    flags |= wire::FLAG_CAN_MULTI_CONN | wire::FLAG_SEND_CACHE;
    if framing != Framing::Simple {
        flags |= wire::FLAG_SEND_DF;
    }
    if framing == Framing::Extended && !contexts.is_empty() {
        flags |= wire::FLAG_BLOCK_STATUS_PAYLOAD;
    }
    if info.rotational {
        flags |= wire::FLAG_ROTATIONAL;
    }
    flags
        | if info.read_only {
            wire::FLAG_READ_ONLY
        } else {
            wire::FLAG_SEND_TRIM | wire::FLAG_SEND_WRITE_ZEROES | wire::FLAG_SEND_FAST_ZERO
        }
}

/// What holds for all requests of a connection. INFO and GO tell it to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) size_bytes: u64,
    pub(super) flags: u16,
    pub(super) read_only: bool,
    /// Power of two; offsets and lengths are multiples of it.
    pub(super) block_bytes: u32,
    pub(super) preferred_bytes: u32,
    /// The longest READ and WRITE by the rules.
    pub(super) payload_bytes_advertised: u32,
    /// The longest READ and WRITE that is served: more than advertised where the client did not ask for block sizes.
    pub(super) payload_bytes_max: u32,
    /// What the device wants reads aligned to.
    pub(super) read_block_bytes: u32,
    pub(super) framing: Framing,
    /// What BLOCK_STATUS answers; none without SET_META_CONTEXT.
    pub(super) contexts: Contexts,
    /// What the client gets no answer to, it asks again by another connection.
    pub(super) resends: bool,
}

impl Terms {
    pub(super) fn new(info: &DeviceInfo, pools: &Pools, framing: Framing, contexts: Contexts) -> Terms {
        let accepted = pools.payload_bytes_max();
        let advertised = PAYLOAD_BYTES_ADVERTISED.min(1 << accepted.ilog2());
        let block_bytes = info.write_block_bytes.clamp(1, 1 << 16);
        // The protocol wants a power of two; a full stripe of three chunks is none, but its chunk is.
        let aligned = match info.preferred_bytes {
            0 => 4096,
            bytes => 1 << bytes.trailing_zeros(),
        };
        let preferred_bytes = aligned.clamp(block_bytes.max(512), advertised as u32);
        Terms {
            size_bytes: info.size_bytes,
            flags: transmission_flags(info, framing, contexts),
            read_only: info.read_only,
            block_bytes,
            preferred_bytes,
            payload_bytes_advertised: advertised as u32,
            // Who speaks of extended headers knows what was advertised.
            payload_bytes_max: if framing == Framing::Extended { advertised } else { accepted } as u32,
            read_block_bytes: info.read_block_bytes.max(1),
            framing,
            contexts,
            resends: false,
        }
    }

    /// The kernel's: it knows nothing but simple replies, and asks again what was not answered. A connection may outlast an
    /// array's being read-only, so only the array refuses writes; and it may grow, so only the array knows where it ends.
    pub(super) fn of_kernel(info: &DeviceInfo, pools: &Pools) -> Terms {
        let info = DeviceInfo { read_only: false, size_bytes: u64::MAX, ..*info };
        Terms { resends: true, ..Terms::new(&info, pools, Framing::Simple, Contexts::NONE) }
    }

    /// The same for a client that was told the block sizes and has to obey them.
    pub(super) fn strict(self) -> Terms {
        Terms { payload_bytes_max: self.payload_bytes_advertised, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{ExtentKind, Pool};

    fn terms(pool_bytes: usize, change: impl Fn(&mut DeviceInfo)) -> Terms {
        framed_terms(pool_bytes, Framing::Simple, &[], change)
    }

    fn framed_terms(
        pool_bytes: usize,
        framing: Framing,
        contexts: &[ExtentKind],
        change: impl Fn(&mut DeviceInfo),
    ) -> Terms {
        let mut info = DeviceInfo {
            size_bytes: 1 << 30,
            read_block_bytes: 512,
            write_block_bytes: 1,
            preferred_bytes: 3 << 19,
            read_only: false,
            rotational: false,
        };
        change(&mut info);
        let pool = |bytes| Pool::new(bytes).unwrap();
        let pools = Pools { messages: pool(1 << 20), receive: pool(1 << 20), payloads: pool(pool_bytes) };
        Terms::new(&info, &pools, framing, Contexts::of(contexts))
    }

    #[test]
    fn sizes_follow_the_device_and_the_pool() {
        let large = terms(256 << 20, |_| ());
        assert_eq!((large.block_bytes, large.preferred_bytes), (1, 512 << 10));
        assert_eq!((large.payload_bytes_advertised, large.payload_bytes_max), (32 << 20, 64 << 20));
        let small = terms(21 << 20, |info| info.preferred_bytes = 64 << 20);
        assert_eq!((small.payload_bytes_advertised, small.payload_bytes_max), (8 << 20, 21 << 19));
        assert_eq!(small.preferred_bytes, 8 << 20);
        assert_eq!(terms(256 << 20, |info| info.preferred_bytes = 0).preferred_bytes, 4096);
        assert_eq!(terms(256 << 20, |info| info.preferred_bytes = 1).preferred_bytes, 512);
    }

    #[test]
    fn flags_follow_the_device_and_the_framing() {
        let writable = 0b1101_0110_1101;
        assert_eq!(terms(16 << 20, |_| ()).flags, writable);
        let other = terms(16 << 20, |info| (info.read_only, info.rotational) = (true, true));
        assert_eq!(other.flags, 0b0101_0001_1111);
        let asks = &[ExtentKind::Allocation];
        let structured = framed_terms(16 << 20, Framing::Structured, asks, |_| ());
        assert_eq!(structured.flags, writable | 1 << 7);
        assert_eq!(framed_terms(16 << 20, Framing::Extended, &[], |_| ()).flags, writable | 1 << 7);
        let extended = framed_terms(16 << 20, Framing::Extended, asks, |_| ());
        assert_eq!(extended.flags, writable | 1 << 7 | 1 << 12);
    }
}
