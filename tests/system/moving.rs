//! Connections that move between reactors when their requests become of another kind, while they are used.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::disks::{Disks, MIB, noise};
use super::harness::Home;

const LARGE: usize = 1 << 20;

/// Large reads and small requests in turns, more in a row than it takes for a connection to move, until the array goes away; on
/// a region of its own, from where `wanted` was written. Says how many turns there were.
fn talk(home: &Home, region: u64, seed: u64, end: &AtomicBool) -> u64 {
    let mut client = home.client("vol");
    let mut wanted = noise(seed, 4 * LARGE);
    let mut data = vec![0; LARGE];
    let mut turns = 0;
    let mut turn = || {
        client.write(region, &wanted)?;
        for index in 0..80 {
            let at = index % 4 * LARGE;
            client.read(region + at as u64, &mut data)?;
            assert!(data == wanted[at..][..LARGE], "region {region}, turn {turns}, read {index}");
        }
        for index in 0..1200 {
            let at = index * 3072;
            if index % 3 == 0 {
                wanted[at..][..512].fill(turns as u8);
                client.write(region + at as u64, &wanted[at..][..512])?;
            } else {
                client.read(region + at as u64, &mut data[..1024])?;
                assert!(data[..1024] == wanted[at..][..1024], "region {region}, turn {turns}, small {index}");
            }
        }
        turns += 1;
        Ok::<(), raidd::nbd::ClientError>(())
    };
    while turn().is_ok() {}
    assert!(end.load(Ordering::Relaxed), "a client lost its connection");
    turns
}

#[test]
fn connections_move_while_they_are_used_and_their_array_is_stopped() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let _raidd = home.start_with(&["--verbose"]);
    home.ok(format!("create vol --level 5 --chunk 64K {}", disks.all()));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talks: Vec<_> = (0..6_u64)
            .map(|number| {
                let (home, end) = (&home, &end);
                scope.spawn(move || talk(home, number * 5 * MIB + 512, number, end))
            })
            .collect();
        std::thread::sleep(Duration::from_secs(4));
        let known = home.status("vol").connections;
        assert!((6..=12).contains(&known), "{known} clients: each counts once, or twice while it moves");
        end.store(true, Ordering::Relaxed);
        home.ok("stop --force vol");
        let turns: Vec<u64> = talks.into_iter().map(|talk| talk.join().unwrap()).collect();
        assert!(turns.iter().all(|&turns| turns >= 1), "{turns:?}");
    });
    let log = std::fs::read_to_string(home.path("raidd.log")).unwrap();
    let moves = |traffic| {
        log.matches(&format!("a connection moves array=\"vol\" reactor=0 {traffic}")).count()
            + log.matches(&format!("a connection moves array=\"vol\" reactor=1 {traffic}")).count()
    };
    assert!(moves("traffic=LargeReads") >= 6 && moves("traffic=Mixed") >= 6, "{log}");
}
