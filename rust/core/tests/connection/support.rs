//! A front-end's pen and a back-end's hands: payloads laid out by hand, and a stand-in that
//! carries out actions by writing them down.

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost_user_core::address::UserAddr;
use vhost_user_core::connection::{
    Action, Connection, IotlbChange, Offer, Outcome, Refusal, RegionOffer, Step,
};
use vhost_user_core::ring_position::RingPosition;
use vhost_user_core::wire::features::RING_PACKED;
use vhost_user_core::wire::payload::{Inflight, TransferDirection};
use vhost_user_core::wire::{Flags, Frame, Header, ProtocolFeatures};

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const RESET_OWNER: u32 = 4;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_LOG_BASE: u32 = 6;
pub(crate) const SET_LOG_FD: u32 = 7;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const SET_VRING_ERR: u32 = 14;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const GET_QUEUE_NUM: u32 = 17;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
pub(crate) const IOTLB_MSG: u32 = 22;
pub(crate) const GET_CONFIG: u32 = 24;
pub(crate) const SET_CONFIG: u32 = 25;
pub(crate) const POSTCOPY_ADVISE: u32 = 28;
pub(crate) const POSTCOPY_LISTEN: u32 = 29;
pub(crate) const POSTCOPY_END: u32 = 30;
pub(crate) const GET_INFLIGHT_FD: u32 = 31;
pub(crate) const SET_INFLIGHT_FD: u32 = 32;
pub(crate) const RESET_DEVICE: u32 = 34;
pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(crate) const ADD_MEM_REG: u32 = 37;
pub(crate) const REM_MEM_REG: u32 = 38;
pub(crate) const SET_STATUS: u32 = 39;
pub(crate) const GET_STATUS: u32 = 40;
pub(crate) const SET_DEVICE_STATE_FD: u32 = 42;
pub(crate) const CHECK_DEVICE_STATE: u32 = 43;

/// Flags of a request that wants no acknowledgement, and of one that does.
pub(crate) const PLAIN: u32 = 0x1;
pub(crate) const NEED_REPLY: u32 = 0x9;

/// What a driver accepts: VERSION_1, EVENT_IDX, INDIRECT_DESC, and a block device's FLUSH (9) and
/// MQ (12).
pub(crate) const DEVICE_FEATURES: u64 = 0x1_3000_1200;
/// The same with PROTOCOL_FEATURES (30), as the front-end sees it.
pub(crate) const ACCEPTED: u64 = 0x1_7000_1200;
/// Writes to guest memory are to be logged.
pub(crate) const LOG_ALL: u64 = 1 << 26;
/// Addresses are to be translated.
pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
/// What is offered: LOG_ALL, ACCESS_PLATFORM, RING_PACKED and IN_ORDER besides.
pub(crate) const OFFERED: u64 = ACCEPTED | LOG_ALL | ACCESS_PLATFORM | 0xc_0000_0000;
/// The features of a block device that are not offered here: any that the standard names, and no one
/// else's.
pub(crate) const NOT_OFFERED_AND_HARMLESS: u64 = 0x3_ecf7;
/// MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, PAGEFAULT, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE,
/// CONFIGURE_MEM_SLOTS, STATUS, DEVICE_STATE, GET_VRING_BASE_INFLIGHT, GPA_ADDRESSES.
pub(crate) const PROTOCOL: u64 = 0x39_b32b;
/// What of it is offered together with XEN_MMAP: all but LOG_SHMFD, PAGEFAULT,
/// GET_VRING_BASE_INFLIGHT and GPA_ADDRESSES.
pub(crate) const PROTOCOL_ON_XEN: u64 = PROTOCOL & !(1 << 1 | 1 << 8 | 1 << 20 | 1 << 21);

/// Bytes of a record that the back-end makes.
pub(crate) const RECORD: u64 = 0x3000;

pub(crate) const MAX_QUEUE_SIZE: u16 = 256;
pub(crate) const CONFIG_LEN: usize = 60;

/// A block device with this many queues.
pub(crate) fn offer(num_queues: u16) -> Offer {
    Offer {
        features: OFFERED,
        required_features: 1 << 32,
        protocol_features: ProtocolFeatures::from_bits_retain(PROTOCOL),
        num_queues,
        device_type: 2,
        max_queue_size: MAX_QUEUE_SIZE,
        max_memory_slots: 509,
        config_len: CONFIG_LEN,
        xen: None,
    }
}

pub(crate) fn word(value: u64) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

pub(crate) fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

/// The parts in the order of [`Deed::Start`]: descriptors, available, used.
pub(crate) fn address(index: u32, flags: u32, parts: [u64; 3]) -> Vec<u8> {
    logged_address(index, flags, parts, 0)
}

/// The same, with the address under which the dirty log knows the used ring.
pub(crate) fn logged_address(index: u32, flags: u32, parts: [u64; 3], log: u64) -> Vec<u8> {
    let [descriptors, available, used] = parts;
    let words = [descriptors, used, available, log].map(u64::to_ne_bytes).concat();
    [state(index, flags), words].concat()
}

/// Guest address, size, user address, offset in the file.
pub(crate) type RawRegion = [u64; 4];

/// 256 MiB at guest address 0.
pub(crate) const REGION: RawRegion = [0, 0x1000_0000, 0x7f00_0000_0000, 0];

pub(crate) fn region(raw: RawRegion) -> Vec<u8> {
    raw.map(u64::to_ne_bytes).concat()
}

pub(crate) fn table(regions: &[RawRegion]) -> Vec<u8> {
    let count = state(regions.len() as u32, 0);
    [count, regions.iter().flat_map(|raw| region(*raw)).collect()].concat()
}

pub(crate) fn single(raw: RawRegion) -> Vec<u8> {
    [word(0), region(raw)].concat()
}

pub(crate) fn config(offset: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    [&state(offset, data.len() as u32), &flags.to_ne_bytes()[..], data].concat()
}

/// A frame without descriptors.
pub(crate) fn bare_frame(number: u32, flags: u32, payload: Vec<u8>) -> Frame {
    Frame::new(number, Flags::from_bits_retain(flags), payload, Vec::new())
}

/// An action without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Features {
        features: u64,
        enable_all: bool,
        ignored: u64,
    },
    SetMemory(Vec<RawRegion>),
    AddRegion(RawRegion),
    RemoveRegion([u64; 3]),
    Start {
        index: u16,
        size: u16,
        parts: [u64; 3],
        base: u32,
        enabled: bool,
        features: u64,
        used_log: Option<u64>,
        reset: bool,
    },
    ReplaceKick {
        index: u16,
        fd: bool,
    },
    Call {
        index: u16,
        fd: bool,
    },
    Error {
        index: u16,
        fd: bool,
    },
    Enable {
        index: u16,
        enabled: bool,
    },
    Stop {
        index: u16,
    },
    ReadConfig {
        offset: u32,
        size: u32,
    },
    WriteConfig {
        offset: u32,
        data: Vec<u8>,
    },
    Status(u8),
    StopRings {
        reset: bool,
    },
    Channel,
    Iotlb(IotlbChange),
    MakeRecord {
        queues: u16,
        entries: u16,
    },
    SetRecord {
        queues: u16,
        entries: u16,
        bytes: u64,
    },
    Transfer {
        load: bool,
    },
    Await,
    SetLog {
        bytes: u64,
        offset: u64,
    },
    LogEvent,
    LogUsedRing {
        index: u16,
        at: Option<u64>,
    },
    Advise,
    AwaitMemory {
        regions: Vec<RawRegion>,
        replace: bool,
    },
    UseAwaited,
    EndPostcopy,
}

impl From<&Action> for Deed {
    fn from(action: &Action) -> Self {
        match action {
            Action::Features { features, enable_all, ignored } => {
                Self::Features { features: *features, enable_all: *enable_all, ignored: *ignored }
            }
            Action::SetMemory(offers) => Self::SetMemory(
                offers
                    .iter()
                    .map(|o| [o.range.guest.0, o.range.size, o.range.user.0, o.mmap_offset])
                    .collect(),
            ),
            Action::AddRegion(o) => {
                Self::AddRegion([o.range.guest.0, o.range.size, o.range.user.0, o.mmap_offset])
            }
            Action::RemoveRegion(range) => {
                Self::RemoveRegion([range.guest.0, range.size, range.user.0])
            }
            Action::StartRing { setup, reset, .. } => Self::Start {
                index: setup.index,
                size: setup.size,
                parts: [setup.descriptors.0, setup.available.0, setup.used.0],
                base: setup.base.to_word(),
                enabled: setup.enabled,
                features: setup.features,
                used_log: setup.used_log.map(|at| at.0),
                reset: *reset,
            },
            Action::ReplaceKick { index, kick } => {
                Self::ReplaceKick { index: *index, fd: kick.is_some() }
            }
            Action::SetCall { index, fd } => Self::Call { index: *index, fd: fd.is_some() },
            Action::SetError { index, fd } => Self::Error { index: *index, fd: fd.is_some() },
            Action::Enable { index, enabled } => Self::Enable { index: *index, enabled: *enabled },
            Action::StopRing { index } => Self::Stop { index: *index },
            Action::ReadConfig { offset, size } => {
                Self::ReadConfig { offset: *offset, size: *size }
            }
            Action::WriteConfig { offset, data } => {
                Self::WriteConfig { offset: *offset, data: data.clone() }
            }
            Action::Status(byte) => Self::Status(*byte),
            Action::StopRings { reset } => Self::StopRings { reset: *reset },
            Action::SetBackendChannel(_) => Self::Channel,
            Action::Iotlb(change) => Self::Iotlb(*change),
            Action::MakeRecord { asked } => {
                Self::MakeRecord { queues: asked.num_queues, entries: asked.queue_size }
            }
            Action::SetRecord { inflight, .. } => Self::SetRecord {
                queues: inflight.num_queues,
                entries: inflight.queue_size,
                bytes: inflight.mmap_size,
            },
            Action::TransferState { direction, .. } => {
                Self::Transfer { load: *direction == TransferDirection::Load }
            }
            Action::AwaitState => Self::Await,
            Action::SetLog { log, .. } => Self::SetLog { bytes: log.size, offset: log.offset },
            Action::SetLogEvent(_) => Self::LogEvent,
            Action::LogUsedRing { index, at } => {
                Self::LogUsedRing { index: *index, at: at.map(|at| at.0) }
            }
            Action::AdvisePostcopy => Self::Advise,
            Action::AwaitMemory { offers, replace } => {
                let raw = |o: &RegionOffer| {
                    [o.range.guest.0, o.range.size, o.range.user.0, o.mmap_offset]
                };
                Self::AwaitMemory { regions: offers.iter().map(raw).collect(), replace: *replace }
            }
            Action::UseAwaited => Self::UseAwaited,
            Action::EndPostcopy => Self::EndPostcopy,
        }
    }
}

/// What came back for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    Reply(Vec<u8>),
    Refused(Vec<u8>),
    Closed,
}

/// The payload of the messages about the record of requests in flight.
pub(crate) fn inflight(bytes: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
    let mut payload = [bytes.to_ne_bytes(), offset.to_ne_bytes()].concat();
    payload.extend([queues.to_ne_bytes(), entries.to_ne_bytes()].concat());
    payload.extend([0; 4]);
    payload
}

/// The payload of IOTLB_MSG: address, size, user address, access and type.
pub(crate) fn iotlb(iova: u64, size: u64, user: u64, access: u8, kind: u8) -> Vec<u8> {
    let words = [iova, size, user].map(u64::to_ne_bytes).concat();
    [words, vec![access, kind, 0, 0, 0, 0, 0, 0]].concat()
}

/// An acknowledgement of success.
pub(crate) fn ack() -> Said {
    Said::Reply(word(0))
}

/// An acknowledgement of failure.
pub(crate) fn nack() -> Said {
    Said::Refused(word(1))
}

/// A connection with a back-end that writes its actions down.
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    /// What the back-end was asked to do, in order.
    pub(crate) deeds: Vec<Deed>,
    /// Where the next ring is stopped.
    pub(crate) base: u32,
    /// The back-end fails the next action.
    pub(crate) fails: bool,
    spare: OwnedFd,
}

impl Peer {
    pub(crate) fn new(offer: Offer) -> Self {
        Self::with_fd(offer, File::open("/dev/null").unwrap().into())
    }

    /// Each descriptor that is sent is a duplicate of `spare`.
    pub(crate) fn with_fd(offer: Offer, spare: OwnedFd) -> Self {
        let connection = Connection::new(offer);
        Self { connection, deeds: Vec::new(), base: 0, fails: false, spare }
    }

    /// Negotiated, with everything accepted.
    pub(crate) fn negotiated() -> Self {
        let mut peer = Self::new(offer(2));
        assert_eq!(peer.say(SET_PROTOCOL_FEATURES, PLAIN, word(PROTOCOL), 0), Said::Nothing);
        assert_eq!(peer.say(SET_FEATURES, NEED_REPLY, word(ACCEPTED), 0), ack());
        peer
    }

    /// Negotiated, with memory and a complete vring 0 that is neither started nor enabled.
    pub(crate) fn ready() -> Self {
        let mut peer = Self::negotiated();
        assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[REGION]), 1), ack());
        assert_eq!(peer.ask(SET_VRING_NUM, state(0, 128)), ack());
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
        peer.deeds.clear();
        peer
    }

    /// Vring 0 is started.
    pub(crate) fn started() -> Self {
        let mut peer = Self::ready();
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
        peer.deeds.clear();
        peer
    }

    /// A descriptor to send.
    pub(crate) fn descriptor(&self) -> OwnedFd {
        self.spare.try_clone().unwrap()
    }

    /// A message without descriptors that wants an acknowledgement.
    pub(crate) fn ask(&mut self, number: u32, payload: Vec<u8>) -> Said {
        self.say(number, NEED_REPLY, payload, 0)
    }

    /// A message; actions are carried out.
    pub(crate) fn say(&mut self, number: u32, flags: u32, payload: Vec<u8>, fds: usize) -> Said {
        let fds = (0..fds).map(|_| self.spare.try_clone().unwrap()).collect();
        self.say_frame(Frame::new(number, Flags::from_bits_retain(flags), payload, fds))
    }

    pub(crate) fn say_frame(&mut self, frame: Frame) -> Said {
        let number = frame.header.request;
        let step = match self.connection.handle(frame) {
            Step::Act(action) => {
                let deed = Deed::from(&action);
                let outcome = self.outcome(&deed);
                self.deeds.push(deed);
                self.connection.done(outcome)
            }
            step => step,
        };
        said(step, number)
    }

    /// Why a message without descriptors is refused.
    pub(crate) fn why(&mut self, number: u32, flags: u32, payload: Vec<u8>) -> String {
        match self.connection.handle(bare_frame(number, flags, payload)) {
            Step::Refuse { why, .. } => why.0,
            step => panic!("not refused: {step:?}"),
        }
    }

    fn outcome(&mut self, deed: &Deed) -> Outcome {
        if std::mem::take(&mut self.fails) {
            return Outcome::Failed(Refusal("the back-end failed".to_owned()));
        }
        match deed {
            Deed::Stop { .. } => Outcome::Base(self.position()),
            Deed::StopRings { .. } => Outcome::Stopped(self.stopped()),
            Deed::ReadConfig { offset, size } => Outcome::Config(config_bytes(*offset, *size)),
            &Deed::MakeRecord { queues: num_queues, entries: queue_size } => Outcome::Record {
                inflight: Inflight { mmap_size: RECORD, mmap_offset: 0, num_queues, queue_size },
                fd: self.spare.try_clone().unwrap(),
            },
            Deed::Advise => Outcome::Userfault(self.spare.try_clone().unwrap()),
            Deed::AwaitMemory { regions, .. } => {
                Outcome::Places((0..regions.len()).map(|n| UserAddr(place(n))).collect())
            }
            _ => Outcome::Done,
        }
    }

    /// All rings that are started stop at `base`.
    fn position(&self) -> RingPosition {
        RingPosition::from_word(self.base, self.connection.features() & RING_PACKED != 0).unwrap()
    }

    fn stopped(&self) -> Vec<(u16, RingPosition)> {
        let rings = (0..).map_while(|index| Some((index, self.connection.ring(index)?)));
        let started = rings.filter(|(_, ring)| ring.is_started());
        started.map(|(index, _)| (index, self.position())).collect()
    }

    /// Gives up the back-end's side.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }

    pub(crate) fn take_deeds(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.deeds)
    }
}

/// Where the parts of a complete vring are.
pub(crate) const PARTS: [u64; 3] = [0x7f00_0000_1000, 0x7f00_0000_2000, 0x7f00_0000_3000];

/// Where the back-end says that it has mapped the region with this number among those of a message.
pub(crate) fn place(number: usize) -> u64 {
    0x5500_0000_0000 + ((number as u64) << 32)
}

/// The configuration space: byte n is n, and zero past the end.
pub(crate) fn config_bytes(offset: u32, size: u32) -> Vec<u8> {
    (offset..offset + size).map(|n| if (n as usize) < CONFIG_LEN { n as u8 } else { 0 }).collect()
}

/// The reply must name the request, have flags 0x5 and bring no descriptors.
fn said(step: Step, number: u32) -> Said {
    let check = |frame: Frame| {
        let size = frame.payload.len() as u32;
        let expected = Header { request: number, flags: Flags::from_bits_retain(0x5), size };
        assert_eq!(frame.header, expected);
        let record = number == GET_INFLIGHT_FD && frame.payload != [0; 24];
        // That one of a refusal is not looked at here.
        let advice = number == POSTCOPY_ADVISE && !frame.fds.is_empty();
        assert_eq!(frame.fds.len(), usize::from(record || advice));
        frame.payload
    };
    match step {
        Step::Reply(None) => Said::Nothing,
        Step::Reply(Some(frame)) => Said::Reply(check(frame)),
        Step::Refuse { reply, why } => {
            assert!(!why.0.is_empty());
            Said::Refused(check(reply))
        }
        Step::Close(_) => Said::Closed,
        Step::Act(action) => panic!("an action after an action: {action:?}"),
    }
}
