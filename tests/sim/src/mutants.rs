//! The deliberate faults of the engine, and the proof that the simulator finds every one of them: a simulator that does
//! not is a defect itself.
//!
//! They are there only in a build with `--cfg raidd_mutants` (`scripts/mutants`).

pub use raidd::engine::mutant::{self, Mutant};

#[cfg(raidd_mutants)]
mod hunt {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Mutant, mutant};
    use crate::plan::{Narrow, Profile};
    use crate::run::run;

    /// Seeds within which every fault is to be found.
    pub const SEEDS_MAX: u64 = 3000;

    /// Where a fault was found.
    #[derive(Clone, Debug)]
    pub struct Catch {
        /// The fault.
        pub mutant: Mutant,
        /// Seeds that it took, of both profiles in turn; none if it got away.
        pub seeds: Option<u64>,
        /// How it showed.
        pub how: String,
    }

    fn profile(seed: u64) -> Profile {
        if seed.is_multiple_of(3) { Profile::Beyond } else { Profile::Within }
    }

    fn hunt(mutant: Mutant) -> Catch {
        mutant::choose(Some(mutant));
        let mut catch = Catch { mutant, seeds: None, how: "not found".into() };
        for seed in 0..SEEDS_MAX {
            if let Some(why) = run(seed, profile(seed), Narrow::default(), false).failure {
                let how = why.lines().next().unwrap_or("").chars().take(110).collect();
                catch = Catch { mutant, seeds: Some(seed + 1), how };
                break;
            }
        }
        mutant::choose(None);
        catch
    }

    /// Hunts for all of them (or those whose name contains this) on so many threads, prints what comes of it, and says
    /// whether all were found.
    pub fn hunt_all(jobs: usize, name: &str) -> bool {
        std::panic::set_hook(Box::new(|_| ()));
        let wanted = |mutant: &&Mutant| format!("{mutant:?}").contains(name);
        let mutants: Vec<Mutant> = Mutant::ALL.iter().filter(wanted).copied().collect();
        let (next, catches) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some(&mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let catch = hunt(mutant);
                        catches.lock().expect("nobody panics with it").push(catch);
                    }
                });
            }
        });
        let mut catches = catches.into_inner().expect("nobody panics with it");
        catches.sort_by_key(|catch| mutants.iter().position(|&mutant| mutant == catch.mutant));
        println!("| deliberate fault | seeds | how it shows |\n|---|---|---|");
        for Catch { mutant, seeds, how } in &catches {
            let seeds = seeds.map_or("MISSED".to_owned(), |seeds| seeds.to_string());
            println!("| {mutant:?} | {seeds} | {how} |");
        }
        catches.iter().all(|catch| catch.seeds.is_some())
    }
}

#[cfg(raidd_mutants)]
pub use hunt::{SEEDS_MAX, hunt_all};
