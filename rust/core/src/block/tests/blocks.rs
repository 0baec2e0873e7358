//! Disks whose logical blocks are longer than a sector: what the driver is told, and what becomes
//! of requests for parts of blocks.

use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::block::{BlockRequest, ByteRange, Disk, Geometry, Image, NullDisk};
use crate::sys::block_device::DeviceBlocks;

/// A drive with physical blocks of 4096 bytes and logical ones of 512, of which number 7 is the
/// first that starts a physical one.
const SHIFTED: DeviceBlocks =
    DeviceBlocks { logical: 512, physical: 4096, aligned_at: 3584, min_io: 4096, opt_io: 1 << 20 };

/// A drive that has blocks of 4096 bytes alone.
const LONG: DeviceBlocks =
    DeviceBlocks { logical: 4096, physical: 4096, aligned_at: 0, min_io: 4096, opt_io: 0 };

/// A file that passes for a block device, and writes down what is discarded.
#[derive(Debug)]
struct Drive {
    file: HostImage,
    blocks: DeviceBlocks,
    discarded: Arc<Mutex<Vec<ByteRange>>>,
}

impl Drive {
    fn new(size: u64, blocks: DeviceBlocks) -> Self {
        let fd = rustix::fs::memfd_create("drive", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        Self { file: HostImage::new(fd.into()), blocks, discarded: Arc::default() }
    }
}

impl Image for Drive {
    fn read(&self, request: &BlockRequest) -> io::Result<u64> {
        self.file.read(request)
    }

    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<u64> {
        self.file.write(request, durable)
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_bytes(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// As a block device does it.
    fn punch_hole(&self, range: ByteRange) -> io::Result<()> {
        let block = u64::from(self.blocks.logical);
        if !(range.offset | range.length).is_multiple_of(block) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.discarded.lock().unwrap().push(range);
        self.file.punch_hole(range)
    }

    fn zero_range(&self, range: ByteRange) -> io::Result<()> {
        self.punch_hole(range)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn blocks(&self) -> io::Result<DeviceBlocks> {
        Ok(self.blocks)
    }
}

fn disk(blocks: DeviceBlocks) -> FileDisk<Drive> {
    FileDisk::new(Drive::new(1 << 20, blocks), false).unwrap()
}

/// blk_size, physical_block_exp, alignment_offset, min_io_size, opt_io_size: VIRTIO 1.3, "Block
/// Device", "Device configuration layout". All but the first count in logical blocks.
fn told<D: Disk>(disk: D) -> (u32, u8, u8, u16, u32) {
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    let mut space = [0; 60];
    device.read_config(0, &mut space);
    let number = |at: usize| u32::from_le_bytes(*space[at..].first_chunk().unwrap());
    let short = u16::from_le_bytes(*space[26..].first_chunk().unwrap());
    (number(20), space[24], space[25], short, number(28))
}

#[test]
fn the_blocks_of_the_host_are_told_to_the_driver() {
    assert_eq!(told(disk(LONG)), (4096, 0, 0, 1, 0));
    assert_eq!(told(disk(SHIFTED)), (512, 3, 7, 8, 2048));
}

#[test]
fn an_image_in_a_file_has_blocks_of_a_sector_on_pages() {
    let file = FileDisk::in_memory(1 << 20).unwrap();
    assert_eq!(told(file), (512, 3, 0, 0, 0));
}

#[test]
fn the_block_size_that_is_asked_for_is_told_instead() {
    assert_eq!(told(disk(LONG).with_block_size(512)), (512, 3, 0, 8, 0));
    // What no whole number of such blocks would say is left out.
    assert_eq!(told(disk(SHIFTED).with_block_size(4096)), (4096, 0, 0, 1, 256));
    assert_eq!(told(disk(SHIFTED).with_block_size(8192)), (8192, 0, 0, 0, 128));
    assert_eq!(told(FileDisk::in_memory(1 << 20).unwrap().with_block_size(4096)).0, 4096);
    assert_eq!(told(NullDisk::new(1 << 20, 4096)), (4096, 0, 0, 0, 0));
}

#[test]
fn hosts_that_tell_odd_numbers_are_not_believed() {
    let odd = DeviceBlocks { physical: 0, aligned_at: 513, min_io: 1000, opt_io: 65535, ..SHIFTED };
    assert_eq!(told(disk(odd)), (512, 0, 0, 0, 0));
    let endless = DeviceBlocks { physical: 1 << 31, ..SHIFTED };
    assert_eq!(told(disk(endless)), (512, 0, 0, 8, 2048));
    // No room for these in a byte, and in two.
    let far = DeviceBlocks { physical: 1 << 20, aligned_at: 1 << 19, min_io: 1 << 26, ..SHIFTED };
    assert_eq!(told(disk(far)), (512, 11, 0, 0, 2048));
}

fn refused<D: Disk + std::fmt::Debug>(disk: D) -> String {
    BlockDevice::new(disk, &BlockOptions::default()).unwrap_err().to_string()
}

#[test]
fn a_block_size_or_a_size_that_cannot_be_is_refused() {
    for wrong in [0, 256, 1000, 1 << 17] {
        let message = refused(disk(LONG).with_block_size(wrong));
        assert!(message.contains("block_size must be a power of two"), "{message}");
    }
    let short = FileDisk::in_memory(4096 + 512).unwrap();
    let message = refused(short.with_block_size(4096));
    assert_eq!(message, "the size must be a multiple of block_size, 4096 bytes: 4608");
    let device = BlockDevice::new(disk(LONG), &BlockOptions::default()).unwrap();
    assert!(device.resize(4096 + 512).is_err());
    assert_eq!(device.core().size(), 1 << 20);
    device.resize(4096).unwrap();
}

#[test]
fn a_disk_on_longer_blocks_serves_parts_of_them() {
    let drive = Drive::new(1 << 20, LONG);
    let discarded = Arc::clone(&drive.discarded);
    let disk = FileDisk::new(drive, false).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    device.negotiated(device.features());
    let mut driver = Driver::new();
    let data = pattern(512, 4);
    driver.send(&device, &header(OUT, 1, &data), 1).assert_only_status(OK);
    assert_eq!(driver.send(&device, &header(IN, 1, &[]), 513).data(), data);
    driver.send(&device, &header(WRITE_ZEROES, 0, &segment(1, 1, 0)), 1).assert_only_status(OK);
    assert_eq!(driver.send(&device, &header(IN, 1, &[]), 513).data(), [0; 512]);
    assert_eq!(*discarded.lock().unwrap(), []);
    // Of a discard the whole blocks are taken.
    for (sector, sectors) in [(1, 7), (0, 7), (7, 2), (9, 7)] {
        let segment = segment(sector, sectors, 0);
        driver.send(&device, &header(DISCARD, 0, &segment), 1).assert_only_status(OK);
    }
    assert_eq!(*discarded.lock().unwrap(), []);
    driver.send(&device, &header(DISCARD, 0, &segment(7, 10, 0)), 1).assert_only_status(OK);
    driver.send(&device, &header(DISCARD, 0, &segment(8, 16, 0)), 1).assert_only_status(OK);
    let whole =
        [ByteRange { offset: 4096, length: 4096 }, ByteRange { offset: 4096, length: 8192 }];
    assert_eq!(*discarded.lock().unwrap(), whole);
}

/// A disk that takes whole blocks of 4096 bytes alone.
struct Whole(FileDisk);

impl Disk for Whole {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 4096,
            physical_block_size: 4096,
            whole_blocks: true,
            ..self.0.geometry()
        }
    }

    fn read(&self, request: &BlockRequest) -> io::Result<()> {
        self.0.read(request)
    }

    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<()> {
        self.0.write(request, durable)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.0.discard(range)
    }

    fn write_zeroes(&self, range: ByteRange, unmap: bool, durable: bool) -> io::Result<()> {
        self.0.write_zeroes(range, unmap, durable)
    }
}

#[test]
fn parts_of_blocks_are_io_errors_of_a_disk_that_takes_whole_ones_alone() {
    let disk = Whole(FileDisk::in_memory(1 << 16).unwrap());
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    device.negotiated(device.features());
    let mut driver = Driver::new();
    let data = pattern(4096, 9);
    driver.send(&device, &header(OUT, 8, &data), 1).assert_only_status(OK);
    for (sector, length) in [(8, 512), (9, 4096), (15, 512), (8, 4096 + 512)] {
        driver.send(&device, &header(IN, sector, &[]), length + 1).assert_only_status(IOERR);
        let other = vec![0xee; length];
        driver.send(&device, &header(OUT, sector, &other), 1).assert_only_status(IOERR);
        let part = segment(sector, length as u32 / 512, 0);
        driver.send(&device, &header(DISCARD, 0, &part), 1).assert_only_status(IOERR);
        driver.send(&device, &header(WRITE_ZEROES, 0, &part), 1).assert_only_status(IOERR);
    }
    assert_eq!(driver.send(&device, &header(IN, 8, &[]), 4097).data(), data);
    // What has no place on the disk goes on.
    driver.send(&device, &header(FLUSH, 3, &[]), 1).assert_only_status(OK);
    assert_eq!(driver.send(&device, &header(GET_ID, 3, &[]), 21).status(), OK);
}
