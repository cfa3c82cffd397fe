//! Reads arrays straight from their members' bytes: an independent model, written chunk by chunk from the format's
//! formulas. It shares nothing with the engine's layouts and arithmetic but the parsers of superblock and bitmap.

use std::cell::Ref;
use std::ops::Range;

use raidd::md::{Bitmap, Features, Superblock, ppl};
use raidd::units::Sector;

use crate::disk::Platter;

/// Where a superblock lies.
const SUPERBLOCK: Range<usize> = 4096..8192;

/// The superblock on a disk, if there is a whole one.
pub fn superblock(platter: &Platter) -> Option<Superblock> {
    Superblock::parse(&platter.bytes()[SUPERBLOCK]).ok()
}

/// An array's shape and its members' bytes by slot.
pub struct Model<'a> {
    /// The superblock that is taken for the truth: the freshest.
    pub truth: Superblock,
    level: i32,
    layout: u32,
    chunk: usize,
    slots: usize,
    component: usize,
    members: Vec<Option<Member<'a>>>,
    /// What the superblocks of the peers admit: rows (RAID10: array bytes) from here on may disagree.
    admitted: u64,
    bitmap: Option<(u64, Vec<bool>)>,
    /// Rows that the partial parity logs tell of, by their first byte; none if they tell nothing.
    logged: Option<Vec<u64>>,
    /// Bytes that are compared at a time: a chunk, or less where some of it is bad.
    piece: usize,
}

struct Member<'a> {
    bytes: Ref<'a, [u8]>,
    start: usize,
    /// Bytes of its data area that it claims to hold.
    held: usize,
    /// It claims to hold everything. One whose recovery has got to the end may not do so yet.
    in_sync: bool,
    /// Bytes of it that its bad-block log says it does not hold.
    bad: Vec<Range<usize>>,
    disk: usize,
}

/// Roles of one row: data slots in logical order, P, Q and each data slot's exponent.
struct Row {
    data: Vec<usize>,
    p: usize,
    q: Option<usize>,
    exponents: Vec<usize>,
}

fn raid5_row(layout: u32, n: usize, row: usize) -> (Vec<usize>, usize) {
    let p = match layout {
        0 | 2 => n - 1 - row % n,
        1 | 3 => row % n,
        4 => 0,
        _ => n - 1,
    };
    let data = match layout {
        2 | 3 => (0..n - 1).map(|d| (p + 1 + d) % n).collect(),
        _ => (0..n).filter(|&slot| slot != p).collect(),
    };
    (data, p)
}

fn row(level: i32, layout: u32, n: usize, row: usize) -> Row {
    if level != 6 {
        let (data, p) = raid5_row(if level == 4 { 5 } else { layout }, n, row);
        return Row { data, p, q: None, exponents: vec![] };
    }
    let (data, p, q) = if layout >= 16 {
        let (data, p) = raid5_row(layout - 16, n - 1, row);
        (data, p, n - 1)
    } else {
        let p = match layout {
            0 | 2 | 10 => n - 1 - row % n,
            1 | 3 | 8 => row % n,
            9 => n - 1 - (row + 1) % n,
            4 => 0,
            _ => n - 2,
        };
        let q = if layout == 10 { (p + n - 1) % n } else { (p + 1) % n };
        let data = match layout {
            2 | 3 => (0..n - 2).map(|d| (p + 2 + d) % n).collect(),
            10 => (0..n - 2).map(|d| (p + 1 + d) % n).collect(),
            _ => (0..n).filter(|slot| ![p, q].contains(slot)).collect::<Vec<_>>(),
        };
        (data, p, q)
    };
    let order: Vec<usize> = if [8, 9, 10].contains(&layout) {
        (0..n).collect()
    } else {
        (0..n).map(|i| (q + 1 + i) % n).filter(|slot| ![p, q].contains(slot)).collect()
    };
    let exponents =
        data.iter().map(|slot| order.iter().position(|s| s == slot).expect("a data slot")).collect();
    Row { data, p, q: Some(q), exponents }
}

/// (slot, chunk within the data area) of each copy of a chunk of a RAID10, whose members have so many rows of chunks.
fn raid10_copies(layout: u32, n: usize, rows: usize, number: usize) -> Vec<(usize, usize)> {
    let (near, far) = ((layout & 0xff) as usize, (layout >> 8 & 0xff) as usize);
    let offset = layout >> 16 & 1 == 1;
    let chunks = rows / far * n / near;
    let used = (chunks * near * far).div_ceil(n);
    let stride = if offset { 1 } else { used / far };
    let (first, mut line) = (number * near % n, number * near / n);
    if offset {
        line *= far;
    }
    let mut out = Vec::new();
    for copy in 0..near {
        let (mut slot, mut place) =
            ((first + copy) % n, line + (first + copy) / n * if offset { far } else { 1 });
        out.push((slot, place));
        for _ in 1..far {
            (slot, place) = ((slot + near) % n, place + stride);
            out.push((slot, place));
        }
    }
    out
}

/// Whether an array of this shape has all of its data on the slots that are present.
pub fn survives(level: i32, layout: u32, present: &[bool]) -> bool {
    let (n, gone) = (present.len(), present.iter().filter(|&&present| !present).count());
    match level {
        0 => gone == 0,
        1 => gone < n,
        4 | 5 => gone <= 1,
        6 => gone <= 2,
        // Chunks repeat their places after as many as there are members.
        _ => (0..n).all(|number| {
            let copies = raid10_copies(layout, n, 64 * n, number);
            copies.iter().any(|&(slot, _)| present[slot])
        }),
    }
}

impl<'a> Model<'a> {
    /// Takes the members that are at most one event behind the freshest and to which its table gives a slot.
    pub fn of(platters: &'a [Platter]) -> Model<'a> {
        Model::try_of(platters).expect("a member")
    }

    /// The same; none if there is no member.
    pub fn try_of(platters: &'a [Platter]) -> Option<Model<'a>> {
        let parsed: Vec<_> = platters
            .iter()
            .enumerate()
            .filter_map(|(disk, platter)| Some((disk, superblock(platter)?)))
            .collect();
        let truth = parsed.iter().map(|(_, superblock)| superblock);
        // Of equals, one that no other member calls faulty. (A spare may have an earlier version of the same generation.)
        let is_out = |superblock: &Superblock| {
            parsed.iter().any(|(_, peer)| {
                peer.events == superblock.events
                    && peer.role().slot().is_some()
                    && peer.role_of(superblock.dev_number).slot().is_none()
            })
        };
        let truth = truth.filter(|superblock| superblock.role().slot().is_some());
        let truth = truth.max_by_key(|superblock| (superblock.events, !is_out(superblock)))?.clone();
        let slots = truth.raid_disks as usize;
        let mut members: Vec<_> = (0..slots).map(|_| None).collect();
        let mut admitted = Sector::MAX;
        let mut bitmap: Option<Option<(u64, Vec<bool>)>> = None;
        let mut logged = truth.has_ppl().then(Vec::new);
        for (disk, superblock) in &parsed {
            if superblock.events.0 + 1 < truth.events.0 {
                continue;
            }
            let Some(slot) = truth.role_of(superblock.dev_number).slot() else { continue };
            // A generation that the last usable copy did not take is written again, as news arrives, under the same number.
            let is_out = is_out(superblock) && superblock.dev_number != truth.dev_number;
            if is_out || superblock.role().slot() != Some(slot) {
                continue;
            }
            if superblock.events == truth.events {
                admitted = admitted.min(superblock.resync_offset);
            }
            let start = superblock.data_offset.bytes() as usize;
            let bytes = platters[*disk].bytes();
            if superblock.events == truth.events {
                let bits = bits_of(superblock, &bytes);
                match (&mut bitmap, bits) {
                    (None, bits) => bitmap = Some(bits),
                    (Some(Some((_, all))), Some((_, more))) => {
                        all.iter_mut().zip(more).for_each(|(all, more)| *all |= more);
                    }
                    _ => {}
                }
            }
            // It may be the only one that has heard the last news; but its data is its original's.
            if superblock.feature_map.contains(Features::REPLACEMENT) {
                continue;
            }
            let len = superblock.data_size.bytes() as usize;
            let recovered = superblock.recovered();
            // Nobody misses the log of a member that is not in sync.
            let own = logged_rows(superblock, &bytes);
            let own = if recovered == Sector::MAX { own } else { Some(own.unwrap_or_default()) };
            logged = logged.zip(own).map(|(rows, own)| [rows, own].concat());
            let held = if recovered == Sector::MAX { len } else { (recovered.bytes() as usize).min(len) };
            let mut bad = bad_blocks(superblock, &bytes);
            // What cannot be read is not there.
            let unreadable = platters[*disk].unreadable();
            bad.extend(
                unreadable
                    .into_iter()
                    .filter_map(|at| Some(at.start.checked_sub(start)?..at.end.checked_sub(start)?)),
            );
            let in_sync = recovered == Sector::MAX;
            members[slot.index()] = Some(Member { bytes, start, held, in_sync, bad, disk: *disk });
        }
        let chunk = if truth.level == 1 { 4096 } else { truth.chunk.bytes() as usize };
        let is_whole = |member: &Member<'_>| member.bad.is_empty();
        let piece = if members.iter().flatten().all(is_whole) { chunk } else { 512 };
        Some(Model {
            level: truth.level,
            layout: truth.layout,
            chunk,
            piece,
            slots,
            component: truth.size.bytes() as usize,
            members,
            admitted: if admitted == Sector::MAX { u64::MAX } else { admitted.bytes() },
            bitmap: bitmap.flatten(),
            logged,
            truth,
        })
    }

    /// The disks of the members that hold everything, by slot.
    pub fn disks(&self) -> Vec<Option<usize>> {
        let whole = |member: &Member<'_>| member.held >= self.component;
        self.members.iter().map(|member| member.as_ref().filter(|m| whole(m)).map(|m| m.disk)).collect()
    }

    /// The disks of all that count as members, though they may hold only a part, by slot.
    pub fn seated(&self) -> Vec<Option<usize>> {
        self.members.iter().map(|member| member.as_ref().map(|member| member.disk)).collect()
    }

    /// After a crash with parity what has been filled of members that are not whole yet is not believed: it is filled anew.
    pub fn distrust_filled(&mut self) {
        let is_torn = !self.says_clean() && matches!(self.level, 4..=6);
        for member in self.members.iter_mut().flatten().filter(|member| is_torn && !member.in_sync) {
            member.held = 0;
        }
    }

    fn at(&self, slot: usize, start: usize, len: usize) -> Option<&[u8]> {
        let member = self.members[slot].as_ref().filter(|member| start + len <= member.held)?;
        if member.bad.iter().any(|bad| bad.start < start + len && start < bad.end) {
            return None;
        }
        Some(&member.bytes[member.start + start..member.start + start + len])
    }

    /// Whether the metadata admits that redundancy may disagree there: from a byte on, in the units of `inconsistent`.
    pub fn admits(&self, at: u64) -> bool {
        // A place stands for the whole chunk that begins there.
        if at + self.chunk as u64 <= self.admitted {
            return false;
        }
        if let Some(rows) = &self.logged {
            return rows.contains(&at);
        }
        match &self.bitmap {
            None => true,
            Some((chunk, bits)) => {
                let first = (at / chunk) as usize;
                let last = ((at + self.chunk as u64 - 1) / chunk) as usize;
                (first..=last).any(|bit| bits.get(bit).copied().unwrap_or(true))
            }
        }
    }

    /// What the metadata admits, for people.
    pub fn tells(&self) -> String {
        match (&self.logged, &self.bitmap) {
            (Some(rows), _) => format!("rows from {}, logged {rows:?}", self.admitted),
            (None, Some((chunk, bits))) => {
                let set: Vec<_> =
                    bits.iter().enumerate().filter(|&(_, &bit)| bit).map(|(bit, _)| bit).collect();
                format!("rows from {}, bits {set:?} of {chunk} bytes each", self.admitted)
            }
            (None, None) => format!("rows from {}", self.admitted),
        }
    }

    /// Whether nothing is lost if one more member is: nothing is under way, or the partial parity logs tell what.
    pub fn can_spare_one(&self) -> bool {
        let is_whole = |member: &Member<'_>| member.in_sync && member.bad.is_empty();
        self.members.iter().all(|member| member.as_ref().is_some_and(is_whole)) && self.logged.is_some()
    }

    /// Whether the superblocks say that all is in agreement.
    pub fn says_clean(&self) -> bool {
        self.admitted == u64::MAX
    }

    /// Places (byte offsets in the data area, in the array for copies) of chunks whose parity or copies disagree, among
    /// the members that are there.
    pub fn inconsistent(&self) -> Vec<usize> {
        let mut out = Vec::new();
        match self.level {
            0 => {}
            1 | 10 => {
                for number in 0..self.array_chunks() {
                    if self.pieces(self.chunk_len(number)).any(|part| !self.copies_agree(number, part)) {
                        out.push(number * self.chunk);
                    }
                }
            }
            _ => {
                let mut sum = vec![0; self.piece];
                for line in 0..self.component / self.chunk {
                    if self.pieces(self.chunk).any(|part| !self.row_agrees(line, part, &mut sum)) {
                        out.push(line * self.chunk);
                    }
                }
            }
        }
        out
    }

    fn pieces(&self, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let piece = self.piece;
        (0..len).step_by(piece).map(move |at| at..len.min(at + piece))
    }

    fn copies_agree(&self, number: usize, part: Range<usize>) -> bool {
        let copies = self.copies(number);
        let at = |&(slot, at): &(usize, usize)| self.at(slot, at + part.start, part.len());
        let mut present = copies.iter().filter_map(at);
        let first = present.next();
        present.all(|copy| Some(copy) == first)
    }

    fn array_chunks(&self) -> usize {
        match self.level {
            1 => self.component.div_ceil(self.chunk),
            10 => {
                let (near, far) = ((self.layout & 0xff) as usize, (self.layout >> 8 & 0xff) as usize);
                self.component / self.chunk / far * self.slots / near
            }
            _ => self.component / self.chunk * self.data_count(),
        }
    }

    /// Data chunks of a row.
    pub fn data_count(&self) -> usize {
        match self.level {
            4 | 5 => self.slots - 1,
            6 => self.slots - 2,
            _ => 1,
        }
    }

    fn chunk_len(&self, number: usize) -> usize {
        if self.level == 1 { self.chunk.min(self.component - number * self.chunk) } else { self.chunk }
    }

    /// (slot, byte of the data area) of each place where an array's chunk lies as it is.
    fn copies(&self, number: usize) -> Vec<(usize, usize)> {
        match self.level {
            1 => (0..self.slots).map(|slot| (slot, number * self.chunk)).collect(),
            10 => {
                let copies = raid10_copies(self.layout, self.slots, self.component / self.chunk, number);
                copies.into_iter().map(|(slot, place)| (slot, place * self.chunk)).collect()
            }
            _ => {
                let (line, data) = (number / self.data_count(), number % self.data_count());
                let row = row(self.level, self.layout, self.slots, line);
                vec![(row.data[data], line * self.chunk)]
            }
        }
    }

    /// Every place where the array's content lies as it is: (disk, byte of the array, the bytes there).
    pub fn each_copy(
        &self,
        mut see: impl FnMut(usize, u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.level == 0 {
            return Ok(());
        }
        for number in 0..self.array_chunks() {
            for (slot, at) in self.copies(number) {
                for part in self.pieces(self.chunk_len(number)) {
                    if let Some(bytes) = self.at(slot, at + part.start, part.len()) {
                        let disk = self.members[slot].as_ref().expect("it holds bytes").disk;
                        see(disk, (number * self.chunk + part.start) as u64, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn row_agrees(&self, line: usize, part: Range<usize>, sum: &mut [u8]) -> bool {
        let row = row(self.level, self.layout, self.slots, line);
        let cell = |slot: usize| self.at(slot, line * self.chunk + part.start, part.len());
        if let Some(p) = cell(row.p) {
            sum.copy_from_slice(p);
            for &slot in &row.data {
                let Some(data) = cell(slot) else { return true };
                add(sum, data);
            }
            if sum.iter().any(|&byte| byte != 0) {
                return false;
            }
        }
        let Some(q) = row.q.and_then(cell) else { return true };
        // Horner's rule, from the highest exponent down: sum = sum * g + data.
        sum.fill(0);
        let top = row.exponents.iter().copied().max().unwrap_or(0);
        for exponent in (0..=top).rev() {
            double(sum);
            let Some(index) = row.exponents.iter().position(|&own| own == exponent) else { continue };
            let Some(data) = cell(row.data[index]) else { return true };
            add(sum, data);
        }
        sum == q
    }
}

fn bits_of(superblock: &Superblock, bytes: &[u8]) -> Option<(u64, Vec<bool>)> {
    if !superblock.feature_map.contains(Features::BITMAP) || superblock.has_ppl() {
        return None;
    }
    let at = superblock.bitmap_sector()?.bytes() as usize;
    let bitmap = Bitmap::parse(&bytes[at..superblock.data_offset.bytes() as usize]).ok()?;
    if bitmap.superblock.is_stale() || bitmap.superblock.events < superblock.events {
        return None;
    }
    let count = bitmap.chunk_count();
    let bits = (0..count).map(|chunk| bitmap.is_set(chunk)).collect();
    Some((bitmap.superblock.chunk_bytes.into(), bits))
}

/// The rows that a member's partial parity log tells of; none if it is no log.
fn logged_rows(superblock: &Superblock, bytes: &[u8]) -> Option<Vec<u64>> {
    let at = superblock.ppl_sector()?.bytes() as usize;
    let log = &bytes[at..at + usize::from(superblock.ppl_size()) * 512];
    let current = ppl::current_entries(log, ppl::signature(&superblock.set_uuid))?;
    let entries = current.entries.iter().filter(|entry| entry.checksum_ok);
    let stripe = superblock.chunk.0 * (u64::from(superblock.raid_disks) - 1);
    Some(entries.map(|entry| entry.data_sector.0 / stripe * superblock.chunk.bytes()).collect())
}

fn bad_blocks(superblock: &Superblock, bytes: &[u8]) -> Vec<Range<usize>> {
    if !superblock.feature_map.contains(Features::BAD_BLOCKS) {
        return Vec::new();
    }
    let Some(place) = superblock.bad_blocks_sector() else { return Vec::new() };
    let start = place.bytes() as usize;
    let log = &bytes[start..start + usize::from(superblock.bblog_size) * 512];
    let log = raidd::md::bad_blocks::parse(log, superblock.bblog_shift, superblock.data_offset);
    let log = log.expect("a bad-block log that reads back");
    log.into_iter().map(|(at, len)| at.bytes() as usize..(at + len).bytes() as usize).collect()
}

fn add(sum: &mut [u8], data: &[u8]) {
    for (sum, data) in sum.iter_mut().zip(data) {
        *sum ^= data;
    }
}

/// Multiplies every byte by g = 2 in GF(2^8) with the polynomial 0x11d.
fn double(sum: &mut [u8]) {
    for byte in sum {
        let carry = (*byte >> 7) * 0x1d;
        *byte = *byte << 1 ^ carry;
    }
}
