//! Where an array lives: on one reactor, in a table of that reactor's thread. Everybody else reaches it by sending a job
//! there; connections do so through [`RemoteArray`], a device like any other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;

use super::faults::MemberDisk;
use crate::engine::Array;
use crate::io::{Buf, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, IoErrorKind, Slice, Zeroing};
use crate::reactor::{LocalRuntime, ReactorHandle};

/// An array on real disks.
pub type DiskArray = Array<MemberDisk, LocalRuntime>;

/// A number for an array that no other will ever have in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArrayId(pub u64);

thread_local! {
    static ARRAYS: RefCell<HashMap<ArrayId, Rc<DiskArray>>> = RefCell::default();
    /// Who waits for arrays that are away for a moment. Dropping the senders tells them to look again.
    static AWAY: RefCell<HashMap<ArrayId, Vec<oneshot::Sender<()>>>> = RefCell::default();
}

/// Puts an array into this thread's table, to whoever waits for it.
pub fn settle_in(id: ArrayId, array: Rc<DiskArray>) {
    ARRAYS.with_borrow_mut(|arrays| arrays.insert(id, array));
    AWAY.with_borrow_mut(|away| away.remove(&id));
}

/// Takes an array out of this thread's table for a moment: until it, or what it has been changed into, settles in again or is
/// given up, requests for it wait. They have no array meanwhile, and so it can be stopped under them.
pub fn go_away(id: ArrayId) -> Option<Rc<DiskArray>> {
    let array = move_out(id)?;
    AWAY.with_borrow_mut(|away| away.insert(id, Vec::new()));
    Some(array)
}

/// An array that was away does not come back.
pub fn give_up(id: ArrayId) {
    AWAY.with_borrow_mut(|away| away.remove(&id));
}

/// An array of this thread's table, also one that is away for a moment.
pub async fn present(id: ArrayId) -> Option<Rc<DiskArray>> {
    loop {
        if let Some(array) = resident(id) {
            return Some(array);
        }
        let (sender, is_back) = oneshot::channel();
        AWAY.with_borrow_mut(|away| {
            away.get_mut(&id)?.push(sender);
            Some(())
        })?;
        // The sender is dropped, not used.
        let _dropped = is_back.await.is_err();
    }
}

fn is_away(id: ArrayId) -> bool {
    AWAY.with_borrow(|away| away.contains_key(&id))
}

/// Takes an array out of this thread's table.
pub fn move_out(id: ArrayId) -> Option<Rc<DiskArray>> {
    ARRAYS.with_borrow_mut(|arrays| arrays.remove(&id))
}

/// An array of this thread's table.
pub fn resident(id: ArrayId) -> Option<Rc<DiskArray>> {
    ARRAYS.with_borrow(|arrays| arrays.get(&id).cloned())
}

const GONE: IoError = IoError::new(IoErrorKind::ShuttingDown, "the array has been stopped");

/// An array, from wherever the connection is.
#[derive(Clone)]
pub struct RemoteArray {
    pub id: ArrayId,
    pub home: ReactorHandle,
    /// As it was when the connection was made, but read-only also where the export is; of what is in it only `read_only`
    /// could change, and the array itself refuses writes then.
    pub info: DeviceInfo,
    /// The questions about ranges that it has answers to; as it was then, too.
    pub kinds: Arc<[ExtentKind]>,
}

impl RemoteArray {
    /// The array, if it lives on this reactor and is not away. Who uses it is a task that ends with its request and not with its
    /// connection: one that is dropped takes no write down with it, which would leave its rows torn and unlocked.
    fn here(&self) -> Option<Result<Rc<DiskArray>, IoError>> {
        if !self.home.is_current() {
            return None;
        }
        match resident(self.id) {
            None if is_away(self.id) => None,
            array => Some(array.ok_or(GONE)),
        }
    }

    /// Runs `job` on the array where it lives, as a task of its own.
    async fn there<T, F>(&self, job: impl FnOnce(Rc<DiskArray>) -> F + Send + 'static) -> Result<T, IoError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, IoError>> + 'static,
    {
        let id = self.id;
        let answer = self.home.call(move || async move { job(present(id).await.ok_or(GONE)?).await });
        answer.await.unwrap_or(Err(GONE))
    }
}

impl Device for RemoteArray {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn read(&self, offset_bytes: u64, buf: Buf) -> Result<Buf, IoError> {
        match self.here() {
            Some(array) => array?.read(offset_bytes, buf).await,
            None => {
                Box::pin(self.there(move |array| async move { array.read(offset_bytes, buf).await })).await
            }
        }
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        match self.here() {
            Some(array) => array?.write(offset_bytes, data, fua).await,
            None => {
                Box::pin(self.there(move |array| async move { array.write(offset_bytes, data, fua).await }))
                    .await
            }
        }
    }

    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        self.there(
            move |array| async move { array.write_zeroes(offset_bytes, len_bytes, zeroing, fua).await },
        )
        .await
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.there(move |array| async move { array.discard(offset_bytes, len_bytes).await }).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.there(|array| async move { array.flush().await }).await
    }

    async fn zeroes_fast(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        let fast =
            self.there(move |array| async move { Ok(array.zeroes_fast(offset_bytes, len_bytes).await) });
        fast.await.unwrap_or(false)
    }

    fn extent_kinds(&self) -> &[ExtentKind] {
        &self.kinds
    }

    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        self.there(move |array| async move { array.extents(kind, range, max).await }).await
    }
}
