//! Holds the house in order: who imports whom (the table in docs/architecture.md), where `unsafe` may be, what must stay
//! deterministic, how large files may grow.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The files that may contain `unsafe`: the buffers, the ring, the ioctls of opening a disk, the dispatch of the kernels and
/// their stores past the caches, the library that a benchmark is measured against.
const UNSAFE_FILES: &[&str] = &[
    "benches/parity.rs",
    "src/io/buf.rs",
    "src/io/pool.rs",
    "src/parity/mod.rs",
    "src/parity/x86.rs",
    "src/reactor/op.rs",
    "src/reactor/probe.rs",
    "src/reactor/ring.rs",
    "src/reactor/survey.rs",
];

/// Modules that run in a simulated world: nothing that the seed does not decide.
const DETERMINISTIC: &[&str] = &["units", "parity", "layout", "md", "io", "engine", "nbd"];

const NONDETERMINISTIC: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime",
    "HashMap::new",
    "rand::",
    "tokio::",
    "nix::",
];

/// No file of this many lines has one reason to change.
const LINES_MAX: usize = 700;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder, with their code: comments are blanked, line numbers kept.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Sources that a build has made are not ours.
                folders.extend((!path.ends_with("target")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code: Vec<&str> =
                    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
                out.push((path.strip_prefix(root()).unwrap().to_owned(), code.join("\n")));
            }
        }
    }
    assert!(!out.is_empty(), "no sources below {folder}");
    out.sort();
    out
}

/// Every `prefix` + identifier in the code: (line, identifier).
fn mentions(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for (at, _) in line.match_indices(prefix) {
            let before = line[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &line[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                // use crate::{a, b::c};
                let group = group.split('}').next().unwrap_or("");
                out.extend(group.split(',').map(|part| (number + 1, identifier(part.trim()))));
            } else {
                out.push((number + 1, identifier(rest)));
            }
        }
    }
    out
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The module that a file of src/ belongs to.
fn module_of(path: &Path) -> String {
    let first = path.iter().nth(1).unwrap().to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first).to_owned()
}

/// The import table of docs/architecture.md.
fn import_table() -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows = text.lines().skip_while(|line| *line != "| module | may import |").skip(2);
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let table = rows.take_while(|line| line.starts_with('|')).map(|row| {
        let mut cells = row.trim_matches('|').split('|');
        let module = words(cells.next().unwrap()).pop().unwrap();
        (module, words(cells.next().unwrap_or("")))
    });
    table.collect()
}

#[test]
fn imports_point_one_way() {
    let table = import_table();
    assert!(table.len() >= 11, "the table in docs/architecture.md was not found");
    let mut wrong = Vec::new();
    for (path, code) in sources("src") {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = table.get(&module).unwrap_or_else(|| panic!("{module} is not in docs/architecture.md"));
        for (line, used) in mentions(&code, "crate::") {
            let is_module = table.contains_key(&used);
            if is_module && used != module && !allowed.contains(&used) {
                wrong.push(format!("{}:{line}: {module} must not import {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn raidctl_uses_only_what_it_may() {
    let allowed = ["api", "md", "layout", "units", "nbd"];
    let mut wrong = Vec::new();
    for (path, code) in sources("raidctl/src") {
        for (line, used) in mentions(&code, "raidd::") {
            let demo = path.iter().any(|part| part.to_string_lossy().starts_with("demo"));
            if !allowed.contains(&used.as_str()) || (used == "nbd" && !demo) {
                wrong.push(format!("{}:{line}: raidctl must not import raidd::{used} here", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_simulated_is_deterministic() {
    let mut wrong = Vec::new();
    for (path, code) in
        sources("src").into_iter().filter(|(path, _)| DETERMINISTIC.contains(&&*module_of(path)))
    {
        for (number, line) in code.lines().enumerate() {
            for banned in NONDETERMINISTIC.iter().filter(|banned| line.contains(**banned)) {
                wrong.push(format!(
                    "{}:{}: {banned} in a module that is simulated",
                    path.display(),
                    number + 1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_is_where_it_is_expected() {
    let mut found: Vec<String> = Vec::new();
    for folder in ["src", "raidctl/src", "tests", "benches"] {
        for (path, code) in sources(folder) {
            let has_unsafe = code.lines().any(|line| {
                line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn")
            });
            if has_unsafe && !path.ends_with("tidy.rs") {
                found.push(path.display().to_string());
            }
        }
    }
    found.sort();
    assert_eq!(found, UNSAFE_FILES, "the list of files with unsafe has changed");
}

#[test]
fn files_have_one_reason_to_change() {
    let mut large = Vec::new();
    for folder in ["src", "raidctl/src", "tests", "benches"] {
        for (path, code) in sources(folder) {
            let lines = code.lines().count();
            if lines > LINES_MAX {
                large.push(format!("{} has {lines} lines", path.display()));
            }
        }
    }
    assert!(large.is_empty(), "split before it sprawls:\n{}", large.join("\n"));
}

#[test]
fn every_file_says_what_it_owns() {
    for folder in ["src", "raidctl/src", "tests", "benches"] {
        for (path, _) in sources(folder) {
            let text = fs::read_to_string(root().join(&path)).unwrap();
            assert!(text.starts_with("//!"), "{} does not open with what it owns", path.display());
        }
    }
}

/// The table of messages in docs/troubleshooting.md quotes what the programs say, word for word.
#[test]
fn messages_in_the_docs_are_said_somewhere() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let (_, table) = page.split_once("## What it says").unwrap();
    let quoted: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).collect();
    assert!(quoted.len() > 15, "{quoted:?}");
    let mut said = String::new();
    for folder in ["src", "raidctl/src"] {
        for (path, _) in sources(folder) {
            // Sentences that are too long for a line go on in the next.
            let text = fs::read_to_string(root().join(path)).unwrap();
            said.extend(text.split("\\\n").map(str::trim_start));
        }
    }
    for (message, _) in quoted {
        assert!(said.contains(message), "nobody says {message:?} any more");
    }
}
