//! WHEN the write-intent bitmap is written (`md::bitmap` says what it is): set before the data, cleared long after.
//!
//! The bits here are what every seated member is to hold. A write sets the bits of its rows and waits until they are
//! durable; writers that wait together are served by one write of the pages concerned. What has been idle for a while is
//! cleared behind a flush of all members.
//!
//! Invariants (DESIGN law 2):
//! - No data is written to rows whose bit is not durable on every live member that holds a slot.
//! - A bit is cleared only when nobody writes there, nothing there awaits resync or is torn, every slot has a member in
//!   sync, and a flush that began after the last write there has reached all of them. So while a member is out, bits are
//!   kept: they are what it has missed.
//! - The bitmap's own event count is written before the superblocks', so a bitmap that lags behind its superblock has
//!   missed something, and counts as all set.
//! - Nobody is given a slot before it has the whole bitmap.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use super::array::Array;
use super::member::Member;
use super::mutant::{self, Mutant};
use super::ranges::RowSet;
use super::state::{Health, Phase};
use crate::io::{Device, Fua, IoError, Runtime};
use crate::md::bitmap::BITMAP_SUPERBLOCK_BYTES;
use crate::md::{Bitmap, BitmapSuperblock, Features, SUPERBLOCK_OFFSET_BYTES};
use crate::units::{EventCount, SECTOR_BYTES, Sector};

/// How long a region stays marked after its last write; md's daemon_sleep.
const CLEAR_DELAY: Duration = Duration::from_secs(5);

/// The bitmap of an array, and who is using which bit.
pub(super) struct Intent {
    bitmap: Bitmap,
    page_bytes: u64,
    /// Pages that some member may not hold as they are here, each with the number of its last change.
    unwritten: BTreeMap<u64, u64>,
    changes: u64,
    chunks: BTreeMap<u64, Use>,
    /// The task that clears idle bits is running.
    pub clearing: bool,
}

/// A chunk that is being written, or has been since its bit was set.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Use {
    writers: u32,
    /// Counts writers; tells whether anybody wrote during an await.
    uses: u64,
    last: Duration,
}

impl Intent {
    /// `stale`: all bits count as set, and what is on the members is not to be believed.
    pub fn new(mut bitmap: Bitmap, stale: bool, page_bytes: u64) -> Intent {
        if stale {
            bitmap.set_all();
            bitmap.superblock.state &= !BitmapSuperblock::STALE;
        }
        let mut intent = Intent {
            bitmap,
            page_bytes,
            unwritten: BTreeMap::new(),
            changes: 0,
            chunks: BTreeMap::new(),
            clearing: false,
        };
        if stale {
            (0..intent.page_count()).for_each(|page| intent.touch(page));
        }
        intent
    }

    /// Takes in what other members hold that are as fresh: a crash may have come while a bit was being set, or before the
    /// failure of one that could not take it was recorded. From the first change on all of them hold the same, also those
    /// (none) that are behind.
    pub fn unite<'a>(&mut self, others: impl Iterator<Item = Option<&'a Bitmap>> + Clone) {
        let shape = |bitmap: &Bitmap| (bitmap.superblock.chunk_bytes, bitmap.superblock.sync_size);
        let own = shape(&self.bitmap);
        let is_like = |other: &&Bitmap| shape(other) == own && !other.superblock.is_stale();
        for other in others.clone().flatten().filter(is_like) {
            other.set_chunks().for_each(|chunk| self.bitmap.set(chunk));
        }
        let (bytes, page_bytes) = (self.bitmap.encode(), self.page_bytes as usize);
        for other in others {
            let same = other.filter(is_like).map(Bitmap::encode);
            let pages = bytes.chunks(page_bytes).enumerate().skip(1);
            let differs = |(page, part): &(usize, &[u8])| {
                let start = page * page_bytes;
                same.as_ref().is_none_or(|same| same.get(start..start + part.len()) != Some(*part))
            };
            pages.filter(differs).for_each(|(page, _)| self.touch(page as u64));
            // The head, with the first bits.
            let head = BITMAP_SUPERBLOCK_BYTES..bytes.len().min(page_bytes);
            if same.is_none_or(|same| same.get(head.clone()) != Some(&bytes[head])) {
                self.touch(0);
            }
        }
    }

    /// A new array that is consistent from the first second: no bit is needed, though mdadm leaves all of them set. The
    /// members hear of it with the first page that is written.
    pub fn begin_clean(&mut self) {
        for chunk in self.bitmap.set_chunks().collect::<Vec<_>>() {
            self.bitmap.clear(chunk);
        }
    }

    fn page_count(&self) -> u64 {
        self.bitmap.superblock.total_bytes().div_ceil(self.page_bytes)
    }

    /// Bytes of head and bits on a member.
    pub fn total_bytes(&self) -> u64 {
        self.page_count() * self.page_bytes
    }

    fn touch(&mut self, page: u64) {
        self.changes += 1;
        self.unwritten.insert(page, self.changes);
    }

    fn chunks_of(&self, rows: &Range<u64>) -> std::ops::RangeInclusive<u64> {
        assert!(rows.start < rows.end);
        self.bitmap.chunk_of(Sector(rows.start))..=self.bitmap.chunk_of(Sector(rows.end - 1))
    }

    fn page_of(&self, chunk: u64) -> u64 {
        Bitmap::byte_of(chunk) / self.page_bytes
    }

    fn set(&mut self, rows: &Range<u64>) {
        for chunk in self.chunks_of(rows) {
            let used = self.chunks.entry(chunk).or_default();
            used.writers += 1;
            used.uses += 1;
            if !self.bitmap.is_set(chunk) {
                self.bitmap.set(chunk);
                self.touch(self.page_of(chunk));
            }
        }
    }

    fn is_durable(&self, rows: &Range<u64>) -> bool {
        let pages = self.page_of(*self.chunks_of(rows).start())..=self.page_of(*self.chunks_of(rows).end());
        self.unwritten.range(pages).next().is_none()
    }

    fn release(&mut self, rows: &Range<u64>, now: Duration) {
        for chunk in self.chunks_of(rows) {
            let used = self.chunks.get_mut(&chunk).expect("it was set");
            used.writers -= 1;
            used.last = now;
        }
    }

    /// Whether any of these rows may have been written without somebody who was away.
    pub fn is_marked(&self, rows: &Range<u64>) -> bool {
        self.chunks_of(rows).any(|chunk| self.bitmap.is_set(chunk))
    }

    /// The first row from here on whose bit is set.
    pub fn next_marked(&self, row: u64) -> Option<u64> {
        if row >= self.bitmap.superblock.sync_size.0 {
            return None;
        }
        let chunk = self.bitmap.next_set(self.bitmap.chunk_of(Sector(row)))?;
        Some(self.rows_of(chunk).start.max(row))
    }

    /// Where the chunk of rows that this one is in ends.
    pub fn chunk_end(&self, row: u64) -> u64 {
        self.rows_of(self.bitmap.chunk_of(Sector(row))).end
    }

    /// All rows whose bit is set.
    pub fn marked(&self) -> RowSet {
        let ranges = self.bitmap.set_ranges();
        ranges.into_iter().map(|(start, len)| start.0..(start + len).0).collect()
    }

    pub fn is_clear(&self) -> bool {
        self.bitmap.is_clear()
    }

    /// The event count up to which no bit has been cleared that a member of that age would need.
    pub fn events_cleared(&self) -> EventCount {
        self.bitmap.superblock.events_cleared
    }

    /// Set bits that nobody has used since `before`.
    fn idle(&self, before: Option<Duration>) -> Vec<(u64, Use)> {
        let chunks = self
            .bitmap
            .set_chunks()
            .map(|chunk| (chunk, self.chunks.get(&chunk).copied().unwrap_or_default()));
        chunks
            .filter(|(_, used)| used.writers == 0 && before.is_none_or(|before| used.last <= before))
            .collect()
    }

    fn rows_of(&self, chunk: u64) -> Range<u64> {
        let unit = self.bitmap.superblock.chunk_sectors().0;
        chunk * unit..((chunk + 1) * unit).min(self.bitmap.superblock.sync_size.0)
    }

    /// Clears those that are as they were.
    fn clear(&mut self, chunks: &[(u64, Use)], events: EventCount) {
        for &(chunk, used) in chunks {
            if self.chunks.get(&chunk).copied().unwrap_or_default() == used && self.bitmap.is_set(chunk) {
                self.bitmap.clear(chunk);
                self.chunks.remove(&chunk);
                self.touch(self.page_of(chunk));
                self.bitmap.superblock.events_cleared = events;
                self.touch(0);
            }
        }
    }

    /// The bytes of a page, as they are to be.
    fn page(&self, page: u64) -> Vec<u8> {
        let bytes = self.bitmap.encode();
        let start = (page * self.page_bytes) as usize;
        let end = bytes.len().min(start + self.page_bytes as usize);
        bytes[start..end].to_vec()
    }
}

/// A write under way; the bits of its rows stay set while it lives.
pub(super) struct Marked<'a, D: Device + 'static, R: Runtime> {
    array: &'a Array<D, R>,
    rows: Range<u64>,
}

impl<D: Device + 'static, R: Runtime> Drop for Marked<'_, D, R> {
    fn drop(&mut self) {
        let now = self.array.runtime.now();
        if let Some(intent) = &self.array.intent {
            intent.borrow_mut().release(&self.rows, now);
        }
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    pub(super) fn has_bitmap(&self) -> bool {
        self.truth.feature_map.contains(Features::BITMAP) && !self.truth.has_ppl()
    }

    /// Lets a write of these rows (in the units of the row locks) go on: their bits are durable on return, and stay set
    /// while what is returned lives.
    pub(super) async fn mark(&self, rows: &Range<u64>) -> Result<Option<Marked<'_, D, R>>, IoError> {
        let Some(intent) = &self.intent else { return Ok(None) };
        if mutant::is(Mutant::SkipBitmapWrite) {
            return Ok(None);
        }
        intent.borrow_mut().set(rows);
        let marked = Marked { array: self, rows: rows.clone() };
        self.watch_idle_bits();
        while !intent.borrow().is_durable(rows) && !mutant::is(Mutant::BitAfterData) {
            self.write_intent().await?;
        }
        Ok(Some(marked))
    }

    /// Writes what has changed to all members that hold a slot. A member that cannot take it fails.
    pub(super) async fn write_intent(&self) -> Result<(), IoError> {
        let Some(intent) = &self.intent else { return Ok(()) };
        let _lane = self.bitmap_lane.lock(0..1).await;
        let pages: Vec<(u64, u64)> =
            intent.borrow().unwritten.iter().map(|(&page, &change)| (page, change)).collect();
        // The page with the head last: it is what makes the others count.
        for (page, change) in pages.into_iter().rev() {
            self.write_page(intent, page).await?;
            let mut intent = intent.borrow_mut();
            if intent.unwritten.get(&page) == Some(&change) {
                intent.unwritten.remove(&page);
            }
        }
        Ok(())
    }

    /// Writes the head with a new event count, and whatever is outstanding. Before the superblocks that have this count.
    pub(super) async fn stamp_bitmap(&self, events: EventCount) -> Result<(), IoError> {
        let Some(intent) = &self.intent else { return Ok(()) };
        {
            let mut intent = intent.borrow_mut();
            intent.bitmap.superblock.events = events;
            intent.touch(0);
        }
        while intent.borrow().unwritten.contains_key(&0) {
            self.write_intent().await?;
        }
        Ok(())
    }

    /// The caller holds the bitmap's lane.
    async fn write_page(&self, intent: &RefCell<Intent>, page: u64) -> Result<(), IoError> {
        loop {
            let bytes = intent.borrow().page(page);
            let members = self.live_seated();
            let writes = members.iter().map(|member| self.write_page_to(member, page, &bytes));
            let results = join_all(writes).await;
            let failures =
                members.iter().zip(results).filter_map(|(member, result)| Some((member, result.err()?)));
            if !self.settle_metadata(failures.collect())? {
                return Ok(());
            }
        }
    }

    async fn write_page_to(&self, member: &Member<D>, page: u64, bytes: &[u8]) -> Result<(), IoError> {
        let mut buf = self.memory.metadata.alloc(self.block_bytes as usize).await;
        // What follows the last bit counts as set, as mdadm leaves it.
        buf.fill(0xff);
        buf[..bytes.len()].copy_from_slice(bytes);
        let at = bitmap_offset_bytes(member.superblock.bitmap_offset) + page * self.block_bytes;
        member.write_metadata(at, vec![buf.freeze()], Fua::Yes).await
    }

    /// Gives a member that is to hold a slot the whole bitmap. The caller holds the bitmap's lane, and seats the member
    /// before it lets go of it.
    pub(super) async fn write_whole_bitmap(&self, member: &Member<D>) -> Result<(), IoError> {
        let Some(intent) = &self.intent else { return Ok(()) };
        let count = intent.borrow().page_count();
        for page in (0..count).rev() {
            let bytes = intent.borrow().page(page);
            self.write_page_to(member, page, &bytes).await?;
        }
        Ok(())
    }

    /// Whether bits may be cleared at all: nobody is out who would need them.
    fn may_clear_bits(&self) -> bool {
        let state = self.state.borrow();
        let writable = state.read_only.is_none() && state.phase != Phase::ReadOnly;
        drop(state);
        let degraded = mutant::is(Mutant::ClearBitsDegraded);
        writable && (degraded || self.health() == Health::Optimal && self.filling().is_empty())
    }

    fn clearable(&self, intent: &RefCell<Intent>, before: Option<Duration>) -> Vec<(u64, Use)> {
        if !self.may_clear_bits() {
            return Vec::new();
        }
        let state = self.state.borrow();
        let intent = intent.borrow();
        let mut idle = intent.idle(before);
        idle.retain(|&(chunk, _)| {
            let rows = intent.rows_of(chunk);
            let pending = state.resync.as_ref().is_some_and(|resync| resync.pending.overlaps(&rows));
            !pending && !state.suspect.overlaps(&rows)
        });
        idle
    }

    /// Clears what has been idle for a while; all that is idle, where `delay` is zero.
    pub(super) async fn clear_idle_bits(&self, delay: Duration) -> Result<(), IoError> {
        let Some(intent) = &self.intent else { return Ok(()) };
        let before = self.runtime.now().checked_sub(delay);
        let before = if delay.is_zero() { None } else { Some(before.unwrap_or(Duration::ZERO)) };
        let idle = self.clearable(intent, before);
        if idle.is_empty() {
            return Ok(());
        }
        self.flush_members().await?;
        if !self.may_clear_bits() {
            return Ok(());
        }
        // Only what nobody has touched since before the flush.
        let events = self.state.borrow().events;
        let still = self.clearable(intent, before);
        let is_unchanged = |(chunk, used): &(u64, Use)| {
            still.binary_search_by_key(chunk, |(chunk, _)| *chunk).is_ok_and(|at| still[at].1 == *used)
        };
        let unchanged: Vec<_> = idle.into_iter().filter(is_unchanged).collect();
        intent.borrow_mut().clear(&unchanged, events);
        self.write_intent().await
    }

    /// Starts the task that clears idle bits, as long as there are any.
    pub(super) fn watch_idle_bits(&self) {
        let Some(intent) = &self.intent else { return };
        if std::mem::replace(&mut intent.borrow_mut().clearing, true) {
            return;
        }
        let weak = self.weak.clone();
        let runtime = self.runtime.clone();
        self.runtime.spawn(async move {
            loop {
                runtime.sleep(CLEAR_DELAY).await;
                let Some(array): Option<Rc<Self>> = weak.upgrade() else { return };
                let Some(intent) = &array.intent else { return };
                // Counted, so that a stop waits for it; and a stop clears what is left.
                let Ok(busy) = array.enter(true) else {
                    intent.borrow_mut().clearing = false;
                    return;
                };
                if let Err(error) = array.clear_idle_bits(CLEAR_DELAY).await {
                    tracing::warn!(array = array.name(), %error, "idle regions stay marked in the bitmap");
                }
                drop(busy);
                if intent.borrow().is_clear() || !array.may_clear_bits() {
                    // Begun again by the next write, or when nobody is out any more.
                    intent.borrow_mut().clearing = false;
                    return;
                }
            }
        });
    }
}

/// Where a bitmap begins whose superblock says that it lies so many sectors from it, in bytes from the start of the
/// device.
pub(super) fn bitmap_offset_bytes(bitmap_offset: i32) -> u64 {
    let relative = i64::from(bitmap_offset) * SECTOR_BYTES as i64;
    SUPERBLOCK_OFFSET_BYTES.checked_add_signed(relative).expect("checked when the array was assembled")
}

const _: () =
    assert!(BITMAP_SUPERBLOCK_BYTES == 256, "the head lies within the first page, whatever its size");
