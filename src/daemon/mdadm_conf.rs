//! The file that keeps mdadm away from raidd's arrays: a line `ARRAY <ignore> UUID=...` for each that is remembered.
//!
//! udev hands every md member that appears, or that somebody has closed after writing, to `mdadm --incremental`. So the
//! kernel would assemble, and resync, what raidd let go of a moment ago or has not started yet.
//!
//! Invariants:
//! - The file is replaced as a whole, and only when what it says changes: mdadm never reads half of it.
//! - A line is there before anything else on disk says that the array is remembered, and is gone before an array's
//!   members are released to mdadm on purpose (`StateDir`, `release`).
//! - What else an administrator says in mdadm's own file is not touched.
//!
//! A file that cannot be written is said, and stops nothing that works.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::replace::replace;

const HEAD: &str = "\
# raidd keeps this file and replaces it as a whole: do not edit it.
# It serves these arrays itself, so mdadm and udev must leave their members alone. To hand one over to the kernel:
#   raidctl stop NAME --release
";

/// Where the lines are kept; nowhere, if nobody wants them.
#[derive(Debug)]
pub struct MdadmConf {
    file: Option<PathBuf>,
}

impl MdadmConf {
    /// Lines in this file; it is made once there is a line.
    pub fn at(file: Option<PathBuf>) -> MdadmConf {
        MdadmConf { file }
    }

    /// Has mdadm ignore these arrays, and no others. The UUIDs are written as mdadm writes them. An error is one line.
    pub fn ignore<'a>(&self, uuids: impl Iterator<Item = &'a str>) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        keep(file, &text(uuids)).map_err(|error| {
            format!(
                "cannot write {}, which keeps mdadm away from raidd's arrays: {error}: make its folder writable, or choose \
                 another file, or none, with --mdadm-conf",
                file.display()
            )
        })
    }
}

fn text<'a>(uuids: impl Iterator<Item = &'a str>) -> String {
    let mut uuids: Vec<_> = uuids.collect();
    uuids.sort_unstable();
    let lines: String = uuids.iter().map(|uuid| format!("ARRAY <ignore> UUID={uuid}\n")).collect();
    format!("{HEAD}{lines}")
}

fn keep(file: &Path, text: &str) -> io::Result<()> {
    match std::fs::read_to_string(file) {
        Ok(before) if before == text => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound && text == HEAD => return Ok(()),
        // Whatever else is wrong shows when it is written.
        Ok(_) | Err(_) => {}
    }
    let folder = file.parent().ok_or(ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // What is written beside it is not read: mdadm reads only names that end in .conf.
    replace(file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_has_a_line_for_each_array() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mdadm.conf.d/raidd.conf");
        let conf = MdadmConf::at(Some(file.clone()));
        conf.ignore([].into_iter()).unwrap();
        assert!(!file.exists(), "there is nothing to say yet");
        conf.ignore(["2:2", "1:1"].into_iter()).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# raidd keeps this file"), "{text}");
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["ARRAY <ignore> UUID=1:1", "ARRAY <ignore> UUID=2:2"]);
        conf.ignore([].into_iter()).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), HEAD);
    }

    #[test]
    fn it_is_replaced_only_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("raidd.conf");
        let conf = MdadmConf::at(Some(file.clone()));
        let inode = || std::fs::metadata(&file).unwrap().ino();
        conf.ignore(["1:1", "2:2"].into_iter()).unwrap();
        // A second name keeps the inode's number from being used again.
        std::fs::hard_link(&file, folder.path().join("first")).unwrap();
        let first = inode();
        conf.ignore(["2:2", "1:1"].into_iter()).unwrap();
        assert_eq!(inode(), first);
        conf.ignore(["2:2"].into_iter()).unwrap();
        assert_ne!(inode(), first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn nowhere_is_fine_and_a_bad_place_is_said() {
        MdadmConf::at(None).ignore(["1:1"].into_iter()).unwrap();
        let said =
            MdadmConf::at(Some("/dev/null/raidd.conf".into())).ignore(["1:1"].into_iter()).unwrap_err();
        assert!(said.contains("/dev/null/raidd.conf") && said.contains("--mdadm-conf"), "{said}");
        assert!(!said.contains('\n'));
    }
}
