//! What every block device has, whoever moves its data.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{BlockConfig, BlockOptions, CONFIG_LEN, Geometry, InvalidBlock};
use super::numbers::{BlkOp, ID_LEN, SECTOR, Status};
use super::parse::{Limits, Parsed, Refused, kind_of, parse};
use super::refusal::FailureObserver;
use super::request::{BlockRequest, HEADER, write_status};
use crate::device::{ConfigRefused, StateForm, StateRefused};
use crate::request::{Batch, Request};

/// Configuration, features, serial number, and the check of each request against them. Its
/// methods are those that a [`Device`](crate::device::Device) hands on.
#[derive(Debug)]
pub struct BlockCore {
    config: BlockConfig,
    read_only: bool,
    /// The bits that no sector number of a request may have: those within a block, or none.
    within_block: u64,
    num_queues: u16,
    queue_size: u16,
    max_request_bytes: u64,
    /// Padded with NUL; not terminated if it is full.
    serial: [u8; ID_LEN],
    failed: AtomicU64,
    empty: AtomicU64,
    observer: Option<Arc<dyn FailureObserver>>,
}

/// Requests that were not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Refusals {
    /// Given back with an error status.
    pub failed: u64,
    /// Given back with nothing written: without a whole header, or without room for a status.
    pub empty: u64,
}

impl BlockCore {
    /// Returns the core of a device for `disk`.
    ///
    /// # Errors
    /// A number that breaks the rule beside its field in [`Geometry`] or [`BlockOptions`].
    pub fn new(disk: &Geometry, options: &BlockOptions) -> Result<Self, InvalidBlock> {
        let config = BlockConfig::new(disk, options)?;
        let mut serial = [0; ID_LEN];
        serial[..options.serial.len()].copy_from_slice(options.serial.as_bytes());
        Ok(Self {
            config,
            read_only: disk.read_only,
            within_block: if disk.whole_blocks {
                u64::from(disk.block_size) / SECTOR - 1
            } else {
                0
            },
            num_queues: options.num_queues,
            queue_size: options.queue_size,
            max_request_bytes: options.max_request_bytes,
            serial,
            failed: AtomicU64::new(0),
            empty: AtomicU64::new(0),
            observer: None,
        })
    }

    /// Has `observer` hear of the requests that are refused.
    pub fn observed_by(self, observer: Arc<dyn FailureObserver>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Returns the next request of `batch` that is to be served; those before it that are not are
    /// answered.
    #[inline]
    pub fn next(&self, batch: &mut Batch) -> Option<BlockRequest> {
        loop {
            match self.parse(batch.next()?) {
                Parsed::Serve(request) => return Some(request),
                Parsed::Fail(refused) => self.give_back(&self.failed, refused, batch),
                Parsed::Empty(refused) => self.give_back(&self.empty, refused, batch),
            }
        }
    }

    #[cold]
    fn give_back(&self, counter: &AtomicU64, refused: Refused, batch: &mut Batch) {
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(observer) = &self.observer {
            observer.refused(refused.queue(), &refused.why());
        }
        refused.finish(batch);
    }

    /// Returns who hears of the requests that fail.
    pub(super) fn observer(&self) -> Option<&dyn FailureObserver> {
        self.observer.as_deref()
    }

    /// Checks one request.
    #[inline]
    pub fn parse(&self, request: Request) -> Parsed {
        parse(
            request,
            Limits {
                capacity_sectors: self.config.capacity_sectors(),
                read_only: self.read_only,
                within_block: self.within_block,
                features: self.config.accepted(),
            },
        )
    }

    /// Answers a request for the serial number, on the worker's own thread.
    pub fn finish_id(&self, request: BlockRequest, batch: &mut Batch) {
        request.copy_from(0, &self.serial);
        request.finish(Status::Ok, batch);
    }

    /// As [`Device::refuse`](crate::device::Device::refuse): an I/O error.
    pub fn refuse(&self, request: &Request) -> u32 {
        self.failed.fetch_add(1, Ordering::Relaxed);
        write_status(request.writable(), Status::IoErr, 0)
    }

    /// As [`Device::can_be_left`](crate::device::Device::can_be_left): a read. A flush is none: what
    /// it is to bring to stable storage may be in this host's memory alone.
    pub fn can_be_left(&self, request: &Request) -> bool {
        matches!(kind_of(request), Some(BlkOp::Read | BlkOp::GetId))
    }

    /// Returns whether each write must be durable before it completes; see
    /// [`BlockConfig::write_through`]. To be asked before a write and again after it.
    #[inline]
    pub fn write_through(&self) -> bool {
        self.config.write_through()
    }

    /// Returns the number of bytes of the disk now.
    pub fn size(&self) -> u64 {
        self.config.capacity_sectors() * SECTOR
    }

    /// The disk has `size` bytes from now on: requests are checked against them. The front-end
    /// must be told that the configuration has changed.
    ///
    /// # Errors
    /// Not a multiple of the block size.
    pub fn resize(&self, size: u64) -> Result<(), InvalidBlock> {
        self.config.resize(size)
    }

    /// Returns whether requests that change the disk are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Requests not served so far.
    pub fn refused(&self) -> Refusals {
        Refusals {
            failed: self.failed.load(Ordering::Relaxed),
            empty: self.empty.load(Ordering::Relaxed),
        }
    }

    /// As [`Device::features`](crate::device::Device::features).
    pub fn features(&self) -> u64 {
        self.config.features()
    }

    /// As [`Device::num_queues`](crate::device::Device::num_queues).
    pub fn num_queues(&self) -> u16 {
        self.num_queues
    }

    /// As [`Device::max_queue_size`](crate::device::Device::max_queue_size).
    pub fn max_queue_size(&self) -> u16 {
        self.queue_size
    }

    /// As [`Device::max_request_bytes`](crate::device::Device::max_request_bytes).
    pub fn max_request_bytes(&self) -> u64 {
        self.max_request_bytes.saturating_add(HEADER + 1)
    }

    /// As [`Device::framing_bytes`](crate::device::Device::framing_bytes).
    pub fn framing_bytes(&self) -> u64 {
        HEADER + 1
    }

    /// As [`Device::operations`](crate::device::Device::operations): "other", and those of
    /// [`BlkOp`] in their order.
    pub fn operations(&self) -> &'static [&'static str] {
        &["other", "read", "write", "flush", "discard", "write_zeroes", "get_id"]
    }

    /// As [`Device::config_len`](crate::device::Device::config_len).
    pub fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    /// As [`Device::read_config`](crate::device::Device::read_config).
    pub fn read_config(&self, offset: usize, out: &mut [u8]) {
        self.config.read(offset, out);
    }

    /// As [`Device::write_config`](crate::device::Device::write_config). `flush` makes all
    /// completed writes durable; it is called when the driver turns the write cache off.
    ///
    /// # Errors
    /// See [`BlockConfig::write`].
    pub fn write_config(
        &self,
        offset: usize,
        data: &[u8],
        flush: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), ConfigRefused> {
        self.config.write(offset, data, flush)
    }

    /// As [`Device::negotiated`](crate::device::Device::negotiated).
    pub fn negotiated(&self, features: u64) {
        self.config.negotiated(features);
    }

    /// Returns what a disk saves that has nothing but its cache mode: one byte, if the driver may
    /// choose the mode.
    pub fn state_form(&self) -> Option<StateForm> {
        self.config.has_modes().then(|| StateForm { name: "disk".to_owned(), version: 1 })
    }

    /// Returns what a driver has set, as one byte: 0 or 1, the cache mode as VIRTIO 1.3, "Block
    /// Device", "Device configuration layout" has it in `writeback`.
    pub fn save(&self) -> u8 {
        self.config.mode()
    }

    /// Whether [`load`](Self::load) takes this mode.
    ///
    /// # Errors
    /// There is no such mode.
    pub fn check(&self, mode: u8) -> Result<(), StateRefused> {
        self.config.check_mode(mode)
    }

    /// Takes what [`save`](Self::save) has returned. No request is under way.
    ///
    /// # Errors
    /// There is no such mode.
    pub fn load(&self, mode: u8) -> Result<(), StateRefused> {
        self.config.load_mode(mode)
    }

    /// As [`Device::setting`](crate::device::Device::setting): the cache mode, if the driver may
    /// choose it.
    pub fn setting(&self) -> Option<u8> {
        self.config.has_modes().then(|| self.config.mode())
    }

    /// As [`Device::take_setting`](crate::device::Device::take_setting).
    pub fn take_setting(&self, setting: u8) {
        // Whoever wrote a mode that there is not has no right to one.
        let _ = self.config.load_mode(setting);
    }

    /// As [`Device::reset`](crate::device::Device::reset).
    pub fn reset(&self) {
        self.config.reset();
    }
}
