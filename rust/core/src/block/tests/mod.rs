//! Block devices driven through a real ring in real guest memory.

mod answers;
mod blocks;
mod cache;
mod driver;
mod files;
mod image;
mod layout;
mod legacy;
mod lock;
mod refusals;
mod space;
mod switch;

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{BlockDevice, BlockOptions, FileDisk, HostImage, Sharing};
use crate::device::Device;
use driver::Driver;

/// Request types: VIRTIO 1.3, "Block Device", "Device Operation".
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Status values of the same section.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Feature bits: VIRTIO 1.3, "Block Device", "Feature bits".
const F_FLUSH: u64 = 1 << 9;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
/// The driver does not use the legacy interface.
const VERSION_1: u64 = 1 << 32;

/// The flag of a segment.
const UNMAP: u32 = 1;

/// A request's readable part: u32 type, u32 reserved, u64 sector, then `data`.
fn header(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(kind.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    bytes
}

/// A segment of a discard or write zeroes request: u64 sector, u32 sectors, u32 flags.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = Vec::from(sector.to_le_bytes());
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Bytes that are the same nowhere near.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(256) as u8).collect()
}

/// A small generator of numbers that look random and are the same each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % end
    }
}

/// A device on an image that the test can look at.
struct Rig {
    device: BlockDevice<FileDisk>,
    image: File,
    driver: Driver,
}

impl Rig {
    /// A disk of `sectors` with a pattern on it; the driver accepted all that it offers.
    fn new(sectors: u64) -> Self {
        Self::with(sectors, false, u64::MAX)
    }

    fn with(sectors: u64, read_only: bool, features: u64) -> Self {
        let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let image = File::from(fd);
        image.write_all_at(&pattern(512 * sectors as usize, 77), 0).unwrap();
        let host = HostImage::new(image.try_clone().unwrap().into());
        let disk = FileDisk::new(host, read_only).unwrap();
        let options = BlockOptions { serial: "disk-7".into(), ..BlockOptions::default() };
        let device = BlockDevice::new(disk, &options).unwrap();
        device.negotiated(device.features() & features | VERSION_1);
        Self { device, image, driver: Driver::new() }
    }

    fn send(&mut self, readable: &[u8], writable: usize) -> driver::Answer {
        self.driver.send(&self.device, readable, writable)
    }

    fn send_cut(&mut self, readable: &[u8], writable: usize, cuts: &[usize]) -> driver::Answer {
        self.driver.send_cut(&self.device, readable, writable, cuts)
    }

    /// The whole image, read from the host's side.
    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.image.metadata().unwrap().len() as usize];
        self.image.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}
