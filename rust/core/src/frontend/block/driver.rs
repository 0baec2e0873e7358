//! A disk at the other end of a socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::BackendEvent;
use super::super::client::Client;
use super::super::error::{FrontendError, Result};
use super::super::log::DirtyLog;
use super::super::memory::GuestMemory;
use super::super::messages::{Negotiated, Wanted};
use super::super::ring::RingFeatures;
use super::super::xen::XenMemory;
use super::mappings::{self, Mappings};
use super::options::{check_queues, wanted};
use super::queue::QueueLayout;
use super::record::Record;
use super::{BlockConfig, BlockOptions, BlockQueue, feature};
use crate::address::GuestAddr;
use crate::socket::{Stream, settled};
use crate::wire::{ProtocolFeatures, features};

/// Offset of the `writeback` field in the configuration space.
const WRITEBACK: u32 = 32;
/// Device status when the driver is ready: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
const STATUS_STEPS: [u8; 4] = [0x01, 0x03, 0x0b, 0x0f];

/// A disk at the other end of a socket. Dropping it closes the connection.
#[derive(Debug)]
pub struct BlockDriver {
    pub(super) path: Option<PathBuf>,
    pub(super) options: BlockOptions,
    pub(super) client: Client,
    pub(super) memory: Arc<GuestMemory>,
    /// How the back-end is told of it, on Xen.
    xen: Option<Arc<XenMemory>>,
    pub(super) negotiated: Negotiated,
    pub(super) config: BlockConfig,
    pub(super) queues: Vec<BlockQueue>,
    /// What is in flight, for the back-end that comes after this one.
    pub(super) record: Option<Record>,
    pub(super) next_queue: usize,
    /// The seed of the load pattern that the whole disk holds, as far as this driver knows.
    pub(super) pattern: Option<u64>,
    /// What the back-end writes is noted there.
    pub(super) log: Option<DirtyLog>,
    pub(super) is_stopped: bool,
    /// The device is behind an IOMMU.
    pub(super) behind: Option<Mappings>,
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
            if let BackendEvent::IotlbMiss(miss) = event {
                self.answer_miss(miss)?;
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
                if self.completed(index)?.is_none() {
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
        mappings::check(options.iommu, xen.is_some())?;
        if options.iommu && negotiated.features & features::ACCESS_PLATFORM == 0 {
            return Err(FrontendError::NotOffered { what: "ACCESS_PLATFORM" });
        }
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
        let behind = mappings::mappings(options.iommu, &memory, &queues);
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
            behind,
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
        self.tell_if_open()?;
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
            let ring = self.described(queue);
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
            let ring = self.described(queue);
            self.client.log_ring(index, ring, self.log.is_some())?;
        }
        Ok(())
    }

    /// What the driver asks of every back-end that it meets.
    pub(super) fn wanted(&self) -> Wanted {
        wanted(&self.options, self.xen.is_some())
    }

    pub(super) fn need(&self, feature: u64, what: &'static str) -> Result<()> {
        let met = self.negotiated.features & feature != 0;
        if met { Ok(()) } else { Err(FrontendError::NotOffered { what }) }
    }
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
            shift: if options.iommu { mappings::STANDING } else { 0 },
        };
        BlockQueue::new(memory, &layout)
    };
    (0..u64::from(options.num_queues)).map(queue).collect()
}
