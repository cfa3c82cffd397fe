//! The layouts once more, chunk by chunk, as one would explain them on paper: slow, for small arrays, to test against.
//!
//! Written from the formulas in their published form rather than from the code beside it; `tables.rs` checks both against
//! a third model.

use super::{Level, Shape};

/// What a member has in a row of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// The n-th data chunk of the stripe.
    Data(usize),
    P,
    Q,
}

/// (slot, row of chunks on the member) of each copy of each chunk of an array of level 0, 1 or 10 with valid shape.
/// RAID1 is taken to have chunks of one sector.
pub(super) fn copies(shape: &Shape) -> Vec<Vec<(usize, u64)>> {
    let slots = usize::from(shape.slots);
    match shape.level {
        Level::Raid0 => raid0(shape),
        Level::Raid1 => (0..shape.member.0).map(|row| (0..slots).map(|slot| (slot, row)).collect()).collect(),
        Level::Raid10 => raid10(shape),
        _ => unreachable!(),
    }
}

/// Deals chunks to the members row by row, leaving out those that are full.
fn raid0(shape: &Shape) -> Vec<Vec<(usize, u64)>> {
    let rows: Vec<u64> = shape.raid0_members.iter().map(|size| size.0 / shape.chunk.0).collect();
    let mut chunks: Vec<Vec<(usize, u64)>> = Vec::new();
    let mut zone_start = 0;
    let mut zone_members = Vec::new();
    for row in 0..*rows.iter().max().unwrap() {
        let members: Vec<usize> = (0..rows.len()).filter(|slot| rows[*slot] > row).collect();
        if members != zone_members {
            zone_start = chunks.len();
            zone_members = members;
        }
        for _ in 0..zone_members.len() {
            let number = chunks.len();
            let turn = if shape.layout == 2 { number - zone_start } else { number };
            chunks.push(vec![(zone_members[turn % zone_members.len()], row)]);
        }
    }
    chunks
}

/// Sectors of an array of level 0, 1 or 10 of so many chunks: a RAID0 has the sum of its members, each without the bits
/// that the chunk less one has.
pub(super) fn copies_sectors(shape: &Shape, chunks: u64) -> u64 {
    let chunk = shape.chunk.0;
    match shape.level {
        Level::Raid0 => {
            let whole = shape.raid0_members.iter().map(|size| size.0 / chunk * chunk);
            whole.map(|size| size - (size & (chunk - 1))).sum()
        }
        Level::Raid1 => chunks,
        _ => chunks * chunk,
    }
}

fn raid10(shape: &Shape) -> Vec<Vec<(usize, u64)>> {
    let n = u64::from(shape.slots);
    let near = u64::from(shape.layout & 0xff);
    let far = u64::from(shape.layout >> 8 & 0xff);
    let offset = shape.layout & 0x1_0000 != 0;
    let set = match shape.layout >> 17 {
        0 => n,
        1 => n / far,
        2 => near * far,
        _ => unreachable!(),
    };
    let member_rows = shape.member.0 / shape.chunk.0;
    let chunks = member_rows / far * n / near;
    let used = (chunks * near * far).div_ceil(n);
    let stride = if offset { 1 } else { used / far };
    let last_set = (n / set - 1) * set;
    (0..chunks)
        .map(|number| {
            let mut found = Vec::new();
            for copy in 0..near {
                let position = number * near % n + copy;
                let mut slot = position % n;
                let mut row = number * near / n * if offset { far } else { 1 } + position / n;
                for _ in 0..far {
                    found.push((slot as usize, row));
                    slot = if n % set != 0 && slot + near > last_set {
                        last_set + (slot + near - last_set) % (set + n % set)
                    } else {
                        slot / set * set + (slot + near) % set
                    };
                    row += stride;
                }
            }
            found
        })
        .collect()
}

/// What every member has in a stripe of an array of level 4, 5 or 6 with valid shape, and the exponent of each data
/// chunk in Q by slot.
pub(super) fn stripe(shape: &Shape, number: u64) -> (Vec<Holds>, Vec<usize>) {
    let n = usize::from(shape.slots);
    let layout = match shape.level {
        Level::Raid4 => 5,
        _ => shape.layout,
    };
    let six = shape.level == Level::Raid6;
    if six && layout >= 16 {
        let five =
            Shape { level: Level::Raid5, layout: layout - 16, slots: shape.slots - 1, ..shape.clone() };
        let (mut holds, _) = stripe(&five, number);
        holds.push(Holds::Q);
        let exponents = exponents(&holds, n - 1, false);
        return (holds, exponents);
    }
    let at = |offset: u64| ((number + offset) % n as u64) as usize;
    let p = match layout {
        0 | 2 | 10 => n - 1 - at(0),
        1 | 3 | 8 => at(0),
        4 => 0,
        5 => n - 1 - usize::from(six),
        9 => n - 1 - at(1),
        _ => unreachable!(),
    };
    let q = if layout == 10 { (p + n - 1) % n } else { (p + 1) % n };
    let mut holds = vec![None; n];
    holds[p] = Some(Holds::P);
    if six {
        holds[q] = Some(Holds::Q);
    }
    for data in 0..n - 1 - usize::from(six) {
        let slot = match layout {
            2 | 3 => (p + 1 + usize::from(six) + data) % n,
            10 => (p + 1 + data) % n,
            _ => holds.iter().position(Option::is_none).unwrap(),
        };
        assert!(holds[slot].replace(Holds::Data(data)).is_none());
    }
    let holds: Vec<Holds> = holds.into_iter().map(Option::unwrap).collect();
    let exponents = if six { exponents(&holds, q, (8..=10).contains(&layout)) } else { vec![] };
    (holds, exponents)
}

fn exponents(holds: &[Holds], q: usize, ddf: bool) -> Vec<usize> {
    if ddf {
        return (0..holds.len()).collect();
    }
    let mut exponents = vec![0; holds.len()];
    let mut next = 0;
    let mut slot = q;
    for _ in holds {
        slot = if slot + 1 == holds.len() { 0 } else { slot + 1 };
        if matches!(holds[slot], Holds::Data(_)) {
            exponents[slot] = next;
            next += 1;
        }
    }
    exponents
}
