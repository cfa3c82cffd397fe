//! A fixed set of seeds of every profile, as `scripts/test` runs it; and the proof that a seed is a run.

use raidd_sim::plan::{Narrow, Profile};
use raidd_sim::run::run;
use raidd_sim::soak::{Order, soak};

fn smoke(profile: Profile, seeds: u64) {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let order = Order { first: 0, end: seeds, profile: Some(profile), time: None, jobs, failures_max: 3 };
    let (totals, elapsed) = soak(&order);
    totals.print(elapsed, jobs);
    assert!(totals.failures.is_empty(), "{:?}", totals.failures);
    assert!(
        totals.tally.kills > 20 && totals.tally.power_cuts > 20,
        "hardly any crashes: {:?}",
        totals.tally
    );
    assert!(
        totals.tally.connections > 500 && totals.tally.cuts > 100,
        "hardly any sessions: {:?}",
        totals.tally
    );
}

#[test]
fn within_redundancy_nothing_is_lost_and_nothing_fails() {
    smoke(Profile::Within, 600);
}

#[test]
fn beyond_redundancy_there_are_errors_but_no_wrong_bytes() {
    smoke(Profile::Beyond, 400);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut cuts = 0;
    for seed in 1000..1060 {
        for profile in [Profile::Within, Profile::Beyond] {
            let runs = [(); 2].map(|()| run(seed, profile, Narrow::default(), false));
            assert_eq!(runs[0].hash, runs[1].hash, "seed {seed}, {profile:?}");
            assert_eq!(runs[0].steps, runs[1].steps, "seed {seed}, {profile:?}");
            assert_eq!(runs[0].failure, None);
            cuts += runs[0].tally.cuts;
        }
    }
    assert!(cuts > 0, "no seed with sessions");
}

#[test]
fn another_seed_is_another_run() {
    let hash = |seed| run(seed, Profile::Within, Narrow::default(), false).hash;
    assert_ne!(hash(1), hash(2));
}
