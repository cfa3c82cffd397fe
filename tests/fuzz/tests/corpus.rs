//! Feeds every target with its corpus: what a hunt has found once, and what it found worth keeping.

use std::path::Path;

use raidd_fuzz::TARGETS;

#[test]
fn everything_in_the_corpora_is_borne() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(files.len() >= 10, "{} has only {} files", folder.display(), files.len());
        for path in files {
            let bytes = std::fs::read(&path).unwrap();
            let borne = std::panic::catch_unwind(|| target(&bytes));
            assert!(borne.is_ok(), "{name}: {}", path.display());
        }
    }
}
