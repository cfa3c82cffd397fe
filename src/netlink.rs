//! The kernel's nbd driver, which makes a block device of this machine out of connected sockets: commands over generic
//! netlink, as Linux's include/uapi/linux/nbd-netlink.h has them.
//!
//! The kernel takes the sockets over while a command is carried out, by their numbers in this process: whoever calls can
//! close its own descriptors afterwards. It serves no requests itself; who holds the other ends does.
//!
//! Invariants:
//! - One command at a time on a socket, and its acknowledgement is waited for.
//! - What the kernel answers is taken apart without trust in its lengths.
//!
//! How it fails: with what the kernel said. EBUSY: the device is in use. EPERM: that takes CAP_SYS_ADMIN. EINVAL: it is not
//! connected, or is somebody else's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that say what it is.
const NLA_TYPE_MASK: u16 = 0x3fff;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NBD_CMD_CONNECT: u8 = 1;
const NBD_CMD_DISCONNECT: u8 = 2;
const NBD_CMD_RECONFIGURE: u8 = 3;

const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_ATTR_TIMEOUT: u16 = 4;
const NBD_ATTR_SERVER_FLAGS: u16 = 5;
const NBD_ATTR_SOCKETS: u16 = 7;
const NBD_ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const NBD_ATTR_BACKEND_IDENTIFIER: u16 = 10;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;

const MESSAGE_HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// The kernel answers before its system call returns; this only bounds what cannot happen.
const ANSWER_SECONDS: i64 = 10;

/// The driver, to be given commands.
#[derive(Debug)]
pub struct NbdDriver {
    socket: OwnedFd,
    family: u16,
}

/// A block device to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdDevice {
    /// Bytes it holds; a multiple of `block_bytes`.
    pub size_bytes: u64,
    /// Its logical and physical block: a power of two from 512 to a page.
    pub block_bytes: u32,
    /// Transmission flags, as the NBD protocol has them.
    pub flags: u16,
    /// When and how its requests are given up.
    pub timeouts: Timeouts,
    /// Who is behind it, for who looks at /sys/block/nbdN/backend; only who knows it may give it new sockets.
    pub backend: String,
}

/// How long the kernel is patient, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A request that is not answered so long goes to another socket, and the one that it was on is shut down.
    pub request: Duration,
    /// With no socket left, requests wait so long for a new one before they fail.
    pub dead_connection: Duration,
}

impl NbdDriver {
    /// The driver; `None` if the kernel has none, or has not loaded it.
    pub fn open() -> io::Result<Option<NbdDriver>> {
        let protocol = SockProtocol::NetlinkGeneric;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut driver = NbdDriver { socket, family: GENL_ID_CTRL };
        let mut question = Attributes::default();
        question.push(CTRL_ATTR_FAMILY_NAME, b"nbd\0");
        match driver.command(CTRL_CMD_GETFAMILY, &question) {
            Ok(answer) => {
                let id = answer.u16(CTRL_ATTR_FAMILY_ID).ok_or(Errno::EPROTO)?;
                driver.family = id;
                Ok(Some(driver))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a device served by the peers of these sockets: number `index`, or any that is free. Says which.
    pub fn connect(&self, index: Option<u32>, device: &NbdDevice, sockets: &[OwnedFd]) -> Result<u32, Errno> {
        let mut attributes = Attributes::default();
        if let Some(index) = index {
            attributes.push(NBD_ATTR_INDEX, &index.to_ne_bytes());
        }
        attributes.push_size(device);
        attributes.push(NBD_ATTR_SERVER_FLAGS, &u64::from(device.flags).to_ne_bytes());
        attributes.push_timeouts(device.timeouts);
        attributes.push_text(NBD_ATTR_BACKEND_IDENTIFIER, &device.backend);
        attributes.push_sockets(sockets);
        let answer = self.command(NBD_CMD_CONNECT, &attributes)?;
        answer.u32(NBD_ATTR_INDEX).or(index).ok_or(Errno::EPROTO)
    }

    /// Gives a device these timeouts, and these sockets in the place of as many that are dead. A socket too many is closed,
    /// and that is no error.
    pub fn reconfigure(&self, index: u32, device: &NbdDevice, sockets: &[OwnedFd]) -> Result<(), Errno> {
        let mut attributes = Attributes::default();
        attributes.push(NBD_ATTR_INDEX, &index.to_ne_bytes());
        attributes.push_timeouts(device.timeouts);
        attributes.push_text(NBD_ATTR_BACKEND_IDENTIFIER, &device.backend);
        if !sockets.is_empty() {
            attributes.push_sockets(sockets);
        }
        self.command(NBD_CMD_RECONFIGURE, &attributes).map(drop)
    }

    /// Gives a device another size.
    pub fn resize(&self, index: u32, device: &NbdDevice) -> Result<(), Errno> {
        let mut attributes = Attributes::default();
        attributes.push(NBD_ATTR_INDEX, &index.to_ne_bytes());
        attributes.push_size(device);
        attributes.push_text(NBD_ATTR_BACKEND_IDENTIFIER, &device.backend);
        self.command(NBD_CMD_RECONFIGURE, &attributes).map(drop)
    }

    /// Takes a device away; what still waits for an answer fails.
    pub fn disconnect(&self, index: u32) -> Result<(), Errno> {
        let mut attributes = Attributes::default();
        attributes.push(NBD_ATTR_INDEX, &index.to_ne_bytes());
        self.command(NBD_CMD_DISCONNECT, &attributes).map(drop)
    }

    /// Gives a command and waits for its acknowledgement. The attributes of the answer, where there is one before that.
    fn command(&self, command: u8, attributes: &Attributes) -> Result<Attributes, Errno> {
        let message = message(self.family, command, attributes);
        sendto(self.socket.as_fd().as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = Attributes::default();
        let mut bytes = [0; 8192];
        loop {
            let len = recv(self.socket.as_fd().as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            for (kind, payload) in messages(&bytes[..len]) {
                if kind != NLMSG_ERROR {
                    answer = Attributes(payload.get(GENERIC_HEADER_BYTES..).unwrap_or_default().to_vec());
                    continue;
                }
                let code =
                    payload.first_chunk().map(|code| i32::from_ne_bytes(*code)).ok_or(Errno::EPROTO)?;
                return if code == 0 { Ok(answer) } else { Err(Errno::from_raw(code.saturating_neg())) };
            }
        }
    }
}

/// A command with its headers.
fn message(family: u16, command: u8, attributes: &Attributes) -> Vec<u8> {
    let len = MESSAGE_HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.0.len();
    let mut message = u32::try_from(len).expect("a short message").to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: there is one command at a time, and the kernel knows who we are
    message.extend([command, 1, 0, 0]);
    message.extend(&attributes.0);
    message
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// The messages in what was received: type and payload.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..len).filter(|message| message.len() >= MESSAGE_HEADER_BYTES)?;
        bytes = bytes.get(padded(len)..).unwrap_or_default();
        Some((u16::from_ne_bytes([message[4], message[5]]), &message[MESSAGE_HEADER_BYTES..]))
    })
}

/// A list of attributes as it is sent: length, type, value, padded to four bytes.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn push(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).expect("a short attribute");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(padded(self.0.len()), 0);
    }

    fn push_text(&mut self, kind: u16, text: &str) {
        self.push(kind, &[text.as_bytes(), b"\0"].concat());
    }

    fn push_size(&mut self, device: &NbdDevice) {
        self.push(NBD_ATTR_SIZE_BYTES, &device.size_bytes.to_ne_bytes());
        self.push(NBD_ATTR_BLOCK_SIZE_BYTES, &u64::from(device.block_bytes).to_ne_bytes());
    }

    fn push_timeouts(&mut self, timeouts: Timeouts) {
        self.push(NBD_ATTR_TIMEOUT, &timeouts.request.as_secs().to_ne_bytes());
        self.push(NBD_ATTR_DEAD_CONN_TIMEOUT, &timeouts.dead_connection.as_secs().to_ne_bytes());
    }

    fn push_sockets(&mut self, sockets: &[OwnedFd]) {
        let mut items = Attributes::default();
        for socket in sockets {
            let mut item = Attributes::default();
            item.push(NBD_SOCK_FD, &socket.as_raw_fd().to_ne_bytes());
            items.push(NBD_SOCK_ITEM | NLA_F_NESTED, &item.0);
        }
        self.push(NBD_ATTR_SOCKETS | NLA_F_NESTED, &items.0);
    }

    fn value(&self, wanted: u16) -> Option<&[u8]> {
        let mut bytes = &self.0[..];
        loop {
            let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
            let attribute = bytes.get(..len).filter(|attribute| attribute.len() >= ATTRIBUTE_HEADER_BYTES)?;
            if u16::from_ne_bytes([attribute[2], attribute[3]]) & NLA_TYPE_MASK == wanted {
                return Some(&attribute[ATTRIBUTE_HEADER_BYTES..]);
            }
            bytes = bytes.get(padded(len)..)?;
        }
    }

    fn u16(&self, kind: u16) -> Option<u16> {
        self.value(kind)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        self.value(kind)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }
}

/// The devices that are connected and say who is behind them: number and backend, as sysfs has them.
pub fn backends() -> Vec<(u32, String)> {
    backends_in(Path::new("/sys/block"))
}

fn backends_in(sysfs: &Path) -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir(sysfs) else { return Vec::new() };
    let backend = |entry: std::fs::DirEntry| {
        let index = entry.file_name().to_str()?.strip_prefix("nbd")?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path().join("backend")).ok()?;
        Some((index, text.trim_end_matches(['\n', '\0']).to_owned()))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(backend).collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_laid_out_as_the_kernel_reads_it() {
        let mut attributes = Attributes::default();
        attributes.push_text(NBD_ATTR_BACKEND_IDENTIFIER, "ab");
        attributes.push(NBD_ATTR_INDEX, &7u32.to_ne_bytes());
        let bytes = message(0x1b, NBD_CMD_DISCONNECT, &attributes);
        let words: Vec<_> =
            bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        let (text, request) = (u32::from_ne_bytes(*b"ab\0\0"), 0x0005_001b);
        assert_eq!(words, [36, request, 0, 0, 0x0102, 7 | 10 << 16, text, 8 | 1 << 16, 7]);
        assert_eq!((attributes.u32(NBD_ATTR_INDEX), attributes.u32(NBD_ATTR_SOCKETS)), (Some(7), None));
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read, [(0x1b, &bytes[MESSAGE_HEADER_BYTES..])]);
    }

    #[test]
    fn sockets_are_nested() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let fds = [one.as_raw_fd(), other.as_raw_fd()];
        let mut attributes = Attributes::default();
        attributes.push_sockets(&[one.into(), other.into()]);
        let items = Attributes(attributes.value(NBD_ATTR_SOCKETS).unwrap().to_vec());
        let first = Attributes(items.value(NBD_SOCK_ITEM).unwrap().to_vec());
        assert_eq!(first.u32(NBD_SOCK_FD), u32::try_from(fds[0]).ok());
        assert_eq!(items.0.len(), 24);
        assert_eq!(i32::from_ne_bytes(*items.0.last_chunk().unwrap()), fds[1]);
    }

    #[test]
    fn lengths_that_lie_end_the_list() {
        for bytes in
            [&[][..], &[1], &[0; 16], &[200, 0, 0, 0, 1], &[15, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]]
        {
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
            assert_eq!(Attributes(bytes.to_vec()).value(1), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_kernel_without_the_driver_says_so() {
        // Whether this one has it or not, asking is no error; and what it has are numbered devices.
        let driver = NbdDriver::open().unwrap();
        assert!(driver.is_some() || backends().is_empty());
    }

    #[test]
    fn only_what_says_who_is_behind_it_is_found() {
        let sysfs = tempfile::tempdir().unwrap();
        for (name, backend) in [("nbd0", None), ("nbd12", Some("raidd:x:vol0\n")), ("sda", Some("no"))] {
            let folder = sysfs.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            if let Some(backend) = backend {
                std::fs::write(folder.join("backend"), backend).unwrap();
            }
        }
        assert_eq!(backends_in(sysfs.path()), [(12, "raidd:x:vol0".to_owned())]);
        assert_eq!(backends_in(&sysfs.path().join("none")), []);
    }
}
