//! The table of messages: one row for each, saying what it may carry, what it needs and how it is
//! answered. Whatever the table rules out is refused before any handler sees it.
//!
//! Source: QEMU "Vhost-user Protocol", "Front-end message types" and "Back-end message types".

use std::fmt;

use super::ProtocolFeatures as P;
use super::features::{ACCESS_PLATFORM, PROTOCOL_FEATURES};
use super::{MAX_FDS, MAX_PAYLOAD, RegionLayout};

/// What is known of one message.
#[derive(Debug, PartialEq, Eq)]
pub struct Row<M: 'static> {
    /// The message.
    pub message: M,
    /// Its number in the header.
    pub number: u32,
    /// Its name in the specification, without prefix.
    pub name: &'static str,
    /// Payload bytes of the request.
    pub payload: Size,
    /// Descriptors of the request.
    pub fds: Fds,
    /// What must have been negotiated.
    pub needs: Needs,
    /// How it is answered.
    pub answer: Answer,
}

/// Payload bytes that a message may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Exact(usize),
    /// One of these.
    OneOf(&'static [usize]),
    /// From so many to so many.
    Within(usize, usize),
    /// 8 bytes and one or more regions.
    Table,
    /// 8 bytes and one region.
    OneRegion,
}

impl Size {
    /// Whether a payload of `len` bytes fits, where a region takes the bytes of `layout`.
    pub fn allows(self, len: usize, layout: RegionLayout) -> bool {
        let region = layout.region_len();
        match self {
            Self::Exact(size) => len == size,
            Self::OneOf(sizes) => sizes.contains(&len),
            Self::Within(min, max) => (min..=max).contains(&len),
            Self::Table => len > 8 && (len - 8).is_multiple_of(region),
            Self::OneRegion => len == 8 + region,
        }
    }
}

/// The bytes in words, without those of regions, whose layout a connection decides.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(size) => size.fmt(f),
            Self::OneOf(sizes) => {
                let sizes: Vec<_> = sizes.iter().map(usize::to_string).collect();
                f.write_str(&sizes.join(" or "))
            }
            Self::Within(min, max) => write!(f, "{min} to {max}"),
            Self::Table => f.write_str("8 and some regions"),
            Self::OneRegion => f.write_str("8 and one region"),
        }
    }
}

/// How many descriptors may come with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fds {
    /// At least.
    pub min: usize,
    /// At most.
    pub max: usize,
}

impl Fds {
    /// No descriptor.
    pub const NONE: Self = Self { min: 0, max: 0 };
    const ONE: Self = Self { min: 1, max: 1 };
    /// None or one: the payload says which.
    const MAYBE: Self = Self { min: 0, max: 1 };
    /// None is needed; one is taken and closed, as the specification asks.
    const IGNORED: Self = Self { min: 0, max: 1 };
    /// One for each region; the payload says how many.
    const EACH_REGION: Self = Self { min: 1, max: MAX_FDS };

    /// Whether `count` descriptors fit.
    pub fn allows(self, count: usize) -> bool {
        (self.min..=self.max).contains(&count)
    }
}

impl fmt::Display for Fds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { min, max } if min == max => min.fmt(f),
            Self { min, max } => write!(f, "{min} to {max}"),
        }
    }
}

/// What must have been negotiated before a message is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The back-end offers this virtio-level feature, accepted or not.
    Offered(u64),
    /// This virtio-level feature was accepted.
    Accepted(u64),
    /// These protocol features were accepted.
    Protocol(P),
    /// The device is of this type: VIRTIO 1.3, "Device Types".
    DeviceType(u32),
}

/// How a message is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With an acknowledgement (a u64, 0 for success) if the sender asked for one.
    IfAsked,
    /// Always with a payload of its own; the need-reply flag changes nothing.
    Always {
        /// Payload bytes that implementations send.
        payload: Size,
        /// Descriptors with it.
        fds: Fds,
        /// What says that the request failed.
        error: ErrorForm,
    },
}

/// How an answer with a payload of its own says that the request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    /// It cannot: the connection is closed.
    None,
    /// No payload and no descriptor.
    Empty,
    /// This u64.
    Value(u64),
    /// So many zeroes and no descriptor.
    Zeroes(usize),
}

const NOTHING: Size = Size::Exact(0);
const U64: Size = Size::Exact(8);
const STATE: Size = Size::Exact(8);
const ADDRESS: Size = Size::Exact(40);
const LOG: Size = Size::Exact(16);
const IOTLB: Size = Size::Exact(32);
const CONFIG: Size = Size::Within(12, MAX_PAYLOAD);
const AREA: Size = Size::Exact(24);
const INFLIGHT: Size = Size::OneOf(&[20, 24]);
const UUID: Size = Size::Exact(16);
const XEN_MMAP: Size = Size::Exact(16);
const DEVICE_STATE: Size = Size::Exact(8);
const SHMEM_CONFIG: Size = Size::Exact(2056);
const SHMEM_MAP: Size = Size::Exact(40);
/// A C structure with pointers in it: its size is that of 64-bit hosts.
const CRYPTO: Size = Size::Exact(1072);

const GPU: u32 = 16;

const fn answer(payload: Size) -> Answer {
    Answer::Always { payload, fds: Fds::NONE, error: ErrorForm::None }
}

const fn answer_or(payload: Size, fds: Fds, error: ErrorForm) -> Answer {
    Answer::Always { payload, fds, error }
}

/// An acknowledgement that comes whether or not it was asked for.
const ALWAYS_ACK: Answer = answer_or(U64, Fds::NONE, ErrorForm::Value(1));
/// The configuration, or nothing when it cannot be read.
const CONFIG_OR_EMPTY: Answer =
    answer_or(Size::Within(0, MAX_PAYLOAD), Fds::NONE, ErrorForm::Empty);
/// LOG_SHMFD's answer differs by implementation: nothing, a u64 or the request's payload.
const LOG_REPLY: Answer = answer(Size::OneOf(&[0, 8, 16]));
/// The object's descriptor, with the name or without; no descriptor when it is not known.
const SHARED_OBJECT: Answer = answer_or(Size::OneOf(&[0, 16]), Fds::MAYBE, ErrorForm::Empty);
/// The descriptor of the page-fault handler, or none when there is no handler to be had.
const USERFAULT_FD: Answer = answer_or(NOTHING, Fds::MAYBE, ErrorForm::Empty);
/// The record's descriptor, or a size of 0 and none.
const INFLIGHT_REPLY: Answer = answer_or(INFLIGHT, Fds::MAYBE, ErrorForm::Zeroes(24));
/// 0 and the object's descriptor, or something else and none.
const LOOKED_UP: Answer = answer_or(U64, Fds::MAYBE, ErrorForm::Value(1));
/// Bits 0-7 an error, bit 8 "no descriptor".
const DEVICE_STATE_REPLY: Answer = answer_or(U64, Fds::MAYBE, ErrorForm::Value(0x101));

/// Makes an enum of messages and the table with its rows from one list.
macro_rules! messages {
    (
        $(#[$doc:meta])* $type:ident in $table:ident:
        $($number:literal $variant:ident $name:literal
            $payload:expr, $fds:ident, $needs:expr, $answer:expr;)*
        $(same number as $other:ident:
            $place:literal $second:ident $second_name:literal
                $second_payload:expr, $second_fds:ident, $second_needs:expr, $second_answer:expr;)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $type {
            $(#[doc = $name] $variant = $number,)*
            $(#[doc = $second_name] $second = $place,)?
        }

        static $table: &[Row<$type>] = &[
            $(Row {
                message: $type::$variant,
                number: $number,
                name: $name,
                payload: $payload,
                fds: Fds::$fds,
                needs: $needs,
                answer: $answer,
            },)*
            $(Row {
                message: $type::$second,
                number: $type::$other as u32,
                name: $second_name,
                payload: $second_payload,
                fds: Fds::$second_fds,
                needs: $second_needs,
                answer: $second_answer,
            },)?
        ];

        impl $type {
            /// All messages with a number of their own, by number.
            pub fn all() -> impl Iterator<Item = Self> {
                $table.iter().map(|row| row.message).filter(|&m| m.number() == m as u32)
            }

            /// The message with this number, if there is one.
            pub fn from_number(number: u32) -> Option<Self> {
                let index = usize::try_from(number).ok()?.checked_sub(1)?;
                $table.get(index).filter(|row| row.number == number).map(|row| row.message)
            }

            /// The other message with this one's number, if there is one.
            pub fn namesake(self) -> Option<Self> {
                let number = self.number();
                $table.iter().find(|r| r.number == number && r.message != self).map(|r| r.message)
            }

            /// The number in the header.
            pub fn number(self) -> u32 {
                self.row().number
            }

            /// The name in the specification, without prefix.
            pub fn name(self) -> &'static str {
                self.row().name
            }

            /// What is known of the message.
            pub fn row(self) -> &'static Row<Self> {
                // Numbers run from 1 without a gap; a test holds the table to that.
                &$table[self as usize - 1]
            }
        }
    };
}

use Answer::IfAsked;
use Needs::{Accepted, DeviceType, Nothing, Offered, Protocol};

messages! {
    /// Requests of the front-end.
    FrontendMessage in FRONTEND:
    // number, name, payload, descriptors, needs, answer
     1 GetFeatures         "GET_FEATURES"          NOTHING,              NONE,        Nothing,                           answer(U64);
     2 SetFeatures         "SET_FEATURES"          U64,                  NONE,        Nothing,                           IfAsked;
     3 SetOwner            "SET_OWNER"             NOTHING,              NONE,        Nothing,                           IfAsked;
     4 ResetOwner          "RESET_OWNER"           NOTHING,              NONE,        Nothing,                           IfAsked;
     5 SetMemTable         "SET_MEM_TABLE"         Size::Table,          EACH_REGION, Nothing,                           IfAsked;
     6 SetLogBase          "SET_LOG_BASE"          LOG,                  ONE,         Protocol(P::LOG_SHMFD),            LOG_REPLY;
     7 SetLogFd            "SET_LOG_FD"            NOTHING,              ONE,         Protocol(P::LOG_SHMFD),            IfAsked;
     8 SetVringNum         "SET_VRING_NUM"         STATE,                NONE,        Nothing,                           IfAsked;
     9 SetVringAddr        "SET_VRING_ADDR"        ADDRESS,              NONE,        Nothing,                           IfAsked;
    10 SetVringBase        "SET_VRING_BASE"        STATE,                NONE,        Nothing,                           IfAsked;
    11 GetVringBase        "GET_VRING_BASE"        STATE,                NONE,        Nothing,                           answer(STATE);
    12 SetVringKick        "SET_VRING_KICK"        U64,                  MAYBE,       Nothing,                           IfAsked;
    13 SetVringCall        "SET_VRING_CALL"        U64,                  MAYBE,       Nothing,                           IfAsked;
    14 SetVringErr         "SET_VRING_ERR"         U64,                  MAYBE,       Nothing,                           IfAsked;
    15 GetProtocolFeatures "GET_PROTOCOL_FEATURES" NOTHING,              NONE,        Offered(PROTOCOL_FEATURES),        answer(U64);
    16 SetProtocolFeatures "SET_PROTOCOL_FEATURES" U64,                  NONE,        Offered(PROTOCOL_FEATURES),        IfAsked;
    17 GetQueueNum         "GET_QUEUE_NUM"         NOTHING,              NONE,        Protocol(P::MQ),                   answer(U64);
    // QEMU's net device sends SET_VRING_ENABLE before the first SET_FEATURES, so the offer is all
    // that can be asked for.
    18 SetVringEnable      "SET_VRING_ENABLE"      STATE,                NONE,        Offered(PROTOCOL_FEATURES),        IfAsked;
    19 SendRarp            "SEND_RARP"             U64,                  NONE,        Protocol(P::RARP),                 IfAsked;
    20 NetSetMtu           "NET_SET_MTU"           U64,                  NONE,        Protocol(P::MTU),                  IfAsked;
    // The specification has no payload here; some front-ends send a u64.
    21 SetBackendReqFd     "SET_BACKEND_REQ_FD"    Size::OneOf(&[0, 8]), ONE,         Protocol(P::BACKEND_REQ),          IfAsked;
    22 IotlbMsg            "IOTLB_MSG"             IOTLB,                NONE,        Accepted(ACCESS_PLATFORM),         ALWAYS_ACK;
    23 SetVringEndian      "SET_VRING_ENDIAN"      STATE,                NONE,        Protocol(P::CROSS_ENDIAN),         IfAsked;
    24 GetConfig           "GET_CONFIG"            CONFIG,               NONE,        Protocol(P::CONFIG),               CONFIG_OR_EMPTY;
    25 SetConfig           "SET_CONFIG"            CONFIG,               NONE,        Protocol(P::CONFIG),               IfAsked;
    26 CreateCryptoSession "CREATE_CRYPTO_SESSION" CRYPTO,               NONE,        Protocol(P::CRYPTO_SESSION),       answer(CRYPTO);
    27 CloseCryptoSession  "CLOSE_CRYPTO_SESSION"  U64,                  NONE,        Protocol(P::CRYPTO_SESSION),       IfAsked;
    28 PostcopyAdvise      "POSTCOPY_ADVISE"       NOTHING,              NONE,        Protocol(P::PAGEFAULT),            USERFAULT_FD;
    29 PostcopyListen      "POSTCOPY_LISTEN"       NOTHING,              NONE,        Protocol(P::PAGEFAULT),            IfAsked;
    30 PostcopyEnd         "POSTCOPY_END"          NOTHING,              NONE,        Protocol(P::PAGEFAULT),            ALWAYS_ACK;
    31 GetInflightFd       "GET_INFLIGHT_FD"       INFLIGHT,             NONE,        Protocol(P::INFLIGHT_SHMFD),       INFLIGHT_REPLY;
    32 SetInflightFd       "SET_INFLIGHT_FD"       INFLIGHT,             ONE,         Protocol(P::INFLIGHT_SHMFD),       IfAsked;
    33 GpuSetSocket        "GPU_SET_SOCKET"        NOTHING,              ONE,         DeviceType(GPU),                   IfAsked;
    34 ResetDevice         "RESET_DEVICE"          NOTHING,              NONE,        Protocol(P::RESET_DEVICE),         IfAsked;
    35 VringKick           "VRING_KICK"            STATE,                NONE,        Protocol(P::INBAND_NOTIFICATIONS), IfAsked;
    36 GetMaxMemSlots      "GET_MAX_MEM_SLOTS"     NOTHING,              NONE,        Protocol(P::CONFIGURE_MEM_SLOTS),  answer(U64);
    37 AddMemReg           "ADD_MEM_REG"           Size::OneRegion,      ONE,         Protocol(P::CONFIGURE_MEM_SLOTS),  IfAsked;
    38 RemMemReg           "REM_MEM_REG"           Size::OneRegion,      IGNORED,     Protocol(P::CONFIGURE_MEM_SLOTS),  IfAsked;
    39 SetStatus           "SET_STATUS"            U64,                  NONE,        Protocol(P::STATUS),               IfAsked;
    40 GetStatus           "GET_STATUS"            NOTHING,              NONE,        Protocol(P::STATUS),               answer(U64);
    41 GetSharedObject     "GET_SHARED_OBJECT"     UUID,                 NONE,        Protocol(P::SHARED_OBJECT),        SHARED_OBJECT;
    42 SetDeviceStateFd    "SET_DEVICE_STATE_FD"   DEVICE_STATE,         ONE,         Protocol(P::DEVICE_STATE),         DEVICE_STATE_REPLY;
    43 CheckDeviceState    "CHECK_DEVICE_STATE"    NOTHING,              NONE,        Protocol(P::DEVICE_STATE),         ALWAYS_ACK;
    44 GetShmemConfig      "GET_SHMEM_CONFIG"      NOTHING,              NONE,        Protocol(P::SHMEM),                answer(SHMEM_CONFIG);
    // A draft of XEN_MMAP had this message before GET_SHARED_OBJECT was given its number.
    same number as GetSharedObject:
    45 SetXenMmap          "SET_XEN_MMAP"          XEN_MMAP,             NONE,        Protocol(P::XEN_MMAP),             IfAsked;
}

messages! {
    /// Requests of the back-end, on the channel that SET_BACKEND_REQ_FD gave it.
    BackendMessage in BACKEND:
    // number, name, payload, descriptors, needs (and BACKEND_REQ, without which there is no channel),
    // answer
     1 IotlbMsg           "IOTLB_MSG"               IOTLB,     NONE,  Accepted(ACCESS_PLATFORM),         IfAsked;
     2 ConfigChangeMsg    "CONFIG_CHANGE_MSG"       NOTHING,   NONE,  Protocol(P::CONFIG),               IfAsked;
     3 VringHostNotifier  "VRING_HOST_NOTIFIER_MSG" AREA,      MAYBE, Protocol(P::HOST_NOTIFIER),        IfAsked;
     4 VringCall          "VRING_CALL"              STATE,     NONE,  Protocol(P::INBAND_NOTIFICATIONS), IfAsked;
     5 VringErr           "VRING_ERR"               STATE,     NONE,  Protocol(P::INBAND_NOTIFICATIONS), IfAsked;
     6 SharedObjectAdd    "SHARED_OBJECT_ADD"       UUID,      NONE,  Protocol(P::SHARED_OBJECT),        IfAsked;
     7 SharedObjectRemove "SHARED_OBJECT_REMOVE"    UUID,      NONE,  Protocol(P::SHARED_OBJECT),        IfAsked;
     8 SharedObjectLookup "SHARED_OBJECT_LOOKUP"    UUID,      NONE,  Protocol(P::SHARED_OBJECT),        LOOKED_UP;
     9 ShmemMap           "SHMEM_MAP"               SHMEM_MAP, ONE,   Protocol(P::SHMEM),                IfAsked;
    10 ShmemUnmap         "SHMEM_UNMAP"             SHMEM_MAP, NONE,  Protocol(P::SHMEM),                IfAsked;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_from_one_without_a_gap() {
        for (index, message) in FrontendMessage::all().enumerate() {
            let number = index as u32 + 1;
            assert_eq!(
                (message.row().number, message.number(), message as u32),
                (number, number, number)
            );
        }
        for (index, row) in BACKEND.iter().enumerate() {
            assert_eq!((row.number, row.message.number()), (index as u32 + 1, index as u32 + 1));
        }
        assert_eq!((FrontendMessage::all().count(), BACKEND.len()), (44, 10));
    }

    #[test]
    fn messages_are_found_by_their_specified_numbers() {
        for (number, message) in [
            (1, FrontendMessage::GetFeatures),
            (12, FrontendMessage::SetVringKick),
            (24, FrontendMessage::GetConfig),
            (31, FrontendMessage::GetInflightFd),
            (37, FrontendMessage::AddMemReg),
            (44, FrontendMessage::GetShmemConfig),
        ] {
            assert_eq!(FrontendMessage::from_number(number), Some(message));
        }
        assert_eq!(BackendMessage::from_number(2), Some(BackendMessage::ConfigChangeMsg));
        assert_eq!(BackendMessage::from_number(10), Some(BackendMessage::ShmemUnmap));
    }

    #[test]
    fn the_draft_of_xen_mmap_shares_a_number_and_is_not_found_by_it() {
        assert_eq!(FrontendMessage::SetXenMmap.number(), 41);
        assert_eq!(FrontendMessage::SetXenMmap.name(), "SET_XEN_MMAP");
        assert_eq!(FrontendMessage::from_number(41), Some(FrontendMessage::GetSharedObject));
        let (first, second) = (FrontendMessage::GetSharedObject, FrontendMessage::SetXenMmap);
        assert_eq!((first.namesake(), second.namesake()), (Some(second), Some(first)));
        assert_eq!(FrontendMessage::GetFeatures.namesake(), None);
    }

    #[test]
    fn unknown_numbers_are_no_message() {
        for number in [0, 45, 46, 100, 0x7fff_ffff, u32::MAX] {
            assert_eq!(FrontendMessage::from_number(number), None);
        }
        for number in [0, 11, 1002, u32::MAX] {
            assert_eq!(BackendMessage::from_number(number), None);
        }
    }

    #[test]
    fn a_table_of_regions_must_fit_the_layout() {
        for (len, layout, fits) in [
            (40, RegionLayout::Plain, true),
            (8 + 8 * 32, RegionLayout::Plain, true),
            (8, RegionLayout::Plain, false),
            (0, RegionLayout::Plain, false),
            (8 + 40, RegionLayout::Plain, false),
            (8 + 40, RegionLayout::XenMerged, true),
            (328, RegionLayout::XenMerged, true),
            (8 + 48, RegionLayout::XenReview, true),
        ] {
            assert_eq!(Size::Table.allows(len, layout), fits, "{len} {layout:?}");
        }
        assert!(Size::OneRegion.allows(48, RegionLayout::XenMerged));
        assert!(!Size::OneRegion.allows(48, RegionLayout::Plain));
    }

    #[test]
    fn sizes_and_descriptors_are_said_in_numbers() {
        for (size, words) in [
            (Size::Exact(16), "16"),
            (Size::OneOf(&[0, 8]), "0 or 8"),
            (Size::Within(12, 4096), "12 to 4096"),
        ] {
            assert_eq!(size.to_string(), words);
        }
        assert_eq!(Fds::ONE.to_string(), "1");
        assert_eq!(Fds::EACH_REGION.to_string(), "1 to 32");
    }

    #[test]
    fn no_request_is_longer_than_a_frame() {
        let longest = |size| match size {
            Size::Exact(len) | Size::Within(_, len) => len,
            Size::OneOf(sizes) => sizes.iter().copied().max().unwrap(),
            Size::Table => 8 + 48 * MAX_FDS,
            Size::OneRegion => 8 + 48,
        };
        assert!(FRONTEND.iter().all(|row| longest(row.payload) <= MAX_PAYLOAD));
        assert!(BACKEND.iter().all(|row| longest(row.payload) <= MAX_PAYLOAD));
    }

    #[test]
    fn an_answer_is_at_most_one_descriptor_and_only_where_the_specification_says() {
        let with_fds = |row: &&Row<FrontendMessage>| match row.answer {
            Answer::IfAsked => false,
            Answer::Always { fds, .. } => fds.max > 0,
        };
        let numbers: Vec<u32> = FRONTEND.iter().filter(with_fds).map(|row| row.number).collect();
        assert_eq!(numbers, [28, 31, 41, 42]);
    }
}
