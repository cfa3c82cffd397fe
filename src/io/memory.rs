//! A device in memory: for tests, and to see how fast everything else is.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Buf, Device, DeviceInfo, Fua, IoError, IoErrorKind, Slice, Zeroing};

/// Bytes that behave as a disk that never fails and caches nothing. Clones share them.
#[derive(Clone)]
pub struct MemoryDevice {
    bytes: Rc<RefCell<Vec<u8>>>,
    info: DeviceInfo,
}

impl MemoryDevice {
    /// A device with this content, in blocks of `block_bytes`.
    pub fn new(content: Vec<u8>, block_bytes: u32) -> MemoryDevice {
        assert!(block_bytes.is_power_of_two() && content.len().is_multiple_of(block_bytes as usize));
        let info = DeviceInfo {
            size_bytes: content.len() as u64,
            read_block_bytes: block_bytes,
            write_block_bytes: block_bytes,
            preferred_bytes: 4096,
            read_only: false,
            rotational: false,
        };
        MemoryDevice { bytes: Rc::new(RefCell::new(content)), info }
    }

    /// The same bytes, seen as a device that takes no writes.
    pub fn read_only(&self) -> MemoryDevice {
        MemoryDevice { bytes: self.bytes.clone(), info: DeviceInfo { read_only: true, ..self.info } }
    }

    /// A copy of the content as it is.
    pub fn content(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64, block_bytes: u32) -> Result<usize, IoError> {
        let end = offset_bytes.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.info.size_bytes) {
            return Err(IoError::new(IoErrorKind::Invalid, "past the end of the device"));
        }
        if !(offset_bytes | len_bytes).is_multiple_of(u64::from(block_bytes)) {
            return Err(IoError::new(IoErrorKind::Invalid, "not aligned to the device's blocks"));
        }
        Ok(offset_bytes as usize)
    }

    fn check_write(&self, offset_bytes: u64, len_bytes: u64) -> Result<usize, IoError> {
        if self.info.read_only {
            return Err(IoError::new(IoErrorKind::ReadOnly, "the device is read-only"));
        }
        self.check(offset_bytes, len_bytes, self.info.write_block_bytes)
    }
}

impl Device for MemoryDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn read(&self, offset_bytes: u64, mut buf: Buf) -> Result<Buf, IoError> {
        let start = self.check(offset_bytes, buf.len() as u64, self.info.read_block_bytes)?;
        let end = start + buf.len();
        buf.copy_from_slice(&self.bytes.borrow()[start..end]);
        Ok(buf)
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, _fua: Fua) -> Result<(), IoError> {
        let len: usize = data.iter().map(|slice| slice.len()).sum();
        let mut start = self.check_write(offset_bytes, len as u64)?;
        let mut bytes = self.bytes.borrow_mut();
        for slice in data {
            bytes[start..start + slice.len()].copy_from_slice(&slice);
            start += slice.len();
        }
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        _zeroing: Zeroing,
        _fua: Fua,
    ) -> Result<(), IoError> {
        let start = self.check_write(offset_bytes, len_bytes)?;
        self.bytes.borrow_mut()[start..start + len_bytes as usize].fill(0);
        Ok(())
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.check_write(offset_bytes, len_bytes)?;
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }
}
