//! What a running back-end offers, and what a connection makes of each message after all of that was
//! accepted.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vhost_user_core::backend::{Backend, Event, Observer, Options, XenOptions};
use vhost_user_core::block::{BlockDevice, BlockOptions, NullDisk};
use vhost_user_core::connection::{Offer, Step};
use vhost_user_core::frontend::Client;
use vhost_user_core::socket::{Endpoint, Stream};
use vhost_user_core::wire::message::{Needs, Row, Size};
use vhost_user_core::wire::{Flags, Frame, FrontendMessage, ProtocolFeatures};

use super::super::support::{NEED_REPLY, Peer, SET_FEATURES, SET_PROTOCOL_FEATURES, ack, word};

/// What is refused, or that it is not; the words are those of the log.
pub(super) type Taken = Result<(), String>;

/// What the two kinds of back-ends offer.
pub(super) struct Asked {
    /// One for ordinary front-ends.
    pub(super) plain: Offered,
    /// One that serves front-ends on Xen too.
    pub(super) xen: Offered,
}

/// What one back-end offers, of which the front-end then accepts as much as goes together.
pub(super) struct Offered {
    pub(super) features: u64,
    pub(super) protocol_features: ProtocolFeatures,
    xen: Option<XenOptions>,
}

struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}

impl Asked {
    /// Asks back-ends that run.
    pub(super) fn running() -> Self {
        Self { plain: Offered::by(None), xen: Offered::by(Some(XenOptions::default())) }
    }

    /// What becomes of a message on an ordinary connection. SET_XEN_MMAP is for Xen alone.
    pub(super) fn carries_out(&self, row: &Row<FrontendMessage>) -> Taken {
        let for_xen = row.needs == Needs::Protocol(ProtocolFeatures::XEN_MMAP);
        if for_xen { self.xen.carries_out(row) } else { self.plain.carries_out(row) }
    }

    /// Why a message that is carried out is not once XEN_MMAP was accepted.
    pub(super) fn refused_with_xen(&self, row: &Row<FrontendMessage>) -> Option<String> {
        // Another message has the number then.
        let other = row.message == FrontendMessage::GetSharedObject;
        (!other && self.carries_out(row).is_ok()).then(|| self.xen.carries_out(row).err())?
    }
}

impl Offered {
    fn by(xen: Option<XenOptions>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let disk = BlockDevice::new(NullDisk::new(1 << 20, 512), &BlockOptions::default()).unwrap();
        let mut options = Options::new(Endpoint::Inherited(OwnedFd::from(theirs)));
        options.xen.clone_from(&xen);
        let backend = Backend::start(Arc::new(disk), options, Arc::new(Silent)).unwrap();
        let stream = Stream::new(OwnedFd::from(ours));
        let mut client = Client::from_stream(stream, Duration::from_secs(10));
        let features = client.features().unwrap();
        let protocol_features = client.protocol_features().unwrap();
        drop(client);
        drop(backend);
        Self { features, protocol_features, xen }
    }

    /// A connection on which all that goes together was accepted, the lower bits first, and XEN_MMAP
    /// before all others.
    fn negotiated(&self) -> Peer {
        let mut peer = Peer::new(Offer {
            features: self.features,
            protocol_features: self.protocol_features,
            xen: self.xen.as_ref().map(|xen| xen.designs),
            ..super::super::support::offer(2)
        });
        let offered = self.protocol_features.bits();
        let first = ProtocolFeatures::XEN_MMAP.bits() & offered;
        accept(&mut peer, SET_PROTOCOL_FEATURES, offered, first);
        // VERSION_1 and PROTOCOL_FEATURES.
        accept(&mut peer, SET_FEATURES, self.features, 1 << 32 | 1 << 30);
        peer
    }

    fn carries_out(&self, row: &Row<FrontendMessage>) -> Taken {
        let mut peer = self.negotiated();
        let fds = (0..row.fds.min).map(|_| peer.descriptor()).collect();
        let payload = vec![0; usual_len(row.payload)];
        let flags = Flags::from_bits_retain(NEED_REPLY);
        let why = match peer.connection.handle(Frame::new(row.number, flags, payload, fds)) {
            Step::Refuse { why, .. } | Step::Close(why) => why.0,
            Step::Act(_) | Step::Reply(_) => return Ok(()),
        };
        // A payload of zeroes makes no sense in many messages, which is for their handlers to say.
        let words = why.strip_prefix(row.name).and_then(|rest| rest.strip_prefix(": "));
        let words = words.unwrap_or(&why);
        let by_rule = [
            "was not negotiated",
            "neither was negotiated",
            "not carried out",
            "not possible with XEN_MMAP",
        ];
        if by_rule.iter().any(|rule| words.contains(rule)) { Err(words.to_owned()) } else { Ok(()) }
    }
}

/// Accepts one bit of `offered` after the other, with all that went well so far.
fn accept(peer: &mut Peer, message: u32, offered: u64, first: u64) {
    let mut accepted = first;
    for bit in (0..64).map(|n| 1 << n).filter(|bit| offered & bit != 0) {
        if peer.ask(message, word(accepted | bit)) == ack() {
            accepted |= bit;
        }
    }
    assert_eq!(peer.ask(message, word(accepted)), ack(), "{message} {accepted:#x}");
}

/// A payload of so many bytes fits the row.
fn usual_len(size: Size) -> usize {
    match size {
        Size::Exact(len) => len,
        Size::OneOf(lens) => lens[lens.len() - 1],
        Size::Within(min, _) => min + 1,
        Size::Table | Size::OneRegion => 8 + 32,
    }
}
