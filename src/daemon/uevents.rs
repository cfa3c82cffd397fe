//! The kernel's news of devices that appear or change, over netlink.
//!
//! Whoever waits for a device still has to look from time to time: files make no news, a full socket drops some, and in a
//! container there may be none.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The group that the kernel sends to; udev sends its own to another.
const KERNEL_GROUP: u32 = 1;
/// No message is longer; the kernel's buffer for one has 2048 bytes.
const MESSAGE_BYTES_MAX: usize = 8192;
/// News that nobody has taken yet; more are dropped.
const NEWS_MAX: usize = 64;

/// Block devices that are new or have changed, from now on. They are received on a thread of their own, which ends with
/// the process, or after an error.
pub fn listen() -> io::Result<Receiver<PathBuf>> {
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    let (news, taker) = channel(NEWS_MAX);
    std::thread::Builder::new().name("uevents".into()).spawn(move || receive(&socket, &news))?;
    Ok(taker)
}

fn receive(socket: &OwnedFd, news: &Sender<PathBuf>) {
    let mut message = [0; MESSAGE_BYTES_MAX];
    while !news.is_closed() {
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut message) {
            // Anybody may send; the kernel has no process number.
            Ok((len, Some(from))) if from.pid() == 0 => {
                if let Some(path) = arrival(&message[..len]) {
                    // Whoever is behind looks anyway before long.
                    let _taken = news.try_send(path).is_ok();
                }
            }
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "no more news of devices: they are looked for now and then");
                return;
            }
        }
    }
}

/// The block device that a message says is new or has changed.
fn arrival(message: &[u8]) -> Option<PathBuf> {
    let text = std::str::from_utf8(message).ok()?;
    let value = |key: &str| text.split('\0').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let is_news = matches!(value("ACTION")?, "add" | "change" | "online");
    let name = value("DEVNAME").filter(|_| is_news && value("SUBSYSTEM") == Some("block"))?;
    Some(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_block_devices_that_come_are_news() {
        let message = |action: &str, subsystem: &str| {
            format!(
                "{action}@/devices/x\0ACTION={action}\0DEVPATH=/devices/x\0SUBSYSTEM={subsystem}\0DEVNAME=loop7\0SEQNUM=1\0"
            )
        };
        let device = |action, subsystem| arrival(message(action, subsystem).as_bytes());
        assert_eq!(device("add", "block"), Some(PathBuf::from("/dev/loop7")));
        assert_eq!(device("change", "block"), Some(PathBuf::from("/dev/loop7")));
        assert_eq!((device("remove", "block"), device("add", "tty")), (None, None));
        assert_eq!((arrival(b""), arrival(b"libudev\0\xff")), (None, None));
    }
}
