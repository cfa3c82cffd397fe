//! Zeroing and discarding: whole stripes become zeroes on the members, parity included, so that parity stays true.
//!
//! What is not a whole stripe is written as zeroes (write-zeroes) or left alone (discard: its content is undefined
//! afterwards anyway, but redundancy must not be). So is everything where there are partial parity logs.

use std::ops::Range;

use futures_util::future::join_all;

use super::array::{Array, sectors};
use super::locks::RowGuard;
use super::stripe::OUT_OF_REACH;
use crate::io::{Device, Fua, IoError, IoErrorKind, MAX_BUF_BYTES, Runtime, Slice, Zeroing};
use crate::layout::{Copies, Extent, Geometry, Parity};
use crate::units::{SECTOR_BYTES, Sector};

/// Member bytes that are zeroed under one lock: enough to be efficient, little enough not to hold others up for long.
const BATCH_BYTES: u64 = 64 << 20;

/// Why a range is to be zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It must read as zeroes.
    Zeroes(Zeroing, Fua),
    /// It may; a member that cannot do so at once is not made to.
    Discard,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    pub(super) async fn zero_range(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        if self.logs.is_some() {
            // Only writes are logged.
            return self.write_zero_slices(offset_bytes..offset_bytes + len_bytes, fua).await;
        }
        let whole = self.whole_units(offset_bytes, len_bytes);
        self.write_zero_slices(offset_bytes..whole.start, fua).await?;
        self.zero_whole(whole.clone(), Purpose::Zeroes(zeroing, fua)).await?;
        self.write_zero_slices(whole.end..offset_bytes + len_bytes, fua).await
    }

    pub(super) async fn discard_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        if self.logs.is_some() {
            return Ok(());
        }
        let whole = self.whole_units(offset_bytes, len_bytes);
        match self.zero_whole(whole, Purpose::Discard).await {
            // A discard is a hint: a device that cannot take it has not been asked for anything else.
            Err(error) if error.kind == IoErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// The whole stripes (with copies: whole 4 KiB blocks) in a range of array bytes; empty, at its start, if none.
    pub(super) fn whole_units(&self, offset_bytes: u64, len_bytes: u64) -> Range<u64> {
        let unit = match &self.geometry {
            Geometry::Parity(parity) => parity.stripe_sectors().bytes(),
            Geometry::Copies(_) => self.block_bytes.max(4096),
        };
        let end = offset_bytes + len_bytes;
        let start = offset_bytes.next_multiple_of(unit);
        let stop = end - end % unit;
        // All that is left of an array whose last block is a short one counts as whole blocks, too.
        let stop =
            if end == self.size_bytes() && matches!(self.geometry, Geometry::Copies(_)) { end } else { stop };
        if start < stop { start..stop } else { end..end }
    }

    async fn write_zero_slices(&self, range: Range<u64>, fua: Fua) -> Result<(), IoError> {
        let mut at = range.start;
        while at < range.end {
            // Slices of zeroes are page-aligned; one that begins where the last ended keeps memory and offset in step.
            let page = at % 4096;
            let len = (range.end - at).min(MAX_BUF_BYTES as u64 - page);
            let zeroes = Slice::zeroes((page + len) as usize).slice(page as usize..(page + len) as usize);
            match &self.geometry {
                Geometry::Copies(copies) => self.write_copies(copies, at, &[zeroes], fua).await?,
                Geometry::Parity(parity) => self.write_parity(parity, at, &[zeroes], fua).await?,
            }
            at += len;
        }
        Ok(())
    }

    async fn zero_whole(&self, range: Range<u64>, purpose: Purpose) -> Result<(), IoError> {
        if range.is_empty() {
            return Ok(());
        }
        match &self.geometry {
            Geometry::Parity(parity) => self.zero_stripes(parity, range, purpose).await,
            Geometry::Copies(copies) => self.zero_copies(copies, range, purpose).await,
        }
    }

    /// Discards are done one batch at a time, and only for as long as a member has for an operation: a filesystem sends them
    /// by the gigabyte, many at once, and a member that does them at the speed of writes would be taken for one that
    /// hangs. What there is no time for is left out; a discard is a hint.
    async fn turn_to_discard(&self, purpose: Purpose) -> Option<RowGuard<'_>> {
        match purpose {
            Purpose::Discard => Some(self.discards.lock(0..1).await),
            Purpose::Zeroes(..) => None,
        }
    }

    async fn zero_stripes(
        &self,
        parity: &Parity,
        range: Range<u64>,
        purpose: Purpose,
    ) -> Result<(), IoError> {
        let due = self.runtime.now() + self.deadlines.timeout();
        let width = parity.stripe_sectors().bytes();
        let chunk = parity.chunk();
        let (mut first, end) = (range.start / width, range.end / width);
        let batch = (BATCH_BYTES / chunk.bytes()).max(1);
        while first < end {
            let stop = end.min(first + batch);
            // The same rows of whole stripes lie one behind the other on every member.
            let rows = first * chunk.0..stop * chunk.0;
            let _turn = self.turn_to_discard(purpose).await;
            if purpose == Purpose::Discard && self.runtime.now() >= due {
                return Ok(());
            }
            self.close_groups(first..stop).await;
            let _rows = self.locks.lock(rows.clone()).await;
            let _marked = self.mark(&rows).await?;
            let places: Vec<_> =
                self.live_seated().into_iter().map(|member| (member, Sector(rows.start))).collect();
            self.zero_places(rows.clone(), places, Sector(rows.end - rows.start), purpose).await?;
            first = stop;
        }
        Ok(())
    }

    async fn zero_copies(&self, copies: &Copies, range: Range<u64>, purpose: Purpose) -> Result<(), IoError> {
        let (start, len) = (Sector(sectors(range.start)), Sector(sectors(range.end - range.start)));
        let due = self.runtime.now() + self.deadlines.timeout();
        for extent in copies.extents(start, len) {
            let mut at = 0;
            while at < extent.len.0 {
                let _turn = self.turn_to_discard(purpose).await;
                if purpose == Purpose::Discard && self.runtime.now() >= due {
                    return Ok(());
                }
                let stop = extent.len.0.min(at + BATCH_BYTES / SECTOR_BYTES);
                self.zero_extent(super::mirror::part_of(&extent, at..stop), purpose).await?;
                at = stop;
            }
        }
        Ok(())
    }

    async fn zero_extent(&self, extent: Extent, purpose: Purpose) -> Result<(), IoError> {
        let rows = extent.array.0..(extent.array + extent.len).0;
        let _rows = self.locks.lock(rows.clone()).await;
        let _marked = self.mark(&rows).await?;
        let copies = extent.copies.iter();
        let places = copies.flat_map(|place| self.writers(place.slot).map(|member| (member, place.sector)));
        self.zero_places(rows, places.collect(), extent.len, purpose).await
    }

    /// Zeroes the same number of sectors at a place of each member: all of them, or, for a discard that the first of
    /// them cannot do, none. The rows are locked.
    async fn zero_places(
        &self,
        rows: Range<u64>,
        places: Vec<(std::rc::Rc<super::member::Member<D>>, Sector)>,
        len: Sector,
        purpose: Purpose,
    ) -> Result<(), IoError> {
        if !places.iter().any(|(member, _)| member.in_sync()) {
            return Err(OUT_OF_REACH);
        }
        self.check_writable()?;
        let own = |sector: Sector| sector.0..(sector + len).0;
        let mut places = places.into_iter();
        let mut written = Vec::new();
        let (zeroing, fua) = match purpose {
            Purpose::Zeroes(zeroing, fua) => (zeroing, fua),
            Purpose::Discard => {
                let (member, sector) = places.next().expect("not empty");
                match member.try_write_zeroes(sector, len, Zeroing::Unmap, Fua::No).await {
                    Err(error) if error.kind == IoErrorKind::Unsupported => return Err(error),
                    result => written.push((member, own(sector), result)),
                }
                (Zeroing::Unmap, Fua::No)
            }
        };
        let zeroes = places.map(|(member, sector)| async move {
            let result = member.write_zeroes(sector, len, zeroing, fua).await;
            (member, own(sector), result)
        });
        written.extend(join_all(zeroes.collect::<Vec<_>>()).await);
        self.settle(&rows, written, true)
    }
}
