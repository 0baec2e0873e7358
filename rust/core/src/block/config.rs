//! What a block device says of itself: its features and its configuration space.
//!
//! The space has 96 bytes, of which the first 60 are used; the rest (secure erase, zones) is zero.
//! All but two fields never change. The capacity changes by a resize and the cache mode by the
//! driver: both are atomics, so a read of the space never waits and never sees half a number.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::numbers::{ID_LEN, SECTOR, feature};
use super::parse::{DISCARD, ZERO};
use crate::device::{ConfigRefused, StateRefused};
use crate::sys::block_device::DeviceBlocks;

/// Bytes of the configuration space.
pub(super) const CONFIG_LEN: usize = 96;

/// Where the cache mode stands: the one byte that the driver may write.
const WRITEBACK: usize = 32;

/// Data segments of a request: what fits a ring of 128 entries without indirect tables, next to
/// header and status. The driver's ring may be shorter than ours allows, and a driver that
/// believed a larger number would build chains that never fit.
const MAX_DATA_SEGMENTS: u32 = 126;

/// Queues of a device. vhost-user counts rings in 8 bits.
const MAX_QUEUES: u16 = 256;

/// Queues that are offered if nothing is said: QEMU and libvirt want one for each processor of the
/// guest, and give up a device that has fewer.
const USUAL_QUEUES: u16 = 16;

/// The largest ring: VIRTIO 1.3, "Split Virtqueues".
const MAX_RING: u16 = 32768;

/// The most logical blocks of a physical one. The exponent is a byte, and no disk needs more.
const MAX_TIMES: u32 = 1 << 15;

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes, a multiple of `block_size`.
    pub size: u64,
    /// Bytes that the driver should address at once: a power of two from 512 to 65536.
    pub block_size: u32,
    /// Bytes that the disk changes at once: `block_size` times a power of two.
    pub physical_block_size: u32,
    /// Where the first whole physical block starts, in bytes: a multiple of `block_size`, less
    /// than `physical_block_size`.
    pub aligned_at: u32,
    /// Bytes of the smallest transfer that is fast, a multiple of `block_size`; 0 if not known.
    pub min_io_size: u32,
    /// Bytes of the fastest transfer, a multiple of `block_size`; 0 if not known.
    pub opt_io_size: u32,
    /// No request changes it.
    pub read_only: bool,
    /// It has a volatile cache and takes flushes.
    pub flush: bool,
    /// It takes discards.
    pub discard: bool,
    /// It takes write zeroes.
    pub write_zeroes: bool,
    /// Requests for parts of blocks fail with an I/O error. To the standard `block_size` is a hint,
    /// and a driver may ask for any sectors.
    pub whole_blocks: bool,
}

impl Geometry {
    /// Describes a disk of `size` bytes in blocks of 512, with flushes, without discard or write
    /// zeroes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            block_size: SECTOR as u32,
            physical_block_size: SECTOR as u32,
            aligned_at: 0,
            min_io_size: 0,
            opt_io_size: 0,
            read_only: false,
            flush: true,
            discard: false,
            write_zeroes: false,
            whole_blocks: false,
        }
    }
}

impl Geometry {
    /// Takes over how `blocks` are laid out, as far as that can be said in logical blocks of
    /// `block_size` bytes.
    pub(super) fn laid_out_as(self, blocks: DeviceBlocks, block_size: u32) -> Self {
        let times = blocks.physical.checked_div(block_size).unwrap_or(0);
        let fits = blocks.physical.is_power_of_two() && (1..=MAX_TIMES).contains(&times);
        let physical_block_size = if fits { blocks.physical } else { block_size };
        let whole = |bytes: u32| if bytes.is_multiple_of(block_size) { bytes } else { 0 };
        Self {
            block_size,
            physical_block_size,
            aligned_at: whole(blocks.aligned_at).checked_rem(physical_block_size).unwrap_or(0),
            min_io_size: whole(blocks.min_io),
            opt_io_size: whole(blocks.opt_io),
            ..self
        }
    }
}

/// How a disk is presented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// The most queues that the driver may use, 1 to 256. One that it does not use costs nothing.
    pub num_queues: u16,
    /// The largest ring that is taken, a power of two from 2 to 32768. The front-end decides how long
    /// a ring is.
    pub queue_size: u16,
    /// What the driver reads as serial number: at most 20 bytes.
    pub serial: String,
    /// The most bytes of a request's data; see
    /// [`Device::max_request_bytes`](crate::device::Device::max_request_bytes), where header and
    /// status count too.
    pub max_request_bytes: u64,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            num_queues: USUAL_QUEUES,
            queue_size: MAX_RING,
            serial: String::new(),
            max_request_bytes: u64::MAX,
        }
    }
}

/// A number of a block device that cannot be: the rule, and what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidBlock(String);

impl fmt::Display for InvalidBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidBlock {}

/// The configuration space and the features that go with it. Changes come from one thread at a
/// time; everything may be read at any time.
#[derive(Debug)]
pub struct BlockConfig {
    offered: u64,
    block_size: u32,
    /// The fields that never change.
    image: [u8; CONFIG_LEN],
    capacity_sectors: AtomicU64,
    writeback: AtomicBool,
    /// The features that the driver accepted.
    accepted: AtomicU64,
    /// Whether each write must be durable before it completes: follows from the two above.
    write_through: AtomicBool,
}

impl BlockConfig {
    /// Makes the configuration space of a disk.
    ///
    /// # Errors
    /// A number that breaks the rule beside its field in [`Geometry`] or [`BlockOptions`].
    pub fn new(disk: &Geometry, options: &BlockOptions) -> Result<Self, InvalidBlock> {
        check(disk, options)?;
        let offered = offered(disk, options);
        Ok(Self {
            offered,
            block_size: disk.block_size,
            image: image(disk, options),
            capacity_sectors: AtomicU64::new(sectors(disk.size, disk.block_size)?),
            writeback: AtomicBool::new(disk.flush),
            accepted: AtomicU64::new(0),
            write_through: AtomicBool::new(true),
        })
    }

    /// Returns the features that the device offers.
    pub fn features(&self) -> u64 {
        self.offered
    }

    /// Returns the features that the driver accepted, and whether VERSION_1 is one of them; 0
    /// before.
    #[inline]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Sectors of the disk now.
    #[inline]
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors.load(Ordering::Relaxed)
    }

    /// Returns whether each write must be durable before it completes: flushes were not negotiated,
    /// or the driver turned the write cache off.
    ///
    /// A write that began before the cache was turned off and ended after must be durable too. So
    /// it asks again when it has ended, and flushes if the answer has changed. One of the two
    /// sees the other: either the write sees the new mode, or the flush at the switch sees the
    /// write.
    #[inline]
    pub fn write_through(&self) -> bool {
        self.write_through.load(Ordering::SeqCst)
    }

    /// The disk has `size` bytes from now on. The front-end must be told by the caller.
    ///
    /// # Errors
    /// Not a multiple of the block size.
    pub fn resize(&self, size: u64) -> Result<(), InvalidBlock> {
        self.capacity_sectors.store(sectors(size, self.block_size)?, Ordering::Relaxed);
        Ok(())
    }

    /// Copies the space from `offset` on into `out`; what lies past its end is left alone.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let mut image = self.image;
        image[..8].copy_from_slice(&self.capacity_sectors().to_le_bytes());
        // VIRTIO 1.3, "Block Device", "Device Initialization": no cache without flushes. By the
        // legacy interface the features that a driver accepts do not change the field.
        let accepted = self.accepted();
        let no_flush = accepted & feature::VERSION_1 != 0 && accepted & feature::FLUSH == 0;
        image[WRITEBACK] = (self.writeback.load(Ordering::Relaxed) && !no_flush).into();
        for (to, from) in out.iter_mut().zip(image.iter().skip(offset)) {
            *to = *from;
        }
    }

    /// Takes a write to the space. Only the cache mode can be written. `flush` is called when the
    /// write cache is turned off, before this returns.
    ///
    /// # Errors
    /// What was written cannot be, or the flush failed; the mode is as before then.
    pub fn write(
        &self,
        offset: usize,
        data: &[u8],
        flush: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), ConfigRefused> {
        let &[mode] = data else { return Err(read_only(offset, data.len())) };
        if offset != WRITEBACK {
            return Err(read_only(offset, 1));
        }
        // VIRTIO 1.3, "Block Device", "Legacy Interface: Device Initialization": it may be written
        // before the features are known.
        let accepted = self.accepted();
        if accepted != 0 && accepted & feature::CONFIG_WCE == 0 {
            return Err(ConfigRefused("writeback: CONFIG_WCE was not negotiated".into()));
        }
        match mode {
            0 => self.cache_off(flush),
            1 => {
                self.set_mode(true);
                Ok(())
            }
            _ => Err(ConfigRefused(format!("writeback: {mode} is neither 0 nor 1"))),
        }
    }

    /// Returns whether the driver may choose the cache mode.
    pub fn has_modes(&self) -> bool {
        self.offered & feature::CONFIG_WCE != 0
    }

    /// Returns the cache mode that the driver has chosen: 1 with the write cache, else 0.
    pub fn mode(&self) -> u8 {
        self.writeback.load(Ordering::Relaxed).into()
    }

    /// Sets the cache mode that the driver has chosen elsewhere.
    ///
    /// # Errors
    /// It is neither 0 nor 1, or there is no cache that it could be on.
    pub fn load_mode(&self, mode: u8) -> Result<(), StateRefused> {
        self.check_mode(mode)?;
        self.set_mode(mode == 1);
        Ok(())
    }

    /// Says whether there is such a mode.
    ///
    /// # Errors
    /// As [`load_mode`](Self::load_mode).
    pub fn check_mode(&self, mode: u8) -> Result<(), StateRefused> {
        match (mode, self.has_modes()) {
            (0, _) | (1, true) => Ok(()),
            (1, false) => {
                Err(StateRefused("the write cache was on, and this disk has none".to_owned()))
            }
            _ => Err(StateRefused(format!("the cache mode is {mode}, neither 0 nor 1"))),
        }
    }

    /// The driver accepted `features`. The cache mode stays as it is: a front-end negotiates anew
    /// when its machine pauses or it reconnects, and the driver relies on the mode that it set.
    pub fn negotiated(&self, features: u64) {
        let ours = self.offered | feature::VERSION_1;
        self.accepted.store(features & ours, Ordering::Relaxed);
        self.set_mode(self.writeback.load(Ordering::Relaxed));
    }

    /// Back to the state before negotiation, but for the cache mode. QEMU resets the device when
    /// its machine pauses, and shows its driver the mode that was written last even after the
    /// machine's own reset: a cache that came on by itself would lose writes that the driver takes
    /// for durable.
    pub fn reset(&self) {
        self.negotiated(0);
    }

    fn cache_off(&self, flush: impl FnOnce() -> io::Result<()>) -> Result<(), ConfigRefused> {
        self.set_mode(false);
        flush().map_err(|error| {
            self.set_mode(true);
            ConfigRefused(format!("writeback: the cache stays on, it cannot be flushed: {error}"))
        })
    }

    /// Sets the cache mode and what follows from it.
    fn set_mode(&self, writeback: bool) {
        let can_flush = self.accepted() & feature::FLUSH != 0;
        self.writeback.store(writeback, Ordering::Relaxed);
        // Sequentially consistent: see `write_through`.
        self.write_through.store(!(writeback && can_flush), Ordering::SeqCst);
    }
}

fn read_only(offset: usize, len: usize) -> ConfigRefused {
    ConfigRefused(format!("offset {offset}, {len} bytes: only writeback (offset 32) is writable"))
}

fn sectors(size: u64, block: u32) -> Result<u64, InvalidBlock> {
    if !size.is_multiple_of(block.into()) {
        let rule = format!("the size must be a multiple of block_size, {block} bytes");
        return Err(InvalidBlock(format!("{rule}: {size}")));
    }
    Ok(size / SECTOR)
}

fn check(disk: &Geometry, options: &BlockOptions) -> Result<(), InvalidBlock> {
    let (logical, physical) = (disk.block_size, disk.physical_block_size);
    let block = (512..=65536).contains(&logical) && logical.is_power_of_two();
    let times = physical.checked_div(logical).unwrap_or(0);
    let larger = physical.is_power_of_two() && (1..=MAX_TIMES).contains(&times);
    let queues = (1..=MAX_QUEUES).contains(&options.num_queues);
    let ring = (2..=MAX_RING).contains(&options.queue_size) && options.queue_size.is_power_of_two();
    let rules = [
        (block, "block_size must be a power of two from 512 to 65536", u64::from(logical)),
        (larger, "physical_block_size must be block_size times a power of two", physical.into()),
        (queues, "num_queues must be 1 to 256", options.num_queues.into()),
        (ring, "queue_size must be a power of two from 2 to 32768", options.queue_size.into()),
        (
            options.serial.len() <= ID_LEN,
            "serial must have at most 20 bytes",
            options.serial.len() as u64,
        ),
    ];
    match rules.iter().find(|(holds, ..)| !holds) {
        Some((_, rule, got)) => Err(InvalidBlock(format!("{rule}: {got}"))),
        None => Ok(()),
    }
}

fn offered(disk: &Geometry, options: &BlockOptions) -> u64 {
    let writable = !disk.read_only;
    [
        (true, feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY),
        (disk.read_only, feature::RO),
        (disk.flush, feature::FLUSH | feature::CONFIG_WCE),
        (options.num_queues > 1, feature::MQ),
        (writable && disk.discard, feature::DISCARD),
        (writable && disk.write_zeroes, feature::WRITE_ZEROES),
    ]
    .into_iter()
    .filter_map(|(has, bits)| has.then_some(bits))
    .fold(0, |all, bits| all | bits)
}

/// Returns the fields that never change: VIRTIO 1.3, "Block Device", "Device configuration layout".
fn image(disk: &Geometry, options: &BlockOptions) -> [u8; CONFIG_LEN] {
    let mut image = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let exponent = (disk.physical_block_size / disk.block_size).trailing_zeros() as u8;
    let segments = MAX_DATA_SEGMENTS.min(u32::from(options.queue_size).saturating_sub(2)).max(1);
    put(12, &segments.to_le_bytes());
    put(20, &disk.block_size.to_le_bytes());
    put(24, &[exponent]);
    let blocks = |bytes| bytes / disk.block_size;
    // A suggestion that its field has no room for is left out.
    put(25, &[u8::try_from(blocks(disk.aligned_at)).unwrap_or(0)]);
    put(26, &u16::try_from(blocks(disk.min_io_size)).unwrap_or(0).to_le_bytes());
    put(28, &blocks(disk.opt_io_size).to_le_bytes());
    put(34, &options.num_queues.to_le_bytes());
    if disk.discard && !disk.read_only {
        put(36, &DISCARD.max_sectors.to_le_bytes());
        put(40, &DISCARD.max_segments.to_le_bytes());
        put(44, &(disk.physical_block_size / SECTOR as u32).to_le_bytes());
    }
    if disk.write_zeroes && !disk.read_only {
        put(48, &ZERO.max_sectors.to_le_bytes());
        put(52, &ZERO.max_segments.to_le_bytes());
        put(56, &[disk.discard.into()]);
    }
    image
}
