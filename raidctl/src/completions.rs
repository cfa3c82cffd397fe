//! The completion scripts: made from the arguments' own definition, so that every option is there, and before that a question to
//! raidctl (`values`) for what no script can know.
//!
//! clap_complete can also make scripts that ask the program for everything. They are not used: its interface may change with any
//! release, whoever names a value does not see the words before it (which array's members?), nor a `--control` among them, and in bash
//! errors would be printed between the words, and a path with a `:` or a blank in it comes out wrong.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::arguments::Arguments;

const BASH: &str = include_str!("completions/values.bash");
const ZSH: &str = include_str!("completions/values.zsh");
const FISH: &str = include_str!("completions/values.fish");

/// Where in bash's and zsh's scripts completing begins.
const ENTRY: &str = "\n_raidctl() {\n";

/// What the help of the hidden argument says.
const FOR_SCRIPTS: &str = "Instead, for the scripts themselves";

/// The completion script for `shell`. Elvish and PowerShell get what clap_complete makes.
pub fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "raidctl", &mut text);
    let text = String::from_utf8(text).expect("scripts are text");
    match shell {
        Shell::Bash => hooked(&format!("{BASH}\n{text}"), "_raidctl_values \"$@\" && return 0"),
        Shell::Zsh => {
            // Its first line says what the file is for. What `completions` takes from these scripts alone is not for people.
            let (head, rest) = text.split_once('\n').expect("zsh's script has lines");
            let shown = |line: &&str| !line.contains(FOR_SCRIPTS);
            let rest: String = rest.split_inclusive('\n').filter(shown).collect();
            hooked(&format!("{head}\n\n{ZSH}\n{rest}"), "_raidctl_values && return 0")
        }
        Shell::Fish => text + FISH,
        _ => text,
    }
}

/// With a line at the beginning of the function that completes.
fn hooked(text: &str, line: &str) -> String {
    assert_eq!(text.matches(ENTRY).count(), 1, "clap_complete's scripts have changed");
    text.replace(ENTRY, &format!("{ENTRY}    {line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            assert!(script(shell).contains("zero-superblock"), "{shell}");
        }
        let zsh = script(Shell::Zsh);
        assert!(zsh.starts_with("#compdef raidctl\n") && !zsh.contains("scripts themselves"), "{zsh}");
    }
}
