//! What may be typed after `grow`.

use clap::Args;
use raidd::api::{BitmapChoice, GrowArray, parse_size};

use super::{bitmap_choice, name};

/// Options of `grow`.
#[derive(Debug, Args)]
pub struct GrowOptions {
    /// The array
    #[arg(value_parser = name)]
    name: String,
    /// Bytes to use of each member, or max: as much as the smallest has
    #[arg(long, value_name = "S|max", value_parser = size)]
    size: Option<Size>,
    /// Slots of a mirror (level 1): add spares for more, remove members before fewer
    #[arg(short = 'n', long, value_name = "N")]
    raid_devices: Option<u16>,
    /// Write-intent bitmap
    #[arg(long, value_parser = bitmap_choice())]
    bitmap: Option<BitmapChoice>,
}

#[derive(Clone, Copy, Debug)]
enum Size {
    Max,
    Bytes(u64),
}

fn size(text: &str) -> Result<Size, String> {
    if text == "max" { Ok(Size::Max) } else { parse_size(text).map(Size::Bytes) }
}

impl GrowOptions {
    /// The array's name and the request. An error is a usage error.
    pub fn request(self) -> Result<(String, GrowArray), String> {
        let (size_bytes, max) = match self.size {
            None => (None, false),
            Some(Size::Max) => (None, true),
            Some(Size::Bytes(bytes)) => (Some(bytes), false),
        };
        let how = GrowArray { size_bytes, max, raid_devices: self.raid_devices, bitmap: self.bitmap };
        how.check()?;
        Ok((self.name, how))
    }
}
