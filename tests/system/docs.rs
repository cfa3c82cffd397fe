//! What README.md and docs/ tell people to type is typed here, as it stands, so that it cannot rot.
//!
//! A document is one session of a shell: its blocks of ```sh run in order, on a [`Stage`] of their own, and the first command
//! that fails fails the test. Before a block there may be a comment, which readers of the rendered page do not see:
//!
//! - `<!-- not run: WHY -->`: it cannot run here. How many of these a document has is said below, so that there are no more
//!   without anybody noticing.
//! - `<!-- given: COMMANDS -->`: what has happened before, like a disk that has failed. `up` waits there until raidd answers.
//!
//! A block of ```text shows what the block of ```sh before it prints. Its lines have to be there, in this order; how many blanks
//! there are does not matter, and `...` stands for anything. Every other block says what else it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::harness::Home;
use super::stage::Stage;

/// The documents in which something runs, and how many blocks of each do not, for the reasons given there.
const FOLLOWED: &[(&str, usize)] = &[
    ("README.md", 3),
    ("docs/getting-started.md", 3),
    ("docs/operating.md", 9),
    ("docs/troubleshooting.md", 0),
];

/// What every document's session begins with.
const PRELUDE: &str = "
set -eo pipefail
mkdir /told
up() { for _ in $(seq 100); do raidctl list >/told/up 2>&1 && return; sleep 0.1; done; cat /told/up; return 1; }
";

/// What stands in a document between two fences.
#[derive(Debug)]
struct Block {
    /// Of the fence that opens it, from 1.
    line: usize,
    language: String,
    text: String,
    given: Option<String>,
    not_run: Option<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of a document, in order.
fn blocks(name: &str) -> Vec<Block> {
    let document = fs::read_to_string(root().join(name)).unwrap();
    let mut blocks: Vec<Block> = Vec::new();
    let (mut given, mut not_run) = (None, None);
    let mut lines = document.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim_start();
        if let Some(comment) = trimmed.strip_prefix("<!-- ") {
            let mut comment = comment.to_owned();
            while !comment.ends_with("-->") {
                let (_, more) = lines.next().unwrap_or_else(|| panic!("{name}: a comment does not end"));
                comment = format!("{comment}\n{more}");
            }
            let comment = comment.trim_end_matches("-->").trim();
            match comment.split_once(':') {
                Some(("given", commands)) => given = Some(commands.trim().to_owned()),
                Some(("not run", why)) => not_run = Some(why.trim().to_owned()),
                _ => {}
            }
        } else if let Some(language) = trimmed.strip_prefix("```") {
            let indent = line.len() - trimmed.len();
            let mut text = String::new();
            loop {
                let (_, line) =
                    lines.next().unwrap_or_else(|| panic!("{name}:{number}: a block does not end"));
                if line.trim() == "```" {
                    break;
                }
                text.push_str(line.get(indent..).unwrap_or_default());
                text.push('\n');
            }
            let language = language.trim().to_owned();
            let block =
                Block { line: number + 1, language, text, given: given.take(), not_run: not_run.take() };
            blocks.push(block);
        }
    }
    blocks
}

/// All documents, as paths from the root.
fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match path.extension() {
                Some(extension) if extension == "md" => found.push(path.to_str().unwrap().to_owned()),
                None => folders.push(path),
                Some(_) => {}
            }
        }
    }
    found
}

#[test]
fn every_block_says_what_it_is_and_what_can_be_run_is() {
    let followed: BTreeMap<_, _> = FOLLOWED.iter().copied().collect();
    for name in documents() {
        let blocks = blocks(&name);
        for block in &blocks {
            let at = format!("{name}:{}", block.line);
            assert!(
                !block.language.is_empty(),
                "{at}: what is in this block? Write ```sh, ```text, or what it is"
            );
            assert!(!["bash", "shell", "console"].contains(&&*block.language), "{at}: ```sh, to be run");
            assert!(block.not_run.as_ref().is_none_or(|why| why.len() > 10), "{at}: why is it not run?");
            assert!(block.language == "sh" || block.given.is_none(), "{at}: given what is not run");
        }
        let commands = blocks.iter().filter(|block| block.language == "sh");
        let not_run = commands.clone().filter(|block| block.not_run.is_some()).count();
        if commands.count() > 0 {
            let expected = followed.get(&*name);
            assert_eq!(Some(&not_run), expected, "{name}: its blocks that do not run; see FOLLOWED");
        }
    }
}

/// Runs what can be run of a document.
fn follow(name: &str) {
    let home = Home::new();
    let Some(stage) = Stage::new(&home) else { return };
    stage.install(&home);
    stage.write("/etc/hosts", "127.0.0.1 localhost server\n");
    let blocks = blocks(name);
    let is_run = |block: &Block| block.language == "sh" && block.not_run.is_none();
    let mut script = PRELUDE.to_owned();
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| is_run(block)) {
        let Block { line, text, given, .. } = block;
        script.push_str(&format!("echo '{name}:{line}' >/at\n"));
        if let Some(given) = given {
            script.push_str(&format!("{{\n{given}\n}} >>/told/before-{index} 2>&1\n"));
        }
        // What goes on in the background appends, and so destroys nothing.
        script.push_str(&format!("{{\n{text}\n}} >>/told/{index} 2>&1\n"));
        script.push_str(pause_after(text));
    }
    let ran = stage.run(&script);
    let at = stage.read("/at");
    let told = |index: usize| stage.read(&format!("/told/{index}"));
    if ran.status != 0 {
        let at = at.trim();
        let index = blocks.iter().position(|block| at == format!("{name}:{}", block.line));
        let before = index.map(|index| stage.read(&format!("/told/before-{index}"))).unwrap_or_default();
        let text = index.map(told).unwrap_or_default();
        panic!("the block at {at} fails ({}): {before}{text}{}", ran.status, ran.stderr);
    }
    let mut last = None;
    for (index, block) in blocks.iter().enumerate() {
        match &*block.language {
            "sh" => last = Some(index),
            "text" => {
                let at = format!("{name}:{}", block.line);
                let before = last.unwrap_or_else(|| panic!("{at}: printed by what?"));
                if is_run(&blocks[before]) {
                    shows(&told(before), &block.text, &at);
                }
            }
            _ => {}
        }
    }
}

/// Who types takes a moment before the next block: what runs in the background has come up by then, and what was unmounted has
/// been let go.
fn pause_after(text: &str) -> &'static str {
    let command = |line: &str| line.split('#').next().unwrap_or_default().trim_end().to_owned();
    let starts = |line: &String| line.ends_with('&');
    match text.lines().map(command).find(starts) {
        Some(line) if line.contains("raidd ") => "up\n",
        Some(_) => "sleep 1.5\n",
        None if text.contains("mount ") => "sleep 0.7\n",
        None => "",
    }
}

/// Holds what was printed against what the document shows.
fn shows(printed: &str, shown: &str, at: &str) {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = printed.lines();
    for line in shown.lines().filter(|line| !["", "..."].contains(&line.trim())) {
        let wanted = words(line);
        let is_there = rest.any(|line| matches(&words(line), &wanted));
        assert!(is_there, "{at}: {line:?} is not printed, or not in this order:\n{printed}");
    }
}

/// Whether a line is as wanted; `...` stands for anything.
fn matches(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split("...");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

#[test]
fn what_a_document_shows_is_compared_with_what_is_printed() {
    assert!(matches("Size 765.0 MiB (1 bytes)", "Size 765.0 MiB ..."));
    assert!(matches("a b c d", "a ... c ..."));
    assert!(!matches("a b d", "a ... c ..."));
    assert!(!matches("Health degraded", "Health optimal"));
    assert!(!matches("Health optimal", "Health"));
    shows("a\n  b   1\nc\n", "b 1\n...\nc\n", "here");
    assert!(std::panic::catch_unwind(|| shows("b\na\n", "a\nb\n", "here")).is_err());
}

#[test]
fn readme_can_be_followed() {
    follow("README.md");
}

#[test]
fn getting_started_can_be_followed() {
    follow("docs/getting-started.md");
}

#[test]
fn operating_can_be_followed() {
    follow("docs/operating.md");
}

#[test]
fn troubleshooting_can_be_followed() {
    follow("docs/troubleshooting.md");
}
