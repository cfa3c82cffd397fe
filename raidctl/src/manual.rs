//! The manual page and the completion scripts, both made from the arguments' own definition.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::arguments::Arguments;

/// The completion script for `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "raidctl", &mut text);
    text
}

/// One page for everything: the commands have sections of their own in it.
pub fn page() -> io::Result<Vec<u8>> {
    let command = Arguments::command().disable_help_subcommand(true);
    let mut page = Vec::new();
    let whole = Man::new(command.clone()).section("8").manual("raidd");
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    whole.render_options_section(&mut page)?;
    page.extend_from_slice(b".SH COMMANDS\n");
    for sub in command.get_subcommands() {
        // What all commands share is said once, above.
        let full_name = format!("raidctl {}", sub.get_name());
        let man = Man::new(sub.clone().bin_name(full_name).disable_help_flag(true));
        let mut section = Vec::new();
        man.render_synopsis_section(&mut section)?;
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        let name = format!(".SS {}\n", sub.get_name().replace('-', "\\-"));
        page.extend_from_slice(name.as_bytes());
        page.extend_from_slice(demoted(&String::from_utf8_lossy(&section)).as_bytes());
        if let Some(text) = sub.get_after_help() {
            page.extend_from_slice(preformatted(&text.to_string()).as_bytes());
        }
    }
    page.extend_from_slice(b".SH EXAMPLES\n");
    if let Some(text) = command.get_after_help() {
        page.extend_from_slice(preformatted(&text.to_string()).as_bytes());
    }
    Ok(page)
}

/// A command's page as a part of the whole: its headings become paragraphs.
fn demoted(section: &str) -> String {
    let mut text = String::new();
    for line in section.lines() {
        match line.strip_prefix(".SH ") {
            Some(_) => text.push_str(".PP\n"),
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// Text as it stands.
fn preformatted(text: &str) -> String {
    let mut roff = String::from(".PP\n.nf\n");
    for line in text.lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        if line.starts_with(['.', '\'']) {
            roff.push_str("\\&");
        }
        roff.push_str(&line);
        roff.push('\n');
    }
    roff.push_str(".fi\n");
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        for command in Arguments::command().get_subcommands() {
            assert!(page.contains(&format!(".SS {}\n", command.get_name().replace('-', "\\-"))));
        }
        assert!(page.contains("raidctl create vol0"));
    }

    #[test]
    fn every_shell_has_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = String::from_utf8(completions(shell)).unwrap();
            assert!(script.contains("zero-superblock"), "{shell}");
        }
    }
}
