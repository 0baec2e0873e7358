//! A disk in this process, and the device that serves it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::config::{BlockOptions, Geometry, InvalidBlock};
use super::core::BlockCore;
use super::numbers::{BlkOp, ByteRange, Status, VIRTIO_ID};
use super::refusal::{Attempt, FailureObserver};
use super::request::BlockRequest;
use crate::batch_size::{BatchSize, half};
use crate::device::{
    Acquired, ConfigRefused, Device, NotGivenUp, StateForm, StateRefused, Unavailable,
};
use crate::request::{Batch, Request};

/// What a disk found when its rings were to start.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Taken {
    /// Its bytes, if others have changed them since the disk was asked last.
    pub new_size: Option<u64>,
    /// What the user should know.
    pub warning: Option<String>,
}

/// Where the data of a block device is. All requests have been checked: ranges lie inside the
/// disk, and a read-only disk is never asked to change.
///
/// Methods are called from the threads of all queues at once. An error fails the request:
/// [`io::ErrorKind::Unsupported`] as "unsupported", all others as I/O errors.
pub trait Disk: Send + Sync + 'static {
    /// Returns what the disk is. Asked once; later sizes come by [`BlockDevice::resize`].
    fn geometry(&self) -> Geometry;

    /// Fills the request's data with what the disk has.
    fn read(&self, request: &BlockRequest) -> io::Result<()>;

    /// Takes the request's data. `durable`: it is on stable storage when this returns.
    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<()>;

    /// All writes that have returned are on stable storage when this returns.
    fn flush(&self) -> io::Result<()>;

    /// The first ring is about to start: see [`Device::acquire`].
    ///
    /// # Errors
    /// The disk cannot be used now.
    fn take(&self) -> Result<Taken, Unavailable> {
        Ok(Taken::default())
    }

    /// No ring runs any more: see [`Device::release`].
    ///
    /// # Errors
    /// The disk stays this process's.
    fn give_up(&self, settled: bool) -> Result<(), NotGivenUp> {
        let _ = settled;
        Ok(())
    }

    /// The front-end is gone.
    fn disconnected(&self) {}

    /// The driver no longer needs what is in this range.
    fn discard(&self, range: ByteRange) -> io::Result<()> {
        let _ = range;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// This range reads as zeroes from now on. `unmap`: its space may be given up. `durable` as
    /// in [`write`](Self::write).
    fn write_zeroes(&self, range: ByteRange, unmap: bool, durable: bool) -> io::Result<()> {
        let _ = (range, unmap, durable);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The block device that serves a [`Disk`].
#[derive(Debug)]
pub struct BlockDevice<D> {
    core: BlockCore,
    disk: D,
    /// One for each queue.
    batch_sizes: Box<[BatchSize]>,
}

impl<D: Disk> BlockDevice<D> {
    /// Returns a device for `disk`.
    ///
    /// # Errors
    /// A number that breaks the rule beside its field in [`Geometry`] or [`BlockOptions`].
    pub fn new(disk: D, options: &BlockOptions) -> Result<Self, InvalidBlock> {
        let core = BlockCore::new(&disk.geometry(), options)?;
        let batch_sizes = (0..core.num_queues()).map(|_| BatchSize::default()).collect();
        Ok(Self { core, disk, batch_sizes })
    }

    /// Has `observer` hear of the requests that are refused, and of those that the disk fails.
    pub fn observed_by(self, observer: Arc<dyn FailureObserver>) -> Self {
        Self { core: self.core.observed_by(observer), ..self }
    }

    /// Returns the disk that the device serves.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Returns what it checks requests with.
    pub fn core(&self) -> &BlockCore {
        &self.core
    }

    /// The disk has `size` bytes from now on. The front-end must be told that the configuration
    /// has changed.
    ///
    /// # Errors
    /// Not a multiple of the block size.
    pub fn resize(&self, size: u64) -> Result<(), InvalidBlock> {
        self.core.resize(size)
    }

    #[inline]
    fn serve(&self, batch: &mut Batch) {
        while let Some(request) = self.core.next(batch) {
            if request.op() == BlkOp::GetId {
                self.core.finish_id(request, batch);
                continue;
            }
            let status = match self.carry_out(&request) {
                Ok(()) => Status::Ok,
                Err(error) => self.failed(&request, &error),
            };
            request.finish(status, batch);
        }
    }

    #[cold]
    fn failed(&self, request: &BlockRequest, error: &io::Error) -> Status {
        if let Some(observer) = self.core.observer() {
            let range = ByteRange { offset: request.offset(), length: request.length() };
            observer.failed(request.queue(), &Attempt { op: request.op(), range }, error);
        }
        Status::from(error)
    }

    /// Carries out one request other than that for the serial number.
    #[inline]
    fn carry_out(&self, request: &BlockRequest) -> io::Result<()> {
        match request.op() {
            BlkOp::Read => self.disk.read(request),
            BlkOp::Write => self.change(|durable| self.disk.write(request, durable)),
            BlkOp::Flush => self.disk.flush(),
            // What is discarded need not be anything afterwards: there is nothing to make durable.
            BlkOp::Discard => request.ranges().iter().try_for_each(|&r| self.disk.discard(r)),
            BlkOp::WriteZeroes => self.change(|durable| {
                let zero = |&range| self.disk.write_zeroes(range, request.unmap(), durable);
                request.ranges().iter().try_for_each(zero)
            }),
            BlkOp::GetId => Ok(()),
        }
    }

    /// Makes a change in the cache mode that holds when it ends.
    #[inline]
    fn change(&self, make: impl FnOnce(bool) -> io::Result<()>) -> io::Result<()> {
        let durable = self.core.write_through();
        make(durable)?;
        if !durable && self.core.write_through() {
            // The driver turned the cache off meanwhile. The flush at the switch may have been
            // too early for this write.
            self.disk.flush()?;
        }
        Ok(())
    }
}

impl<D: Disk> Device for BlockDevice<D> {
    fn virtio_id(&self) -> u32 {
        VIRTIO_ID
    }

    fn features(&self) -> u64 {
        self.core.features()
    }

    fn is_transitional(&self) -> bool {
        true
    }

    fn num_queues(&self) -> u16 {
        self.core.num_queues()
    }

    fn max_queue_size(&self) -> u16 {
        self.core.max_queue_size()
    }

    fn config_len(&self) -> usize {
        self.core.config_len()
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        self.core.read_config(offset, out);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), ConfigRefused> {
        self.core.write_config(offset, data, || self.disk.flush())
    }

    fn negotiated(&self, features: u64) {
        self.core.negotiated(features);
    }

    fn acquire(&self) -> Result<Acquired, Unavailable> {
        let Taken { new_size, mut warning } = self.disk.take()?;
        let Some(size) = new_size else { return Ok(Acquired { config_changed: false, warning }) };
        let resized = self.core.resize(size);
        if let Err(error) = &resized {
            let before = self.core.size();
            warning = Some(format!("the image has {size} bytes now, the disk {before}: {error}"));
        }
        Ok(Acquired { config_changed: resized.is_ok(), warning })
    }

    fn release(&self, settled: bool) -> Result<(), NotGivenUp> {
        self.disk.give_up(settled)
    }

    fn reset(&self) {
        self.core.reset();
    }

    fn disconnected(&self) {
        self.disk.disconnected();
    }

    fn setting(&self) -> Option<u8> {
        self.core.setting()
    }

    fn take_setting(&self, setting: u8) {
        self.core.take_setting(setting);
    }

    fn state_form(&self) -> Option<StateForm> {
        self.core.state_form()
    }

    fn save(&self) -> Result<Vec<u8>, StateRefused> {
        Ok(vec![self.core.save()])
    }

    fn load(&self, _version: u32, state: &[u8]) -> Result<(), StateRefused> {
        let &[mode] = state else {
            let bytes = state.len();
            return Err(StateRefused(format!("a disk's state is 1 byte, not {bytes}")));
        };
        self.core.load(mode)
    }

    fn batch_limit(&self, queue: u16, available: u16) -> u16 {
        let limit = self.batch_sizes.get(usize::from(queue)).map_or(u16::MAX, BatchSize::limit);
        half(available).min(limit)
    }

    fn keeps_requests(&self) -> bool {
        false
    }

    fn max_request_bytes(&self) -> u64 {
        self.core.max_request_bytes()
    }

    fn operations(&self) -> &'static [&'static str] {
        self.core.operations()
    }

    fn framing_bytes(&self) -> u64 {
        self.core.framing_bytes()
    }

    fn can_be_left(&self, _queue: u16, request: &Request) -> bool {
        self.core.can_be_left(request)
    }

    fn refuse(&self, _queue: u16, request: &Request) -> u32 {
        self.core.refuse(request)
    }

    fn handle(&self, queue: u16, batch: &mut Batch) {
        let requests = batch.len();
        match self.batch_sizes.get(usize::from(queue)) {
            // A single request holds up no other: the clock is not asked.
            Some(batch_size) if requests > 1 || batch_size.limit() < u16::MAX => {
                let start = Instant::now();
                self.serve(batch);
                batch_size.took(requests, start.elapsed());
            }
            _ => self.serve(batch),
        }
    }
}
