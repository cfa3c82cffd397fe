//! What a read may legally return: for every cell of the array, the writes that may be seen there.
//!
//! A write is *alive* in a cell until another one *overrides* it: one that was acknowledged, began after the first was
//! over (so it cannot land later), and covers the cell. What a crash of the machine may bring back is every write that
//! no *durable* write overrides; a write is durable if it was forced (FUA), or a flush began after it was acknowledged.
//!
//! Time here is a count of events. A read may see whatever was alive at any moment from its beginning to its end.
//!
//! Writes that were under way when the daemon died, or that failed, may have been done or not, cell by cell; once a read
//! has seen which, later reads must see the same, so what is read is noted as a write of its own (a *sighting*). While
//! redundancy does not agree yet a fault can still bring the other copy forward, so until then a sighting is tentative.

use crate::content::Content;

/// A write's number.
pub type Number = u32;

const NONE: u32 = u32::MAX;
/// A time that has not come.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Write {
    content: Content,
    begun: u64,
    /// It cannot land any more after this.
    over: u64,
    acknowledged: bool,
    forced: bool,
    /// What is seen may yet be another copy's word against this one's.
    tentative: bool,
    /// It failed half-way, so that which of its values is seen may change.
    wavering: bool,
}

#[derive(Clone, Copy)]
struct Link {
    write: Number,
    next: u32,
}

/// The oracle of one array.
pub struct Oracle {
    grain: u64,
    /// By cell: the newest link.
    cells: Vec<u32>,
    links: Vec<Link>,
    free: Vec<u32>,
    writes: Vec<Write>,
    now: u64,
    /// What was acknowledged before this is durable.
    flushed: u64,
    /// When the reads under way began.
    reads: Vec<u64>,
    contents: u32,
    tentative: Vec<Number>,
    /// Writes under way, to end them at a crash.
    under_way: Vec<(Number, u64, u64)>,
    /// What was under way when the daemon died, or the machine.
    cut_off: Vec<(u64, u64)>,
    /// Where was written since redundancy last agreed and nobody wrote.
    touched: Vec<(u64, u64)>,
    /// Whether what is read now will be read again, too.
    learning: bool,
}

impl Oracle {
    /// An array of so many bytes, of which nobody knows anything (or that they are zero), in cells of `grain` bytes.
    pub fn new(size: u64, grain: u64, zero: bool) -> Oracle {
        let content = if zero { Content::Zeroes } else { Content::Anything };
        let first = Write {
            content,
            begun: 0,
            over: 0,
            acknowledged: true,
            forced: true,
            tentative: false,
            wavering: !zero,
        };
        let count = size.div_ceil(grain) as usize;
        Oracle {
            grain,
            cells: (0..count as u32).collect(),
            links: vec![Link { write: 0, next: NONE }; count],
            free: Vec::new(),
            writes: vec![first],
            now: 1,
            flushed: 0,
            reads: Vec::new(),
            contents: 0,
            tentative: Vec::new(),
            under_way: Vec::new(),
            cut_off: Vec::new(),
            touched: Vec::new(),
            learning: true,
        }
    }

    /// Bytes of a cell.
    pub fn grain(&self) -> u64 {
        self.grain
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A number for content that nobody else has.
    pub fn new_content(&mut self) -> Content {
        self.contents += 1;
        Content::Made(self.contents)
    }

    /// A write begins. Whole cells.
    pub fn begin_write(&mut self, start: u64, len: u64, content: Content, forced: bool) -> Number {
        let begun = self.tick();
        let write = Write {
            content,
            begun,
            over: NEVER,
            acknowledged: false,
            forced,
            tentative: false,
            wavering: false,
        };
        let number = self.add(write);
        self.under_way.push((number, start, len));
        self.touched.push((start, len));
        for cell in self.range(start, len) {
            self.link(cell, number);
            self.prune(cell);
        }
        number
    }

    /// A write is acknowledged.
    pub fn acknowledge(&mut self, number: Number, start: u64, len: u64) {
        self.end(number);
        self.writes[number as usize].acknowledged = true;
        for cell in self.range(start, len) {
            self.prune(cell);
        }
    }

    /// A write has failed, or its fate is not known: it may have been done anywhere, but is not under way any more.
    pub fn give_up(&mut self, number: Number) {
        self.end(number);
        self.writes[number as usize].wavering = true;
    }

    /// The answer to a write was lost, and it is not under way any more: it was done or not, but not by halves.
    pub fn lose_answer(&mut self, number: Number) {
        self.end(number);
    }

    fn end(&mut self, number: Number) {
        self.writes[number as usize].over = self.tick();
        self.under_way.retain(|&(other, ..)| other != number);
    }

    fn add(&mut self, write: Write) -> Number {
        self.writes.push(write);
        self.writes.len() as Number - 1
    }

    fn range(&self, start: u64, len: u64) -> std::ops::Range<usize> {
        let whole = start.is_multiple_of(self.grain) && (len.is_multiple_of(self.grain));
        assert!(whole, "{start}+{len} are no whole cells of {}", self.grain);
        (start / self.grain) as usize..((start + len) / self.grain) as usize
    }

    fn link(&mut self, cell: usize, write: Number) {
        let link = Link { write, next: self.cells[cell] };
        self.cells[cell] = match self.free.pop() {
            Some(slot) => {
                self.links[slot as usize] = link;
                slot
            }
            None => {
                self.links.push(link);
                self.links.len() as u32 - 1
            }
        };
    }

    fn is_durable(&self, write: &Write) -> bool {
        write.acknowledged && !write.tentative && (write.forced || write.over < self.flushed)
    }

    /// Forgets what nothing can bring back.
    fn prune(&mut self, cell: usize) {
        let head = self.cells[cell];
        if self.links[head as usize].next == NONE {
            return;
        }
        let oldest_read = self.reads.iter().copied().min().unwrap_or(NEVER);
        // The latest beginning of a durable write that every read still to come, or under way, comes after.
        let mut floor = 0;
        let mut at = head;
        while at != NONE {
            let write = &self.writes[self.links[at as usize].write as usize];
            if self.is_durable(write) && write.over < oldest_read {
                floor = floor.max(write.begun);
            }
            at = self.links[at as usize].next;
        }
        let mut before = NONE;
        at = head;
        while at != NONE {
            let Link { write, next } = self.links[at as usize];
            if self.writes[write as usize].over < floor {
                match before {
                    NONE => self.cells[cell] = next,
                    before => self.links[before as usize].next = next,
                }
                self.free.push(at);
            } else {
                before = at;
            }
            at = next;
        }
    }

    /// A flush begins: what was acknowledged by now is durable when it has ended.
    pub fn begin_flush(&mut self) -> u64 {
        self.tick()
    }

    /// A flush that began then was acknowledged.
    pub fn end_flush(&mut self, begun: u64) {
        self.flushed = self.flushed.max(begun);
    }

    /// A read begins.
    pub fn begin_read(&mut self) -> u64 {
        let now = self.tick();
        self.reads.push(now);
        now
    }

    /// A read that began then has failed.
    pub fn drop_read(&mut self, begun: u64) {
        let place = self.reads.iter().position(|&other| other == begun);
        self.reads.swap_remove(place.expect("it is under way"));
    }

    /// A read that began then has given these bytes. An error if they must not be.
    pub fn end_read(&mut self, begun: u64, start: u64, bytes: &[u8]) -> Result<(), String> {
        self.drop_read(begun);
        self.check(begun, start, bytes, self.learning)
    }

    /// What began then has called this range zero. An error if it must not be. Looks at whole grains only; learns
    /// nothing, as nobody has seen the bytes.
    pub fn check_zero(&mut self, begun: u64, start: u64, end: u64) -> Result<(), String> {
        let (first, last) = (start.next_multiple_of(self.grain), end - end % self.grain);
        let zeroes = [0; 64 << 10];
        let step = zeroes.len() as u64 / self.grain * self.grain;
        let mut at = first;
        while at < last {
            let len = step.min(last - at);
            self.check(begun, at, &zeroes[..len as usize], false)?;
            at += len;
        }
        Ok(())
    }

    /// Checks bytes that were read by other ways, all at once and now; nothing is learnt from them.
    pub fn check_now(&mut self, start: u64, bytes: &[u8]) -> Result<(), String> {
        let now = self.tick();
        self.check(now, start, bytes, false)
    }

    fn check(&mut self, begun: u64, start: u64, bytes: &[u8], learn: bool) -> Result<(), String> {
        let mut sightings: Vec<(Content, Number)> = Vec::new();
        for (index, part) in bytes.chunks(self.grain as usize).enumerate() {
            let place = start + index as u64 * self.grain;
            let cell = (place / self.grain) as usize;
            let head = self.cells[cell];
            let Link { write, next } = self.links[head as usize];
            let newest = self.writes[write as usize];
            if next == NONE {
                if newest.content.is(place, part) {
                    continue;
                }
                return Err(self.complain(begun, place, part));
            }
            // Only what was over before the read began is out of its sight for sure.
            let floor = self.floor(head, begun);
            let mut seen = None;
            let (mut alive, mut settled) = (0, true);
            let mut at = head;
            while at != NONE {
                let link = self.links[at as usize];
                let write = &self.writes[link.write as usize];
                if write.over >= floor {
                    alive += 1;
                    settled &= write.over < begun && !write.wavering;
                    if seen.is_none() && write.content.is(place, part) {
                        seen = Some(write.content);
                    }
                }
                at = link.next;
            }
            let Some(content) = seen else { return Err(self.complain(begun, place, part)) };
            if learn && alive > 1 && settled && content != Content::Anything {
                let known = sightings.iter().find(|(other, _)| *other == content);
                let number = match known {
                    Some(&(_, number)) => number,
                    None => {
                        let number = self.sighting(content);
                        sightings.push((content, number));
                        number
                    }
                };
                self.link(cell, number);
            }
        }
        Ok(())
    }

    fn sighting(&mut self, content: Content) -> Number {
        let begun = self.tick();
        let over = self.tick();
        let write = Write {
            content,
            begun,
            over,
            acknowledged: true,
            forced: false,
            tentative: true,
            wavering: false,
        };
        let number = self.add(write);
        self.tentative.push(number);
        number
    }

    /// The latest beginning of an acknowledged write in a chain that was over before `when`.
    fn floor(&self, head: u32, when: u64) -> u64 {
        let (mut floor, mut at) = (0, head);
        while at != NONE {
            let link = self.links[at as usize];
            let write = &self.writes[link.write as usize];
            if write.acknowledged && write.over < when {
                floor = floor.max(write.begun);
            }
            at = link.next;
        }
        floor
    }

    fn complain(&self, begun: u64, place: u64, part: &[u8]) -> String {
        let head = self.cells[(place / self.grain) as usize];
        let floor = self.floor(head, begun);
        let (mut known, mut at) = (Vec::new(), head);
        while at != NONE {
            let link = self.links[at as usize];
            let write = &self.writes[link.write as usize];
            let state = match (write.over >= floor, write.acknowledged) {
                (false, _) => "overridden",
                (_, true) => "acknowledged",
                (_, false) if write.over == NEVER => "under way",
                _ => "given up",
            };
            let mark = if write.content.is(place, part) { " <- THIS IS WHAT WAS READ" } else { "" };
            known.push(format!("{:?} {state} ({}..{}){mark}", write.content, write.begun, write.over));
            at = link.next;
        }
        let whose = (1..=self.contents).map(Content::Made).chain([Content::Zeroes]);
        let whose: Vec<_> = whose.filter(|content| content.is(place, part)).collect();
        format!(
            "wrong bytes at {place} (read since {begun}): they are {whose:?}; there may be: {}",
            known.join(", ")
        )
    }

    /// The daemon has died, or the whole machine: what was under way may have been done or not, and what was not
    /// durable may be lost with the machine.
    pub fn crash(&mut self, machine: bool) {
        let now = self.tick();
        for (number, start, len) in std::mem::take(&mut self.under_way) {
            self.writes[number as usize].over = now;
            self.cut_off.push((start, len));
        }
        self.reads.clear();
        self.doubt();
        if machine {
            for number in 0..self.writes.len() {
                if !self.is_durable(&self.writes[number]) {
                    self.writes[number].acknowledged = false;
                }
            }
        }
        // Now every write that has ended is what it is: wavering writes were torn by a failure that is history.
    }

    /// Redundancy agrees: what was seen is what is there.
    pub fn settle(&mut self) {
        for number in std::mem::take(&mut self.tentative) {
            self.writes[number as usize].tentative = false;
        }
    }

    /// Whether what is read from now on will be read again, too: not where a fault may bring another copy forward.
    pub fn learn(&mut self, learning: bool) {
        self.learning = learning;
    }

    /// A fault may bring forward what was not seen.
    pub fn doubt(&mut self) {
        self.learning = false;
        for number in std::mem::take(&mut self.tentative) {
            self.writes[number as usize].acknowledged = false;
        }
    }

    /// Redundancy agrees, durably, and nobody writes: nothing is torn.
    pub fn at_rest(&mut self) {
        self.touched.clear();
    }

    /// Nothing that was cut off is torn any more.
    pub fn mend_cut_off(&mut self) {
        self.cut_off.clear();
    }

    /// What was cut off may be anything now: a member that it was written to is missing, and partial parity logs save only
    /// what was not being written.
    pub fn lose_cut_off(&mut self) {
        let number = self.add_anything();
        for (start, len) in std::mem::take(&mut self.cut_off) {
            for cell in self.range(start, len) {
                self.link(cell, number);
            }
        }
    }

    fn add_anything(&mut self) -> Number {
        let now = self.tick();
        self.add(Write {
            content: Content::Anything,
            begun: now,
            over: now,
            acknowledged: false,
            forced: false,
            tentative: false,
            wavering: true,
        })
    }

    /// Whatever stripe was written since the array was last at rest may be anything now: the operator has accepted that.
    pub fn lose_touched(&mut self, size: u64, stripe: u64) {
        let number = self.add_anything();
        let mut lost = vec![false; size.div_ceil(stripe) as usize];
        for (start, len) in std::mem::take(&mut self.touched) {
            lost[(start / stripe) as usize..(start + len).div_ceil(stripe) as usize].fill(true);
        }
        for index in (0..lost.len()).filter(|&index| lost[index]) {
            let first = index as u64 * stripe;
            let end = (first + stripe).min(size);
            for cell in (first / self.grain) as usize..end.div_ceil(self.grain) as usize {
                self.link(cell, number);
            }
        }
    }
}
