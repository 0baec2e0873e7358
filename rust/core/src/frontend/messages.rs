//! The messages of a front-end, one method each, and the sequences that every back-end takes.
//!
//! A method returns when the back-end has acknowledged the message, if REPLY_ACK was accepted,
//! or else when it was sent. A message whose protocol feature was not accepted is not sent:
//! [`FrontendError::NotOffered`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::channel::Channel;
use super::client::{Client, copy, read};
use super::error::{FrontendError, Result};
use super::memory::{GuestMemory, Region};
use super::packed::PackedRing;
use super::ring::Ring;
use super::split::SplitRing;
use crate::address::{GuestAddr, Iova, UserAddr};
use crate::socket::Stream;
use crate::wire::FrontendMessage as M;
use crate::wire::payload::{
    self, Config, Inflight, MemoryTable, SingleRegion, VringAddress, VringFd, VringState,
};
use crate::wire::{Payload, ProtocolFeatures, RegionLayout, features};

/// Protocol features that this front-end can carry out.
pub const IMPLEMENTED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::DEVICE_STATE);

/// These are carried out too, but only for who asks for them: XEN_MMAP changes what regions look like,
/// a record of requests in flight is of use to who keeps it, pages come later from who brings them, and
/// with GPA_ADDRESSES memory must be [`with_guest_addresses`](GuestMemory::with_guest_addresses).
const ON_REQUEST: ProtocolFeatures = ProtocolFeatures::XEN_MMAP
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
    .union(ProtocolFeatures::PAGEFAULT)
    .union(ProtocolFeatures::GPA_ADDRESSES);

/// Features to accept if the back-end offers them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Virtio and vhost bits. VERSION_1 and bit 30 are always wanted.
    pub features: u64,
    /// Protocol features; those that are neither [`IMPLEMENTED`] nor known otherwise are
    /// never accepted.
    pub protocol: ProtocolFeatures,
}

/// What a back-end offered and what was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Virtio and vhost bits offered.
    pub offered: u64,
    /// Those of them that were wanted: to be passed to [`Client::set_features`].
    pub features: u64,
    /// Protocol features offered.
    pub offered_protocol: ProtocolFeatures,
    /// Protocol features accepted.
    pub protocol: ProtocolFeatures,
    /// Virtqueues that the back-end has; `None` if it cannot say (no MQ). Of a network device most
    /// back-ends count pairs of them, DPDK's and this crate's among them.
    pub num_queues: Option<u64>,
    /// Memory regions that it takes one by one; `None` without CONFIGURE_MEM_SLOTS.
    pub max_mem_slots: Option<u64>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { features: features::EVENT_IDX | features::INDIRECT_DESC, protocol: IMPLEMENTED }
    }
}

impl Wanted {
    /// The default, and XEN_MMAP.
    pub fn on_xen() -> Self {
        Self { protocol: IMPLEMENTED | ProtocolFeatures::XEN_MMAP, ..Self::default() }
    }

    /// The same, and the features that change the form of the rings.
    pub fn with_rings(self, packed: bool, in_order: bool) -> Self {
        let packed = if packed { features::RING_PACKED } else { 0 };
        let in_order = if in_order { features::IN_ORDER } else { 0 };
        Self { features: self.features | packed | in_order, ..self }
    }
}

impl Negotiated {
    /// Fails if a feature that changes the form of the rings is wanted and was not offered.
    pub fn need_ring_features(&self, packed: bool, in_order: bool) -> Result<()> {
        let wanted = [
            (packed, features::RING_PACKED, "RING_PACKED"),
            (in_order, features::IN_ORDER, "IN_ORDER"),
        ];
        let is_missing = |(wanted, bit, _): &(bool, u64, _)| *wanted && self.features & bit == 0;
        match wanted.into_iter().find(is_missing) {
            Some((_, _, what)) => Err(FrontendError::NotOffered { what }),
            None => Ok(()),
        }
    }
}

impl Client {
    /// Everything from GET_FEATURES to SET_OWNER. Next come the configuration space, if the
    /// device has one, and [`set_features`](Self::set_features); then memory and rings.
    ///
    /// Of the orders that are in use this is the one that every known back-end takes.
    pub fn negotiate(&mut self, wanted: &Wanted) -> Result<Negotiated> {
        let offered = self.features()?;
        if offered & features::VERSION_1 == 0 {
            return Err(FrontendError::NotOffered { what: "VERSION_1" });
        }
        let wanted_features = wanted.features | features::VERSION_1 | features::PROTOCOL_FEATURES;
        let mut offered_protocol = ProtocolFeatures::empty();
        if offered & features::PROTOCOL_FEATURES != 0 {
            offered_protocol = self.protocol_features()?;
            let known = IMPLEMENTED | ON_REQUEST;
            self.set_protocol_features(offered_protocol & wanted.protocol & known)?;
        }
        let accepted = self.protocol;
        let num_queues =
            accepted.contains(ProtocolFeatures::MQ).then(|| self.queue_num()).transpose()?;
        let max_mem_slots = accepted
            .contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
            .then(|| self.max_mem_slots())
            .transpose()?;
        if accepted.contains(ProtocolFeatures::BACKEND_REQ) {
            self.open_backend_channel()?;
        }
        self.set_owner()?;
        Ok(Negotiated {
            offered,
            features: offered & wanted_features,
            offered_protocol,
            protocol: accepted,
            num_queues,
            max_mem_slots,
        })
    }

    /// Gives the back-end all of guest memory: region by region if CONFIGURE_MEM_SLOTS was
    /// accepted, else in one table.
    pub fn set_memory(&mut self, memory: &GuestMemory) -> Result<()> {
        if !self.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return self.set_memory_table(memory);
        }
        memory.regions().iter().try_for_each(|region| self.add_region(region))
    }

    /// Describes a ring to the back-end and starts it, at the ring's own position. It is still
    /// to be enabled, and kicked once after that.
    pub fn start_ring<'a>(
        &mut self,
        index: u32,
        ring: impl Into<VringDescription<'a>>,
    ) -> Result<()> {
        let ring = ring.into();
        self.set_vring_num(index, ring.size.into())?;
        self.set_vring_base(index, ring.base)?;
        self.set_vring_addr(&ring.addresses(index))?;
        self.set_vring_err(index, Some(ring.error))?;
        self.set_vring_call(index, Some(ring.call))?;
        self.set_vring_kick(index, Some(ring.kick))
    }

    /// A region as it is told: with GPA_ADDRESSES it has no address of the front-end's, as with
    /// QEMU.
    fn describe(&self, region: &Region) -> payload::Region {
        let mut told = region.description();
        if self.protocol.contains(ProtocolFeatures::GPA_ADDRESSES) {
            told.user = UserAddr(0);
        }
        told
    }

    /// GET_FEATURES.
    pub fn features(&mut self) -> Result<u64> {
        self.offered = self.ask_for(M::GetFeatures, Vec::new())?;
        Ok(self.offered)
    }

    /// SET_FEATURES.
    pub fn set_features(&mut self, features: u64) -> Result<()> {
        self.tell(M::SetFeatures, features.to_bytes(), Vec::new())
    }

    /// GET_PROTOCOL_FEATURES.
    pub fn protocol_features(&mut self) -> Result<ProtocolFeatures> {
        self.ask_for(M::GetProtocolFeatures, Vec::new()).map(ProtocolFeatures::from_bits_retain)
    }

    /// SET_PROTOCOL_FEATURES.
    pub fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<()> {
        self.tell(M::SetProtocolFeatures, features.bits().to_bytes(), Vec::new())?;
        self.protocol = features;
        Ok(())
    }

    /// SET_OWNER.
    pub fn set_owner(&mut self) -> Result<()> {
        self.tell(M::SetOwner, Vec::new(), Vec::new())
    }

    /// RESET_OWNER.
    pub fn reset_owner(&mut self) -> Result<()> {
        self.tell(M::ResetOwner, Vec::new(), Vec::new())
    }

    /// RESET_DEVICE.
    pub fn reset_device(&mut self) -> Result<()> {
        self.tell(M::ResetDevice, Vec::new(), Vec::new())
    }

    /// GET_QUEUE_NUM: how many virtqueues the back-end has.
    pub fn queue_num(&mut self) -> Result<u64> {
        self.ask_for(M::GetQueueNum, Vec::new())
    }

    /// GET_MAX_MEM_SLOTS: how many regions the back-end takes.
    pub fn max_mem_slots(&mut self) -> Result<u64> {
        self.ask_for(M::GetMaxMemSlots, Vec::new())
    }

    /// SET_BACKEND_REQ_FD: opens a new channel for the back-end's requests.
    pub fn open_backend_channel(&mut self) -> Result<()> {
        let failed = |source| FrontendError::Socket { message: "SET_BACKEND_REQ_FD", source };
        let (ours, theirs) = Stream::pair().map_err(failed)?;
        let theirs = copy(theirs.as_fd())?;
        // Open before it is announced: the back-end may use it before it acknowledges.
        self.channel = Channel::open(ours);
        self.tell(M::SetBackendReqFd, Vec::new(), vec![theirs])
    }

    /// GET_CONFIG: `len` bytes of the configuration space from `offset`.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let message = M::GetConfig.name();
        let request = Config { offset, flags: 0, data: vec![0; len as usize] };
        let reply = self.ask(M::GetConfig, request.to_bytes())?;
        // An error is no payload, or (rust-vmm) one without data.
        if reply.payload.len() <= Config::HEADER_LEN && len != 0 {
            return Err(FrontendError::Refused { message, code: 1 });
        }
        let config: Config = read(M::GetConfig, &reply.payload)?;
        if config.data.len() != len as usize {
            let why = format!("{} bytes instead of {len}", config.data.len());
            return Err(FrontendError::BadReply { message, why });
        }
        Ok(config.data)
    }

    /// SET_CONFIG. `flags`: 0 for a driver's write, 1 for a migration's.
    pub fn set_config(&mut self, offset: u32, data: &[u8], flags: u32) -> Result<()> {
        let config = Config { offset, flags, data: data.to_vec() };
        self.tell(M::SetConfig, config.to_bytes(), Vec::new())
    }

    /// SET_MEM_TABLE: replaces all of guest memory.
    pub fn set_memory_table(&mut self, memory: &GuestMemory) -> Result<()> {
        let regions = memory.regions();
        let regions_told = regions.iter().map(|region| self.describe(region)).collect();
        let table = MemoryTable { regions: regions_told };
        let fds = regions.iter().map(|region| copy(region.as_fd())).collect::<Result<_>>()?;
        self.tell(M::SetMemTable, table.to_bytes(RegionLayout::Plain), fds)
    }

    /// ADD_MEM_REG.
    pub fn add_region(&mut self, region: &Region) -> Result<()> {
        let payload = SingleRegion(self.describe(region)).to_bytes(RegionLayout::Plain);
        self.tell(M::AddMemReg, payload, vec![copy(region.as_fd())?])
    }

    /// REM_MEM_REG.
    pub fn remove_region(&mut self, region: &Region) -> Result<()> {
        let payload = SingleRegion(self.describe(region)).to_bytes(RegionLayout::Plain);
        self.tell(M::RemMemReg, payload, Vec::new())
    }

    /// SET_VRING_NUM: the ring's entries.
    pub fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.tell(M::SetVringNum, VringState { index, num }.to_bytes(), Vec::new())
    }

    /// SET_VRING_BASE: where in the available ring to begin.
    pub fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.tell(M::SetVringBase, VringState { index, num: base }.to_bytes(), Vec::new())
    }

    /// SET_VRING_ADDR.
    pub fn set_vring_addr(&mut self, address: &VringAddress) -> Result<()> {
        self.tell(M::SetVringAddr, address.to_bytes(), Vec::new())
    }

    /// SET_VRING_KICK, which starts the ring. `None`: the back-end is to poll.
    pub fn set_vring_kick(&mut self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_vring_fd(M::SetVringKick, index, fd)
    }

    /// SET_VRING_CALL. `None`: no notification wanted.
    pub fn set_vring_call(&mut self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_vring_fd(M::SetVringCall, index, fd)
    }

    /// SET_VRING_ERR. `None`: no notification wanted.
    pub fn set_vring_err(&mut self, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_vring_fd(M::SetVringErr, index, fd)
    }

    /// SET_VRING_ENABLE.
    pub fn set_vring_enable(&mut self, index: u32, enabled: bool) -> Result<()> {
        let state = VringState { index, num: enabled.into() };
        self.tell(M::SetVringEnable, state.to_bytes(), Vec::new())
    }

    /// GET_VRING_BASE: stops the ring and says where it stood.
    pub fn vring_base(&mut self, index: u32) -> Result<u32> {
        let request = VringState { index, num: 0 };
        let state: VringState = self.ask_for(M::GetVringBase, request.to_bytes())?;
        if state.index != index {
            let why = format!("it is for vring {} instead of {index}", state.index);
            return Err(FrontendError::BadReply { message: M::GetVringBase.name(), why });
        }
        Ok(state.num)
    }

    /// GET_INFLIGHT_FD: asks for a new record of the requests in flight of so many vrings.
    pub fn inflight_fd(&mut self, num_queues: u16, queue_size: u16) -> Result<(Inflight, OwnedFd)> {
        let message = M::GetInflightFd;
        let asked = Inflight { mmap_size: 0, mmap_offset: 0, num_queues, queue_size };
        let mut reply = self.ask(message, asked.to_bytes())?;
        let inflight: Inflight = read(message, &reply.payload)?;
        match reply.fds.pop() {
            Some(fd) if inflight.mmap_size > 0 => Ok((inflight, copy(fd.as_fd())?)),
            _ => Err(FrontendError::Refused { message: message.name(), code: 1 }),
        }
    }

    /// SET_INFLIGHT_FD: has the back-end use this record for the rings that start from now on.
    pub fn set_inflight_fd(&mut self, inflight: &Inflight, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell(M::SetInflightFd, inflight.to_bytes(), vec![copy(fd)?])
    }

    /// GET_STATUS: the device status byte.
    pub fn status(&mut self) -> Result<u64> {
        self.ask_for(M::GetStatus, Vec::new())
    }

    /// SET_STATUS; 0 resets the device.
    pub fn set_status(&mut self, status: u8) -> Result<()> {
        self.tell(M::SetStatus, u64::from(status).to_bytes(), Vec::new())
    }

    fn set_vring_fd(&mut self, message: M, index: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let index = u8::try_from(index)
            .map_err(|_| FrontendError::range(format!("vring {index} does not fit 8 bits")))?;
        let payload = VringFd { index, no_fd: fd.is_none() }.to_bytes();
        let fds = fd.map(copy).transpose()?.into_iter().collect();
        self.tell(message, payload, fds)
    }
}

/// A ring as its messages describe it.
#[derive(Debug)]
pub struct VringDescription<'a> {
    size: u16,
    base: u32,
    /// In the order of SET_VRING_ADDR's fields `descriptor`, `available` and `used`.
    parts: [UserAddr; 3],
    /// Where in the guest is what the device writes: the used ring, or the device's event area.
    log: GuestAddr,
    /// Writes to that are logged.
    is_logged: bool,
    error: BorrowedFd<'a>,
    call: BorrowedFd<'a>,
    kick: BorrowedFd<'a>,
}

impl VringDescription<'_> {
    /// With writes to the part that the driver reads logged, or not.
    #[must_use]
    pub fn logged(self, is_logged: bool) -> Self {
        Self { is_logged, ..self }
    }

    /// With its parts at I/O virtual addresses.
    #[must_use]
    pub(super) fn at_iova(self, iova: impl Fn(UserAddr) -> Iova) -> Self {
        Self { parts: self.parts.map(|part| UserAddr(iova(part).0)), ..self }
    }

    /// What the device signals: calls, and that the ring is broken.
    pub(super) fn events(&self) -> [BorrowedFd<'_>; 2] {
        [self.call, self.error]
    }

    pub(super) fn addresses(&self, index: u32) -> VringAddress {
        VringAddress { log_used: self.is_logged, ..address(index, self.parts, self.log) }
    }
}

impl<'a> From<&'a SplitRing> for VringDescription<'a> {
    fn from(ring: &'a SplitRing) -> Self {
        Self {
            size: ring.layout().size,
            base: ring.base().into(),
            parts: ring.user_addresses(),
            log: ring.layout().used,
            is_logged: false,
            error: ring.error_fd(),
            call: ring.call_fd(),
            kick: ring.kick_fd(),
        }
    }
}

impl<'a> From<&'a PackedRing> for VringDescription<'a> {
    fn from(ring: &'a PackedRing) -> Self {
        let signals = ring.signals();
        Self {
            size: ring.layout().size,
            base: ring.base(),
            parts: ring.user_addresses(),
            log: ring.layout().device_event,
            is_logged: false,
            error: signals.error_fd(),
            call: signals.call_fd(),
            kick: signals.kick_fd(),
        }
    }
}

impl<'a> From<&'a Ring> for VringDescription<'a> {
    fn from(ring: &'a Ring) -> Self {
        match ring {
            Ring::Split(ring) => ring.ring().into(),
            Ring::Packed(ring) => ring.into(),
        }
    }
}

impl SplitRing {
    /// The ring's addresses as SET_VRING_ADDR has them: the used ring's in the guest too, as QEMU
    /// always tells it. Writes to the used ring are not logged.
    pub fn addresses(&self, index: u32) -> VringAddress {
        address(index, self.user_addresses(), self.layout().used)
    }
}

impl PackedRing {
    /// The ring's addresses as SET_VRING_ADDR has them: the driver's event suppression as
    /// `available`, the device's as `used`.
    pub fn addresses(&self, index: u32) -> VringAddress {
        address(index, self.user_addresses(), self.layout().device_event)
    }
}

fn address(index: u32, parts: [UserAddr; 3], log: GuestAddr) -> VringAddress {
    let [descriptors, available, used] = parts;
    VringAddress { index, log_used: false, descriptors, used, available, log }
}
