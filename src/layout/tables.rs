//! The layouts as tables, drawn by an independent model whose reading of them was checked against arrays that the kernel
//! made (6.1; all of RAID4, 5 and 6, RAID0's zones, near, far and offset copies). Only RAID10's far sets and near copies
//! of far copies were not: those two follow the kernel's source.

use super::tests::{copies, parity, raid0_shape, shape};
use super::{Copies, Level};
use crate::units::{Sector, StripeIndex};

/// One row a stripe, one column a member; data is its place in the array's order ^ its exponent.
const PARITY_TABLES: &[(Level, u32, u16, &str)] = &[
    (Level::Raid4, 0, 4, "0 1 2 P | 0 1 2 P"),
    (Level::Raid4, 77, 4, "0 1 2 P | 0 1 2 P"),
    (Level::Raid5, 0, 4, "0 1 2 P | 0 1 P 2 | 0 P 1 2 | P 0 1 2 | 0 1 2 P"),
    (Level::Raid5, 1, 4, "P 0 1 2 | 0 P 1 2 | 0 1 P 2 | 0 1 2 P | P 0 1 2"),
    (Level::Raid5, 2, 4, "0 1 2 P | 1 2 P 0 | 2 P 0 1 | P 0 1 2 | 0 1 2 P"),
    (Level::Raid5, 3, 4, "P 0 1 2 | 2 P 0 1 | 1 2 P 0 | 0 1 2 P | P 0 1 2"),
    (Level::Raid5, 4, 4, "P 0 1 2 | P 0 1 2 | P 0 1 2 | P 0 1 2 | P 0 1 2"),
    (Level::Raid5, 5, 4, "0 1 2 P | 0 1 2 P | 0 1 2 P | 0 1 2 P | 0 1 2 P"),
    (
        Level::Raid6,
        0,
        5,
        "Q 0^0 1^1 2^2 P | 0^0 1^1 2^2 P Q | 0^1 1^2 P Q 2^0 | 0^2 P Q 1^0 2^1 | P Q 0^0 1^1 2^2 | Q 0^0 1^1 2^2 P",
    ),
    (
        Level::Raid6,
        1,
        5,
        "P Q 0^0 1^1 2^2 | 0^2 P Q 1^0 2^1 | 0^1 1^2 P Q 2^0 | 0^0 1^1 2^2 P Q | Q 0^0 1^1 2^2 P | P Q 0^0 1^1 2^2",
    ),
    (
        Level::Raid6,
        2,
        5,
        "Q 0^0 1^1 2^2 P | 0^0 1^1 2^2 P Q | 1^1 2^2 P Q 0^0 | 2^2 P Q 0^0 1^1 | P Q 0^0 1^1 2^2 | Q 0^0 1^1 2^2 P",
    ),
    (
        Level::Raid6,
        3,
        5,
        "P Q 0^0 1^1 2^2 | 2^2 P Q 0^0 1^1 | 1^1 2^2 P Q 0^0 | 0^0 1^1 2^2 P Q | Q 0^0 1^1 2^2 P | P Q 0^0 1^1 2^2",
    ),
    (Level::Raid6, 4, 5, "P Q 0^0 1^1 2^2 | P Q 0^0 1^1 2^2"),
    (Level::Raid6, 5, 5, "0^0 1^1 2^2 P Q | 0^0 1^1 2^2 P Q"),
    (
        Level::Raid6,
        8,
        5,
        "P Q 0^2 1^3 2^4 | 0^0 P Q 1^3 2^4 | 0^0 1^1 P Q 2^4 | 0^0 1^1 2^2 P Q | Q 0^1 1^2 2^3 P | P Q 0^2 1^3 2^4",
    ),
    (
        Level::Raid6,
        9,
        5,
        "0^0 1^1 2^2 P Q | 0^0 1^1 P Q 2^4 | 0^0 P Q 1^3 2^4 | P Q 0^2 1^3 2^4 | Q 0^1 1^2 2^3 P | 0^0 1^1 2^2 P Q",
    ),
    (
        Level::Raid6,
        10,
        5,
        "0^0 1^1 2^2 Q P | 1^0 2^1 Q P 0^4 | 2^0 Q P 0^3 1^4 | Q P 0^2 1^3 2^4 | P 0^1 1^2 2^3 Q | 0^0 1^1 2^2 Q P",
    ),
    (
        Level::Raid6,
        16,
        5,
        "0^0 1^1 2^2 P Q | 0^0 1^1 P 2^2 Q | 0^0 P 1^1 2^2 Q | P 0^0 1^1 2^2 Q | 0^0 1^1 2^2 P Q",
    ),
    (
        Level::Raid6,
        17,
        5,
        "P 0^0 1^1 2^2 Q | 0^0 P 1^1 2^2 Q | 0^0 1^1 P 2^2 Q | 0^0 1^1 2^2 P Q | P 0^0 1^1 2^2 Q",
    ),
    (
        Level::Raid6,
        18,
        5,
        "0^0 1^1 2^2 P Q | 1^0 2^1 P 0^2 Q | 2^0 P 0^1 1^2 Q | P 0^0 1^1 2^2 Q | 0^0 1^1 2^2 P Q",
    ),
    (
        Level::Raid6,
        19,
        5,
        "P 0^0 1^1 2^2 Q | 2^0 P 0^1 1^2 Q | 1^0 2^1 P 0^2 Q | 0^0 1^1 2^2 P Q | P 0^0 1^1 2^2 Q",
    ),
    (Level::Raid6, 20, 5, "P 0^0 1^1 2^2 Q | P 0^0 1^1 2^2 Q"),
];

/// One row of chunks a row, one column a member; the numbers are the array's chunks.
const RAID10_TABLES: &[(u32, u16, &str)] = &[
    (0x102, 4, "0 0 1 1 | 2 2 3 3 | 4 4 5 5"),
    (0x102, 3, "0 0 1 | 1 2 2 | 3 3 ."),
    (0x103, 5, "0 0 0 1 1 | 1 2 2 2 3 | 3 3 4 4 4 | 5 5 5 . ."),
    (0x201, 3, "0 1 2 | 3 4 5 | 2 0 1 | 5 3 4"),
    (0x202, 5, "0 0 1 1 2 | 2 3 3 4 4 | 1 2 0 0 1 | 4 4 2 3 3"),
    (0x1_0201, 3, "0 1 2 | 2 0 1 | 3 4 5 | 5 3 4"),
    (0x1_0301, 4, "0 1 2 3 | 3 0 1 2 | 2 3 0 1 | 4 5 6 7 | 7 4 5 6 | 6 7 4 5"),
    (0x2_0201, 4, "0 1 2 3 | 4 5 6 7 | 1 0 3 2 | 5 4 7 6"),
    (0x4_0201, 5, "0 1 2 3 4 | 5 6 7 8 9 | 1 0 4 2 3 | 6 5 9 7 8"),
    (0x4_0202, 8, "0 0 1 1 2 2 3 3 | 1 1 0 0 3 3 2 2"),
];

/// Members of 3, 1, 4, 6 and 1 chunks.
const RAID0_TABLES: &[(u32, &str)] = &[
    (1, "0 1 2 3 4 | 6 . 7 5 . | 9 . 10 8 . | . . 12 11 . | . . . 13 . | . . . 14 ."),
    (2, "0 1 2 3 4 | 5 . 6 7 . | 8 . 9 10 . | . . 11 12 . | . . . 13 . | . . . 14 ."),
];

#[test]
fn parity_tables() {
    for &(level, layout, slots, table) in PARITY_TABLES {
        let rows: Vec<&str> = table.split(" | ").collect();
        let parity = parity(&shape(level, layout, slots, 8, 8 * rows.len() as u64));
        assert_eq!(parity.stripe_count(), rows.len() as u64);
        for (index, row) in (0..).zip(rows) {
            let stripe = parity.stripe(StripeIndex(index));
            let mut cells = vec![String::new(); usize::from(slots)];
            cells[stripe.p.index()] = "P".to_owned();
            if let Some(q) = stripe.q {
                cells[q.index()] = "Q".to_owned();
            }
            for (number, slot) in stripe.data.iter().enumerate() {
                let exponent = stripe.exponents.get(number).map(|exponent| format!("^{exponent}"));
                cells[slot.index()] = format!("{number}{}", exponent.unwrap_or_default());
            }
            assert_eq!(cells.join(" "), row, "{level} layout {layout}, stripe {index}");
        }
    }
}

/// The table of an array of chunks of `chunk` sectors, from the copies of its chunks.
fn table_of(copies: &Copies, rows: usize) -> String {
    let chunk = copies.chunk().unwrap().0;
    let mut cells = vec![vec![".".to_owned(); usize::from(copies.slots())]; rows];
    for (number, extent) in copies.extents(Sector::ZERO, copies.array_sectors()).enumerate() {
        assert_eq!((extent.array.0, extent.len.0), (number as u64 * chunk, chunk));
        for copy in extent.copies {
            cells[(copy.sector.0 / chunk) as usize][copy.slot.index()] = number.to_string();
        }
    }
    cells.iter().map(|row| row.join(" ")).collect::<Vec<_>>().join(" | ")
}

#[test]
fn raid10_tables() {
    for &(layout, slots, table) in RAID10_TABLES {
        let rows = table.split(" | ").count();
        let copies = copies(&shape(Level::Raid10, layout, slots, 8, 8 * rows as u64));
        assert_eq!(table_of(&copies, rows), table, "{layout:#x}");
    }
}

#[test]
fn raid0_tables() {
    for chunk in [1, 8, 32, 1024] {
        for &(layout, table) in RAID0_TABLES {
            let sizes = [3 * chunk, chunk, 4 * chunk + chunk / 2, 6 * chunk, chunk];
            let copies = copies(&raid0_shape(layout, chunk, &sizes));
            assert_eq!(table_of(&copies, 6), table, "layout {layout}, chunk {chunk}");
        }
    }
}
