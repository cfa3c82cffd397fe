//! A copy of an array gets another UUID. Wherever that is cut off, what is left is refused as it is, is finished once the new
//! UUID is named, and has lost nothing; and what was not a copy alone is not made one.

use std::rc::Rc;

use raidd::engine::{AssembleOptions, Health, NewUuid, Refusal};
use raidd::io::Fua;
use raidd::md::{Bitmap, Superblock, format_uuid};
use raidd_sim::disk::Platter;
use raidd_sim::random::Random;
use raidd_sim::setup::{Shape, assemble_array, create_array, platters, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::{Ended, World};

use crate::found::{assert_agrees, crash, until_idle};
use crate::rounds::Client;

const SHAPES: [Shape; 6] = [
    shape(0, 1, 4, 3, 0),
    shape(1, 0, 0, 2, 1),
    shape(5, 2, 4, 3, 1),
    shape(5, 2, 4, 3, 1).with_ppl(),
    shape(6, 2, 8, 4, 2),
    shape(10, 0x102, 4, 4, 1),
];

const NEW: [u8; 16] = [9; 16];

fn another(uuid: [u8; 16], is_named: bool) -> AssembleOptions {
    AssembleOptions { new_uuid: Some(NewUuid { uuid, is_named }), ..Default::default() }
}

/// The disks of an array that was filled and stopped, and what is in it.
fn original(shape: &Shape, bitmap: bool, block: u64) -> (Vec<Platter>, Rc<Vec<u8>>) {
    let disks = platters(shape, 5);
    let (world, stage, shape) = (World::new(5), disks.clone(), *shape);
    let inside = world.clone();
    let bytes = world.run(async move {
        let some: Vec<_> = stage.into_iter().map(Some).collect();
        let array = create_array(&inside, &shape, &some, block, true, bitmap).await.unwrap();
        let mut client = Client::new(array, &inside);
        client.fill().await;
        client.array.stop().await.unwrap();
        client.bytes
    });
    (disks, Rc::new(bytes))
}

fn copied(disks: &[Platter]) -> Vec<Platter> {
    disks.iter().map(|disk| disk.copy(&Random::new(0))).collect()
}

/// The UUIDs of a member's superblock and of its bitmap.
fn uuids(disk: &Platter) -> ([u8; 16], Option<[u8; 16]>) {
    let bytes = disk.bytes();
    let superblock = Superblock::parse(&bytes[4096..8192]).unwrap();
    let bitmap = superblock.bitmap_sector().map(|at| Bitmap::parse(&bytes[at.bytes() as usize..]).unwrap());
    (superblock.set_uuid, bitmap.map(|bitmap| bitmap.superblock.uuid))
}

fn has(disk: &Platter, wanted: [u8; 16]) -> bool {
    let (superblock, bitmap) = uuids(disk);
    superblock == wanted && bitmap.is_none_or(|bitmap| bitmap == wanted)
}

/// Assembles these disks, and compares what is in the array. What is refused has not been touched.
fn assembled(
    disks: &[Platter],
    block: u64,
    options: AssembleOptions,
    bytes: &Rc<Vec<u8>>,
) -> Result<(), String> {
    let before: Vec<Vec<u8>> = disks.iter().map(|disk| disk.bytes().to_vec()).collect();
    let world = World::new(1);
    let (inside, stage, bytes) = (world.clone(), disks.to_vec(), bytes.clone());
    let refusal = world.run(async move {
        let array = match assemble_array(&inside, &stage, block, options).await {
            Ok(array) => array,
            Err(Refusal::BadSet(why) | Refusal::BadMember { why, .. }) => return Some(why),
            Err(refusal) => panic!("{refusal}"),
        };
        let mut client = Client::new(array, &inside);
        client.bytes.clone_from(&bytes);
        client.check_all().await;
        assert_eq!(client.array.health(), Health::Optimal);
        client.array.stop().await.unwrap();
        None
    });
    let Some(refusal) = refusal else { return Ok(()) };
    for (disk, before) in disks.iter().zip(before) {
        assert!(disk.bytes()[..] == before[..], "a disk was changed, and then: {refusal}");
    }
    Err(refusal)
}

/// The power fails after so many changes of the disks. False if the array had its UUID by then.
fn cut_off(
    disks: &[Platter],
    block: u64,
    bytes: &Rc<Vec<u8>>,
    changes: u64,
    seed: u64,
    seen: &mut [u32; 3],
) -> bool {
    let disks = copied(disks);
    let world = World::new(changes);
    world.crash_after(changes);
    let (inside, stage) = (world.clone(), disks.clone());
    let story = async move {
        let array = assemble_array(&inside, &stage, block, another(NEW, false)).await.unwrap();
        array.stop().await.unwrap();
    };
    let ended = world.run_steps(story, u64::MAX);
    let luck = [Luck::None, Luck::Some, Luck::Most][seed as usize % 3];
    crash(&disks, luck, &Random::new(seed));

    let begun = disks
        .iter()
        .any(|disk| uuids(disk) != uuids(&disks[0]) || uuids(disk).1 == Some(NEW) || has(disk, NEW));
    let is_done = disks.iter().all(|disk| has(disk, NEW));
    seen[usize::from(begun) + usize::from(is_done)] += 1;
    if ended != Ended::Crashed {
        assert!(is_done);
    }
    if begun && !is_done {
        for options in [AssembleOptions::default(), another([3; 16], false), another([3; 16], true)] {
            let refusal = assembled(&disks, block, options, bytes).unwrap_err();
            assert!(refusal.contains("cut off") && refusal.contains(&format_uuid(&NEW)), "{refusal}");
        }
        // Nobody starts from a member that is between the two.
        for disk in &disks {
            let (superblock, bitmap) = uuids(disk);
            if bitmap.is_some_and(|bitmap| bitmap != superblock) {
                assembled(std::slice::from_ref(disk), block, AssembleOptions::default(), bytes).unwrap_err();
            }
        }
    } else {
        assembled(&copied(&disks), block, AssembleOptions::default(), bytes).unwrap();
    }
    assembled(&disks, block, another(NEW, true), bytes).unwrap();
    assert!(disks.iter().all(|disk| has(disk, NEW)));
    assembled(&disks, block, AssembleOptions::default(), bytes).unwrap();
    ended == Ended::Crashed
}

#[test]
fn a_new_uuid_that_is_cut_off_anywhere_is_finished() {
    for shape in SHAPES {
        for (bitmap, block) in [(true, 512), (false, 512), (true, 4096)] {
            let (disks, bytes) = original(&shape, bitmap, block);
            // Not begun, half done, done.
            let mut seen = [0; 3];
            let mut changes = 0;
            // What was under way then may have been done, or parts of it.
            while (0..6).all(|seed| cut_off(&disks, block, &bytes, changes, seed, &mut seen)) {
                changes += 1;
            }
            let steps = disks.iter().map(|disk| 1 + u32::from(uuids(disk).1.is_some())).sum::<u32>();
            println!("{shape:?} bitmap {bitmap}: {changes} crash points, {seen:?}");
            assert!(seen[0] >= 1 && seen[1] >= steps - 1 && seen[2] >= 1, "{shape:?}: {seen:?}");
            // The original is what it was.
            assembled(&disks, block, AssembleOptions::default(), &bytes).unwrap();
            assert!(disks.iter().all(|disk| has(disk, [7; 16])));
        }
    }
}

#[test]
fn a_copy_is_not_made_whole_by_its_original() {
    for (shape, bitmap) in [(SHAPES[1], true), (SHAPES[2], true), (SHAPES[2], false), (SHAPES[3], false)] {
        let (disks, bytes) = original(&shape, bitmap, 512);
        let copy = copied(&disks);
        assembled(&copy, 512, another(NEW, false), &bytes).unwrap();
        // The original goes on.
        let (world, stage) = (World::new(3), disks.clone());
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
            let mut client = Client::new(array, &inside);
            client.write(0, 5000, Fua::No).await.unwrap();
            client.array.stop().await.unwrap();
        });
        for from_copy in 1..(1 << disks.len()) - 1 {
            let mixed: Vec<_> = (0..disks.len())
                .map(|slot| if from_copy >> slot & 1 == 1 { copy[slot].clone() } else { disks[slot].clone() })
                .collect();
            for options in [
                AssembleOptions::default(),
                another(NEW, true),
                another([7; 16], true),
                another([3; 16], false),
            ] {
                assembled(&mixed, 512, options, &bytes).unwrap_err();
            }
        }
    }
}

#[test]
fn what_needs_the_old_uuid_or_would_stay_behind_is_refused() {
    let (disks, _) = original(&SHAPES[2], true, 512);
    let refused = |disks: &[Platter], options: AssembleOptions, fragment: &str| {
        let before: Vec<Vec<u8>> = disks.iter().map(|disk| disk.bytes().to_vec()).collect();
        let (world, stage) = (World::new(1), disks.to_vec());
        let inside = world.clone();
        let refusal = world.run(async move {
            assemble_array(&inside, &stage, 512, options).await.err().map(|why| why.to_string())
        });
        let refusal = refusal.unwrap_or_else(|| panic!("not refused: {fragment}"));
        assert!(refusal.contains(fragment), "{refusal}");
        for (disk, before) in disks.iter().zip(before) {
            assert!(disk.bytes()[..] == before[..], "{refusal}");
        }
    };
    refused(&disks[..2], another(NEW, false), "slot 2 is not named");
    refused(&disks[..1], another(NEW, false), "too few");
    let part = copied(&disks[..2]);
    let (world, stage) = (World::new(1), part.clone());
    let inside = world.clone();
    world.run(async move {
        let options = AssembleOptions { force: true, ..another(NEW, false) };
        let array = assemble_array(&inside, &stage, 512, options).await.unwrap();
        assert_eq!(array.health(), Health::Degraded);
        array.stop().await.unwrap();
    });
    assert!(part.iter().all(|disk| has(disk, NEW)));

    // One that is out would have the UUID, and not be in the array.
    let stage = copied(&disks);
    let (world, inside) = (World::new(2), stage.clone());
    let sim = world.clone();
    world.run(async move {
        let array = assemble_array(&sim, &inside, 512, AssembleOptions::default()).await.unwrap();
        let mut client = Client::new(array, &sim);
        client.array.fail("disk1").await.unwrap();
        client.write(0, 5000, Fua::No).await.unwrap();
        client.array.stop().await.unwrap();
    });
    refused(&stage, another(NEW, false), "leave it out");

    for shape in [SHAPES[2], SHAPES[3]] {
        // Cut off while it is written.
        let (disks, bytes) = original(&shape, true, 512);
        let world = World::new(4);
        let (inside, stage) = (world.clone(), disks.clone());
        let ended = world.live(async move {
            let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
            let mut client = Client::new(array, &inside);
            client.bytes.clone_from(&bytes);
            client.write(0, 5000, Fua::Yes).await.unwrap();
            inside.crash_in(0);
            client.write(20_000, 5000, Fua::No).await.unwrap();
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::Most, &Random::new(4));
        if shape.ppl {
            refused(&disks, another(NEW, false), "not stopped cleanly");
            continue;
        }
        // Without logs it is resynced under the new one, where the bitmap says.
        let (world, stage) = (World::new(5), disks.clone());
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &stage, 512, another(NEW, false)).await.unwrap();
            assert!(array.status().resync_is_due);
            let client = Client::new(array, &inside);
            until_idle(&client).await;
            client.array.stop().await.unwrap();
            assert_agrees(&stage);
        });
        assert!(disks.iter().all(|disk| has(disk, NEW)));
    }
}
