//! An array as a block device of the machine that raidd runs on: what may be asked for.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most connections between the kernel and raidd: each is a queue of the device's.
pub const ATTACH_CONNECTIONS_MAX: u32 = 16;
/// The shortest time that I/O waits for a raidd that is away.
pub const ATTACH_WAIT_MS_MIN: u64 = 1000;
/// The longest.
pub const ATTACH_WAIT_MS_MAX: u64 = 7 * 86_400_000;
/// How long it waits unless told otherwise: time for a restart, an upgrade, or an administrator.
pub const ATTACH_WAIT_MS_DEFAULT: u64 = 300_000;

/// How an array is to be attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachArray {
    /// The device: `/dev/nbd` and a number. Default: the first that is free.
    #[serde(default)]
    #[schema(pattern = "^/dev/nbd(0|[1-9][0-9]*)$", example = "/dev/nbd0")]
    pub device: Option<String>,
    /// Connections between the kernel and raidd. Default: one for each reactor, two at least.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 16)]
    pub connections: Option<u32>,
    /// Milliseconds, in whole seconds, that I/O waits for a raidd that is away before it fails. Default: five minutes.
    #[serde(default)]
    #[schema(minimum = 1000, maximum = 604_800_000, multiple_of = 1000.0)]
    pub wait_ms: Option<u64>,
}

impl AttachArray {
    /// The number of the device that was asked for. An error is one line for people.
    pub fn index(&self) -> Result<Option<u32>, String> {
        let Some(device) = &self.device else { return Ok(None) };
        let digits = device.strip_prefix("/dev/nbd").unwrap_or_default();
        // No sign, no leading zeroes: the path is the kernel's.
        let index = digits.parse::<u32>().ok().filter(|index| index.to_string() == digits);
        index.map(Some).ok_or_else(|| {
            format!("{device:?} is no device of the kernel's nbd driver: choose one like /dev/nbd0, or none")
        })
    }

    /// Refuses what can be seen to be wrong without looking at any device. An error is one line for people.
    pub fn check(&self) -> Result<(), String> {
        self.index()?;
        if self.connections.is_some_and(|count| !(1..=ATTACH_CONNECTIONS_MAX).contains(&count)) {
            return Err(format!(
                "that number of connections makes no sense: choose 1 to {ATTACH_CONNECTIONS_MAX}"
            ));
        }
        match self.wait_ms {
            Some(ms) if !(ATTACH_WAIT_MS_MIN..=ATTACH_WAIT_MS_MAX).contains(&ms) => {
                Err("that wait is out of bounds: choose between 1s and 7d".to_owned())
            }
            Some(ms) if ms % 1000 != 0 => {
                Err("the kernel waits for whole seconds only: choose a wait like 90s".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_the_driver_are_taken() {
        let index = |device: &str| AttachArray { device: Some(device.into()), ..Default::default() }.index();
        assert_eq!((index("/dev/nbd0"), index("/dev/nbd15")), (Ok(Some(0)), Ok(Some(15))));
        assert_eq!(AttachArray::default().index(), Ok(None));
        for device in [
            "",
            "nbd0",
            "/dev/nbd",
            "/dev/nbd0p1",
            "/dev/nbd+1",
            "/dev/nbd01",
            "/dev/sda",
            "/dev/nbd4294967296",
        ] {
            assert!(index(device).unwrap_err().contains("/dev/nbd0"), "{device}");
        }
    }

    #[test]
    fn limits_hold() {
        let check = |connections, wait_ms| AttachArray { connections, wait_ms, device: None }.check();
        for good in [check(None, None), check(Some(1), Some(1000)), check(Some(16), Some(604_800_000))] {
            assert_eq!(good, Ok(()));
        }
        for bad in
            [check(Some(0), None), check(Some(17), None), check(None, Some(999)), check(None, Some(1500))]
        {
            assert!(bad.is_err());
        }
    }
}
