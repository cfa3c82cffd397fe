//! Manual pages, as the programs that read them see them: man, mandoc.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{Home, need};

fn raidd_page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/man/raidd.8")
}

/// All pages that are installed, in a folder.
fn pages(home: &Home) -> Vec<PathBuf> {
    let folder = home.path("man");
    home.ok(format!("man --dir {}", folder.display()));
    let mut pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.push(raidd_page());
    pages
}

/// The commands that `raidctl --help` lists.
fn commands(home: &Home) -> BTreeSet<String> {
    let help = home.ok("--help");
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let list = list.lines().take_while(|line| !line.is_empty());
    // Their names are indented by two; what they do goes on deeper.
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_manual_page_and_no_other_has() {
    let home = Home::new();
    let commands = commands(&home);
    assert!(commands.len() > 20, "{commands:?}");
    let mut wanted: BTreeSet<_> = commands.iter().map(|name| format!("raidctl-{name}.8")).collect();
    wanted.extend(["raidctl.8".to_owned(), "raidd.8".to_owned()]);
    let name = |page: &PathBuf| page.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(pages(&home).iter().map(name).collect::<BTreeSet<_>>(), wanted);
    for name in &commands {
        let page = home.ok(format!("man {name}"));
        assert!(page.contains(".SH EXAMPLES"), "the page of {name} has no example");
    }
    home.raidctl("man no-such-command").complaint(2);
    home.raidctl("man --dir /proc/nowhere").complaint(1);
}

#[test]
fn man_renders_every_page_without_a_warning() {
    if !need(&["man", "groff"]) {
        return;
    }
    let home = Home::new();
    for page in pages(&home) {
        let ran = home.shell(&format!("MANWIDTH=100 man --warnings -E UTF-8 -l {}", page.display()));
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{}", page.display());
        let shown = ran.stdout;
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            assert!(shown.lines().any(|line| line == heading), "{}: no {heading}: {shown}", page.display());
        }
    }
}

#[test]
fn mandoc_has_nothing_against_any_page() {
    if !need(&["mandoc"]) {
        return;
    }
    let home = Home::new();
    for page in pages(&home) {
        let ran = home.shell(&format!("mandoc -T lint -W warning {}", page.display()));
        // Pages are made by the build, and say nothing that depends on its day.
        let found = ran.stdout.lines().filter(|line| !line.contains("missing date"));
        assert_eq!(found.collect::<Vec<_>>(), Vec::<&str>::new(), "{}", page.display());
    }
}

#[test]
fn the_page_of_raidd_has_its_options_and_its_version() {
    let home = Home::new();
    let options = |text: &str| -> BTreeSet<String> {
        let starts = text.match_indices("--").map(|(at, _)| &text[at + 2..]);
        let names = starts.map(|rest| {
            rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap_or("").to_owned()
        });
        names.filter(|name| !name.is_empty()).collect()
    };
    let page = fs::read_to_string(raidd_page()).unwrap().replace("\\-", "-");
    let help = home.bare_raidd(&["--help"]).ok();
    assert!(options(&help).len() > 20, "{help}");
    assert_eq!(options(&page), options(&help));
    let version = home.bare_raidd(&["--version"]).ok();
    assert!(page.contains(&format!(".TH RAIDD 8 \"\" \"{}\"", version.trim())), "it is not of {version}");
}
