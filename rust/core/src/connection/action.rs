//! What the state machine asks of the back-end, and what the back-end reports.
//!
//! `Connection::handle` turns a frame into a [`Step`]. A step that acts leaves the connection's
//! state as it was before the message until [`Connection::done`](super::Connection::done) is told
//! how it went: a failed action has no effect.

use std::os::fd::OwnedFd;

use crate::address::{GuestAddr, Iova, UserAddr};
use crate::ring_position::RingPosition;
use crate::wire::payload::{Inflight, Log, TransferDirection, XenMapping};
use crate::wire::{Frame, ReceivedFd};

/// What follows from one message.
#[derive(Debug)]
pub enum Step {
    /// Nothing to carry out; send the reply if there is one.
    Reply(Option<Frame>),
    /// The message has no effect. Send the reply and go on; say why.
    Refuse {
        /// A non-zero acknowledgement, or the message's own error form.
        reply: Frame,
        /// What was wrong, for the log.
        why: Refusal,
    },
    /// The connection must be closed; say why.
    Close(Refusal),
    /// Carry this out, then call `Connection::done`.
    Act(Action),
}

/// Why a message had no effect: one line with the message's name and the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One region of guest memory as the front-end described it, with its descriptor.
///
/// Checked: the size is not zero, and no sum of start and size wraps.
#[derive(Debug)]
pub struct RegionOffer {
    /// Where and what.
    pub range: RegionRange,
    /// Bytes from the start of the descriptor's file; 0 with `xen`.
    pub mmap_offset: u64,
    /// How the hypervisor is to map it; `None`: an ordinary file.
    pub xen: Option<XenMapping>,
    /// The memory.
    pub fd: ReceivedFd,
}

/// A region's place in the guest's and in the front-end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRange {
    /// First guest-physical address.
    pub guest: GuestAddr,
    /// Bytes.
    pub size: u64,
    /// First address in the front-end.
    pub user: UserAddr,
}

/// Everything needed to run a ring, complete and checked for form: index in range, size within the
/// device's limit and, of a split ring, a power of two, addresses aligned. Whether the addresses lie
/// in memory is the back-end's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// Which vring.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Descriptor table; of a packed ring its descriptors.
    pub descriptors: UserAddr,
    /// Available ring; of a packed ring the driver's event area.
    pub available: UserAddr,
    /// Used ring; of a packed ring the device's event area.
    pub used: UserAddr,
    /// Where it stands, and so of which kind it is: what SET_VRING_BASE said, what the last stop
    /// returned, or the beginning.
    pub base: RingPosition,
    /// Enabled at this moment.
    pub enabled: bool,
    /// The virtio features that the driver accepted.
    pub features: u64,
    /// The address under which the dirty log knows the used ring; `None`: writes to it are not
    /// logged.
    pub used_log: Option<GuestAddr>,
}

/// A change of the translations of I/O virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbChange {
    /// These addresses are translated so from now on. Whether there are so many is the back-end's to
    /// check.
    Update {
        /// The first of them.
        iova: Iova,
        /// Bytes.
        size: u64,
        /// Where they are in the front-end; in the guest with GPA_ADDRESSES.
        to: UserAddr,
        /// The device may read there.
        read: bool,
        /// The device may write there.
        write: bool,
    },
    /// What translates an address of these is forgotten.
    Invalidate {
        /// The first of them.
        first: Iova,
        /// The last of them.
        last: Iova,
    },
}

/// What the back-end must do for a message.
#[derive(Debug)]
pub enum Action {
    /// The accepted features (virtio and vhost bits). `enable_all`: bit 30 was not accepted, so
    /// every ring is enabled from now on. While a ring is started nothing but LOG_ALL differs from
    /// what was accepted before.
    Features {
        /// All accepted bits.
        features: u64,
        /// Enable every ring.
        enable_all: bool,
        /// Bits that the front-end set besides, though they were not offered: harmless ones of the
        /// device type. Nobody but the log need know of them.
        ignored: u64,
    },
    /// Replace all of guest memory. Overlaps, descriptor kinds and file sizes are the back-end's
    /// to check.
    SetMemory(Vec<RegionOffer>),
    /// Add a region.
    AddRegion(RegionOffer),
    /// Remove a region once nothing uses it.
    RemoveRegion(RegionRange),
    /// Start a ring. `kick: None`: no descriptor, poll for work.
    StartRing {
        /// The ring.
        setup: RingSetup,
        /// The kick descriptor.
        kick: Option<ReceivedFd>,
        /// The driver has reset the device since a ring ran last: put the device into its initial
        /// state first. The features of `setup` stay accepted.
        reset: bool,
    },
    /// Replace the kick descriptor of a started ring and look at the ring once.
    ReplaceKick {
        /// Which vring.
        index: u16,
        /// The kick descriptor.
        kick: Option<ReceivedFd>,
    },
    /// Replace a ring's call descriptor, started or not. `None`: no notification wanted.
    SetCall {
        /// Which vring.
        index: u16,
        /// The call descriptor.
        fd: Option<ReceivedFd>,
    },
    /// Replace a ring's error descriptor, started or not.
    SetError {
        /// Which vring.
        index: u16,
        /// The error descriptor.
        fd: Option<ReceivedFd>,
    },
    /// Enable or disable a ring, started or not, without losing its position.
    Enable {
        /// Which vring.
        index: u16,
        /// Enabled from now on.
        enabled: bool,
    },
    /// Drain and stop a started ring; answered with [`Outcome::Base`].
    StopRing {
        /// Which vring.
        index: u16,
    },
    /// Read the configuration space; answered with [`Outcome::Config`] of exactly `size` bytes,
    /// zero-filled past the device's own end.
    ReadConfig {
        /// First byte.
        offset: u32,
        /// Bytes, within the protocol's limit.
        size: u32,
    },
    /// Write the configuration space.
    WriteConfig {
        /// First byte.
        offset: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The driver wrote its status byte: this much of it is accepted. Rings are not concerned.
    Status(u8),
    /// The status byte is 0; drain and stop all rings. Memory stays mapped. Answered with
    /// [`Outcome::Stopped`].
    StopRings {
        /// Put the device into its initial state too. Else the machine may only have paused.
        reset: bool,
    },
    /// Make an empty record of requests in flight; answered with [`Outcome::Record`].
    MakeRecord {
        /// The queues that it is for, and the entries that the front-end thinks they have.
        asked: Inflight,
    },
    /// Use this record for the rings that start from now on. No ring is started.
    SetRecord {
        /// Where it stands, and for which queues.
        inflight: Inflight,
        /// The file.
        fd: ReceivedFd,
    },
    /// Begin to save the device's state to this descriptor, or to load it from there. No ring is
    /// started.
    TransferState {
        /// Which way.
        direction: TransferDirection,
        /// The front-end's end of a pipe, or what serves as one.
        fd: ReceivedFd,
    },
    /// Wait for the end of that; done if it went well.
    AwaitState,
    /// Use this dirty log, and the former one no more, whether rings are started or not. While
    /// LOG_ALL is among the accepted features all writes to guest memory are noted in it.
    SetLog {
        /// Where it stands.
        log: Log,
        /// The file.
        fd: ReceivedFd,
    },
    /// Signal this descriptor when something was noted in the dirty log.
    SetLogEvent(ReceivedFd),
    /// Note writes to the used ring of a started ring from now on, or no more.
    LogUsedRing {
        /// Which vring.
        index: u16,
        /// The address under which the log knows the used ring.
        at: Option<GuestAddr>,
    },
    /// Make a descriptor by which the front-end hears of missing pages; answered with
    /// [`Outcome::Userfault`].
    AdvisePostcopy,
    /// Map regions whose pages are on their way, and touch none of them before
    /// [`UseAwaited`](Self::UseAwaited); answered with [`Outcome::Places`].
    AwaitMemory {
        /// The regions.
        offers: Vec<RegionOffer>,
        /// They are all of memory; else they are added to what is there, or awaited.
        replace: bool,
    },
    /// The front-end answers for all pages of the awaited regions: they are memory from now on.
    UseAwaited,
    /// All pages are there.
    EndPostcopy,
    /// Change the translations of I/O virtual addresses.
    Iotlb(IotlbChange),
    /// The channel for the back-end's own requests; replaces the former one.
    SetBackendChannel(ReceivedFd),
}

/// How an action went.
#[derive(Debug)]
pub enum Outcome {
    /// Done; nothing to report.
    Done,
    /// A ring is stopped; where it stands.
    Base(RingPosition),
    /// The rings that were started are stopped; of each its number and where it stands.
    Stopped(Vec<(u16, RingPosition)>),
    /// Bytes of the configuration space.
    Config(Vec<u8>),
    /// An empty record of requests in flight.
    Record {
        /// Where it stands, and for which queues.
        inflight: Inflight,
        /// The file.
        fd: OwnedFd,
    },
    /// A descriptor by which the front-end hears of missing pages.
    Userfault(OwnedFd),
    /// Where each region is mapped in this process.
    Places(Vec<UserAddr>),
    /// Not done: nothing changed.
    Failed(Refusal),
}
