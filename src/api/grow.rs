//! What an array can be changed into while it is used: what may be asked for.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::BitmapChoice;

/// What is to become of an array; exactly one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrowArray {
    /// Bytes to use of every member: more than until now.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub size_bytes: Option<u64>,
    /// Uses as much of every member as the smallest has.
    #[serde(default)]
    pub max: bool,
    /// The slots of a mirror. More are vacant until spares have been filled; fewer must be vacant.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1920)]
    pub raid_devices: Option<u16>,
    /// With a write-intent bitmap, or without one.
    #[serde(default)]
    pub bitmap: Option<BitmapChoice>,
}

impl GrowArray {
    /// Refuses what can be seen to be wrong without looking at the array. An error is one line for people.
    pub fn check(&self) -> Result<(), String> {
        let asked = [self.size_bytes.is_some(), self.max, self.raid_devices.is_some(), self.bitmap.is_some()];
        match asked.into_iter().filter(|asked| *asked).count() {
            1 => {}
            0 => return Err("nothing to change: name a size, a number of devices, or a bitmap".to_owned()),
            _ => return Err("one change at a time: a size, a number of devices, or a bitmap".to_owned()),
        }
        match self.raid_devices {
            Some(count) if !(1..=1920).contains(&count) => {
                Err("that number of devices makes no sense: choose 1 to 1920".to_owned())
            }
            _ if self.size_bytes == Some(0) => {
                Err("a size of 0 makes no sense: name the bytes to use of every member".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_changed_at_a_time() {
        let check = |json: &str| serde_json::from_str::<GrowArray>(json).unwrap().check();
        for good in [
            r#"{"size_bytes":1048576}"#,
            r#"{"max":true}"#,
            r#"{"raid_devices":3}"#,
            r#"{"bitmap":"internal"}"#,
            r#"{"bitmap":"none","max":false}"#,
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "{}",
            r#"{"max":false}"#,
            r#"{"max":true,"size_bytes":4096}"#,
            r#"{"raid_devices":3,"bitmap":"none"}"#,
            r#"{"raid_devices":0}"#,
            r#"{"raid_devices":1921}"#,
            r#"{"size_bytes":0}"#,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
