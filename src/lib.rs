//! raidd: software RAID in userspace. Linux md arrays, mapped onto their members through io_uring and served over
//! NBD.
//!
//! The modules in reading order; each may use only those named in the table that `tests/tidy.rs` holds:
//!
//! - [`units`]: what the numbers count
//! - [`parity`]: XOR and GF(2^8) over slices
//! - [`layout`]: where on the members an array's sectors lie
//! - [`md`]: what the bytes of the metadata mean
//! - [`io`]: the seam: `Device`, `Stream`, `Clock`, `Spawn`, and the buffers that pass through it
//! - [`engine`]: an array over devices: when bytes are written, who has failed, what is in sync
//! - [`nbd`]: the protocol, over any stream, serving any device
//! - [`tls`]: a stream around a stream, made secret when the peer asks for it
//! - [`reactor`]: io_uring, the executor, timers, disks and sockets
//! - [`netlink`]: the kernel's nbd driver, which makes block devices out of sockets
//! - [`api`]: the words of the control interface
//! - [`control`]: HTTP and JSON on a socket
//! - [`daemon`]: puts it all together

pub mod units;

pub mod io;
pub mod layout;
pub mod md;
pub mod parity;

pub mod engine;
pub mod nbd;
pub mod netlink;
pub mod reactor;
pub mod tls;

pub mod api;
pub mod control;
pub mod daemon;
