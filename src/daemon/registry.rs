//! Which arrays run, where, and who is connected to them. Shared by all threads; locked for moments only.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::array_home::ArrayId;
use crate::nbd::Traffic;
use crate::reactor::ReactorHandle;

/// Connections that are served beside their array before others are spread. Measured with four clients on two cores: all of
/// them at home got 1.4 times the small reads done, and as many large ones.
pub const CONNECTIONS_AT_HOME: usize = 4;

/// A running array.
#[derive(Debug)]
pub struct Entry {
    pub id: ArrayId,
    pub name: String,
    /// As stored in its superblocks.
    pub uuid: [u8; 16],
    pub home: ReactorHandle,
    /// Held while its block device is made, changed or taken away.
    pub device: tokio::sync::Mutex<()>,
    clients: Mutex<Clients>,
    kernel_connections: AtomicU32,
    device_generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Clients {
    next: u64,
    /// No more are let in.
    closed: bool,
    /// The reactor that each is on.
    connected: HashMap<u64, ReactorHandle>,
}

impl Entry {
    pub fn new(id: ArrayId, name: String, uuid: [u8; 16], home: ReactorHandle) -> Entry {
        Entry {
            id,
            name,
            uuid,
            home,
            device: tokio::sync::Mutex::default(),
            clients: Mutex::default(),
            kernel_connections: AtomicU32::default(),
            device_generation: AtomicU64::default(),
        }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the block devices that the array has been: an end of one says nothing about the next.
    pub fn device_generation(&self) -> u64 {
        self.device_generation.load(Ordering::SeqCst)
    }

    /// There is another one now.
    pub fn next_device(&self) {
        self.device_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Connections to the kernel of this machine.
    pub fn kernel_connections(&self) -> u32 {
        self.kernel_connections.load(Ordering::SeqCst)
    }

    /// One more.
    pub fn kernel_connected(&self) {
        self.kernel_connections.fetch_add(1, Ordering::SeqCst);
    }

    /// One less.
    pub fn kernel_disconnected(&self) {
        self.kernel_connections.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts a client in, on this reactor; none if the array is being stopped.
    pub fn connect(&self, reactor: ReactorHandle) -> Option<u64> {
        let mut clients = self.clients();
        if clients.closed {
            return None;
        }
        clients.next += 1;
        let number = clients.next;
        clients.connected.insert(number, reactor);
        Some(number)
    }

    pub fn disconnect(&self, number: u64) {
        self.clients().connected.remove(&number);
    }

    pub fn connections(&self) -> usize {
        self.clients().connected.len()
    }

    /// The reactor for a client that is on `current` now (and counted there), of so many. For most it is the array's own as
    /// long as there are few, for a request that stays on one core costs half of one that crosses; then wherever there are
    /// fewest. Who reads much at a time is served by another, which sends what the array's reads meanwhile.
    pub fn place(&self, current: usize, reactors: usize, traffic: Traffic) -> usize {
        let mut load = vec![0; reactors];
        for reactor in self.clients().connected.values() {
            load[reactor.index()] += 1;
        }
        load[current] -= 1;
        best_place(&load, self.home.index(), current, traffic)
    }

    /// Lets nobody in any more, if nobody is connected or `force`: says who is, and on which reactors.
    pub fn close(&self, force: bool) -> Result<Vec<(u64, ReactorHandle)>, usize> {
        let mut clients = self.clients();
        if !clients.connected.is_empty() && !force {
            return Err(clients.connected.len());
        }
        clients.closed = true;
        Ok(clients.connected.iter().map(|(number, reactor)| (*number, reactor.clone())).collect())
    }

    /// Whether nobody is let in any more.
    pub fn is_closed(&self) -> bool {
        self.clients().closed
    }

    /// Lets clients in again, after a stop that failed.
    pub fn reopen(&self) {
        self.clients().closed = false;
    }
}

/// `load`: the array's other clients on each reactor. Of reactors that are as good as each other it is `current`, if that is one.
fn best_place(load: &[usize], home: usize, current: usize, traffic: Traffic) -> usize {
    let fewest = |reactors: &mut dyn Iterator<Item = usize>| {
        reactors.min_by_key(|&reactor| (load[reactor], reactor != current))
    };
    match traffic {
        Traffic::LargeReads => fewest(&mut (0..load.len()).filter(|&other| other != home)).unwrap_or(home),
        Traffic::Mixed if load[home] < CONNECTIONS_AT_HOME => home,
        Traffic::Mixed => {
            let least = fewest(&mut (0..load.len())).expect("a daemon has reactors");
            if load[home] == load[least] { home } else { least }
        }
    }
}

/// The running arrays, by name.
#[derive(Debug, Default)]
pub struct Registry {
    arrays: Mutex<BTreeMap<String, Arc<Entry>>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.arrays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.lock().get(name).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().values().cloned().collect()
    }

    pub fn by_uuid(&self, uuid: &[u8; 16]) -> Option<Arc<Entry>> {
        self.lock().values().find(|entry| entry.uuid == *uuid).cloned()
    }

    /// Adds an array. Panics if the name is taken: commands that add are carried out one at a time and look first.
    pub fn insert(&self, entry: Arc<Entry>) {
        let before = self.lock().insert(entry.name.clone(), entry);
        assert!(before.is_none(), "two arrays of one name");
    }

    pub fn by_id(&self, id: ArrayId) -> Option<Arc<Entry>> {
        self.lock().values().find(|entry| entry.id == id).cloned()
    }

    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_placed_by_its_requests_and_by_who_is_there() {
        let mixed = |load: &[usize], current| best_place(load, 1, current, Traffic::Mixed);
        assert_eq!(mixed(&[0, 0, 0], 0), 1);
        assert_eq!(mixed(&[0, CONNECTIONS_AT_HOME - 1, 0], 2), 1);
        assert_eq!(mixed(&[1, CONNECTIONS_AT_HOME, 0], 0), 2);
        assert_eq!(mixed(&[0, CONNECTIONS_AT_HOME, 0], 2), 2, "it need not move");
        assert_eq!(mixed(&[4, 4, 4], 0), 1, "home, where that is as good");

        let large = |load: &[usize], current| best_place(load, 1, current, Traffic::LargeReads);
        assert_eq!(large(&[0, 0, 0], 1), 0);
        assert_eq!(large(&[0, 0, 0], 2), 2);
        assert_eq!(large(&[3, 0, 2], 0), 2);
        assert_eq!(best_place(&[7], 0, 0, Traffic::LargeReads), 0, "there is no other");
    }
}
