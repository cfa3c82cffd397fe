//! The decisions of an assembly, from superblocks alone: who sits where, and how the array may start.

use super::*;
use crate::io::MemoryDevice;
use crate::md::create::{CreateSpec, plan};
use crate::units::EventCount;

const EVENTS: u64 = 100;

/// The superblocks of a clean array, all equally fresh.
pub(super) fn members(level: i32, slots: usize) -> Vec<Superblock> {
    members_and_spares(level, slots, 0)
}

pub(super) fn members_and_spares(level: i32, slots: usize, spares: usize) -> Vec<Superblock> {
    let layout = match level {
        0 => 1,
        10 => 0x102,
        4..=6 => 2,
        _ => 0,
    };
    let created = plan(&CreateSpec {
        name: "host:vol0",
        level,
        layout,
        chunk: Sector(if level == 1 { 0 } else { 128 }),
        members: vec![Some(Sector(16384)); slots],
        spares: vec![Sector(16384); spares],
        size: None,
        bitmap: false,
        ppl: false,
        clean: true,
        set_uuid: [7; 16],
        device_uuids: (0..(slots + spares) as u8).map(|number| [number + 1; 16]).collect(),
        wall_seconds: 1_700_000_000,
    });
    let mut superblocks = created.expect("a plain array").superblocks;
    for superblock in &mut superblocks {
        superblock.events = EventCount(EVENTS);
    }
    superblocks
}

pub(super) fn found(superblocks: &[Superblock]) -> Vec<Found<MemoryDevice>> {
    let numbered = superblocks.iter().enumerate();
    let found = numbered.map(|(index, superblock)| Found {
        device: MemoryDevice::new(Vec::new(), 512),
        label: format!("disk{index}"),
        superblock: superblock.clone(),
        bad: Vec::new(),
        bitmap: None,
        ppl_log: Vec::new(),
        replayed: Default::default(),
    });
    found.collect()
}

fn seated(superblocks: &[Superblock]) -> Result<Seating, Refusal> {
    seat(&found(superblocks))
}

/// Everything that is decided before the array is put together.
fn started(superblocks: &[Superblock], options: &Options) -> Result<Start, Refusal> {
    let found = found(superblocks);
    let seating = seat(&found)?;
    let truth = &found[seating.freshest].superblock;
    let geometry = Geometry::new(&shape_of(truth, &seating, &found)?)?;
    check_room(&geometry, &seating, &found)?;
    decide(truth, &geometry, &seating, &found, options)
}

fn plainly(superblocks: &[Superblock]) -> Result<Start, Refusal> {
    started(superblocks, &Options::default())
}

fn by_force(superblocks: &[Superblock]) -> Result<Start, Refusal> {
    started(superblocks, &Options { force: true, ..Options::default() })
}

/// In the tables of these members, that device has this role; they are so many events ahead.
fn tell(superblocks: &mut [Superblock], who: &[usize], dev_number: u32, role: Role, events: u64) {
    for &index in who {
        superblocks[index].dev_roles[dev_number as usize] = role;
        superblocks[index].events.0 += events;
    }
}

fn slot(number: u16) -> Role {
    Role::Active(MemberSlot(number))
}

fn left_out(seating: &Seating) -> Vec<usize> {
    let mut out: Vec<_> = seating.left_out.iter().map(|(index, _)| *index).collect();
    out.sort_unstable();
    out
}

fn mains(seating: &Seating) -> Vec<Option<usize>> {
    seating.slots.iter().map(|(main, _)| *main).collect()
}

#[test]
fn the_highest_count_is_the_truth_and_of_equals_the_lowest_slot() {
    let mut set = members(5, 4);
    assert_eq!(seated(&set).unwrap().freshest, 0);
    set.reverse();
    assert_eq!(seated(&set).unwrap().freshest, 3, "slot 0, wherever it is named");
    set.reverse();
    set[2].events.0 += 1;
    assert_eq!(seated(&set).unwrap().freshest, 2);
    // One that holds no slot has no say.
    let mut set = members_and_spares(5, 3, 1);
    set[3].events.0 += 50;
    assert_eq!(seated(&set).unwrap().freshest, 0);
    assert!(matches!(seated(&set[3..]), Err(Refusal::BadSet(_))), "spares alone make no array");
    assert!(matches!(seated(&[]), Err(Refusal::BadSet(_))));
}

#[test]
fn one_behind_is_in_and_two_behind_is_stale() {
    let mut set = members(5, 4);
    set[1].events.0 -= 1;
    assert_eq!(mains(&seated(&set).unwrap()), [Some(0), Some(1), Some(2), Some(3)]);
    set[1].events.0 -= 1;
    let seating = seated(&set).unwrap();
    assert_eq!(mains(&seating), [Some(0), None, Some(2), Some(3)]);
    assert_eq!(left_out(&seating), [1]);
    assert!(seating.left_out[0].1.contains("stale"));
    assert_eq!(
        plainly(&set).unwrap(),
        Start {
            read_only: None,
            resync: None,
            replay: false,
            degraded: true,
            torn: false,
            resync_offset: Sector::MAX
        }
    );
}

#[test]
fn a_role_is_what_the_freshest_says() {
    for (role, why) in [(Role::Faulty, "faulty"), (Role::Spare, "removed")] {
        let mut set = members(6, 5);
        tell(&mut set, &[0, 1, 2, 3], 4, role, 1);
        let seating = seated(&set).unwrap();
        assert_eq!(mains(&seating), [Some(0), Some(1), Some(2), Some(3), None]);
        assert!(seating.left_out[0].0 == 4 && seating.left_out[0].1.contains(why));
    }
    // A device number beyond the table is nobody's: a table that grew to it would be of any size.
    let mut set = members_and_spares(5, 3, 1);
    set[3].dev_number = 5000;
    let seating = seated(&set).unwrap();
    assert_eq!((seating.spares.len(), left_out(&seating)), (0, vec![3]));
}

#[test]
fn numbers_are_not_slots() {
    // As mdadm leaves a RAID5: the last member was a spare first.
    let mut set = members(5, 3);
    set[2].dev_number = 3;
    for superblock in &mut set {
        (superblock.dev_roles[2], superblock.dev_roles[3]) = (Role::Spare, slot(2));
    }
    assert_eq!(mains(&seated(&set).unwrap()), [Some(0), Some(1), Some(2)]);
}

#[test]
fn a_spare_that_has_not_heard_of_its_slot_holds_nothing() {
    let mut set = members_and_spares(5, 3, 1);
    // The crash came while "slot 2 is the spare's now" was being written: the spare itself did not get it.
    tell(&mut set, &[0, 1], 2, Role::Faulty, 1);
    tell(&mut set, &[0, 1], 3, slot(2), 0);
    let seating = seated(&set).unwrap();
    assert_eq!(mains(&seating), [Some(0), Some(1), None]);
    assert_eq!((&seating.spares[..], left_out(&seating)), (&[3][..], vec![2]));
    // The same where it is to replace a member that is still there: that one keeps its slot, whoever is named first.
    for reversed in [false, true] {
        let mut set = members_and_spares(1, 2, 1);
        tell(&mut set, &[0], 2, slot(1), 1);
        if reversed {
            set.reverse();
        }
        let seating = seated(&set).unwrap();
        let at = |index: usize| if reversed { 2 - index } else { index };
        assert_eq!(mains(&seating), [Some(at(0)), Some(at(1))]);
        assert_eq!(seating.spares, [at(2)]);
    }
}

#[test]
fn a_spare_bears_witness_against_old_members() {
    let mut set = members_and_spares(1, 2, 1);
    tell(&mut set, &[1, 2], 0, Role::Faulty, 5);
    assert_eq!(mains(&seated(&set).unwrap()), [None, Some(1)]);
    let old = [set[0].clone(), set[2].clone()];
    let refusal = seated(&old).unwrap_err().to_string();
    assert!(refusal.contains("disk0") && refusal.contains("disk1 has seen"), "{refusal}");
    assert!(seated(&old[..1]).is_ok(), "it can be left out");
    // A generation that was torn is no history.
    set[2].events.0 -= 4;
    let torn = [set[0].clone(), set[2].clone()];
    assert!(seated(&torn).is_ok());
}

#[test]
fn a_number_is_one_members() {
    // 3 was removed, 4 was to be added under the same number, which failed half-way.
    let mut set = members_and_spares(5, 3, 2);
    set[4].dev_number = 3;
    let seating = seated(&set).unwrap();
    assert_eq!((&seating.spares[..], left_out(&seating)), (&[3][..], vec![4]));
    // The fresher of two.
    set[3].events.0 -= 1;
    let seating = seated(&set).unwrap();
    assert_eq!((&seating.spares[..], left_out(&seating)), (&[4][..], vec![3]));
    // One that has the number of one in a slot, but has not heard of that slot.
    let mut set = members_and_spares(5, 3, 2);
    tell(&mut set, &[0, 1, 2, 3], 2, Role::Faulty, 1);
    tell(&mut set, &[0, 1, 3], 3, slot(2), 0);
    set[4].dev_number = 3;
    let seating = seated(&set).unwrap();
    assert_eq!(mains(&seating), [Some(0), Some(1), Some(3)]);
    assert!(seating.spares.is_empty() && left_out(&seating).contains(&4));
}

#[test]
fn two_members_that_went_on_without_each_other_are_a_split_brain() {
    for (first, second) in
        [(Role::Faulty, Role::Faulty), (Role::Spare, Role::Faulty), (Role::Spare, Role::Spare)]
    {
        for ahead in [0, 1, 30] {
            let mut set = members(1, 2);
            tell(&mut set, &[0], 1, first, 3);
            tell(&mut set, &[1], 0, second, 3 + ahead);
            for _ in 0..2 {
                let refusal = seated(&set).unwrap_err().to_string();
                assert!(refusal.contains("split brain") && refusal.contains("disk0"), "{refusal}");
                assert!(seated(&set[..1]).is_ok() && seated(&set[1..]).is_ok(), "each alone is an array");
                set.reverse();
            }
        }
    }
    // Halves of four.
    let mut set = members(10, 4);
    for (half, others) in [([0, 2], [1, 3]), ([1, 3], [0, 2])] {
        for other in others {
            tell(&mut set, &half, other, Role::Faulty, 2);
        }
    }
    assert!(seated(&set).unwrap_err().to_string().contains("split brain"));
}

#[test]
fn one_that_only_failed_is_no_split_brain() {
    let mut set = members(1, 2);
    tell(&mut set, &[0], 1, Role::Faulty, 2);
    assert_eq!(left_out(&seated(&set).unwrap()), [1]);
    // Equal counts, but the second has gone on without the first.
    let mut set = members(1, 2);
    tell(&mut set, &[1], 0, Role::Faulty, 0);
    let seating = seated(&set).unwrap();
    assert_eq!((seating.freshest, left_out(&seating)), (1, vec![0]));
}

#[test]
fn a_replaced_member_is_no_split_brain() {
    // 1 failed, the spare (3) was rebuilt in its place; 1 has never heard of 3.
    let mut set = members_and_spares(5, 3, 1);
    set[1].dev_roles[3] = Role::Spare;
    tell(&mut set, &[0, 2, 3], 1, Role::Faulty, 10);
    tell(&mut set, &[0, 2, 3], 3, slot(1), 10);
    let seating = seated(&set).unwrap();
    assert_eq!((mains(&seating), left_out(&seating)), (vec![Some(0), Some(3), Some(2)], vec![1]));
    // Even where only these two are left of a mirror.
    let mut set = members_and_spares(1, 2, 1);
    tell(&mut set, &[2], 1, Role::Faulty, 10);
    tell(&mut set, &[2], 0, slot(0), 0);
    tell(&mut set, &[2], 2, slot(1), 0);
    let two = [set[1].clone(), set[2].clone()];
    assert_eq!(mains(&seated(&two).unwrap()), [None, Some(1)]);
    // A replacement that took over: the original knows of it, and is two behind.
    let mut set = members_and_spares(5, 3, 1);
    tell(&mut set, &[0, 1, 2, 3], 3, slot(1), 0);
    tell(&mut set, &[0, 2, 3], 1, Role::Faulty, 2);
    assert_eq!(mains(&seated(&set).unwrap()), [Some(0), Some(3), Some(2)]);
}

/// 1 fails, then 0, then 1 comes back and is rebuilt: 0 and 1 each list the other as out, but 2 was always there.
#[test]
fn one_history_told_by_three_is_no_split_brain() {
    for (level, slots) in [(1, 3), (6, 4)] {
        let mut set = members(level, slots);
        tell(&mut set, &[0], 1, Role::Faulty, 2);
        let others: Vec<_> = (1..slots).collect();
        tell(&mut set, &others, 0, Role::Faulty, 8);
        for order in 0..2 {
            let seating = seated(&set).unwrap();
            assert_eq!(left_out(&seating), [if order == 0 { 0 } else { slots - 1 }]);
            set.reverse();
        }
        // The witness need not be here: both tables tell of it. But where 0 has gone on without it, too, there are two.
        assert!(seated(&set[..2]).is_ok());
        tell(&mut set, &[0], slots as u32 - 1, Role::Faulty, 2);
        (2..slots - 1).for_each(|other| tell(&mut set, &[0], other as u32, Role::Faulty, 0));
        let refusal = seated(&set).unwrap_err().to_string();
        assert!(refusal.contains("split brain"), "{refusal}");
    }
}

#[test]
fn members_of_two_arrays_are_not_mixed() {
    let mut set = members(5, 3);
    set[2].set_uuid = [8; 16];
    let refusal = seated(&set).unwrap_err().to_string();
    assert!(refusal.contains("disk0") && refusal.contains("disk2"), "{refusal}");
    // One UUID, but not one array.
    let changes: [fn(&mut Superblock); 6] = [
        |superblock| superblock.level = 4,
        |superblock| superblock.layout = 0,
        |superblock| superblock.chunk = Sector(64),
        |superblock| superblock.raid_disks = 4,
        |superblock| superblock.size = Sector(1024),
        |superblock| superblock.ctime += 1,
    ];
    for change in changes {
        let mut set = members(5, 3);
        change(&mut set[1]);
        assert!(matches!(seated(&set), Err(Refusal::BadSet(_))));
        // Whatever a stale one says, it is out.
        set[1].events.0 -= 2;
        assert_eq!(left_out(&seated(&set).unwrap()), [1]);
    }
}

#[test]
fn the_same_member_twice_is_refused() {
    let mut set = members(1, 3);
    set[2] = set[1].clone();
    assert!(seated(&set).unwrap_err().to_string().contains("same member"));
    set[2].events.0 -= 50;
    assert!(seated(&set).is_err(), "also an old copy of it");
}

#[test]
fn too_few_members_are_refused() {
    // (level, members, how many may be missing from the end)
    for (level, slots, spared) in [(0, 3, 0), (1, 3, 2), (4, 3, 1), (5, 4, 1), (6, 5, 2), (10, 4, 1)] {
        let mut set = members(level, slots);
        // Known to the survivors or not: it is the same.
        for known in [false, true] {
            for missing in 0..slots {
                let here = slots - missing;
                if known && level != 0 {
                    let who: Vec<_> = (0..here).collect();
                    (here..slots).for_each(|gone| tell(&mut set, &who, gone as u32, Role::Faulty, 0));
                }
                match plainly(&set[..here]) {
                    Ok(start) => {
                        assert!(missing <= spared && start.degraded == (missing > 0), "{level} {missing}");
                    }
                    Err(Refusal::TooFew(_)) => assert!(missing > spared, "level {level} without {missing}"),
                    Err(refusal) => panic!("level {level} without {missing}: {refusal}"),
                }
                // Force does not make up data.
                assert_eq!(by_force(&set[..here]).is_ok(), missing <= spared);
            }
            set = members(level, slots);
        }
    }
    // A member that is left out is named.
    let mut set = members(5, 3);
    set[0].events.0 -= 5;
    set[1].events.0 -= 5;
    let refusal = plainly(&set).unwrap_err().to_string();
    assert!(refusal.contains("disk0: stale") && refusal.contains("disk1: stale"), "{refusal}");
}

fn dirty(set: &mut [Superblock], resync_offset: Sector) {
    set.iter_mut().for_each(|superblock| superblock.resync_offset = resync_offset);
}

#[test]
fn a_dirty_array_is_resynced() {
    for (level, slots) in [(1, 2), (4, 3), (5, 3), (6, 4), (10, 4)] {
        let mut set = members(level, slots);
        dirty(&mut set, Sector(256));
        assert_eq!(plainly(&set).unwrap().resync, Some((Sector(256), Trust::Unclean)));
        // One "dirty" is enough among equals, and the lowest checkpoint counts.
        let mut set = members(level, slots);
        set[1].resync_offset = Sector::ZERO;
        assert_eq!(plainly(&set).unwrap().resync, Some((Sector::ZERO, Trust::Unclean)));
        // One behind knows less.
        set[1].events.0 -= 1;
        assert_eq!(plainly(&set).unwrap().resync, None);
    }
    let mut set = members(0, 2);
    dirty(&mut set, Sector::ZERO);
    assert_eq!(plainly(&set).unwrap().resync, None, "nothing can disagree");
}

#[test]
fn dirty_and_degraded_parity_needs_force() {
    for (level, slots) in [(4, 3), (5, 3), (6, 4)] {
        let mut set = members(level, slots);
        dirty(&mut set, Sector::ZERO);
        let here = &set[..slots - 1];
        let Err(Refusal::DirtyDegraded(why)) = plainly(here) else { panic!("level {level}") };
        assert!(why.contains("--force"), "{why}");
        let start = by_force(here).unwrap();
        // A RAID6 has redundancy left that may disagree; missing data is what parity makes of it.
        let resync = (level == 6).then_some((Sector::ZERO, Trust::Initial));
        assert_eq!((start.resync, start.read_only, start.degraded), (resync, None, true));
        // Half rebuilt is degraded, too.
        set[1].feature_map.insert(Features::RECOVERY_OFFSET);
        set[1].recovery_offset = Sector(512);
        assert!(matches!(plainly(&set), Err(Refusal::DirtyDegraded(_))));
    }
}

#[test]
fn dirty_and_degraded_mirrors_start() {
    for (level, slots) in [(1, 2), (1, 3), (10, 4)] {
        let mut set = members(level, slots);
        dirty(&mut set, Sector::ZERO);
        let start = plainly(&set[1..]).unwrap();
        assert_eq!(start.resync, Some((Sector::ZERO, Trust::Unclean)));
        assert!(start.degraded && start.read_only.is_none());
    }
}

#[test]
fn dirty_and_degraded_starts_where_a_log_tells() {
    let mut set = members(5, 3);
    dirty(&mut set, Sector::ZERO);
    for superblock in &mut set {
        superblock.feature_map.insert(Features::PPL);
        superblock.set_ppl(8, 1024);
    }
    let mut start = plainly(&set[1..]).unwrap();
    assert!(start.replay && start.resync.is_none() && start.read_only.is_none());
    // Unless the log is damaged.
    let refused = distrust_logs(&mut start, &set[0], false, &Options::default());
    assert!(matches!(refused, Err(Refusal::DirtyDegraded(_))));
    let force = Options { force: true, ..Options::default() };
    assert!(distrust_logs(&mut start, &set[0], false, &force).is_ok() && start.resync.is_none());
    let mut whole = plainly(&set).unwrap();
    assert!(distrust_logs(&mut whole, &set[0], true, &Options::default()).is_ok() && whole.resync.is_none());
    distrust_logs(&mut whole, &set[0], false, &Options::default()).unwrap();
    assert_eq!(whole.resync, Some((Sector::ZERO, Trust::Unclean)));
    dirty(&mut set, Sector::MAX);
    assert!(!plainly(&set).unwrap().replay);
}

fn filling(superblock: &mut Superblock, features: Features, recovery_offset: u64) {
    superblock.feature_map.insert(features | Features::RECOVERY_OFFSET);
    superblock.recovery_offset = Sector(recovery_offset);
}

#[test]
fn half_rebuilt_counts_as_missing() {
    for (level, slots, others_spared) in [(1, 2, 0), (5, 3, 0), (6, 4, 1), (10, 4, 0)] {
        let mut set = members(level, slots);
        filling(&mut set[1], Features::NONE, 1024);
        let seating = seated(&set).unwrap();
        assert_eq!(seating.slots[1], (Some(1), None));
        let start = plainly(&set).unwrap();
        assert!(start.degraded && start.read_only.is_none());
        // Without 0 (its pair, where there are pairs) as many are missing as there are without both.
        assert_eq!(plainly(&set[1..]).is_ok(), others_spared > 0, "level {level}");
    }
}

#[test]
fn half_replaced_counts_as_the_member_that_it_is_to_replace() {
    for (level, slots) in [(1, 2), (5, 3), (6, 4), (10, 4)] {
        let mut set = members_and_spares(level, slots, 1);
        let everybody: Vec<_> = (0..=slots).collect();
        tell(&mut set, &everybody, slots as u32, slot(1), 1);
        filling(&mut set[slots], Features::REPLACEMENT, 1024);
        let seating = seated(&set).unwrap();
        assert_eq!(seating.slots[1], (Some(1), Some(slots)));
        assert_eq!((left_out(&seating).len(), seating.spares.len()), (0, 0));
        let start = plainly(&set).unwrap();
        assert!(!start.degraded && start.read_only.is_none());
        // The original is gone: the replacement holds what it holds.
        let mut gone = set.clone();
        gone.remove(1);
        let seating = seated(&gone).unwrap();
        assert_eq!(seating.slots[1], (None, Some(slots - 1)));
        let start = plainly(&gone).unwrap();
        assert!(start.degraded && start.read_only.is_none());
        // It is complete, only its original has not been let go yet.
        gone[slots - 1].recovery_offset = Sector::MAX;
        assert!(!plainly(&gone).unwrap().degraded);
        gone[slots - 1].feature_map.remove(Features::RECOVERY_OFFSET);
        let start = plainly(&gone).unwrap();
        assert!(!start.degraded && start.read_only.is_none());
    }
}

#[test]
fn a_read_only_member_and_the_operators_word_make_read_only() {
    let wish = Options { read_only: true, ..Options::default() };
    assert!(started(&members(1, 2), &wish).unwrap().read_only.unwrap().contains("--read-only"));
    let mut found = found(&members(1, 2));
    found[1].device = found[1].device.read_only();
    let reason = read_only_reason(&found[0].superblock, found.iter(), &Options::default());
    assert_eq!(reason.as_deref(), Some("disk1 is read-only"));
}

#[test]
fn every_member_must_have_the_room() {
    let mut set = members(5, 3);
    set[1].data_size = set[1].size - Sector(1);
    assert!(plainly(&set).unwrap_err().to_string().starts_with("disk1: it has 14335 sectors of data"));
}
