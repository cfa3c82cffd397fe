//! What commands destroy, in words: what people are asked about before it happens.

use std::path::PathBuf;

use raidd::api::MISSING;

use super::Command;

impl Command {
    /// What is lost by it that cannot be had back, as a sentence; none where nothing is.
    pub fn destroys(&self) -> Option<String> {
        let all = |devices: &[String]| {
            devices.iter().filter(|device| *device != MISSING).cloned().collect::<Vec<_>>()
        };
        let paths =
            |devices: &[PathBuf]| devices.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        Some(match self {
            Command::Create(options) if options.force => format!(
                "With --force whatever is on {} is lost: filesystems, partitions, other arrays.",
                [all(&options.devices), all(&options.spares)].concat().join(", ")
            ),
            Command::Assemble(options) if options.force && options.update.iter().any(|what| what == "uuid") => {
                "With --force members that are not named are given up, and an array is started although it was being written \
                when it lost a member: what was being written may be worked out wrong."
                    .to_owned()
            }
            Command::Assemble(options) if options.force => {
                "With --force an array is started although it was being written when it \
                lost a member: what was being written may be worked out wrong."
                    .to_owned()
            }
            Command::Stop { name, force: true, .. } => {
                format!("With --force the clients of {name} are cut off, mounted filesystems among them.")
            }
            Command::Detach { name, force: true } => {
                format!("With --force whoever uses the device of {name} gets I/O errors.")
            }
            Command::Restore { device, .. } => {
                format!(
                    "What is before the data of {} is overwritten: superblock, bitmap, logs.",
                    device.display()
                )
            }
            Command::ZeroSuperblock { devices, .. } => format!(
                "Without their superblocks {} belong to no array any more.",
                paths(devices).join(", ")
            ),
            _ => return None,
        })
    }
}
