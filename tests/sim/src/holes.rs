//! What a simulated disk says of its holes: whatever is zero at the moment is one, and now and then it tells less than it
//! was asked for.

use std::ops::Range;

use raidd::io::Extent;
use raidd::io::extent::{Extents, HOLE, ZERO};

use crate::random::Random;

const SECTOR: u64 = 512;

/// The extents of a range of these bytes.
pub fn among(bytes: &[u8], range: Range<u64>, max: usize, dice: &Random) -> Vec<Extent> {
    let told = if dice.one_in(4) { dice.below(range.end - range.start) } else { range.end - range.start };
    let mut extents = Extents::new(max);
    let mut at = range.start;
    while at < range.start + told || extents.is_empty() {
        let end = (at - at % SECTOR + SECTOR).min(range.end);
        let is_zero = bytes[at as usize..end as usize].iter().all(|&byte| byte == 0);
        if !extents.push(end - at, if is_zero { HOLE | ZERO } else { 0 }) {
            break;
        }
        at = end;
    }
    extents.finish()
}
