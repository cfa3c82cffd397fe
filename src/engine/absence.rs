//! Members whose devices went away, for whoever looks whether they have come back.
//!
//! A member is absent if it failed because its device was gone or did not answer in time. One that the operator failed, or
//! whose media failed, is not: it would come back as bad as it went. Taking one back is `remove` and `re_add`, as for an
//! operator.

use super::array::Array;
use crate::io::{Device, Runtime};

/// A member that has failed by its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Its path when it was there.
    pub path: String,
    /// What tells it from all others.
    pub device_uuid: [u8; 16],
    /// Its number in the array.
    pub dev_number: u32,
    /// Its slot is still vacant, and a bitmap tells what it misses.
    pub may_catch_up: bool,
    /// Operations on the device that have not ended. It cannot be opened anew before they have.
    pub in_flight: usize,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// The members that are absent; none of an array whose members cannot be changed.
    pub fn absent_members(&self) -> Vec<Absent> {
        if !self.may_sync() {
            return Vec::new();
        }
        let roster = self.roster.borrow();
        let absent = roster.all().filter(|member| member.is_absent.get());
        let told = absent.map(|member| Absent {
            path: member.label.clone(),
            device_uuid: member.superblock.device_uuid,
            dev_number: member.superblock.dev_number,
            may_catch_up: member.slot.get().is_some() && self.has_bitmap(),
            in_flight: member.device.in_flight(),
        });
        told.collect()
    }

    /// Whether a device is a member, in whatever state.
    pub fn has_device(&self, device_uuid: &[u8; 16]) -> bool {
        self.roster.borrow().all().any(|member| member.superblock.device_uuid == *device_uuid)
    }
}
