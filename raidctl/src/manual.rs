//! The manual pages, made from the arguments' own definition.
//!
//! raidctl(8) has every command in it, to be searched; raidctl-COMMAND(8) is one command's page, as `man raidctl COMMAND`
//! looks for it.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::arguments::Arguments;

/// The section of system administration.
const SECTION: &str = "8";

/// One page for everything: the commands have sections of their own in it.
pub fn page() -> io::Result<Vec<u8>> {
    let command = definition();
    let mut page = Vec::new();
    page.extend_from_slice(title("raidctl").as_bytes());
    let whole = Man::new(command.clone());
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    whole.render_options_section(&mut page)?;
    page.extend_from_slice(b".SH COMMANDS\n");
    for sub in command.get_subcommands() {
        let man = man_of(sub);
        let mut section = Vec::new();
        man.render_synopsis_section(&mut section)?;
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        let name = format!(".SS {}\n", sub.get_name().replace('-', "\\-"));
        page.extend_from_slice(name.as_bytes());
        page.extend_from_slice(demoted(&String::from_utf8_lossy(&section)).as_bytes());
        if let Some(text) = sub.get_after_help() {
            page.extend_from_slice(b".PP\n");
            page.extend_from_slice(preformatted(&text.to_string()).as_bytes());
        }
    }
    page.extend_from_slice(b".SH EXAMPLES\n");
    if let Some(text) = command.get_after_help() {
        page.extend_from_slice(preformatted(&text.to_string()).as_bytes());
    }
    page.extend_from_slice(b".SH SEE ALSO\n.BR raidd (8),\n.BR mdadm (8)\n");
    Ok(tidied(&page))
}

/// The page of one command; none where there is no such command.
pub fn page_of(name: &str) -> Option<io::Result<Vec<u8>>> {
    let command = definition();
    let sub = command.get_subcommands().find(|sub| sub.get_name() == name)?;
    Some(command_page(sub))
}

/// Writes all pages into a folder, which is made if it is missing.
pub fn write_pages(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join(format!("raidctl.{SECTION}")), page()?)?;
    for sub in definition().get_subcommands() {
        fs::write(folder.join(format!("raidctl-{}.{SECTION}", sub.get_name())), command_page(sub)?)?;
    }
    Ok(())
}

fn definition() -> clap::Command {
    Arguments::command().disable_help_subcommand(true)
}

/// What all commands share is said once, in the page of them all.
fn man_of(sub: &clap::Command) -> Man {
    let full_name = format!("raidctl {}", sub.get_name());
    let title = format!("raidctl-{}", sub.get_name());
    Man::new(sub.clone().bin_name(full_name).display_name(title).disable_help_flag(true))
}

/// Written here, as clap_mangen leaves a date that is empty out, so that what follows takes its place.
fn title(name: &str) -> String {
    format!(".TH {name} {SECTION} \"\" \"raidctl {}\" \"raidd\"\n", env!("CARGO_PKG_VERSION"))
}

/// Without what clap_mangen puts twice: breaks around an empty line.
fn tidied(page: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(page).replace(".br\n\n.br\n", ".br\n").into_bytes()
}

fn command_page(sub: &clap::Command) -> io::Result<Vec<u8>> {
    let man = man_of(sub);
    let mut page = title(&format!("raidctl-{}", sub.get_name())).into_bytes();
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    page.extend_from_slice(b".PP\nOptions that all commands have are described in\n.BR raidctl (8).\n");
    if let Some(text) = sub.get_after_help() {
        page.extend_from_slice(b".SH EXAMPLES\n");
        page.extend_from_slice(preformatted(&text.to_string()).as_bytes());
    }
    page.extend_from_slice(b".SH SEE ALSO\n.BR raidctl (8),\n.BR raidd (8)\n");
    Ok(tidied(&page))
}

/// A command's page as a part of the whole: its headings become paragraphs, but where there is one already.
fn demoted(section: &str) -> String {
    let mut text = String::new();
    for line in section.lines() {
        match line.strip_prefix(".SH ") {
            Some("SYNOPSIS" | "OPTIONS") => {}
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
    let mut roff = String::from(".nf\n");
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
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(folder.path()).unwrap();
        for command in definition().get_subcommands() {
            let name = command.get_name();
            let page = String::from_utf8(page_of(name).unwrap().unwrap()).unwrap();
            let escaped = name.replace('-', "\\-");
            assert!(page.contains(&format!("raidctl\\-{escaped} \\- ")), "{page}");
            assert!(page.contains(&format!("raidctl {escaped}")), "{page}");
            let written = std::fs::read_to_string(folder.path().join(format!("raidctl-{name}.8")));
            assert_eq!(written.unwrap(), page);
        }
        assert!(page_of("no-such-command").is_none());
    }
}
