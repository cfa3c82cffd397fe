//! Arrays opened by the engine from members in memory, to be read, and to be looked at afterwards.

use std::rc::Rc;

use raidd::engine::{Array, AssembleOptions, Memory, Refusal, assemble, load};
use raidd::io::{Device, IoError, MAX_BUF_BYTES, MemoryDevice, Pool};
use sha2::{Digest, Sha256};

use raidd_sim::world::World;

/// An array of members in memory.
pub type MemoryArray = Rc<Array<MemoryDevice, World>>;

/// Bytes of a block of most disks.
const BLOCK_BYTES: u32 = 512;

/// A member in memory. Clones share their bytes.
#[derive(Clone)]
pub struct MemoryMember {
    pub label: String,
    pub device: MemoryDevice,
}

impl MemoryMember {
    /// A disk with this content. One that ends within a sector ends with it, as the real disk sees to.
    pub fn new(label: &str, content: Vec<u8>) -> MemoryMember {
        MemoryMember::with_blocks(label, content, BLOCK_BYTES)
    }

    /// The same with blocks of another size.
    pub fn with_blocks(label: &str, mut content: Vec<u8>, block_bytes: u32) -> MemoryMember {
        content.resize(content.len().next_multiple_of(block_bytes as usize), 0);
        MemoryMember { label: label.to_owned(), device: MemoryDevice::new(content, block_bytes) }
    }
}

/// Assembles an array. Nothing is started that it would do on its own.
pub fn open(
    world: &World,
    members: &[MemoryMember],
    options: &AssembleOptions,
) -> Result<MemoryArray, Refusal> {
    let (members, options, runtime) = (members.to_vec(), options.clone(), world.clone());
    world.run(async move {
        let memory = Memory::new(Memory::MIN_BYTES).expect("memory");
        let mut found = Vec::new();
        for member in members {
            found.push(load(member.device, member.label, &memory.metadata, &runtime).await?);
        }
        assemble(found, &options, &memory, &runtime).await
    })
}

/// All that an array holds, read in pieces that begin and end anywhere.
pub fn content(world: &World, array: &MemoryArray) -> Result<Vec<u8>, IoError> {
    let array = array.clone();
    world.run(async move {
        let pool = Pool::new(MAX_BUF_BYTES).expect("memory");
        let block = array.info().read_block_bytes as usize;
        let piece = MAX_BUF_BYTES - 3 * block;
        let mut content = Vec::with_capacity(array.size_bytes() as usize);
        while (content.len() as u64) < array.size_bytes() {
            let len = piece.min(array.size_bytes() as usize - content.len());
            let buf = array.read(content.len() as u64, pool.alloc(len).await).await?;
            content.extend_from_slice(&buf);
        }
        Ok(content)
    })
}

/// Stops an array.
pub fn stop(world: &World, array: MemoryArray) {
    world.run(async move { array.stop().await }).expect("nothing fails in memory");
}

/// SHA-256 in hex.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
