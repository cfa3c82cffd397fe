//! Which disk it is, for somebody who stands before a rack and has to pull the right one: model, serial number, and the name that
//! stays when `/dev/sdb` becomes `/dev/sdc`.
//!
//! raidctl speaks to a daemon of its own machine, so it may look for itself: at what udev knows, else at what the kernel does.
//! Where a device is gone, or is a file, there is nothing to say.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use raidd::api::{Member, MemberState, Status};

/// Kinds of names below `/dev/disk/by-id`, best first: the others (`wwn-`, `nvme-eui`) say nothing that is on a label.
const KINDS: [&str; 4] = ["ata-", "nvme-", "scsi-", "usb-"];

/// What is written of a disk.
#[derive(Debug, Default, PartialEq, Eq)]
struct Identity {
    model: Option<String>,
    serial: Option<String>,
    by_id: Option<PathBuf>,
}

/// A line for each member of an array that has failed, or whose errors are on record, if more is known of it than its path.
pub fn of_suspects(array: &Status) -> Vec<String> {
    let is_suspect = |member: &&Member| {
        member.state == MemberState::Faulty
            || member.read_errors + member.write_errors + member.corrected_errors > 0
    };
    let members = array.members.iter().filter(is_suspect).filter_map(|member| member.path.as_deref());
    let spares = array.spares.iter().filter(|spare| spare.state == MemberState::Faulty);
    let paths = members.chain(spares.filter_map(|spare| spare.path.as_deref()));
    paths.filter_map(|path| Some(format!("{path} is {}", Identity::of(Path::new(path))?.text()?))).collect()
}

impl Identity {
    fn of(path: &Path) -> Option<Identity> {
        let found = fs::metadata(path).ok()?;
        if !found.file_type().is_block_device() {
            return None;
        }
        let (major, minor) = (major(found.rdev()), minor(found.rdev()));
        let known = fs::read_to_string(format!("/run/udev/data/b{major}:{minor}")).unwrap_or_default();
        let mut identity = Identity::from_udev(&known);
        // A partition's directory lies in that of its disk.
        let place = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok();
        let is_partition = |place: &&PathBuf| place.join("partition").exists();
        let disk = place.as_ref().map(|place| match Some(place).filter(is_partition) {
            Some(partition) => partition.parent().unwrap_or(partition),
            None => place.as_path(),
        });
        let said = |name: &str| {
            let text = fs::read_to_string(disk?.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        identity.model = identity.model.or_else(|| said("device/model"));
        identity.serial = identity.serial.or_else(|| said("device/serial")).or_else(|| said("serial"));
        identity.by_id = by_id(path);
        Some(identity)
    }

    /// Of a record of udev's database: lines like `E:ID_MODEL=WDC_WD40EFRX`.
    fn from_udev(record: &str) -> Identity {
        let value = |name: &str| {
            let lines = record.lines().filter_map(|line| line.strip_prefix("E:")?.split_once('='));
            let mut values = lines.filter(|(key, value)| *key == name && !value.is_empty());
            values.next().map(|(_, value)| value.to_owned())
        };
        let serial = value("ID_SERIAL_SHORT").or_else(|| value("ID_SCSI_SERIAL"));
        Identity { model: value("ID_MODEL").map(|model| model.replace('_', " ")), serial, by_id: None }
    }

    fn text(&self) -> Option<String> {
        let serial = self.serial.as_ref().map(|serial| format!("serial {serial}"));
        let by_id = self.by_id.as_ref().map(|path| path.display().to_string());
        let known: Vec<_> = [self.model.clone(), serial, by_id].into_iter().flatten().collect();
        (!known.is_empty()).then(|| known.join(", "))
    }
}

/// The best name of a device that does not depend on where it is plugged in.
fn by_id(path: &Path) -> Option<PathBuf> {
    let device = fs::canonicalize(path).ok()?;
    let links = fs::read_dir("/dev/disk/by-id").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let own = links.filter(|link| fs::canonicalize(link).is_ok_and(|target| target == device));
    best(own.collect())
}

fn best(mut links: Vec<PathBuf>) -> Option<PathBuf> {
    let rank = |link: &PathBuf| {
        let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        KINDS.iter().position(|kind| name.starts_with(kind) && !name.starts_with("nvme-eui"))
    };
    links.retain(|link| rank(link).is_some());
    links.sort_by_key(|link| (rank(link), link.clone()));
    links.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udev_knows_model_and_serial_number() {
        let record = "S:disk/by-id/ata-WDC_WD40EFRX-68N32N0_WD-WCC7K0000001\nW:3\nI:2\nE:ID_MODEL=WDC_WD40EFRX-68N32N0\n\
                      E:ID_SERIAL=WDC_WD40EFRX-68N32N0_WD-WCC7K0000001\nE:ID_SERIAL_SHORT=WD-WCC7K0000001\nG:systemd\n";
        let identity = Identity::from_udev(record);
        assert_eq!(identity.text().unwrap(), "WDC WD40EFRX-68N32N0, serial WD-WCC7K0000001");
        assert_eq!(Identity::from_udev("I:2\nE:ID_MODEL=\n").text(), None);
    }

    #[test]
    fn the_name_on_the_label_is_the_best() {
        let links = ["wwn-0x50014ee2", "nvme-eui.0025", "scsi-SATA_x", "ata-WDC_x"];
        let links =
            |which: &[usize]| which.iter().map(|&i| Path::new("/dev/disk/by-id").join(links[i])).collect();
        assert_eq!(best(links(&[0, 1, 2, 3])).unwrap(), Path::new("/dev/disk/by-id/ata-WDC_x"));
        assert_eq!(best(links(&[0, 1])), None);
    }

    #[test]
    fn files_have_no_identity() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Identity::of(file.path()), None);
        assert_eq!(Identity::of(Path::new("/nowhere")), None);
    }
}
