//! Whether the members' devices can hold what the geometry places on them: enough of it, in blocks that fit.

use super::super::error::Refusal;
use super::super::load::Found;
use super::Seating;
use crate::io::Device;
use crate::layout::Geometry;
use crate::md::{Role, SUPERBLOCK_OFFSET_BYTES};
use crate::units::{SECTOR_BYTES, Sector};

/// Every member must have the room that the geometry gives it.
pub(super) fn check_room<D>(
    geometry: &Geometry,
    seating: &Seating,
    found: &[Found<D>],
) -> Result<(), Refusal> {
    let used = geometry.used_member_sectors();
    for index in seating.seated() {
        let has = found[index].superblock.data_size;
        if let Geometry::Copies(copies) = geometry
            && copies.copies() == 1
        {
            continue; // RAID0 takes of each member what it has.
        }
        if has < used {
            let why =
                format!("it has {has} sectors of data, the array uses {used}; its superblock is damaged");
            return Err(Refusal::BadMember { member: found[index].label.clone(), why });
        }
    }
    Ok(())
}

/// The largest block of any member: what all of them are read and written in.
pub(super) fn block_bytes<D: Device>(seating: &Seating, found: &[Found<D>]) -> u64 {
    let all = seating.seated().chain(seating.spares.iter().copied());
    let blocks = all.map(|index| u64::from(found[index].device.info().read_block_bytes));
    blocks.max().unwrap_or(SECTOR_BYTES).max(SECTOR_BYTES)
}

/// Disks of larger blocks than the array was made on cannot be read where it lies across them.
pub(super) fn check_blocks<D>(
    geometry: &Geometry,
    seating: &Seating,
    found: &[Found<D>],
    block_bytes: u64,
) -> Result<(), Refusal> {
    let whole = |sectors: Sector| sectors.bytes().is_multiple_of(block_bytes);
    let refuse = |what: &str| {
        let advice = "copy its members to files or disks with blocks of 512 bytes";
        Err(Refusal::BadSet(format!(
            "{what} is no multiple of its members' largest block, {block_bytes} bytes; {advice}"
        )))
    };
    if geometry.chunk().is_some_and(|chunk| !whole(chunk)) {
        return refuse("the array's chunk");
    }
    if !whole(geometry.array_sectors()) {
        return refuse("the array's size");
    }
    let all = seating.seated().chain(seating.spares.iter().copied()).map(|index| &found[index]);
    if all.clone().any(|member| !whole(member.superblock.data_offset)) {
        return refuse("the data offset of a member");
    }
    let numbers = all.clone().map(|member| member.superblock.dev_number as usize + 1);
    let roles = numbers.chain(all.clone().map(|member| member.superblock.dev_roles.len())).max().unwrap_or(0);
    for member in all {
        check_superblock(member, roles, block_bytes)?;
    }
    Ok(())
}

/// The superblock as it will be written, in whole blocks and with everybody's role, must end before what follows it.
fn check_superblock<D>(member: &Found<D>, roles: usize, block_bytes: u64) -> Result<(), Refusal> {
    let superblock = &member.superblock;
    let mut largest = superblock.clone();
    largest.dev_roles.resize(roles, Role::Spare);
    let end = SUPERBLOCK_OFFSET_BYTES + (largest.encode().len() as u64).next_multiple_of(block_bytes);
    let places = [Some(superblock.data_offset), superblock.bitmap_sector(), superblock.ppl_sector()];
    if places.iter().flatten().any(|at| at.bytes() < end || !at.bytes().is_multiple_of(block_bytes)) {
        let why = format!(
            "its data, its bitmap or its log begin in the middle of a block of {block_bytes} bytes or within the superblock; it \
             was made on another kind of device"
        );
        return Err(Refusal::BadMember { member: member.label.clone(), why });
    }
    Ok(())
}
