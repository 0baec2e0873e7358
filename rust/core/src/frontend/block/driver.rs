//! A disk at the other end of a socket.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::BackendEvent;
use super::super::client::Client;
use super::super::error::{BlockStatus, FrontendError, Result};
use super::super::log::DirtyLog;
use super::super::memory::GuestMemory;
use super::super::messages::{IMPLEMENTED, Negotiated, VringDescription, Wanted};
use super::super::ring::RingFeatures;
use super::super::xen::XenMemory;
use super::queue::QueueLayout;
use super::record::Record;
use super::{BlockConfig, BlockQueue, BlockRequest, Completion, Op, SECTOR, feature};
use crate::address::GuestAddr;
use crate::error::HostError;
use crate::socket::{Stream, settled};
use crate::sys::interrupt;
use crate::wire::{ProtocolFeatures, features};

/// Offset of the `writeback` field in the configuration space.
const WRITEBACK: u32 = 32;
/// Bytes of a device's name.
const ID_LEN: u32 = 20;
/// Sectors that a segment of a discard or of a write of zeroes can have: its length is 32 bits.
const MAX_SEGMENT_SECTORS: u32 = u32::MAX;
/// Device status when the driver is ready: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
const STATUS_STEPS: [u8; 4] = [0x01, 0x03, 0x0b, 0x0f];

/// How to drive a disk.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Queues to use.
    pub num_queues: u16,
    /// Entries of each ring: a power of two, but for packed rings.
    pub queue_size: u16,
    /// Bytes of the longest request; longer reads and writes are cut.
    pub request_bytes: u32,
    /// Use indirect descriptors if the device offers them.
    pub indirect: bool,
    /// Use the event index if the device offers it.
    pub event_idx: bool,
    /// Have packed rings, and fail if the device does not offer them; else split ones.
    pub packed: bool,
    /// Have the device use requests in order, and fail if it does not offer that.
    pub in_order: bool,
    /// Keep a record of the requests in flight (INFLIGHT_SHMFD), and fail if the back-end does not
    /// offer that. When the back-end is gone in the middle of requests, the driver then connects
    /// again, within `timeout`, and the next one finishes them.
    pub inflight: bool,
    /// Have the back-end note in a dirty log what it writes to guest memory, as while a guest
    /// moves, and fail if it does not offer that.
    pub dirty_log: bool,
    /// Block features to accept if offered.
    pub features: u64,
    /// Protocol features to accept if offered.
    pub protocol: ProtocolFeatures,
    /// How long the socket, each reply and each request may take.
    pub timeout: Duration,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            num_queues: 1,
            queue_size: 128,
            request_bytes: 128 << 10,
            indirect: true,
            event_idx: true,
            packed: false,
            in_order: false,
            inflight: false,
            dirty_log: false,
            features: feature::ALL,
            protocol: IMPLEMENTED,
            timeout: Duration::from_secs(5),
        }
    }
}

/// A disk at the other end of a socket. Dropping it closes the connection.
#[derive(Debug)]
pub struct BlockDriver {
    pub(super) path: Option<PathBuf>,
    pub(super) options: BlockOptions,
    pub(super) client: Client,
    memory: Arc<GuestMemory>,
    /// How the back-end is told of it, on Xen.
    xen: Option<Arc<XenMemory>>,
    pub(super) negotiated: Negotiated,
    pub(super) config: BlockConfig,
    pub(super) queues: Vec<BlockQueue>,
    /// What is in flight, for the back-end that comes after this one.
    pub(super) record: Option<Record>,
    next_queue: usize,
    /// The seed of the load pattern that the whole disk holds, as far as this driver knows.
    pattern: Option<u64>,
    /// What the back-end writes is noted there.
    pub(super) log: Option<DirtyLog>,
    pub(super) is_stopped: bool,
}

/// A piece of a longer request, or a whole one.
struct Piece {
    request: BlockRequest,
    /// Where its data are in the caller's.
    at: usize,
}

impl BlockDriver {
    /// Connects to a back-end that may not listen yet and starts its queues.
    pub fn connect(path: &Path, options: BlockOptions) -> Result<Self> {
        Self::dial(path, options, None)
    }

    /// Takes a connected socket and starts the back-end's queues.
    pub fn from_stream(stream: Stream, options: BlockOptions) -> Result<Self> {
        Self::start(Client::from_stream(stream, options.timeout), options, None)
    }

    /// As [`connect`](Self::connect), with its rings and buffers in a Xen domain's memory.
    /// `options.memory` says how much of it, from the first region on.
    pub fn connect_xen(path: &Path, options: BlockOptions, memory: XenMemory) -> Result<Self> {
        Self::dial(path, options, Some(Arc::new(memory)))
    }

    /// As [`from_stream`](Self::from_stream), with a Xen domain's memory.
    pub fn xen_from_stream(
        stream: Stream,
        options: BlockOptions,
        memory: XenMemory,
    ) -> Result<Self> {
        let client = Client::from_stream(stream, options.timeout);
        Self::start(client, options, Some(Arc::new(memory)))
    }

    /// Reads from the disk. Offset and length are multiples of 512.
    pub fn pread(&mut self, out: &mut [u8], offset: u64) -> Result<()> {
        let pieces = self.pieces(Op::Read, offset, out.len())?;
        self.run(
            pieces,
            |_, _, _| (),
            |queue, slot, piece| {
                queue.read_data(slot, &mut out[piece.at..][..piece.request.len as usize]);
            },
        )
    }

    /// Writes to the disk. Offset and length are multiples of 512.
    pub fn pwrite(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let pieces = self.pieces(Op::Write, offset, data.len())?;
        self.pattern = None;
        self.run(
            pieces,
            |queue, slot, piece| {
                queue.write_data(slot, &data[piece.at..][..piece.request.len as usize]);
            },
            |_, _, _| (),
        )
    }

    /// As [`pwrite`](Self::pwrite), of `len` bytes that others may change meanwhile: `copy` fills
    /// memory of our own with what is at a place in them.
    pub fn pwrite_with(
        &mut self,
        len: usize,
        offset: u64,
        mut copy: impl FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        let pieces = self.pieces(Op::Write, offset, len)?;
        self.pattern = None;
        let mut own = Vec::new();
        self.run(
            pieces,
            |queue, slot, piece| {
                own.resize(piece.request.len as usize, 0);
                copy(piece.at, &mut own);
                queue.write_data(slot, &own);
            },
            |_, _, _| (),
        )
    }

    /// Makes all completed writes durable.
    pub fn flush(&mut self) -> Result<()> {
        self.need(feature::FLUSH, "FLUSH")?;
        self.one(Op::Flush, 0, &[], &mut [])
    }

    /// Tells the device that a range is not needed any more. Offset and length are multiples
    /// of 512.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.need(feature::DISCARD, "DISCARD")?;
        self.pattern = None;
        self.segments(Op::Discard, offset, len, self.config.max_discard_sectors, 0)
    }

    /// Sets a range to zero; with `unmap` the device may forget it. Offset and length are
    /// multiples of 512.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.need(feature::WRITE_ZEROES, "WRITE_ZEROES")?;
        self.pattern = None;
        let most = self.config.max_write_zeroes_sectors;
        self.segments(Op::WriteZeroes, offset, len, most, unmap.into())
    }

    /// The device's name, without the padding.
    pub fn id(&mut self) -> Result<String> {
        let mut id = [0; ID_LEN as usize];
        self.one(Op::GetId, 0, &[], &mut id)?;
        let name = id.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Runs one request as it is, with `data` for the device to read and `out` for what it
    /// writes. At most one of them is used, as the kind of request says.
    pub fn one(&mut self, op: Op, sector: u64, data: &[u8], out: &mut [u8]) -> Result<()> {
        let len = data.len().max(out.len());
        let request = BlockRequest { op, sector, len: self.check_len(len)? };
        self.run(
            std::iter::once(Piece { request, at: 0 }),
            |queue, slot, _| queue.write_data(slot, data),
            |queue, slot, _| queue.read_data(slot, out),
        )
    }

    /// Turns the device's write cache on or off.
    pub fn set_writeback(&mut self, writeback: bool) -> Result<()> {
        self.need(feature::CONFIG_WCE, "CONFIG_WCE")?;
        self.client.set_config(WRITEBACK, &[writeback.into()], 0)?;
        self.config.writeback = Some(writeback);
        Ok(())
    }

    /// Waits until the device says that its configuration space changed, and reads it again.
    /// `false`: it did not within `timeout`.
    pub fn wait_config_change(&mut self, timeout: Duration) -> Result<bool> {
        let until = Instant::now() + timeout;
        while let Some(event) =
            self.client.wait_event(until.saturating_duration_since(Instant::now()))?
        {
            if event == BackendEvent::ConfigChange {
                let bytes = self.client.config(0, BlockConfig::LEN)?;
                self.config = BlockConfig::new(&bytes, self.negotiated.features);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Connects again to the same path, as after a restart of the back-end. With a record of the
    /// requests in flight the driver goes on as it is, and the back-end finishes them. Without one
    /// it begins anew: new memory unless it is a Xen domain's, fresh rings, and what was in flight
    /// is lost.
    ///
    /// # Errors
    /// A connection that was handed over cannot be made again.
    pub fn reconnect(&mut self) -> Result<()> {
        let path = self.path.clone().ok_or_else(|| {
            FrontendError::range("a connection that was handed over cannot be made again")
        })?;
        self.hang_up(&path)?;
        if self.record.is_some() {
            return self.resume();
        }
        let pattern = self.pattern;
        let driver = Self::dial(&path, self.options.clone(), self.xen.clone())?;
        *self = Self { pattern, ..driver };
        Ok(())
    }

    /// Whether nothing is left over of a call that was given up: a request in flight, or a message
    /// without its reply. Such a driver is used on as any other, but does not [stop](Self::stop)
    /// before the back-end is done with that.
    pub fn is_settled(&self) -> bool {
        self.client.is_settled() && self.queues.iter().all(|queue| queue.in_flight() == 0)
    }

    /// Waits for the requests that were in flight when a call was given up. Those that came after
    /// them could otherwise be carried out first.
    ///
    /// # Errors
    /// The device does not answer, or the queues are stopped.
    pub fn settle(&mut self) -> Result<()> {
        if self.is_stopped {
            return Err(FrontendError::range("the queues are stopped: start them first"));
        }
        for index in 0..self.queues.len() {
            while self.queues[index].in_flight() != 0 {
                // What the answers say concerns nobody any more.
                if self.queues[index].completed()?.is_none() {
                    self.wait(index)?;
                }
            }
        }
        Ok(())
    }

    /// Disables and stops all queues, as a driver does before it goes away. Returns where each
    /// of them stood.
    pub fn stop(&mut self) -> Result<Vec<u32>> {
        let bases = self.stop_rings()?;
        if self.negotiated.protocol.contains(ProtocolFeatures::STATUS) {
            self.client.set_status(0)?;
        }
        Ok(bases)
    }

    pub(super) fn stop_rings(&mut self) -> Result<Vec<u32>> {
        let indexes = 0..self.queues.len() as u32;
        if self.negotiated.features & features::PROTOCOL_FEATURES != 0 {
            indexes.clone().try_for_each(|i| self.client.set_vring_enable(i, false))?;
        }
        indexes.map(|i| self.client.vring_base(i)).collect()
    }

    /// Stops all queues as a machine does that pauses, has `work` done, and starts them again where
    /// they stood.
    ///
    /// # Errors
    /// Those of `work`, or the back-end does not do it.
    pub fn paused<T>(&mut self, work: impl FnOnce(&mut Client) -> Result<T>) -> Result<T> {
        if self.is_stopped {
            return work(&mut self.client);
        }
        self.settle()?;
        self.stop_rings()?;
        let done = work(&mut self.client);
        self.start_rings()?;
        self.kick_all();
        done
    }

    /// The control connection.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The queues, and the control connection that says whether the back-end lives.
    pub fn queues(&mut self) -> (&mut [BlockQueue], &Client) {
        (&mut self.queues, &self.client)
    }

    /// The log in which the back-end notes what it writes, if there is to be one.
    pub fn dirty_log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    /// Guest memory. The driver uses it from its first address on.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.config.size()
    }

    /// Whether the device takes no writes.
    pub fn read_only(&self) -> bool {
        self.negotiated.features & feature::RO != 0
    }

    /// The seed of the load pattern that the whole disk holds: this driver has prepared it, and has
    /// written nothing else since.
    pub fn pattern(&self) -> Option<u64> {
        self.pattern
    }

    /// Notes that the whole disk holds the load pattern of this seed, or that it no longer does.
    pub(in super::super) fn set_pattern(&mut self, seed: Option<u64>) {
        self.pattern = seed;
    }

    /// The configuration space as last read.
    pub fn config(&self) -> &BlockConfig {
        &self.config
    }

    /// What was negotiated.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// What the driver was made with.
    pub fn options(&self) -> &BlockOptions {
        &self.options
    }

    fn dial(path: &Path, options: BlockOptions, xen: Option<Arc<XenMemory>>) -> Result<Self> {
        let client = Client::connect(path, options.timeout)?;
        Ok(Self { path: Some(settled(path)), ..Self::start(client, options, xen)? })
    }

    fn start(
        mut client: Client,
        options: BlockOptions,
        xen: Option<Arc<XenMemory>>,
    ) -> Result<Self> {
        let negotiated = client.negotiate(&wanted(&options, xen.is_some()))?;
        negotiated.need_ring_features(options.packed, options.in_order)?;
        if options.dirty_log && negotiated.offered & features::LOG_ALL == 0 {
            return Err(FrontendError::NotOffered { what: "LOG_ALL" });
        }
        if xen.is_some() {
            client.need_xen()?;
        }
        let bytes = client.config(0, BlockConfig::LEN)?;
        let config = BlockConfig::new(&bytes, negotiated.features);
        check_queues(&options, &negotiated, &config)?;
        client.set_features(negotiated.features)?;
        let record = options
            .inflight
            .then(|| Record::new(&mut client, options.num_queues, options.queue_size))
            .transpose()?;
        let memory = match &xen {
            Some(xen) => Arc::clone(&xen.memory),
            None => Arc::new(GuestMemory::with_size(options.memory)?),
        };
        let log = options.dirty_log.then(|| DirtyLog::of(&memory)).transpose()?;
        let queues = lay_out(&memory, &options, &negotiated, &config)?;
        let mut driver = Self {
            path: None,
            options,
            client,
            memory,
            xen,
            negotiated,
            config,
            queues,
            record,
            log,
            next_queue: 0,
            pattern: None,
            is_stopped: false,
        };
        driver.start_all()?;
        Ok(driver)
    }

    /// From the features on: memory, rings, enable, DRIVER_OK, and one kick for each ring, since
    /// some back-ends start a ring at its first kick only.
    pub(super) fn start_all(&mut self) -> Result<()> {
        let status = self.negotiated.protocol.contains(ProtocolFeatures::STATUS);
        let [before @ .., driver_ok] = STATUS_STEPS;
        if status {
            before.iter().try_for_each(|&step| self.client.set_status(step))?;
        }
        if let Some(record) = &self.record {
            record.give(&mut self.client)?;
        }
        match &self.xen {
            Some(xen) => self.client.set_xen_memory(xen)?,
            None => self.client.set_memory(&self.memory)?,
        }
        self.start_rings()?;
        if status {
            self.client.set_status(driver_ok)?;
        }
        self.start_logging()?;
        self.kick_all();
        Ok(())
    }

    /// Starts the rings where they stand.
    pub(super) fn start_rings(&mut self) -> Result<()> {
        for (index, queue) in (0..).zip(&self.queues) {
            let ring = VringDescription::from(queue.ring());
            self.client.start_ring(index, ring.logged(self.log.is_some()))?;
        }
        if self.negotiated.features & features::PROTOCOL_FEATURES != 0 {
            let mut indexes = 0..self.queues.len() as u32;
            indexes.try_for_each(|i| self.client.set_vring_enable(i, true))?;
        }
        Ok(())
    }

    /// Has the back-end use the log, if there is one. As QEMU does when a guest begins to move: the
    /// log, then the feature, then each ring.
    pub(super) fn start_logging(&mut self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        self.client.set_log(log)?;
        self.client.set_features(self.negotiated.features | features::LOG_ALL)?;
        self.log_rings()
    }

    pub(super) fn kick_all(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.ring_mut().kick());
    }

    /// Has writes to the rings noted if there is a log, or no more.
    pub(super) fn log_rings(&mut self) -> Result<()> {
        for (index, queue) in (0..).zip(&self.queues) {
            self.client.log_ring(index, queue.ring(), self.log.is_some())?;
        }
        Ok(())
    }

    /// Runs requests on one queue, as many at once as fit; `fill` before each is submitted,
    /// `drain` after each has succeeded. Each call takes the next queue.
    ///
    /// After a request that failed no more are submitted; those in flight are waited for, so that
    /// the driver stays usable. The first failure is returned. A call that is given up leaves them
    /// in flight.
    fn run(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        mut fill: impl FnMut(&BlockQueue, u16, &Piece),
        mut drain: impl FnMut(&BlockQueue, u16, &Piece),
    ) -> Result<()> {
        self.settle()?;
        let index = self.next_queue;
        self.next_queue = (index + 1) % self.queues.len();
        let mut pieces = pieces.into_iter().peekable();
        let slots = self.queues[index].slots();
        let mut placed: Vec<Option<Piece>> = (0..slots).map(|_| None).collect();
        let mut failure = None;
        loop {
            let queue = &mut self.queues[index];
            while failure.is_none() && pieces.peek().is_some() {
                let Some(slot) = queue.take_slot() else { break };
                let Some(piece) = pieces.next() else { break };
                fill(queue, slot, &piece);
                queue.submit(slot, piece.request);
                placed[usize::from(slot)] = Some(piece);
            }
            queue.publish();
            if queue.in_flight() == 0 {
                return failure.map_or(Ok(()), Err);
            }
            self.wait(index)?;
            interrupt::ask_at_times().map_err(|e| HostError::new("wait for a call", e))?;
            let queue = &mut self.queues[index];
            while let Some(done) = queue.completed()? {
                let piece = placed[usize::from(done.slot)].take();
                match (judge(&done), piece) {
                    (Ok(()), Some(piece)) => drain(queue, done.slot, &piece),
                    (Ok(()), None) => {}
                    (Err(error), _) => failure = failure.or(Some(error)),
                }
            }
        }
    }

    /// Waits for an answer on a queue, or until the next back-end has taken over.
    fn wait(&mut self, index: usize) -> Result<()> {
        let timeout = self.options.timeout;
        match self.queues[index].ring_mut().wait(timeout, self.client.as_fd()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(FrontendError::TimedOut { message: "requests", timeout }),
            Err(error) if self.can_resume(&error) => self.resume(),
            Err(error) => Err(error),
        }
    }

    /// What the driver asks of every back-end that it meets.
    pub(super) fn wanted(&self) -> Wanted {
        wanted(&self.options, self.xen.is_some())
    }

    /// Cuts a read or a write into requests.
    fn pieces(
        &self,
        op: Op,
        offset: u64,
        len: usize,
    ) -> Result<impl Iterator<Item = Piece> + use<>> {
        check_sectors(op, offset, len as u64)?;
        let longest = self.longest_request() as usize;
        Ok((0..len).step_by(longest).map(move |at| {
            let len = longest.min(len - at) as u32;
            Piece { request: BlockRequest { op, sector: (offset + at as u64) / SECTOR, len }, at }
        }))
    }

    /// A discard or a write of zeroes: requests of one segment each.
    fn segments(
        &mut self,
        op: Op,
        offset: u64,
        len: u64,
        most: Option<u32>,
        flags: u32,
    ) -> Result<()> {
        check_sectors(op, offset, len)?;
        // 0 is what a device says that sets no limit (and one that cannot: it will refuse).
        let most = most.filter(|&most| most != 0).unwrap_or(MAX_SEGMENT_SECTORS);
        let (mut sector, end) = (offset / SECTOR, (offset + len) / SECTOR);
        while sector < end {
            let count = u64::from(most).min(end - sector) as u32;
            let mut segment = [0; 16];
            segment[..8].copy_from_slice(&sector.to_le_bytes());
            segment[8..12].copy_from_slice(&count.to_le_bytes());
            segment[12..].copy_from_slice(&flags.to_le_bytes());
            self.one(op, 0, &segment, &mut [])?;
            sector += u64::from(count);
        }
        Ok(())
    }

    fn longest_request(&self) -> u32 {
        let slot = self.queues.iter().map(BlockQueue::slot_bytes).min().unwrap_or(0);
        let longest = self.config.size_max.filter(|&max| max != 0).unwrap_or(u32::MAX).min(slot);
        (longest / SECTOR as u32 * SECTOR as u32).max(SECTOR as u32)
    }

    fn check_len(&self, len: usize) -> Result<u32> {
        let most = self.queues.first().map_or(0, BlockQueue::slot_bytes);
        u32::try_from(len).ok().filter(|&len| len <= most).ok_or_else(|| {
            FrontendError::range(format!("a request of {len} bytes, {most} is the limit"))
        })
    }

    fn need(&self, feature: u64, what: &'static str) -> Result<()> {
        let met = self.negotiated.features & feature != 0;
        if met { Ok(()) } else { Err(FrontendError::NotOffered { what }) }
    }
}

fn judge(done: &Completion) -> Result<()> {
    BlockStatus::check(done.status).map_err(|status| FrontendError::Request {
        op: done.request.op.name(),
        offset: done.request.sector.saturating_mul(SECTOR),
        status,
    })
}

/// Offsets and lengths are whole sectors. Whether they lie on the disk is for the device to say.
fn check_sectors(op: Op, offset: u64, len: u64) -> Result<()> {
    if !offset.is_multiple_of(SECTOR)
        || !len.is_multiple_of(SECTOR)
        || offset.checked_add(len).is_none()
    {
        let why = format!("{} of {len} bytes at {offset}: not whole sectors", op.name());
        return Err(FrontendError::range(why));
    }
    Ok(())
}

/// What a driver with these options asks of a back-end.
fn wanted(options: &BlockOptions, on_xen: bool) -> Wanted {
    let bit = |is_wanted: bool, bit| if is_wanted { bit } else { 0 };
    let features = options.features & feature::ALL
        | bit(options.indirect, features::INDIRECT_DESC)
        | bit(options.event_idx, features::EVENT_IDX);
    let mut protocol = options.protocol;
    if on_xen {
        protocol |= ProtocolFeatures::XEN_MMAP;
    }
    if options.inflight {
        protocol |= ProtocolFeatures::INFLIGHT_SHMFD;
    }
    Wanted { features, protocol }.with_rings(options.packed, options.in_order)
}

fn check_queues(
    options: &BlockOptions,
    negotiated: &Negotiated,
    config: &BlockConfig,
) -> Result<()> {
    let known = [negotiated.num_queues, config.num_queues.map(u64::from)];
    let most = known.into_iter().flatten().min().unwrap_or(1);
    let asked = options.num_queues;
    if asked == 0 || u64::from(asked) > most {
        return Err(FrontendError::range(format!("{asked} queues asked of a device with {most}")));
    }
    Ok(())
}

/// Shares guest memory out among the queues.
fn lay_out(
    memory: &Arc<GuestMemory>,
    options: &BlockOptions,
    negotiated: &Negotiated,
    config: &BlockConfig,
) -> Result<Vec<BlockQueue>> {
    let first = memory.regions().first().map_or(0, |region| region.guest().0);
    let share = options.memory / u64::from(options.num_queues) / 4096 * 4096;
    // A device that limits segments is given shorter requests.
    let size_max = config.size_max.filter(|&max| max != 0).unwrap_or(u32::MAX);
    let queue = |index: u64| {
        let layout = QueueLayout {
            size: options.queue_size,
            indirect: negotiated.features & features::INDIRECT_DESC != 0,
            features: RingFeatures {
                packed: negotiated.features & features::RING_PACKED != 0,
                in_order: negotiated.features & features::IN_ORDER != 0,
                event_idx: negotiated.features & features::EVENT_IDX != 0,
            },
            start: GuestAddr(first + index * share),
            end: GuestAddr(first + (index + 1) * share),
            request_bytes: options.request_bytes.min(size_max),
        };
        BlockQueue::new(memory, &layout)
    };
    (0..u64::from(options.num_queues)).map(queue).collect()
}
