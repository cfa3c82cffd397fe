//! Reading what is on a member before it is known whether it belongs to an array. Nothing is written here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use super::bitmap::bitmap_offset_bytes;
use super::deadline::Deadlines;
use super::error::Refusal;
use crate::io::{Device, Pool, Runtime};
use crate::md::{
    self, Bitmap, BitmapSuperblock, Features, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock,
};
use crate::units::{SECTOR_BYTES, Sector};

/// What is read at a time: a pool for metadata has several of it, so nobody waits until all of it is free.
const STEP_BYTES: u64 = 64 << 10;

/// A device and the metadata found on it.
pub struct Found<D> {
    /// The device, still only read.
    pub device: D,
    /// Its path, for people.
    pub label: String,
    /// Its superblock.
    pub superblock: Superblock,
    /// Known bad ranges, in sectors of the data area.
    pub bad: Vec<Range<u64>>,
    /// Its write-intent bitmap, where the array has one.
    pub(super) bitmap: Option<Bitmap>,
    /// Its partial parity log, where the array has one.
    pub(super) ppl_log: Vec<u8>,
    /// Sectors of parity that the log says better.
    pub(super) replayed: BTreeMap<u64, [u8; SECTOR_BYTES as usize]>,
}

/// Reads a device's metadata. Refuses what has none, what is damaged, and what uses features that raidd cannot serve; and
/// what does not answer a read within the deadline that members have.
pub async fn load<D: Device, R: Runtime>(
    device: D,
    label: String,
    pool: &Pool,
    runtime: &R,
) -> Result<Found<D>, Refusal> {
    let source = Source { pool, deadlines: &Deadlines::new(runtime) };
    let refuse = |why: String| Refusal::BadMember { member: label.clone(), why };
    if device.info().size_bytes < SUPERBLOCK_OFFSET_BYTES + SUPERBLOCK_BYTES as u64 {
        return Err(refuse("too small to hold an md superblock; was it truncated?".into()));
    }
    let bytes = source.read(&device, &label, SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES as u64).await?;
    let superblock =
        Superblock::parse(&bytes).map_err(|error| Refusal::NotAMember { member: label.clone(), error })?;
    if let Some(why) = superblock.unsupported() {
        return Err(refuse(format!("{why}; raidd leaves it untouched, use mdadm for it")));
    }
    let device_sectors = Sector::floor(device.info().size_bytes);
    let end = superblock.data_offset.0.checked_add(superblock.data_size.0);
    if end.is_none_or(|end| end > device_sectors.0) {
        return Err(refuse(format!(
            "its superblock speaks of {} sectors from {}, but the device has {device_sectors}; was it truncated?",
            superblock.data_size, superblock.data_offset
        )));
    }
    let mut found = Found {
        device,
        label: label.clone(),
        superblock,
        bad: Vec::new(),
        bitmap: None,
        ppl_log: Vec::new(),
        replayed: BTreeMap::new(),
    };
    found.load_bad_blocks(&source).await?;
    found.load_bitmap(&source).await?;
    found.load_ppl(&source).await?;
    Ok(found)
}

impl<D: Device> Found<D> {
    fn refuse(&self, why: &str) -> Refusal {
        Refusal::BadMember { member: self.label.clone(), why: why.to_owned() }
    }

    /// Reads `len` sectors at a sector of the device, if they lie before the data.
    async fn metadata(
        &self,
        source: &Source<'_>,
        at: Option<Sector>,
        len: u64,
        what: &str,
    ) -> Result<Vec<u8>, Refusal> {
        let size = Sector::floor(self.device.info().size_bytes);
        let place = at.filter(|at| at.0.checked_add(len).is_some_and(|end| end <= size.0));
        let Some(place) = place else {
            return Err(self.refuse(&format!("its {what} is said to lie outside of the device")));
        };
        source.read(&self.device, &self.label, place.bytes(), len * SECTOR_BYTES).await
    }

    async fn load_bad_blocks(&mut self, source: &Source<'_>) -> Result<(), Refusal> {
        let superblock = &self.superblock;
        if !superblock.feature_map.contains(Features::BAD_BLOCKS) {
            return Ok(());
        }
        let len = u64::from(superblock.bblog_size);
        let bytes = self.metadata(source, superblock.bad_blocks_sector(), len, "bad block log").await?;
        let log = md::bad_blocks::parse(&bytes, superblock.bblog_shift, superblock.data_offset);
        let log = log.map_err(|error| {
            self.refuse(&format!("its bad block log is damaged: {error}; use mdadm for it"))
        })?;
        self.bad = log.into_iter().map(|(start, len)| start.0..start.0 + len.0).collect();
        Ok(())
    }

    async fn load_bitmap(&mut self, source: &Source<'_>) -> Result<(), Refusal> {
        let superblock = &self.superblock;
        if !superblock.feature_map.contains(Features::BITMAP) || superblock.has_ppl() {
            return Ok(());
        }
        let at = superblock.bitmap_sector();
        let bytes = self.metadata(source, at, 1, "write-intent bitmap").await?;
        let at = at.map(Sector::bytes);
        assert!(at == Some(bitmap_offset_bytes(superblock.bitmap_offset)), "one place, told in two ways");
        let bitmap = BitmapSuperblock::parse(&bytes).map_err(|error| {
            self.refuse(&format!(
                "its write-intent bitmap is damaged: {error}; mdadm --grow --bitmap=none removes it"
            ))
        })?;
        let start = superblock.bitmap_sector().expect("read just now");
        let room = superblock.bitmap_room().unwrap_or(Sector::ZERO);
        let len = bitmap.total_bytes().div_ceil(SECTOR_BYTES);
        if len > room.0 {
            return Err(self.refuse("its write-intent bitmap is larger than the room there is for it"));
        }
        let bytes = self.metadata(source, Some(start), len, "write-intent bitmap").await?;
        self.bitmap = Bitmap::parse(&bytes).ok();
        Ok(())
    }

    /// Refuses a bitmap that says nothing of this array, as md does.
    pub(super) fn check_bitmap(&self) -> Result<(), Refusal> {
        match &self.bitmap {
            Some(bitmap) if bitmap.superblock.uuid != self.superblock.set_uuid => {
                Err(self.refuse("its write-intent bitmap is another array's"))
            }
            _ => Ok(()),
        }
    }

    async fn load_ppl(&mut self, source: &Source<'_>) -> Result<(), Refusal> {
        // Another member may know that the array is dirty, where this one does not.
        if self.superblock.has_ppl() {
            let len = u64::from(self.superblock.ppl_size());
            self.ppl_log =
                self.metadata(source, self.superblock.ppl_sector(), len, "partial parity log").await?;
        }
        Ok(())
    }
}

/// How devices are read that are no members yet.
pub(super) struct Source<'a> {
    pub pool: &'a Pool,
    pub deadlines: &'a Rc<Deadlines>,
}

impl Source<'_> {
    /// Reads any bytes of a device, blocks and buffers notwithstanding.
    pub async fn read<D: Device>(
        &self,
        device: &D,
        label: &str,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let block = u64::from(device.info().read_block_bytes);
        let end = (offset_bytes + len_bytes).next_multiple_of(block);
        let mut at = offset_bytes - offset_bytes % block;
        let skip = (offset_bytes - at) as usize;
        let mut bytes = Vec::with_capacity((end - at) as usize);
        while at < end {
            let buf = self.pool.alloc((end - at).min(STEP_BYTES) as usize).await;
            let read = self.deadlines.bound(0, pin!(device.read(at, buf))).await;
            let buf = read.map_err(|error| Refusal::Unreadable { member: label.to_owned(), error })?;
            bytes.extend_from_slice(&buf);
            at += buf.len() as u64;
        }
        bytes.drain(..skip);
        bytes.truncate(len_bytes as usize);
        Ok(bytes)
    }
}
