//! `raidctl demo`: the first thing that a new user runs.

use crate::harness::Home;

#[test]
fn the_demo_succeeds_at_every_level_and_cleans_up() {
    let home = Home::new();
    for level in [1, 4, 5, 6, 10] {
        let folder = home.path(&format!("demo{level}"));
        std::fs::create_dir(&folder).unwrap();
        let told = home.ok(format!("demo --level {level} --size 16M --dir {}", folder.display()));
        assert!(told.contains("nothing differs"), "{told}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "level {level} left something behind");
    }
}
