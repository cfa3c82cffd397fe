//! Arrays as block devices of this machine: the kernel's nbd driver on one end of socketpairs, raidd on the other.
//!
//! What is *wanted* is remembered: which device an array is, over how many connections. What *is*, the kernel knows: a
//! device says who is behind it (its *backend*, with the array's UUID). A device outlives raidd, and I/O to it waits; so a start
//! gives the device that is wanted, and is there, new sockets.
//!
//! Invariants:
//! - A device gets sockets only if it is wanted as that number *and* the array's UUID is in its backend. What the operator, or
//!   somebody else, has taken away may live on under those who still have it open; it is never brought back to life, as the
//!   array may have been written by another way since. So a device is wanted before it is made, and no longer before it is
//!   taken away.
//! - What the kernel has sent and got no answer to it sends again, on whatever socket it has then. A connection that ends is
//!   replaced, and a raidd that stops leaves its devices as they are. How many are missing is counted, not noted: a socket
//!   that the kernel did not need ends, and makes the count right.
//! - The kernel gives a request more time than an array takes for one in which a member hangs: three times a member's timeout.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::array_home::present;
use super::operator::{Operator, blocking, internal, problem};
use super::patience;
use super::registry::Entry;
use super::saved::SavedDevice;
use crate::api::{ATTACH_WAIT_MS_DEFAULT, AttachArray, Problem, ProblemCode, Reply};
use crate::io::Device;
use crate::md::{format_uuid, parse_uuid};
use crate::nbd::{self, SessionEnd};
use crate::netlink::{NbdDevice, NbdDriver, Timeouts, backends};

/// What a device's backend begins with; then come the array's UUID, and its name.
const BACKEND: &str = "raidd:";
/// How long a connection's replacement is put off at first: the kernel may not have seen yet that the old one is dead.
const REPLACE_PAUSE: Duration = Duration::from_millis(200);
/// And at most, where the kernel refuses again and again.
const REPLACE_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the connections of a device that was taken away may take to end.
const SESSIONS_END: Duration = Duration::from_secs(5);
/// Devices that are tried when any will do.
const DEVICES_MAX: u32 = 1024;
/// The kernel's patience with a request, at least: less would end connections for a hiccup.
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_secs(3);

/// Tells who replaces connections that one has ended, and how.
pub struct Ends {
    sender: UnboundedSender<End>,
    /// Held by who replaces them. There are never more notes than connections.
    receiver: tokio::sync::Mutex<UnboundedReceiver<End>>,
}

/// A connection to the kernel that has ended.
struct End {
    entry: Arc<Entry>,
    /// Which of the devices that the array has been since it was started.
    generation: u64,
    /// The kernel has taken leave: somebody has taken the device away.
    is_goodbye: bool,
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
    let (mut pause, mut missing) = (REPLACE_PAUSE, false);
    loop {
        let patience = if missing { pause } else { REPLACE_PAUSE_MAX };
        if let Ok(told) = tokio::time::timeout(patience, ended.recv()).await {
            let Some(end) = told else { return };
            operator.note_end(&end).await;
        }
        tokio::time::sleep(pause).await;
        while let Ok(end) = ended.try_recv() {
            operator.note_end(&end).await;
        }
        missing = false;
        for entry in operator.service.registry.all() {
            missing |= operator.replace_connections(&entry).await;
        }
        pause = if missing { (2 * pause).min(REPLACE_PAUSE_MAX) } else { REPLACE_PAUSE };
    }
}

/// A device of the kernel's that is attached to an array.
struct Found {
    index: u32,
    backend: String,
}

/// The devices that say that the array with this UUID is behind them.
fn devices_of(uuid: &[u8; 16]) -> Vec<Found> {
    let all = backends().into_iter().map(|(index, backend)| Found { index, backend });
    all.filter(|found| uuid_in(&found.backend).as_ref() == Some(uuid)).collect()
}

/// The device that an array is wanted as, if it is there.
fn wanted_device(uuid: &[u8; 16], wanted: &SavedDevice) -> Option<Found> {
    devices_of(uuid).into_iter().find(|found| found.index == wanted.index)
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

/// Whether a path is that of a block device, or a partition of one, that raidd itself is behind: nobody looks for members
/// there. At a start it waits for the very raidd that looks.
pub fn is_own_device(path: &Path) -> bool {
    let name =
        path.strip_prefix("/dev").ok().and_then(Path::to_str).and_then(|name| name.strip_prefix("nbd"));
    let Some(digits) = name.and_then(|name| name.split('p').next()) else { return false };
    let Ok(index) = digits.parse::<u32>() else { return false };
    backends().iter().any(|(other, backend)| *other == index && uuid_in(backend).is_some())
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
    static ONCE: Once = Once::new();
    ONCE.call_once(lock_memory);
}

fn lock_memory() {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::warn!(%error, "memory cannot be locked: with swap on an attached array the machine could come to a halt");
    }
}

impl Operator {
    /// What is wanted of an array's device.
    fn wanted(&self, uuid: &[u8; 16]) -> Option<SavedDevice> {
        self.saved(uuid).and_then(|saved| saved.attached)
    }

    fn want(&self, uuid: &[u8; 16], wanted: Option<SavedDevice>) {
        self.remember(|state| state.update(&format_uuid(uuid), |array| array.attached = wanted));
    }

    /// The path of the device that an array is attached as.
    pub(super) fn device_of(&self, uuid: &[u8; 16]) -> Option<String> {
        wanted_device(uuid, &self.wanted(uuid)?).map(|found| path_of(found.index))
    }

    /// Makes a running array a device of the kernel's.
    pub(super) async fn attach(&self, name: &str, how: &AttachArray) -> Result<Reply, Problem> {
        let invalid = |why: String| problem(ProblemCode::InvalidRequest, why);
        how.check().map_err(invalid)?;
        let index = how.index().map_err(invalid)?;
        let entry = self.entry(name)?;
        let _turn = entry.device.lock().await;
        if let Some(device) = self.device_of(&entry.uuid) {
            let why = format!("{name} is attached as {device} already: detach that first");
            return Err(problem(ProblemCode::ArrayInUse, why));
        }
        let reactors = u32::try_from(self.service.reactors.len()).unwrap_or(1);
        let wanted = SavedDevice {
            index: index.unwrap_or(0),
            connections: how.connections.unwrap_or(reactors.max(2)),
            wait_seconds: how.wait_ms.unwrap_or(ATTACH_WAIT_MS_DEFAULT) / 1000,
        };
        let connected = match index {
            Some(_) => self.connect(&entry, wanted).await,
            None => self.connect_any(&entry, wanted).await,
        };
        let index = connected.inspect_err(|_| self.want(&entry.uuid, None))?;
        tracing::info!(array = name, device = path_of(index), "attached");
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }

    /// Takes an array's device away.
    pub(super) async fn detach(&self, name: &str, force: bool) -> Result<Reply, Problem> {
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
        let entry = self.service.registry.by_uuid(uuid);
        let _turn = match &entry {
            Some(entry) => Some(entry.device.lock().await),
            None => None,
        };
        let Some(wanted) = self.wanted(uuid) else { return Ok(false) };
        let Some(Found { index, .. }) = wanted_device(uuid, &wanted) else {
            self.want(uuid, None);
            return Ok(true);
        };
        // Held until the device is gone, so that nobody mounts it in between.
        let held = if force { None } else { Some(blocking(move || hold(index)).await??) };
        self.want(uuid, None);
        let gone = with_driver(move |driver| driver.disconnect(index)).await;
        gone.inspect_err(|_| self.want(uuid, Some(wanted)))?;
        drop(held);
        if let Some(entry) = &entry {
            let deadline = tokio::time::Instant::now() + SESSIONS_END;
            while entry.kernel_connections() > 0 && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        tracing::info!(array = name, device = path_of(index), "detached");
        Ok(true)
    }

    /// Gives an array that has been started its device back: the one that waits for it, or else one like it.
    pub(super) async fn attach_again(&self, entry: &Arc<Entry>) {
        let _turn = entry.device.lock().await;
        let Some(wanted) = self.wanted(&entry.uuid) else {
            for Found { index, .. } in devices_of(&entry.uuid) {
                let device = path_of(index);
                tracing::warn!(
                    array = entry.name,
                    device,
                    "is left over from an array that was detached: it stays dead"
                );
            }
            return;
        };
        let done = match wanted_device(&entry.uuid, &wanted) {
            Some(found) => self.reconnect(entry, found, &wanted, wanted.connections).await,
            None => match self.connect(entry, wanted.clone()).await {
                Err(error) if error.code == ProblemCode::DeviceInUse => {
                    tracing::warn!(
                        array = entry.name,
                        device = path_of(wanted.index),
                        "is in use: taking another"
                    );
                    self.connect_any(entry, wanted).await
                }
                done => done,
            },
        };
        match done {
            Ok(index) => tracing::info!(array = entry.name, device = path_of(index), "attached again"),
            // It stays wanted, and is tried again at the next start.
            Err(error) => tracing::error!(array = entry.name, %error, "cannot be attached again"),
        }
    }

    /// Replaces the connections of the kernel's that have ended while the array runs. True if there is to be another look
    /// soon: it was done, it failed, or the device is being changed, which others do not wait for.
    async fn replace_connections(&self, entry: &Arc<Entry>) -> bool {
        let Ok(_turn) = entry.device.try_lock() else { return true };
        let Some(wanted) = self.wanted(&entry.uuid).filter(|_| !entry.is_closed()) else { return false };
        let missing = wanted.connections.saturating_sub(entry.kernel_connections());
        let Some(found) = wanted_device(&entry.uuid, &wanted).filter(|_| missing > 0) else { return false };
        let device = path_of(found.index);
        match self.reconnect(entry, found, &wanted, missing).await {
            Ok(_) => tracing::info!(array = entry.name, device, missing, "connections replaced"),
            Err(error) => {
                tracing::error!(array = entry.name, device, %error, "connections cannot be replaced");
            }
        }
        true
    }

    /// What an end means beyond a connection less.
    async fn note_end(&self, end: &End) {
        if !end.is_goodbye {
            return;
        }
        let entry = &end.entry;
        let _turn = entry.device.lock().await;
        if end.generation == entry.device_generation()
            && let Some(wanted) = self.wanted(&entry.uuid)
        {
            tracing::warn!(
                array = entry.name,
                device = path_of(wanted.index),
                "was taken away by somebody else"
            );
            self.want(&entry.uuid, None);
        }
    }

    /// Tells the kernel how large the device is and how patient it has to be now.
    pub(super) async fn update_device(&self, entry: &Arc<Entry>) -> Result<(), Problem> {
        let _turn = entry.device.lock().await;
        let Some(wanted) = self.wanted(&entry.uuid) else { return Ok(()) };
        let Some(found) = wanted_device(&entry.uuid, &wanted) else { return Ok(()) };
        self.reconnect(entry, found, &wanted, 0).await.map(drop)
    }

    /// Makes the device that is wanted; from now on it is.
    async fn connect(&self, entry: &Arc<Entry>, wanted: SavedDevice) -> Result<u32, Problem> {
        let device = self.device_for_kernel(entry, &wanted, backend(entry)).await?;
        let (index, connections) = (wanted.index, wanted.connections);
        with_driver(|_| Ok(())).await?; // before anything is served
        self.want(&entry.uuid, Some(wanted));
        entry.next_device();
        let sockets = self.serve_kernel(entry, connections).await?;
        with_driver(move |driver| driver.connect(Some(index), &device, &sockets)).await
    }

    /// The same with the first device that is free.
    async fn connect_any(&self, entry: &Arc<Entry>, wanted: SavedDevice) -> Result<u32, Problem> {
        let mut index = 0;
        loop {
            let done = match is_free(index) {
                true => self.connect(entry, SavedDevice { index, ..wanted.clone() }).await,
                false => Err(problem(ProblemCode::DeviceInUse, "all devices are in use: detach one")),
            };
            match done {
                Err(error) if error.code == ProblemCode::DeviceInUse && index < DEVICES_MAX => index += 1,
                done => return done,
            }
        }
    }

    /// Gives a device that is there `count` new sockets.
    async fn reconnect(
        &self,
        entry: &Arc<Entry>,
        found: Found,
        wanted: &SavedDevice,
        count: u32,
    ) -> Result<u32, Problem> {
        let Found { index, backend } = found;
        let device = self.device_for_kernel(entry, wanted, backend).await?;
        let sockets = self.serve_kernel(entry, count).await?;
        // The sockets first: a change of the size may wait for requests, and these for sockets.
        with_driver(move |driver| {
            driver.reconfigure(index, &device, &sockets)?;
            if size_of(index) == Some(device.size_bytes) { Ok(()) } else { driver.resize(index, &device) }
        })
        .await?;
        Ok(index)
    }

    async fn device_for_kernel(
        &self,
        entry: &Entry,
        wanted: &SavedDevice,
        backend: String,
    ) -> Result<NbdDevice, Problem> {
        let id = entry.id;
        let facts = entry.home.call(move || async move {
            present(id).await.map(|array| (array.info(), array.status().member_timeout))
        });
        let facts = facts.await.ok().flatten();
        let (info, member_timeout) = facts.ok_or_else(|| Problem::no_such_array(&entry.name))?;
        Ok(NbdDevice {
            size_bytes: info.size_bytes,
            block_bytes: info.read_block_bytes.max(512),
            flags: nbd::kernel_flags(&info),
            timeouts: timeouts(wanted, member_timeout),
            backend,
        })
    }

    /// The kernel's ends of so many new connections; ours are served.
    async fn serve_kernel(&self, entry: &Arc<Entry>, count: u32) -> Result<Vec<OwnedFd>, Problem> {
        blocking(stay_in_memory).await?;
        let pairs: Result<Vec<_>, _> = (0..count).map(|_| UnixStream::pair()).collect();
        let pairs = pairs.map_err(|error| internal(&format!("no socket for the kernel: {error}")))?;
        let sockets = pairs.into_iter().map(|(ours, kernels)| {
            let (sender, entry_then) = (self.ends.sender.clone(), entry.clone());
            let generation = entry.device_generation();
            let on_end = move |end| {
                let is_goodbye = end == Some(SessionEnd::Disconnected);
                // Whoever would read it has ended with the daemon.
                sender.send(End { entry: entry_then, generation, is_goodbye }).unwrap_or_default();
            };
            self.service.serve_kernel(entry, ours.into(), on_end);
            kernels.into()
        });
        Ok(sockets.collect())
    }
}

/// Bytes of a device, as the kernel has it.
fn size_of(index: u32) -> Option<u64> {
    let sectors = std::fs::read_to_string(format!("/sys/block/nbd{index}/size")).ok()?;
    sectors.trim().parse::<u64>().ok()?.checked_mul(512)
}

/// Whether the kernel says that a device is not connected, or has none of that number yet.
fn is_free(index: u32) -> bool {
    !Path::new(&format!("/sys/block/nbd{index}/pid")).exists()
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
