//! Levels 4, 5 and 6: reads and writes of stripes with parity.
//!
//! A write is split by stripe; a stripe's write is cut into *bands* (see `plan`), each of which is planned, read for,
//! computed and written on its own, all under one lock on the stripe's rows.
//!
//! A read that fails on the way is not retried: the plan is made again without what failed, until it works out or
//! nothing is left to work it out from.

use std::ops::Range;
use std::rc::Rc;

use smallvec::{SmallVec, smallvec};

use super::array::{Array, cut_slices, sectors};
use super::join::join_each;
use super::member::Member;
use super::mutant::{self, Mutant};
use super::plan::{self, Cell, Method, OutOfReach, Place, Situation};
use super::ppl_log::Logs;
use super::solve::{self, Band};
use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, Runtime, Slice};
use crate::layout::{Parity, Stripe};
use crate::units::{MemberSlot, Sector, StripeIndex};

/// The error of data that redundancy cannot bring back.
pub(super) const OUT_OF_REACH: IoError =
    IoError::new(IoErrorKind::Media, "too many members are missing or unreadable there");

/// What is given up where redundancy does not reach, in sectors; md's unit.
pub(super) const LINE_SECTORS: u64 = 8;

/// A band that is being written: new data by chunk.
pub(super) struct Written<'a> {
    pub stripe: &'a Stripe,
    pub rows: Range<u64>,
    pub new: &'a [Option<Slice>],
}

/// A part of one data chunk.
struct Piece {
    stripe: Stripe,
    data: usize,
    /// Member sectors.
    rows: Range<u64>,
}

impl Piece {
    fn slot(&self) -> MemberSlot {
        self.stripe.data[self.data]
    }
}

/// A member that holds all of a range, and the sector where it begins there; and what is to be avoided should it not answer.
pub(super) type Lone<D> = ((Rc<Member<D>>, Sector), Unreadable);

/// What an error has shown to be unreadable on a member, for this once: its rows, in the units of the row locks.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub slot: MemberSlot,
    pub rows: Range<u64>,
}

/// A piece that was not read, and the buffer with it.
struct Loss {
    error: IoError,
    /// Its own member's read failed; the rest of the stripe has not been tried yet.
    unreadable: Option<Unreadable>,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// The member to read a range from that lies within one chunk, all of which it holds; and what
    /// [`read_parity`](Array::read_parity) is to avoid if it cannot.
    pub(super) fn lone_chunk(&self, parity: &Parity, offset_bytes: u64, len_bytes: u64) -> Option<Lone<D>> {
        let (place, len) = (parity.locate(Sector(sectors(offset_bytes))), sectors(len_bytes));
        if place.offset.0 + len > parity.chunk().0 {
            return None;
        }
        let first = place.stripe.0 * parity.chunk().0 + place.offset.0;
        let (slot, rows) = (parity.data_slot(place.stripe, place.data), first..first + len);
        Some(((self.reader(slot, &rows)?, Sector(first)), Unreadable { slot, rows }))
    }

    /// Reads a range, and works out what lies where it is to be avoided.
    pub(super) async fn read_parity(
        &self,
        parity: &Parity,
        offset_bytes: u64,
        mut buf: Buf,
        mut avoid: Vec<Unreadable>,
    ) -> Result<Buf, IoError> {
        let len = buf.len();
        let mut changes = self.changes();
        loop {
            let reads = self.read_pieces(parity, sectors(offset_bytes), buf, &avoid);
            let (pieces, lost): (Vec<_>, Vec<_>) =
                join_each(reads.into_iter()).await.into_iter().partition(Result::is_ok);
            if lost.is_empty() {
                return Ok(pieces.into_iter().flatten().reduce(Buf::join).expect("a read has a piece"));
            }
            for loss in lost.into_iter().filter_map(Result::err) {
                match loss.unreadable {
                    Some(unreadable) => avoid.push(unreadable),
                    None if self.have_changed(&mut changes) => {
                        avoid.clear();
                        break;
                    }
                    None => return Err(loss.error),
                }
            }
            // A buffer that was lost to an error may be anybody's; begin anew, with nothing else in hand.
            drop(pieces);
            buf = self.memory.rescue.alloc(len).await;
        }
    }

    /// The reads of a range, chunk by chunk, each into its part of the buffer.
    fn read_pieces<'a>(
        &'a self,
        parity: &Parity,
        mut at: u64,
        mut buf: Buf,
        avoid: &[Unreadable],
    ) -> Vec<impl Future<Output = Result<Buf, Loss>> + use<'a, D, R>> {
        let mut reads = Vec::new();
        while !buf.is_empty() {
            let place = parity.locate(Sector(at));
            let stripe = parity.stripe(place.stripe);
            let first = stripe.sector.0 + place.offset.0;
            let chunk_end = stripe.sector.0 + parity.chunk().0;
            let wanted = first..chunk_end.min(first + sectors(buf.len() as u64));
            let end = self.cuts(&wanted).first().copied().unwrap_or(wanted.end);
            let rest = buf.split_off(Sector(end - first).bytes() as usize);
            let piece = Piece { stripe, data: place.data, rows: first..end };
            at += end - first;
            let avoided = avoid.contains(&Unreadable { slot: piece.slot(), rows: piece.rows.clone() });
            reads.push(self.read_piece(piece, buf, avoided));
            buf = rest;
        }
        reads
    }

    async fn read_piece(&self, piece: Piece, buf: Buf, avoided: bool) -> Result<Buf, Loss> {
        let slot = piece.slot();
        if !avoided && let Some(member) = self.reader(slot, &piece.rows) {
            let result = self.read_member(&member, Sector(piece.rows.start), buf).await;
            return result
                .map_err(|error| Loss { error, unreadable: Some(Unreadable { slot, rows: piece.rows }) });
        }
        let _rows = self.locks.lock_unless(Mutant::ReadWithoutLock, piece.rows.clone()).await;
        let avoid = if avoided { vec![slot] } else { Vec::new() };
        let result = self.read_locked(&piece.stripe, piece.data, piece.rows, buf, avoid).await;
        result.map_err(|error| Loss { error, unreadable: None })
    }

    /// Reads one data chunk's rows, under their lock: from its member, or from everything else in the stripe.
    async fn read_locked(
        &self,
        stripe: &Stripe,
        data: usize,
        rows: Range<u64>,
        mut buf: Buf,
        mut avoid: Vec<MemberSlot>,
    ) -> Result<Buf, IoError> {
        let slot = stripe.data[data];
        if !avoid.contains(&slot)
            && let Some(member) = self.reader(slot, &rows)
        {
            let scratch = self.memory.scratch.alloc(buf.len()).await;
            match self.read_member(&member, Sector(rows.start), scratch).await {
                Ok(old) => {
                    buf.copy_from_slice(&old);
                    return Ok(buf);
                }
                Err(_) => avoid.push(slot),
            }
        }
        // Window by window, so that the scratch of a long read stays small.
        let window = self.window_bytes() as usize;
        let (mut rest, mut done, mut first) = (buf, None::<Buf>, rows.start);
        while !rest.is_empty() {
            let tail = rest.split_off(window.min(rest.len()));
            let end = first + sectors(rest.len() as u64);
            let mut worked = self.reconstruct(stripe, data, first..end, &mut rest, &mut avoid).await;
            if worked.is_err() && end - first > LINE_SECTORS {
                // Members that cannot be read in different places may still do for each other.
                worked = self.read_lines(stripe, data, first..end, &mut rest).await;
            }
            worked?;
            done = Some(match done {
                None => rest,
                Some(head) => head.join(rest),
            });
            (rest, first) = (tail, end);
        }
        Ok(done.expect("a read is not empty"))
    }

    /// Reads one data chunk's rows line by line, each from its member or else from the rest of the stripe.
    async fn read_lines(
        &self,
        stripe: &Stripe,
        data: usize,
        rows: Range<u64>,
        out: &mut Buf,
    ) -> Result<(), IoError> {
        let slot = stripe.data[data];
        let mut at = rows.start;
        while at < rows.end {
            let line = at..rows.end.min((at / LINE_SECTORS + 1) * LINE_SECTORS);
            at = line.end;
            let place = Sector(line.start - rows.start).bytes() as usize;
            let out = &mut out[place..place + Sector(line.end - line.start).bytes() as usize];
            if let Some(member) = self.reader(slot, &line) {
                let buf = self.memory.scratch.alloc(out.len()).await;
                if let Ok(old) = self.read_member(&member, Sector(line.start), buf).await {
                    out.copy_from_slice(&old);
                    continue;
                }
            }
            self.reconstruct(stripe, data, line, out, &mut vec![slot]).await?;
        }
        Ok(())
    }

    /// Works out one data chunk's rows from the rest of the stripe.
    async fn reconstruct(
        &self,
        stripe: &Stripe,
        data: usize,
        rows: Range<u64>,
        out: &mut [u8],
        avoid: &mut Vec<MemberSlot>,
    ) -> Result<(), IoError> {
        let mut changes = self.changes();
        loop {
            let situation = self.situation(stripe, &rows, &[], avoid);
            if situation.data[data].readable {
                // It has just been filled, but what to do with these rows has been decided.
                avoid.push(stripe.data[data]);
                continue;
            }
            let reads = match plan::read(&situation) {
                Ok(reads) => reads,
                Err(OutOfReach) if self.have_changed(&mut changes) => {
                    avoid.clear();
                    continue;
                }
                Err(OutOfReach) => return Err(OUT_OF_REACH),
            };
            let lost: Vec<_> = situation.lost().collect();
            let mut band = self.band(stripe, &rows, reads.len() + lost.len()).await;
            if !self.read_places(stripe, &rows, &reads, &mut band, avoid).await {
                continue;
            }
            solve::lost_data(stripe, &lost, &mut band);
            out.copy_from_slice(band.data[data].as_ref().expect("worked out"));
            return Ok(());
        }
    }

    /// How the cells of these rows are, for the planner.
    pub(super) fn situation(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
        new: &[bool],
        avoid: &[MemberSlot],
    ) -> Situation {
        let cell = |slot: MemberSlot, new: bool| Cell {
            readable: !avoid.contains(&slot) && self.reader(slot, rows).is_some(),
            writable: self.writers(slot).next().is_some(),
            new,
        };
        let is_new = |i: usize| new.get(i).copied().unwrap_or(false);
        Situation {
            data: stripe.data.iter().enumerate().map(|(i, &slot)| cell(slot, is_new(i))).collect(),
            p: cell(stripe.p, false),
            q: stripe.q.map(|slot| cell(slot, false)),
            trust: self.trust(rows),
        }
    }

    /// Scratch for a band: `count` buffers, all at once.
    pub(super) async fn band(&self, stripe: &Stripe, rows: &Range<u64>, count: usize) -> Band {
        let len = Sector(rows.end - rows.start).bytes() as usize;
        let spare = if count == 0 {
            Vec::new()
        } else {
            self.memory.scratch.alloc_all(&SmallVec::<[usize; 16]>::from_elem(len, count)).await
        };
        Band { len, data: stripe.data.iter().map(|_| None).collect(), p: None, q: None, spare }
    }

    /// Reads places into a band, in parallel. False if one failed; it is in `avoid` then.
    pub(super) async fn read_places(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
        places: &[Place],
        band: &mut Band,
        avoid: &mut Vec<MemberSlot>,
    ) -> bool {
        let reads: SmallVec<[_; 4]> =
            places.iter().map(|&place| (place, slot_of(stripe, place), band.take())).collect();
        let reads = reads.into_iter().map(|(place, slot, buf)| async move {
            let result = match self.reader(slot, rows) {
                Some(member) => self.read_member(&member, Sector(rows.start), buf).await,
                None => Err(OUT_OF_REACH),
            };
            (place, slot, result)
        });
        let mut complete = true;
        for (place, slot, result) in join_each(reads).await {
            match result {
                Ok(buf) => band.put(place, buf),
                Err(_) => {
                    avoid.push(slot);
                    complete = false;
                }
            }
        }
        complete
    }

    pub(super) async fn write_parity(
        &self,
        parity: &Parity,
        offset_bytes: u64,
        data: &[Slice],
        fua: Fua,
    ) -> Result<(), IoError> {
        let width = parity.stripe_sectors().bytes();
        let len: u64 = data.iter().map(|slice| slice.len() as u64).sum();
        let (mut at, end) = (offset_bytes, offset_bytes + len);
        let is_stream = self.gathering.note(&(at..end));
        let index = at / width;
        if end <= (index + 1) * width {
            let (stripe, within) =
                (parity.stripe(StripeIndex(index)), at - index * width..end - index * width);
            return self.write_gathered(parity, stripe, within, data.to_vec(), is_stream, fua).await;
        }
        let mut writes = Vec::new();
        while at < end {
            let index = at / width;
            let stop = end.min((index + 1) * width);
            let part = cut_slices(data, at - offset_bytes, stop - at);
            let stripe = parity.stripe(StripeIndex(index));
            let within = at - index * width..stop - index * width;
            writes.push(self.write_gathered(parity, stripe, within, part, is_stream, fua));
            at = stop;
        }
        // Every stripe's write is seen through to its end, whatever becomes of the others.
        join_each(writes.into_iter()).await.into_iter().collect()
    }

    /// Writes `part` (bytes, counted from the stripe's beginning in the array) of a stripe.
    pub(super) async fn write_stripe(
        &self,
        parity: &Parity,
        stripe: Stripe,
        part: Range<u64>,
        data: Vec<Slice>,
        fua: Fua,
    ) -> Result<(), IoError> {
        let block = self.block_bytes;
        let square = part.start - part.start % block..part.end.next_multiple_of(block);
        let rows = rows_of(&stripe, parity.chunk().bytes(), &square);
        let _rows = self.locks.lock_unless(Mutant::WriteWithoutLock, rows.clone()).await;
        let _marked = self.mark(&rows).await?;
        let data = self.square(parity, &stripe, &part, &square, data).await?;
        let chunk = parity.chunk().bytes();
        let window = self.logs.as_ref().map_or(u64::MAX, Logs::height_bytes).min(self.window_bytes());
        let bands = bands(chunk, &square, &data, window);
        // The blocks at the ends hold what was acknowledged long ago, too.
        let edges = [
            (part.start != square.start).then_some(square.start % chunk),
            (part.end != square.end).then_some((square.end - block) % chunk),
        ];
        let mut outcome = Ok(());
        for band in bands {
            let first = stripe.sector.0 + sectors(band.start);
            let has_edge = edges.contains(&Some(band.start));
            for rows in self.cut(first..first + sectors(band.end - band.start)) {
                let start = band.start + Sector(rows.start - first).bytes();
                let part = start..start + Sector(rows.end - rows.start).bytes();
                let new = new_cells(parity, &square, &data, &part);
                // Go on with the other bands after an error: each is consistent in itself, and the caller hears of it.
                outcome = self.write_band(&stripe, rows, &new, has_edge, fua).await.and(outcome);
            }
        }
        outcome
    }

    /// Fills the blocks at the ends of an unaligned write up with what is there. The rows are locked.
    async fn square(
        &self,
        parity: &Parity,
        stripe: &Stripe,
        part: &Range<u64>,
        square: &Range<u64>,
        data: Vec<Slice>,
    ) -> Result<Vec<Slice>, IoError> {
        if part == square {
            return Ok(data);
        }
        let block = self.block_bytes;
        let old = |start: u64, buf: Buf| {
            let chunk = parity.chunk().bytes();
            let first = stripe.sector.0 + sectors(start % chunk);
            let rows = first..first + sectors(block);
            self.read_locked(stripe, (start / chunk) as usize, rows, buf, Vec::new())
        };
        let mut edges = self.memory.edges.alloc_all(&[block as usize; 2]).await;
        square_edges(part, square, block, data, &mut edges, old).await
    }

    /// Writes one band: `new` says which data chunks are wholly new there, and with what.
    pub(super) async fn write_band(
        &self,
        stripe: &Stripe,
        rows: Range<u64>,
        new: &[Option<Slice>],
        has_edge: bool,
        fua: Fua,
    ) -> Result<(), IoError> {
        let is_new: SmallVec<[bool; 16]> = new.iter().map(Option::is_some).collect();
        let mut avoid = Vec::new();
        let mut changes = self.changes();
        loop {
            let situation = self.situation(stripe, &rows, &is_new, &avoid);
            if self.goes_chunk_by_chunk(stripe, &rows, &situation, has_edge) {
                return self.write_chunks(stripe, rows, new, fua).await;
            }
            let plan = match plan::write(&situation) {
                Ok(plan) => plan,
                Err(OutOfReach) if self.have_changed(&mut changes) => {
                    avoid.clear();
                    continue;
                }
                // Members that cannot be read in different places may still do for each other.
                Err(OutOfReach) if rows.end - rows.start > LINE_SECTORS => {
                    return self.write_lines(stripe, rows, new, has_edge, fua).await;
                }
                Err(OutOfReach) => return Err(OUT_OF_REACH),
            };
            let lost: Vec<_> = match plan.method {
                Method::Recover => situation.lost().collect(),
                _ => Vec::new(),
            };
            // Room for what is read and worked out, and for the parity that is not changed in place.
            let parities = 1 + usize::from(stripe.q.is_some());
            let count = plan.reads.len() + lost.len() + parities;
            let count = count + usize::from(self.logs_writes());
            let count = if plan.method == Method::DataOnly { 0 } else { count };
            let mut band = self.band(stripe, &rows, count).await;
            if !self.read_places(stripe, &rows, &plan.reads, &mut band, &mut avoid).await {
                continue;
            }
            let writable = (situation.p.writable, situation.q.is_some_and(|q| q.writable));
            match plan.method {
                Method::DataOnly => {}
                Method::Modify => solve::modify(stripe, new, &mut band),
                Method::Reconstruct | Method::Recover => {
                    solve::lost_data(stripe, &lost, &mut band);
                    solve::parity(stripe, new, &mut band);
                }
            }
            let consistent = plan.method != Method::DataOnly;
            let written = Written { stripe, rows, new };
            if self.logs.is_some() {
                return self.write_logged(written, band, writable, consistent, fua).await;
            }
            return self.write_cells(written, band, writable, consistent, fua).await;
        }
    }

    /// Writes a band line by line.
    async fn write_lines(
        &self,
        stripe: &Stripe,
        rows: Range<u64>,
        new: &[Option<Slice>],
        has_edge: bool,
        fua: Fua,
    ) -> Result<(), IoError> {
        let mut outcome = Ok(());
        let mut at = rows.start;
        while at < rows.end {
            let line = at..rows.end.min((at / LINE_SECTORS + 1) * LINE_SECTORS);
            at = line.end;
            let bytes = |sector: u64| Sector(sector - rows.start).bytes() as usize;
            let cut = |slice: &Slice| slice.slice(bytes(line.start)..bytes(line.end));
            let part: Vec<_> = new.iter().map(|slice| slice.as_ref().map(cut)).collect();
            let written = Box::pin(self.write_band(stripe, line.clone(), &part, has_edge, fua)).await;
            outcome = written.and(outcome);
        }
        outcome
    }

    /// Writes a band's new data and parity to every member that is still there, and settles what comes of it.
    pub(super) async fn write_cells(
        &self,
        Written { stripe, rows, new }: Written<'_>,
        band: Band,
        (p, q): (bool, bool),
        consistent: bool,
        fua: Fua,
    ) -> Result<(), IoError> {
        let mut cells: SmallVec<[(MemberSlot, Slice); 4]> = SmallVec::new();
        cells.extend(stripe.data.iter().zip(new).filter_map(|(&slot, new)| Some((slot, new.clone()?))));
        cells.extend(band.p.filter(|_| p).map(|buf| (stripe.p, buf.freeze())));
        cells.extend(stripe.q.zip(band.q.filter(|_| q)).map(|(slot, buf)| (slot, buf.freeze())));
        // One that has failed since the plan was made is passed over: parity carries its data.
        let targets = cells
            .into_iter()
            .flat_map(|(slot, data)| self.writers(slot).map(move |member| (member, data.clone())));
        let writes = targets.map(|(member, data)| {
            let rows = rows.clone();
            async move {
                let result = member.write(Sector(rows.start), vec![data], fua).await;
                (member, rows, result)
            }
        });
        self.check_writable()?;
        let results = join_each(writes).await;
        self.settle(&rows, results, consistent)
    }
}

impl Situation {
    /// The data cells that cannot be read.
    pub(super) fn lost(&self) -> impl Iterator<Item = usize> {
        self.data.iter().enumerate().filter(|(_, cell)| !cell.readable).map(|(i, _)| i)
    }
}

pub(super) fn slot_of(stripe: &Stripe, place: Place) -> MemberSlot {
    match place {
        Place::Data(i) => stripe.data[i],
        Place::P => stripe.p,
        Place::Q => stripe.q.expect("a stripe with Q"),
    }
}

/// Fills up the first and the last block of an unaligned range (`part` within `square`) with old content. `edges` are
/// two buffers of a block; `old` reads a block.
pub(super) async fn square_edges<F: Future<Output = Result<Buf, IoError>>>(
    part: &Range<u64>,
    square: &Range<u64>,
    block: u64,
    data: Vec<Slice>,
    edges: &mut Vec<Buf>,
    old: impl Fn(u64, Buf) -> F,
) -> Result<Vec<Slice>, IoError> {
    let mut out = Vec::with_capacity(data.len() + 2);
    let len = part.end - part.start;
    let merge = async |start: u64, edge: Buf| -> Result<Slice, IoError> {
        let mut edge = old(start, edge).await?;
        if mutant::is(Mutant::ForgetEdges) {
            edge.zero();
        }
        let new = part.start.max(start)..part.end.min(start + block);
        let mut at = (new.start - start) as usize;
        for slice in cut_slices(&data, new.start - part.start, new.end - new.start) {
            edge[at..at + slice.len()].copy_from_slice(&slice);
            at += slice.len();
        }
        Ok(edge.freeze())
    };
    let mut middle = 0..len;
    if part.start != square.start {
        out.push(merge(square.start, edges.pop().expect("two edges")).await?);
        middle.start = (square.start + block - part.start).min(len);
    }
    let last = square.end - block;
    let tail = part.end != square.end && (last != square.start || out.is_empty());
    if tail {
        middle.end = middle.end.min(last.saturating_sub(part.start)).max(middle.start);
    }
    if middle.end > middle.start {
        out.extend(cut_slices(&data, middle.start, middle.end - middle.start));
    }
    if tail {
        out.push(merge(last, edges.pop().expect("two edges")).await?);
    }
    Ok(out)
}

/// The member sectors that a part of a stripe touches, from the lowest row to the highest.
fn rows_of(stripe: &Stripe, chunk: u64, part: &Range<u64>) -> Range<u64> {
    let (first, last) = (part.start / chunk, (part.end - 1) / chunk);
    let within = if first == last { part.start % chunk..part.end - first * chunk } else { 0..chunk };
    stripe.sector.0 + sectors(within.start)..stripe.sector.0 + sectors(within.end)
}

/// Cuts a part of a stripe into bands: ranges of bytes within a chunk, in which every data chunk is wholly new or not
/// touched, every new one is a single slice, and which are not larger than a window.
fn bands(chunk: u64, part: &Range<u64>, data: &[Slice], window: u64) -> SmallVec<[Range<u64>; 1]> {
    let mut cuts: SmallVec<[u64; 8]> = smallvec![part.start % chunk, (part.end - 1) % chunk + 1];
    let crosses = part.start / chunk != (part.end - 1) / chunk;
    if crosses {
        cuts.extend([0, chunk]);
    }
    let mut at = part.start;
    for slice in data {
        at += slice.len() as u64;
        if at < part.end {
            cuts.push(at % chunk);
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let covered = |from: u64| {
        let touches = |d: u64| (part.start..part.end).contains(&(d * chunk + from));
        (part.start / chunk..=(part.end - 1) / chunk).any(touches)
    };
    let mut out = SmallVec::new();
    for pair in cuts.windows(2).filter(|pair| covered(pair[0])) {
        let starts = (pair[0]..pair[1]).step_by(window as usize);
        out.extend(starts.map(|start| start..pair[1].min(start + window)));
    }
    out
}

/// What is new in a band, by data chunk.
fn new_cells(parity: &Parity, part: &Range<u64>, data: &[Slice], band: &Range<u64>) -> Vec<Option<Slice>> {
    let chunk = parity.chunk().bytes();
    let cell = |d: u64| {
        let start = d * chunk + band.start;
        (part.start <= start && start < part.end).then(|| {
            let mut cut = cut_slices(data, start - part.start, band.end - band.start);
            assert!(cut.len() == 1, "bands are cut where slices end");
            cut.remove(0)
        })
    };
    (0..parity.data_count() as u64).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Pool;
    use proptest::prelude::*;

    fn slices(lens: &[u64]) -> Vec<Slice> {
        let pool = Pool::new(4 << 20).unwrap();
        lens.iter().map(|&len| pool.try_alloc(len as usize).unwrap().freeze()).collect()
    }

    #[test]
    fn a_write_within_a_chunk_is_one_band() {
        assert_eq!(bands(65536, &(70000..70512), &slices(&[512]), 1 << 20).to_vec(), vec![4464..4976]);
    }

    #[test]
    fn a_whole_stripe_is_one_band() {
        assert_eq!(bands(4096, &(0..12288), &slices(&[12288]), 1 << 20).to_vec(), vec![0..4096]);
    }

    #[test]
    fn a_gap_between_the_ends_of_a_write_is_no_band() {
        // The last half page of one chunk and the first quarter of the next.
        assert_eq!(bands(4096, &(2048..5120), &slices(&[3072]), 1 << 20)[..], [0..1024, 2048..4096]);
    }

    proptest! {
        #[test]
        fn bands_cover_the_write_once_and_no_more(
            start in 0u64..24, lens in prop::collection::vec(1u64..12, 1..5), window in 1u64..4,
        ) {
            let lens: Vec<u64> = lens.iter().map(|len| len * 512).collect();
            let (chunk, data) = (4096u64, 4u64);
            let start = start * 512;
            let end = (start + lens.iter().sum::<u64>()).min(chunk * data);
            prop_assume!(start < end);
            let all = slices(&lens);
            let part = start..end;
            let cut = cut_slices(&all, 0, end - start);
            let mut seen = vec![0; (chunk * data / 512) as usize];
            for band in bands(chunk, &part, &cut, window * 1024) {
                prop_assert!(band.end - band.start <= window * 1024);
                for d in 0..data {
                    let cell = d * chunk + band.start..d * chunk + band.end;
                    let inside = part.start <= cell.start && cell.end <= part.end;
                    let outside = cell.end <= part.start || part.end <= cell.start;
                    prop_assert!(inside || outside);
                    if inside {
                        (cell.start / 512..cell.end / 512).for_each(|i| seen[i as usize] += 1);
                        prop_assert_eq!(cut_slices(&cut, cell.start - start, cell.end - cell.start).len(), 1);
                    }
                }
            }
            for (i, &count) in seen.iter().enumerate() {
                prop_assert_eq!(count, i32::from(part.contains(&(i as u64 * 512))));
            }
        }
    }
}
