//! Reads arrays straight from their members' bytes: an independent model, written chunk by chunk from the format's
//! formulas. It shares nothing with the engine's layouts and arithmetic but the superblock's parser.

use raidd::md::Superblock;

use crate::disk::Platter;

/// An array's shape and its members' bytes by slot.
pub struct Model {
    pub level: i32,
    pub layout: u32,
    pub chunk: usize,
    pub slots: usize,
    pub component: usize,
    data: Vec<Option<Vec<u8>>>,
}

fn gf_mul(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = if a & 0x80 != 0 { (a << 1) ^ 0x1d } else { a << 1 };
        b >>= 1;
    }
    product
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
    let exponents = data.iter().map(|slot| order.iter().position(|s| s == slot).unwrap()).collect();
    Row { data, p, q: Some(q), exponents }
}

/// (slot, byte within the data area) of each copy of a chunk of a RAID10.
fn raid10_copies(model: &Model, number: usize) -> Vec<(usize, usize)> {
    let (near, far) = ((model.layout & 0xff) as usize, (model.layout >> 8 & 0xff) as usize);
    let (n, offset) = (model.slots, model.layout >> 16 & 1 == 1);
    let rows = model.component / model.chunk;
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
        out.push((slot, place * model.chunk));
        for _ in 1..far {
            (slot, place) = ((slot + near) % n, place + stride);
            out.push((slot, place * model.chunk));
        }
    }
    out
}

impl Model {
    /// Takes the members that are at most one event behind the freshest and to which its table gives a slot.
    pub fn of(platters: &[Platter]) -> Model {
        let parsed = platters.iter().filter_map(|platter| {
            let bytes = platter.bytes.borrow();
            Some((Superblock::parse(&bytes[4096..8192]).ok()?, bytes.clone()))
        });
        let parsed: Vec<_> = parsed.collect();
        let truth =
            parsed.iter().max_by_key(|(superblock, _)| superblock.events).expect("a member").0.clone();
        let slots = truth.raid_disks as usize;
        let mut data = vec![None; slots];
        for (superblock, bytes) in
            parsed.iter().filter(|(superblock, _)| superblock.events.0 + 1 >= truth.events.0)
        {
            if let Some(slot) = truth.role_of(superblock.dev_number).slot() {
                let start = superblock.data_offset.bytes() as usize;
                let len = superblock.data_size.bytes() as usize;
                data[slot.index()] = Some(bytes[start..start + len].to_vec());
            }
        }
        let chunk = truth.chunk.bytes() as usize;
        let component = truth.size.bytes() as usize;
        Model { level: truth.level, layout: truth.layout, chunk, slots, component, data }
    }

    fn at(&self, slot: usize, start: usize, len: usize) -> Option<&[u8]> {
        self.data[slot].as_ref().map(|bytes| &bytes[start..start + len])
    }

    /// Rows (byte offsets in the data area) whose parity or copies disagree, among the members that are there.
    pub fn inconsistent(&self) -> Vec<usize> {
        let mut out = Vec::new();
        match self.level {
            0 => {}
            1 => {
                let present: Vec<_> = self.data.iter().flatten().collect();
                for start in (0..self.component).step_by(512) {
                    if present.iter().any(|copy| copy[start..start + 512] != present[0][start..start + 512]) {
                        out.push(start);
                    }
                }
            }
            10 => {
                let (near, far) = ((self.layout & 0xff) as usize, (self.layout >> 8 & 0xff) as usize);
                let chunks = self.component / self.chunk / far * self.slots / near;
                for number in 0..chunks {
                    let copies = raid10_copies(self, number);
                    let present: Vec<_> =
                        copies.iter().filter_map(|&(slot, at)| self.at(slot, at, self.chunk)).collect();
                    assert!(!present.is_empty(), "no copy of chunk {number}");
                    if present.iter().any(|copy| *copy != present[0]) {
                        out.push(number * self.chunk);
                    }
                }
            }
            _ => {
                for line in 0..self.component / self.chunk {
                    if !self.row_agrees(line) {
                        out.push(line * self.chunk);
                    }
                }
            }
        }
        out
    }

    fn row_agrees(&self, line: usize) -> bool {
        let row = row(self.level, self.layout, self.slots, line);
        let cell = |slot: usize| self.at(slot, line * self.chunk, self.chunk);
        let Some(data) = row.data.iter().map(|&slot| cell(slot)).collect::<Option<Vec<_>>>() else {
            return true;
        };
        let byte = |i: usize| data.iter().fold(0, |sum, cell| sum ^ cell[i]);
        let p_agrees = cell(row.p).is_none_or(|p| (0..self.chunk).all(|i| p[i] == byte(i)));
        let q_agrees = row.q.and_then(cell).is_none_or(|q| {
            let factors: Vec<u8> =
                row.exponents.iter().map(|&e| (0..e).fold(1, |g, _| gf_mul(g, 2))).collect();
            // Whole rows are slow to multiply bit by bit; tables make it bearable.
            let tables: Vec<Vec<u8>> =
                factors.iter().map(|&f| (0..=255).map(|byte| gf_mul(byte, f)).collect()).collect();
            (0..self.chunk).all(|i| {
                q[i] == data.iter().zip(&tables).fold(0, |sum, (cell, table)| sum ^ table[cell[i] as usize])
            })
        });
        p_agrees && q_agrees
    }
}
