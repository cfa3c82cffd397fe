//! Sockets that listen already when raidd is started, as systemd passes them (sd_listen_fds(3)): `control`, and any number
//! called `nbd`. While raidd is restarted, clients wait in their queues instead of being refused.
//!
//! Invariants:
//! - A socket takes the place of the one that is configured for its address, so what is said of that (TLS, who may use
//!   which export, the URI that `status` shows) holds for it. One that nothing is said of is an error, not an open door.
//! - Whoever passed a socket made its file, said who may open it, and removes it: raidd does neither.
//! - Nothing that raidd starts gets any of them.

use std::net::ToSocketAddrs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

use super::config::NbdAddress;
use crate::control::{Admission, ControlSocket};

/// What was passed and not taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    control: Option<Passed>,
    nbd: Vec<Passed>,
}

#[derive(Debug)]
struct Passed {
    socket: OwnedFd,
    address: SockaddrStorage,
}

impl Inherited {
    /// Takes what this process was given. To be called once, before it opens anything itself.
    pub fn receive() -> anyhow::Result<Inherited> {
        let passed = sd_listen_fds::get()
            .context("cannot make sense of LISTEN_FDS and LISTEN_PID: leave socket activation to systemd")?;
        let mut inherited = Inherited::default();
        for (name, socket) in passed {
            let passed = Passed::new(socket.into_std())?;
            match name.as_deref() {
                Some("control") if inherited.control.is_none() => inherited.control = Some(passed),
                Some("control") => bail!("two control sockets were passed: pass one"),
                Some("nbd") => inherited.nbd.push(passed),
                other => bail!(
                    "the socket at {} was passed as {:?}: call it control or nbd, with FileDescriptorName=",
                    passed.address,
                    other.unwrap_or_default()
                ),
            }
        }
        Ok(inherited)
    }

    /// The control socket, if it was passed.
    pub fn control(&mut self, path: &Path, admission: Admission) -> anyhow::Result<Option<ControlSocket>> {
        let Some(passed) = self.control.take() else { return Ok(None) };
        if passed.unix_path() != Some(path) {
            bail!(
                "the control socket that was passed is at {}, but is to be at {}: say the same in the socket unit and with \
                 --control",
                passed.address,
                path.display()
            );
        }
        Ok(Some(ControlSocket::inherited(UnixListener::from(passed.socket), admission)))
    }

    /// The socket that listens there, if it was passed.
    pub fn nbd(&mut self, address: &NbdAddress) -> anyhow::Result<Option<OwnedFd>> {
        let Some(index) = self.nbd.iter().position(|passed| passed.is_at(address)) else { return Ok(None) };
        let listener = UnixListener::from(self.nbd.swap_remove(index).socket);
        // The ring waits for clients only where the socket itself would; std has this for either kind of socket.
        listener.set_nonblocking(false).with_context(|| format!("cannot use the socket at {address}"))?;
        Ok(Some(listener.into()))
    }

    /// To be called when everything that is configured has been asked for.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.nbd.first() {
            None => Ok(()),
            Some(passed) => bail!(
                "a socket at {} was passed that is none of raidd's: name it with --nbd, too, or take it out of the socket unit",
                passed.address
            ),
        }
    }
}

impl Passed {
    fn new(socket: OwnedFd) -> anyhow::Result<Passed> {
        let wrong = "a descriptor was passed that is no socket: leave socket activation to systemd";
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context(wrong)?;
        let address: SockaddrStorage = getsockname(socket.as_raw_fd()).context(wrong)?;
        if !getsockopt(&socket, sockopt::AcceptConn).context(wrong)? {
            bail!("the socket at {address} was passed, but does not listen: use ListenStream= and Accept=no");
        }
        Ok(Passed { socket, address })
    }

    fn unix_path(&self) -> Option<&Path> {
        self.address.as_unix_addr()?.path()
    }

    fn is_at(&self, address: &NbdAddress) -> bool {
        match address {
            NbdAddress::Unix(path) => self.unix_path() == Some(path),
            NbdAddress::Tcp { host, port } => {
                // A name that cannot be resolved is not where anybody listens.
                let mut places = (host.as_str(), *port).to_socket_addrs().into_iter().flatten();
                let is_tcp =
                    matches!(self.address.family(), Some(AddressFamily::Inet | AddressFamily::Inet6));
                is_tcp && places.any(|place| SockaddrStorage::from(place) == self.address)
            }
        }
    }
}
