//! Every limit of a connection, each with its reason. A full limit is back-pressure on that connection's socket; a
//! broken one ends that connection.

use std::time::Duration;

use crate::io::{MAX_BUF_BYTES, PAGE_BYTES, Pool};

/// Bytes received at once by a connection with much to say: a few hundred request headers, or some small writes. Others
/// make do with a page.
pub(super) const RECEIVE_BYTES: usize = 64 << 10;

/// After a WRITE of at least this much, only the next header is received, so that the next payload lands where it is
/// needed instead of being copied from the receive buffer.
pub(super) const LARGE_WRITE_BYTES: usize = RECEIVE_BYTES / 2;

/// Bytes given to one `Stream::send`, give or take a slice: progress of a slow peer is seen from send to send.
pub(super) const SEND_BYTES: usize = 1 << 20;

/// Slices given to one `Stream::send`; the kernel takes 1024.
pub(super) const SEND_SLICES: usize = 256;

/// What the heads of one batch of replies may take together: a page, some two hundred simple replies.
pub(super) const SEND_HEAD_BYTES: usize = PAGE_BYTES;

/// Longest option that is looked at: the longest legal name (4096 bytes) with the longest legal query, or with thousands
/// of info requests.
pub(super) const OPTION_BYTES_MAX: usize = 16 << 10;

/// Longest option that is skipped and answered; a longer one ends the connection.
pub(super) const OPTION_SKIP_BYTES_MAX: u32 = 128 << 10;

/// Longest name: the protocol's.
pub(super) const NAME_BYTES_MAX: usize = 4096;

/// Longest payload that is ever taken, or drained when its WRITE is refused. Clients that do not ask for block sizes
/// send more than they should (nbd-tester-client: 50 MB).
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Longest payload that is advertised: what every client is allowed by default.
pub(super) const PAYLOAD_BYTES_ADVERTISED: usize = 32 << 20;

/// Extents in one chunk of a reply to BLOCK_STATUS; a client that wants to know more asks again from there.
pub(super) const EXTENTS_MAX: usize = 500;

/// Longest payload of a BLOCK_STATUS that is looked at: a length, and the ids of more contexts than there are.
pub(super) const STATUS_PAYLOAD_BYTES_MAX: usize = 256;

/// A write of zeroes that the device cannot do by itself is done in writes of this size.
pub(super) const ZERO_WRITE_BYTES: usize = 4 * MAX_BUF_BYTES;

/// Smallest pool of payloads: one request may have half of it, and may lie across two more blocks than its length says.
const PAYLOAD_POOL_BYTES_MIN: usize = 4 * MAX_BUF_BYTES;

/// What the pool of messages must hold for each connection so that no connection waits for another's: a page to receive
/// into, one for the heads of replies, and one of the handshake.
pub const MESSAGE_BYTES_PER_CONNECTION: usize = 3 * PAGE_BYTES;

/// What the owner of a connection may choose.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The whole handshake must be done by then: a silent client holds a connection no longer.
    pub handshake_timeout: Duration,
    /// Options in one handshake: clients send about five; one that lists exports two for each of them.
    pub options: usize,
    /// Requests taken and not yet answered: twice what the kernel's client has in flight.
    pub requests_in_flight: usize,
    /// Payload memory taken and not yet given back: two of the largest advertised requests. A quarter of the pool if
    /// that is less, so that a few clients that do not read their replies cannot take it all from the others. One
    /// request that needs more gets it alone.
    pub bytes_in_flight: usize,
    /// A peer that takes none of its replies for this long is cut off.
    pub stall_timeout: Duration,
    /// The payload of a WRITE must have come after this long, and
    pub payload_timeout: Duration,
    /// one second more for so many bytes: memory is reserved for it, which others wait for.
    pub payload_bytes_per_sec_min: u64,
    /// A WRITE with an extended header that does not announce its payload, as it has to, must bring it so soon: QEMU
    /// does, and from a client that means what the protocol says nothing would come.
    pub unannounced_payload_timeout: Duration,
    /// After a stop, requests already sent are still taken until the peer is silent for this long,
    pub stop_quiet: Duration,
    /// or until this long after the stop; and a peer that takes none of its replies is cut off after this long.
    pub stop_timeout: Duration,
    /// A peer that does not take the leave that the stream takes of it is left without after this long.
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake_timeout: Duration::from_secs(10),
            options: 1024,
            requests_in_flight: 256,
            bytes_in_flight: 64 << 20,
            stall_timeout: Duration::from_secs(60),
            payload_timeout: Duration::from_secs(30),
            payload_bytes_per_sec_min: 256 << 10,
            unannounced_payload_timeout: Duration::from_millis(1500),
            stop_quiet: Duration::from_millis(100),
            stop_timeout: Duration::from_secs(2),
            close_timeout: Duration::from_secs(1),
        }
    }
}

/// Where a connection's memory comes from. Several pools, because a receive buffer is held for as long as a connection
/// lasts: were it taken from the pool of payloads, idle clients could starve busy ones.
#[derive(Clone)]
pub struct Pools {
    /// Pages to receive into and heads of replies: at least [`MESSAGE_BYTES_PER_CONNECTION`] for every connection.
    pub messages: Pool,
    /// Larger buffers to receive into, for connections with much to say; nobody waits for one.
    pub receive: Pool,
    /// What is read and written: at least 4 MiB.
    pub payloads: Pool,
}

impl Pools {
    /// The longest payload that one request may have: half of the pool and no more than [`PAYLOAD_BYTES_MAX`].
    pub(super) fn payload_bytes_max(&self) -> usize {
        let total = self.payloads.total_bytes();
        assert!(total >= PAYLOAD_POOL_BYTES_MIN, "a payload pool of {total} bytes is too small");
        (total / 2).min(PAYLOAD_BYTES_MAX)
    }
}
