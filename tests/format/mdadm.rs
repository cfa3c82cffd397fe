//! mdadm, the judge of what raidd writes.

use std::path::Path;
use std::process::Command;

/// What mdadm prints. Panics if it is not installed, or says that anything is wrong.
pub fn run(option: &str, file: &Path) -> String {
    // Not in the PATH of users other than root.
    let program = ["/sbin/mdadm", "/usr/sbin/mdadm"].into_iter().find(|path| Path::new(path).exists());
    let output = Command::new(program.unwrap_or("mdadm")).arg(option).arg(file).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run mdadm, install mdadm: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "mdadm {option} {file:?}: {errors}\n{text}");
    text
}

/// The value that mdadm prints behind a label.
pub fn value<'a>(text: &'a str, label: &str) -> &'a str {
    let values = text.lines().filter_map(|line| line.split_once(" : "));
    let mut found = values.filter(|(name, _)| name.trim() == label).map(|(_, value)| value.trim());
    found.next().unwrap_or_else(|| panic!("mdadm prints no {label:?}:\n{text}"))
}

/// What `mdadm --examine` prints of a member, once it has no complaint.
pub fn examine(file: &Path) -> String {
    let text = run("--examine", file);
    assert!(value(&text, "Checksum").ends_with("- correct"), "{text}");
    for complaint in
        ["TOO SMALL", "TRUNCATED", "INVALID", "WARNING", "inconsistent", "expected", "bad blocks present"]
    {
        assert!(!text.contains(complaint), "{complaint}:\n{text}");
    }
    text
}
