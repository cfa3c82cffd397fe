//! Members fail in raidd's hands; the kernel takes over what is left, and what has become whole again.

use raidd::api::{Health, MemberState};

use super::super::harness::Home;
use super::arrays::{Made, SHAPES, examine, recovery_offset, wait_clean};
use super::handover::Handover;
use super::rig::can_run;

#[test]
fn arrays_that_lost_a_member_are_the_kernels() {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let raidd = home.start_with(&["--enable-fault-injection"]);
    let mut handover = Handover::default();
    let mut arrays = Vec::new();
    for shape in &SHAPES {
        // What a member missed is in the others, and the kernel does not take it back.
        let mut array = Made::new(&home, shape, "degraded", 8);
        home.ok(format!("fail {} {}", array.name, array.disk(1)));
        array.scribble(&home, 1);
        home.ok(format!("stop {}", array.name));
        handover.give_with_spare(&array.name, array.bytes(), &array.disks.paths, &array.spare);
        arrays.push(array);

        // A spare has taken over while it was written.
        let mut array = Made::new(&home, shape, "recovered", 8);
        home.ok(format!("add {} {}", array.name, array.spare));
        home.ok(format!("fail {} {}", array.name, array.disk(0)));
        array.scribble(&home, 2);
        home.ok(format!("wait {}", array.name));
        home.ok(format!("stop {}", array.name));
        handover.give(&array.name, array.bytes(), &array.all());
        arrays.push(array);

        if shape.key != "ppl" {
            let mut array = Made::new(&home, shape, "re-added", 8);
            let member = array.disk(1).to_owned();
            home.ok(format!("fail {} {member}", array.name));
            home.ok(format!("remove {} {member}", array.name));
            array.scribble(&home, 3);
            home.ok(format!("re-add {} {member}", array.name));
            home.ok(format!("wait {}", array.name));
            home.ok(format!("stop {}", array.name));
            handover.give(&array.name, array.bytes(), &array.disks.paths);
            arrays.push(array);
        }

        // A write failed, and the member says where.
        let array = Made::new(&home, shape, "bad", 8);
        home.ok(format!("inject {} {} write-error=1M+24K", array.name, array.disk(1)));
        // In pieces, as all of a write that fails is recorded.
        let mut client = home.client(&array.name);
        for (piece, at) in array.content.chunks(16 << 10).zip((0..).step_by(16 << 10)) {
            client.write(at, piece).unwrap();
        }
        client.disconnect().unwrap();
        home.ok(format!("stop {}", array.name));
        let facts = examine(&home, array.disk(1));
        assert!(facts["bad_blocks"].as_array().is_some_and(|ranges| !ranges.is_empty()), "{facts:#}");
        handover.give(&array.name, array.bytes(), &array.disks.paths);
        arrays.push(array);
    }
    let taken = handover.run();
    for array in &arrays {
        let name = array.name.as_str();
        taken.assert_whole(name, &array.content);
        let state = name.split_once('-').unwrap().1;
        let expected = if state == "degraded" { "clean, degraded" } else { "clean" };
        assert_eq!(taken.said(name, "found"), expected, "{name}");
    }
    raidd.terminate();
}

#[test]
fn the_kernel_finishes_what_raidd_left_half_done() {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let mut raidd = home.start();
    let mut arrays = Vec::new();
    for shape in &SHAPES {
        let ways = [("recovery", "stop"), ("recovery", "kill"), ("replace", "stop"), ("replace", "kill")];
        let made: Vec<_> = ways
            .into_iter()
            .map(|(action, end)| (Made::new(&home, shape, &format!("{action}-{end}"), 16), action, end))
            .collect();
        // A few at a time, so that all of them are caught in the middle.
        for (array, action, _) in &made {
            let (name, member, spare) = (&array.name, array.disk(1), &array.spare);
            home.ok(format!("tune {name} recovery_min=0 recovery_max=2M"));
            if *action == "recovery" {
                home.ok(format!("fail {name} {member}"));
                home.ok(format!("add {name} {spare}"));
            } else {
                home.ok(format!("replace {name} {member} {spare}"));
            }
        }
        for (array, _, _) in &made {
            home.wait_for(&array.name, |status| status.sync.done_bytes > 4 << 20);
            home.ok(format!("pause {}", array.name));
        }
        arrays.extend(made.into_iter().map(|(array, _, end)| (array, end)));
    }
    let mut handover = Handover::default();
    for (array, end) in &mut arrays {
        let name = array.name.clone();
        // Below the offset and above it.
        array.scribble(&home, 5);
        if *end == "stop" {
            home.ok(format!("stop {name}"));
        } else {
            wait_clean(&home, &name);
        }
    }
    raidd.kill();
    for (array, _) in &arrays {
        handover.give(&array.name, array.bytes(), &array.all());
    }
    let offsets: Vec<_> = arrays.iter().map(|(array, _)| recovery_offset(&home, &array.spare)).collect();
    let taken = handover.run();
    for ((array, _), offset) in arrays.iter().zip(offsets) {
        let name = array.name.as_str();
        taken.assert_whole(name, &array.content);
        let size = examine(&home, &array.spare)["member_size_bytes"].as_u64().unwrap();
        let rest = (size - offset) / 512;
        let written = taken.moved(name).last().unwrap().written;
        assert!(offset >= 2 << 20 && offset < size, "{name}: {offset} of {size}");
        // The rest, superblocks and bitmap; a partial parity log is written anew.
        let more = if name.starts_with("ppl") { 2048 + 1024 } else { 1024 };
        assert!((rest..rest + more).contains(&written), "{name}: {written} sectors were written of {rest}");
    }

    // The kernel has made them whole, and raidd sees that.
    let raidd = home.start();
    for (array, end) in &arrays {
        // What was killed comes back by itself.
        if *end == "stop" {
            home.ok(format!("assemble {} {}", array.name, array.all().join(" ")));
        }
        let status = home.wait_for(&array.name, |status| status.nbd_uri.is_some());
        assert_eq!(
            (status.health, status.members[1].state),
            (Health::Optimal, MemberState::InSync),
            "{status:#?}"
        );
        assert_eq!(status.members[1].path.as_deref(), Some(&*array.spare));
    }
    raidd.terminate();
}
