//! Arrays as block devices of this machine: the kernel's nbd driver on one end of socketpairs, raidd on the other.
//!
//! The truth about what is attached is the kernel's: a device says who is behind it (its *backend*, with the array's UUID).
//! What raidd remembers is what the operator wants: it is attached again at every start. A device outlives raidd, and
//! I/O to it waits; so a start looks for its device first, and gives that one new sockets.
//!
//! Invariants:
//! - A device gets sockets only from an array with the UUID in its backend.
//! - What the kernel has sent and got no answer to it sends again, on whatever socket it has then: a connection that ends
//!   is replaced, and a raidd that stops leaves its devices as they are. Only `detach`, or somebody else, takes one away.
//! - The kernel does not give up on a request before the array must have answered it: three times a member's timeout.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::array_home::{ArrayId, resident};
use super::operator::{Operator, blocking, internal, problem};
use super::patience;
use super::registry::Entry;
use super::saved::SavedDevice;
use crate::api::{ATTACH_WAIT_MS_DEFAULT, AttachArray, Problem, ProblemCode, Reply};
use crate::io::{Device, DeviceInfo};
use crate::md::{format_uuid, parse_uuid};
use crate::nbd;
use crate::netlink::{NbdDevice, NbdDriver, Timeouts, backends};

/// What a device's backend begins with; then come the array's UUID, and its name.
const BACKEND: &str = "raidd:";
/// How long a connection's replacement is put off: the kernel may not have seen yet that the old one is dead.
const REPLACE_PAUSE: Duration = Duration::from_millis(200);
/// The kernel's patience with a request, at least: less would end connections for a hiccup.
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_secs(3);

/// Connections of the kernel's that have ended, by their arrays.
pub struct Ends {
    sender: UnboundedSender<ArrayId>,
    /// Held by who replaces them. No more are under way than there are connections.
    receiver: tokio::sync::Mutex<UnboundedReceiver<ArrayId>>,
}

impl Default for Ends {
    fn default() -> Ends {
        let (sender, receiver) = unbounded_channel();
        Ends { sender, receiver: tokio::sync::Mutex::new(receiver) }
    }
}

/// Replaces connections that have ended. Runs until it is dropped.
pub async fn keep(operator: Arc<Operator>) {
    let mut ended = operator.ends.receiver.lock().await;
    while let Some(id) = ended.recv().await {
        tokio::time::sleep(REPLACE_PAUSE).await;
        let Some(entry) = operator.service.registry.all().into_iter().find(|entry| entry.id == id) else {
            continue;
        };
        operator.replace_connection(&entry).await;
    }
}

/// A device of the kernel's that is attached to an array.
struct Found {
    index: u32,
    backend: String,
}

/// The device that is attached to the array with this UUID.
fn find_device(uuid: &[u8; 16]) -> Option<Found> {
    let mut all = backends().into_iter().map(|(index, backend)| Found { index, backend });
    all.find(|found| uuid_in(&found.backend).as_ref() == Some(uuid))
}

fn uuid_in(backend: &str) -> Option<[u8; 16]> {
    let (uuid, _name) = backend.strip_prefix(BACKEND)?.split_once(':')?;
    parse_uuid(uuid)
}

fn backend(entry: &Entry) -> String {
    let uuid: String = format_uuid(&entry.uuid).split(':').collect();
    format!("{BACKEND}{uuid}:{}", entry.name)
}

fn path_of(index: u32) -> String {
    format!("/dev/nbd{index}")
}

/// Block devices that are raidd's own: nobody looks for members there. At a start they wait for the very raidd that looks.
pub fn own_devices() -> Vec<PathBuf> {
    let own = backends().into_iter().filter(|(_, backend)| uuid_in(backend).is_some());
    own.map(|(index, _)| PathBuf::from(path_of(index))).collect()
}

/// The path of the device that is attached to the array with this UUID.
pub fn device_of(uuid: &[u8; 16]) -> Option<String> {
    find_device(uuid).map(|found| path_of(found.index))
}

fn timeouts(saved: &SavedDevice, member_timeout: Duration) -> Timeouts {
    Timeouts {
        request: (3 * member_timeout).max(REQUEST_TIMEOUT_MIN),
        dead_connection: Duration::from_secs(saved.wait_seconds),
    }
}

/// Does something with the kernel's driver, on a thread that may block.
async fn with_driver<T: Send + 'static>(
    job: impl FnOnce(&NbdDriver) -> Result<T, Errno> + Send + 'static,
) -> Result<T, Problem> {
    let done = blocking(move || {
        let driver = NbdDriver::open().map_err(|error| refused(&error))?;
        let driver = driver.ok_or_else(|| {
            let why = "the kernel's nbd driver is not loaded: run modprobe nbd, or serve the array to a client of its own";
            problem(ProblemCode::Unsupported, why)
        })?;
        job(&driver).map_err(|errno| refused(&errno.into()))
    });
    done.await?
}

fn refused(error: &std::io::Error) -> Problem {
    let (code, hint) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => (ProblemCode::WrongState, "raidd must run as root for that"),
        Some(Errno::EBUSY) => {
            (ProblemCode::DeviceInUse, "name another device, or none for the first that is free")
        }
        Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL) => {
            (ProblemCode::DeviceUnavailable, "is there such a device?")
        }
        _ => (ProblemCode::Internal, "the kernel's log may say more"),
    };
    problem(code, format!("the kernel's nbd driver refuses: {error}; {hint}"))
}

/// Memory that is paged out would have to be read from a disk to serve the disk that it may have gone to.
fn stay_in_memory() {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::warn!(%error, "memory cannot be locked: with swap on an attached array the machine could come to a halt");
    }
}

impl Operator {
    /// Makes a running array a device of the kernel's.
    pub(super) async fn attach(&self, name: &str, how: &AttachArray) -> Result<Reply, Problem> {
        let invalid = |why: String| problem(ProblemCode::InvalidRequest, why);
        how.check().map_err(invalid)?;
        let index = how.index().map_err(invalid)?;
        let _turn = self.one_at_a_time.lock().await;
        let entry = self.entry(name)?;
        if let Some(device) = device_of(&entry.uuid) {
            let why = format!("{name} is attached as {device} already: detach that first");
            return Err(problem(ProblemCode::ArrayInUse, why));
        }
        let reactors = u32::try_from(self.service.reactors.len()).unwrap_or(1);
        let wanted = SavedDevice {
            index: 0,
            connections: how.connections.unwrap_or(reactors.max(2)),
            wait_seconds: how.wait_ms.unwrap_or(ATTACH_WAIT_MS_DEFAULT) / 1000,
        };
        let index = self.connect(&entry, index, &wanted).await?;
        let saved = SavedDevice { index, ..wanted };
        self.remember(|state| state.update(&format_uuid(&entry.uuid), |array| array.attached = Some(saved)));
        tracing::info!(array = name, device = path_of(index), "attached");
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }

    /// Takes an array's device away.
    pub(super) async fn detach(&self, name: &str, force: bool) -> Result<Reply, Problem> {
        let _turn = self.one_at_a_time.lock().await;
        let running = self.service.registry.get(name).map(|entry| entry.uuid);
        let Some(uuid) = running.or_else(|| self.uuid_of(name)) else {
            return Err(Problem::no_such_array(name));
        };
        if !self.detach_device(&uuid, name, force).await? {
            let why = format!("{name} is not attached: raidctl attach {name} does that");
            return Err(problem(ProblemCode::WrongState, why));
        }
        Ok(Reply::Done)
    }

    /// The same, for an array that is known by its UUID; false if it has none.
    pub(super) async fn detach_device(
        &self,
        uuid: &[u8; 16],
        name: &str,
        force: bool,
    ) -> Result<bool, Problem> {
        let text = format_uuid(uuid);
        let Some(Found { index, .. }) = find_device(uuid) else {
            let was = self.saved(uuid).is_some_and(|saved| saved.attached.is_some());
            self.remember(|state| state.update(&text, |array| array.attached = None));
            return Ok(was);
        };
        // Held until the device is gone, so that nobody mounts it in between.
        let held = if force { None } else { Some(blocking(move || hold(index)).await??) };
        with_driver(move |driver| driver.disconnect(index)).await?;
        drop(held);
        self.remember(|state| state.update(&text, |array| array.attached = None));
        tracing::info!(array = name, device = path_of(index), "detached");
        Ok(true)
    }

    /// Gives an array that has been started its device back: the one that waits for it, or else one like it.
    pub(super) async fn attach_again(&self, entry: &Arc<Entry>) {
        let found = find_device(&entry.uuid);
        let saved = self.saved(&entry.uuid).and_then(|saved| saved.attached);
        let done = match (found, saved) {
            (None, None) => return,
            (Some(found), saved) => {
                let saved = saved.unwrap_or(SavedDevice {
                    index: found.index,
                    connections: 2,
                    wait_seconds: ATTACH_WAIT_MS_DEFAULT / 1000,
                });
                self.reconnect(entry, found, &saved, saved.connections).await
            }
            (None, Some(saved)) => match self.connect(entry, Some(saved.index), &saved).await {
                Err(error) if error.code == ProblemCode::DeviceInUse => {
                    tracing::warn!(
                        array = entry.name,
                        device = path_of(saved.index),
                        "is somebody else's: taking another"
                    );
                    self.connect(entry, None, &saved).await
                }
                done => done,
            },
        };
        match done {
            Ok(index) => tracing::info!(array = entry.name, device = path_of(index), "attached again"),
            Err(error) => tracing::error!(array = entry.name, %error, "cannot be attached again"),
        }
    }

    /// Replaces one connection of the kernel's that has ended while the array runs.
    async fn replace_connection(&self, entry: &Arc<Entry>) {
        let _turn = self.one_at_a_time.lock().await;
        let saved = self.saved(&entry.uuid).and_then(|saved| saved.attached);
        let Some(saved) = saved.filter(|_| !entry.is_closed()) else { return };
        let Some(found) = find_device(&entry.uuid) else {
            tracing::warn!(
                array = entry.name,
                device = path_of(saved.index),
                "was taken away by somebody else"
            );
            self.remember(|state| state.update(&format_uuid(&entry.uuid), |array| array.attached = None));
            return;
        };
        if let Err(error) = self.reconnect(entry, found, &saved, 1).await {
            tracing::error!(array = entry.name, %error, "a connection to the kernel cannot be replaced");
        }
    }

    /// Tells the kernel how patient it has to be now.
    pub(super) async fn update_device(&self, entry: &Arc<Entry>) {
        let saved = self.saved(&entry.uuid).and_then(|saved| saved.attached);
        if let (Some(found), Some(saved)) = (find_device(&entry.uuid), saved)
            && let Err(error) = self.reconnect(entry, found, &saved, 0).await
        {
            tracing::error!(array = entry.name, %error, "the device's timeout cannot be changed");
        }
    }

    async fn connect(
        &self,
        entry: &Arc<Entry>,
        index: Option<u32>,
        wanted: &SavedDevice,
    ) -> Result<u32, Problem> {
        let (info, member_timeout) = self.facts_for_kernel(entry).await?;
        let device = NbdDevice {
            size_bytes: info.size_bytes,
            block_bytes: info.read_block_bytes.max(512),
            flags: nbd::kernel_flags(&info),
            timeouts: timeouts(wanted, member_timeout),
            backend: backend(entry),
        };
        stay_in_memory();
        let sockets = self.serve_kernel(entry, wanted.connections)?;
        with_driver(move |driver| driver.connect(index, &device, &sockets)).await
    }

    /// Gives a device that is there `count` new sockets.
    async fn reconnect(
        &self,
        entry: &Arc<Entry>,
        found: Found,
        saved: &SavedDevice,
        count: u32,
    ) -> Result<u32, Problem> {
        let (_, member_timeout) = self.facts_for_kernel(entry).await?;
        let timeouts = timeouts(saved, member_timeout);
        stay_in_memory();
        let sockets = self.serve_kernel(entry, count)?;
        let Found { index, backend } = found;
        with_driver(move |driver| driver.reconfigure(index, &backend, timeouts, &sockets)).await?;
        Ok(index)
    }

    async fn facts_for_kernel(&self, entry: &Entry) -> Result<(DeviceInfo, Duration), Problem> {
        let id = entry.id;
        let facts = entry.home.call(move || async move {
            resident(id).map(|array| (array.info(), array.status().member_timeout))
        });
        facts.await.ok().flatten().ok_or_else(|| Problem::no_such_array(&entry.name))
    }

    /// The kernel's ends of so many new connections; ours are served.
    fn serve_kernel(&self, entry: &Arc<Entry>, count: u32) -> Result<Vec<OwnedFd>, Problem> {
        let pairs = (0..count).map(|_| {
            let (ours, kernels) = UnixStream::pair()
                .map_err(|error| internal(&format!("no socket for the kernel: {error}")))?;
            let (ends, id) = (self.ends.sender.clone(), entry.id);
            // Whoever would replace it has ended with the daemon.
            let on_end = move || ends.send(id).unwrap_or_default();
            self.service.serve_kernel(entry, ours.into(), on_end);
            Ok(kernels.into())
        });
        pairs.collect()
    }
}

/// Opens a device of which nobody else has a hold, and writes back what the kernel keeps of it.
fn hold(index: u32) -> Result<File, Problem> {
    let path = PathBuf::from(path_of(index));
    let opened = patience::ask(&path, Duration::ZERO, |path| {
        let file = File::options().read(true).custom_flags(nix::libc::O_EXCL).open(path)?;
        file.sync_all()?;
        Ok::<_, std::io::Error>(file)
    });
    let path = path.display();
    match opened {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            let why = format!("{path} is in use: unmount it first, or detach it with --force");
            Err(problem(ProblemCode::DeviceInUse, why))
        }
        Ok(Err(error)) => {
            let why =
                format!("{path} cannot be flushed: {error}; detach it with --force if that does not matter");
            Err(problem(ProblemCode::DeviceUnavailable, why))
        }
        Err(silent) => {
            let why = format!("{silent}; or detach it with --force");
            Err(problem(ProblemCode::DeviceUnavailable, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_the_uuid_behind_it() {
        let uuid = std::array::from_fn(|index| index as u8 * 16 + 1);
        assert_eq!(uuid_in("raidd:01112131415161718191a1b1c1d1e1f1"), None);
        assert_eq!(uuid_in("raidd:01112131415161718191a1b1c1d1e1f1:vol0"), Some(uuid));
        assert_eq!(uuid_in("ceph:01112131415161718191a1b1c1d1e1f1:vol0"), None);
        assert_eq!(uuid_in(""), None);
    }

    #[test]
    fn the_kernel_is_more_patient_than_members_may_be_slow() {
        let saved = SavedDevice { index: 0, connections: 2, wait_seconds: 300 };
        let request = |member| timeouts(&saved, Duration::from_millis(member)).request.as_secs();
        assert_eq!((request(1000), request(10_000), request(400)), (3, 30, 3));
        assert_eq!(timeouts(&saved, Duration::from_secs(1)).dead_connection.as_secs(), 300);
    }
}
