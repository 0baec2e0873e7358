//! The connection: what was negotiated so far, and the way of a message through it.

use std::os::fd::OwnedFd;

use super::device_state::{DeviceState, Driver};
use super::postcopy_state::{Postcopy, Told};
use super::reply::Request;
use super::status::Status;
use super::words::count;
use super::{Action, Offer, Outcome, Refusal, Step, Vring};
use crate::address::GuestAddr;
use crate::wire::message::{Answer, Needs, Row};
use crate::wire::payload::{Log, TransferDirection, XenMapping};
use crate::wire::{
    Flags, Frame, FrontendMessage, MAX_PAYLOAD, Payload, PayloadError, ProtocolFeatures, ReceivedFd,
};

/// One connection with a front-end, from its first message to its last.
#[derive(Debug)]
pub struct Connection {
    pub(super) offer: Offer,
    pub(super) features: u64,
    /// SET_FEATURES came without PROTOCOL_FEATURES: rings are enabled when they start.
    pub(super) enable_at_start: bool,
    pub(super) protocol_features: ProtocolFeatures,
    /// What SET_XEN_MMAP said last: how regions that follow in the plain layout are mapped.
    pub(super) xen_mmap: Option<XenMapping>,
    pub(super) regions: u64,
    pub(super) vrings: Vec<Vring>,
    pub(super) status: Status,
    pub(super) device_state: DeviceState,
    /// The device's state is being loaded, and the front-end has not asked how that went.
    pub(super) loading: bool,
    pub(super) backend_channel: bool,
    pub(super) postcopy: Postcopy,
    pending: Option<Pending>,
}

/// An action that the back-end is carrying out.
#[derive(Debug)]
struct Pending {
    request: Request,
    commit: Commit,
}

/// What a handler makes of a message that is not refused.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Dealt with.
    Done,
    /// Dealt with; this is the answer.
    Answer(Vec<u8>),
    /// Dealt with; this is the answer, with a descriptor.
    AnswerWith(Vec<u8>, OwnedFd),
    /// The back-end must act, and then this becomes the state.
    Act(Action, Commit),
}

/// The change of state that waits for an action.
#[derive(Debug)]
pub(super) enum Commit {
    Nothing,
    Features { features: u64, enable_all: bool },
    Regions(u64),
    Start { index: u16, enabled: bool, driver: Driver },
    Stop { index: u16 },
    Enable { index: u16, enabled: bool },
    ReadConfig { offset: u32, flags: u32, size: u32 },
    WriteConfig,
    Status(u8),
    StatusZero { reset: bool },
    Reset,
    BackendChannel,
    Iotlb,
    Transfer { direction: TransferDirection },
    Transferred,
    Log(Log),
    LogUsedRing { index: u16, at: Option<GuestAddr> },
    Advised,
    Awaited { regions: u64, told: Told },
    Acknowledged { regions: u64 },
    PostcopyEnd,
}

pub(super) type Handled = Result<Verdict, Refusal>;

impl From<PayloadError> for Refusal {
    fn from(error: PayloadError) -> Self {
        Self(error.to_string())
    }
}

impl Connection {
    /// A connection on which nothing has been said yet.
    pub fn new(offer: Offer) -> Self {
        let offer = offer.honest();
        Self {
            features: 0,
            enable_at_start: false,
            protocol_features: ProtocolFeatures::empty(),
            xen_mmap: None,
            regions: 0,
            vrings: vec![Vring::default(); offer.num_queues.into()],
            status: Status::default(),
            device_state: DeviceState::default(),
            loading: false,
            backend_channel: false,
            postcopy: Postcopy::default(),
            pending: None,
            offer,
        }
    }

    /// Takes a message. The frame's descriptors are moved into the action that needs them, or
    /// closed.
    ///
    /// After [`Step::Act`], call [`done`](Self::done) before the next message: messages are
    /// carried out one by one and in order.
    pub fn handle(&mut self, frame: Frame) -> Step {
        if self.pending.is_some() {
            return Step::Close(Refusal("a message came before the last was done".to_owned()));
        }
        if let Err(why) = well_framed(&frame) {
            return Step::Close(why);
        }
        let number = frame.header.request;
        let message = self.message(number);
        let need_reply = frame.header.flags.contains(Flags::NEED_REPLY);
        let request = Request { number, need_reply, message, answer: self.answer_to(message) };
        let handled = match message {
            None => Err(Refusal("unknown".to_owned())),
            Some(message) => {
                self.admit(message.row(), &frame).and_then(|()| self.dispatch(message, frame))
            }
        };
        self.conclude(request, handled)
    }

    /// Takes the outcome of the action that [`handle`](Self::handle) returned last.
    pub fn done(&mut self, outcome: Outcome) -> Step {
        let Some(Pending { request, commit }) = self.pending.take() else {
            return Step::Close(Refusal("an outcome came without an action".to_owned()));
        };
        match outcome {
            // The back-end has named the message itself.
            Outcome::Failed(why) => {
                self.failed(&commit);
                request.refuse(why)
            }
            outcome => {
                let handled = self.commit(commit, outcome);
                self.conclude(request, handled)
            }
        }
    }

    /// An action failed. It has changed nothing, but the front-end knows how a transfer went.
    fn failed(&mut self, commit: &Commit) {
        if matches!(commit, Commit::Transferred) {
            self.transfer_is_over();
        }
    }

    /// A ring broke: the driver reads in the status that the device needs a reset.
    pub fn reset_needed(&mut self) {
        self.status.reset_needed();
    }

    /// Feature bits that the front-end accepted, virtio's and vhost's; 0 before SET_FEATURES.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Protocol features that the front-end accepted.
    pub fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol_features
    }

    /// A vring's flags and base; `None` if the device has no such vring.
    pub fn ring(&self, index: u16) -> Option<&Vring> {
        self.vrings.get(usize::from(index))
    }

    /// The device status byte as GET_STATUS answers it.
    pub fn status(&self) -> u8 {
        self.status.byte()
    }

    /// The front-end has given a channel for the back-end's own requests.
    pub fn has_backend_channel(&self) -> bool {
        self.backend_channel
    }

    /// CONFIG_CHANGE_MSG may be sent.
    pub fn can_notify_config(&self) -> bool {
        self.backend_channel && self.protocol_features.contains(ProtocolFeatures::CONFIG)
    }

    /// Holds a message against its row of the table.
    fn admit(&self, row: &Row<FrontendMessage>, frame: &Frame) -> Result<(), Refusal> {
        self.possible_with_xen(row.message)?;
        self.negotiated(row)?;
        if self.is_acknowledgement(row.message, frame) {
            return Ok(());
        }
        let (bytes, fds) = (frame.payload.len(), frame.fds.len());
        if !row.payload.allows(bytes, self.layout_of(row.payload, &frame.payload)?) {
            return Err(Refusal(format!("{bytes} bytes of payload, {} expected", row.payload)));
        }
        if !row.fds.allows(fds) {
            let fds = count(fds, "descriptor");
            return Err(Refusal(format!("{fds}, {} expected", row.fds)));
        }
        Ok(())
    }

    fn negotiated(&self, row: &Row<FrontendMessage>) -> Result<(), Refusal> {
        let Some(what) = self.missing(row.needs) else { return Ok(()) };
        let namesake = row.message.namesake().map(FrontendMessage::row);
        let other = namesake.and_then(|row| Some((row.name, self.missing(row.needs)?)));
        Err(Refusal(match other {
            None => format!("needs {what}, which was not negotiated"),
            Some((name, needed)) => format!(
                "needs {what}, and {name}, which has the same number, needs {needed}: neither was \
                 negotiated"
            ),
        }))
    }

    /// What is needed and was not negotiated.
    fn missing(&self, needs: Needs) -> Option<String> {
        let (met, what) = match needs {
            Needs::Nothing => return None,
            Needs::Offered(bit) => (self.offer.features & bit != 0, self.describe(bit)),
            Needs::Accepted(bit) => (self.features & bit != 0, self.describe(bit)),
            Needs::Protocol(bits) => (self.protocol_features.contains(bits), bits.describe()),
            Needs::DeviceType(id) => (false, format!("device type {id}")),
        };
        (!met).then_some(what)
    }

    /// SET_LOG_BASE has an answer of its own with LOG_SHMFD, and is a message like most without.
    fn answer_to(&self, message: Option<FrontendMessage>) -> Answer {
        let logs = self.protocol_features.contains(ProtocolFeatures::LOG_SHMFD);
        match message {
            None => Answer::IfAsked,
            Some(FrontendMessage::SetLogBase) if !logs => Answer::IfAsked,
            Some(message) => message.row().answer,
        }
    }

    fn dispatch(&mut self, message: FrontendMessage, frame: Frame) -> Handled {
        use FrontendMessage as M;
        match message {
            M::GetFeatures => self.get_features(),
            M::SetFeatures => self.set_features(&frame),
            M::GetProtocolFeatures => self.get_protocol_features(),
            M::SetProtocolFeatures => self.set_protocol_features(&frame),
            // Marks of ownership: a front-end may repeat them, and none relies on an effect.
            M::SetOwner | M::ResetOwner => Ok(Verdict::Done),
            M::SetMemTable => self.set_mem_table(frame),
            M::GetMaxMemSlots => self.get_max_mem_slots(),
            M::AddMemReg => self.add_mem_reg(frame),
            M::RemMemReg => self.rem_mem_reg(&frame),
            M::SetXenMmap => self.set_xen_mmap(&frame),
            M::GetQueueNum => self.get_queue_num(),
            M::SetVringNum => self.set_vring_num(&frame),
            M::SetVringAddr => self.set_vring_addr(&frame),
            M::SetVringBase => self.set_vring_base(&frame),
            M::GetVringBase => self.get_vring_base(&frame),
            M::SetVringKick => self.set_vring_kick(frame),
            M::SetVringCall => self.set_vring_call(frame),
            M::SetVringErr => self.set_vring_err(frame),
            M::SetVringEnable => self.set_vring_enable(&frame),
            M::GetConfig => self.get_config(&frame),
            M::SetConfig => self.set_config(&frame),
            M::GetStatus => self.get_status(),
            M::SetStatus => self.set_status(&frame),
            M::ResetDevice => Ok(self.reset_device()),
            M::GetInflightFd => self.get_inflight_fd(&frame),
            M::SetInflightFd => self.set_inflight_fd(frame),
            M::SetDeviceStateFd => self.set_device_state_fd(frame),
            M::CheckDeviceState => Ok(Self::check_device_state()),
            M::PostcopyAdvise => self.postcopy_advise(),
            M::PostcopyListen => self.postcopy_listen(),
            M::PostcopyEnd => self.postcopy_end(),
            M::SetBackendReqFd => self.set_backend_req_fd(frame),
            M::IotlbMsg => self.iotlb_msg(&frame),
            M::SetLogBase => self.set_log_base(frame),
            M::SetLogFd => self.set_log_fd(frame),
            M::SendRarp
            | M::NetSetMtu
            | M::SetVringEndian
            | M::CreateCryptoSession
            | M::CloseCryptoSession
            | M::GpuSetSocket
            | M::VringKick
            | M::GetSharedObject
            // Their features are never offered, so the table has stopped them already.
            | M::GetShmemConfig => Err(Refusal("not carried out by this back-end".to_owned())),
        }
    }

    fn set_backend_req_fd(&mut self, frame: Frame) -> Handled {
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        Ok(Verdict::Act(Action::SetBackendChannel(fd), Commit::BackendChannel))
    }

    fn conclude(&mut self, request: Request, handled: Handled) -> Step {
        match handled {
            Ok(Verdict::Done) => request.acknowledge(),
            Ok(Verdict::Answer(payload)) => request.answer(payload),
            Ok(Verdict::AnswerWith(payload, fd)) => request.answer_with(payload, fd),
            Ok(Verdict::Act(action, commit)) => {
                self.pending = Some(Pending { request, commit });
                Step::Act(action)
            }
            Err(why) => request.refuse(request.named(why)),
        }
    }

    /// Makes the change of state that a carried-out action stands for.
    fn commit(&mut self, commit: Commit, outcome: Outcome) -> Handled {
        match (commit, outcome) {
            (Commit::Stop { index }, Outcome::Base(base)) => Ok(self.stopped(index, base)),
            (Commit::ReadConfig { offset, flags, size }, Outcome::Config(data)) => {
                Self::config_read(offset, flags, size, data)
            }
            (Commit::StatusZero { reset }, Outcome::Stopped(bases)) => {
                Ok(self.status_is_zero(&bases, reset))
            }
            (Commit::Nothing, Outcome::Record { inflight, fd }) => {
                Ok(Self::record_made(inflight, fd))
            }
            (Commit::Reset, Outcome::Stopped(_)) => Ok(self.reset()),
            (Commit::Transfer { direction }, Outcome::Done) => {
                Ok(self.transfer_has_begun(direction))
            }
            (Commit::Advised, Outcome::Userfault(fd)) => Ok(self.postcopy_is_advised(fd)),
            (Commit::Awaited { regions, told }, Outcome::Places(places)) => {
                Ok(self.regions_are_awaited(regions, told, &places))
            }
            (Commit::PostcopyEnd, Outcome::Done) => Ok(self.postcopy_has_ended()),
            (Commit::Transferred, Outcome::Done) => Ok(self.transfer_is_over()),
            (Commit::Log(log), Outcome::Done) => Ok(Self::log_taken(log)),
            (commit, Outcome::Done) => self.commit_done(commit),
            (_, outcome) => Err(Refusal(format!("the back-end reported {outcome:?}"))),
        }
    }

    fn commit_done(&mut self, commit: Commit) -> Handled {
        match commit {
            Commit::Nothing => {}
            Commit::Features { features, enable_all } => self.accept(features, enable_all),
            Commit::Regions(count) => self.regions = count,
            Commit::Acknowledged { regions } => self.regions_are_known(regions),
            Commit::Start { index, enabled, driver } => {
                self.ring_has_started(index, enabled, driver)
            }
            Commit::Enable { index, enabled } => self.change(index, |ring| ring.enable(enabled)),
            Commit::WriteConfig => self.device_state.touched(),
            Commit::Status(byte) => self.set_status_byte(byte),
            Commit::BackendChannel => self.backend_channel = true,
            Commit::LogUsedRing { index, at } => self.change(index, |ring| ring.log_used_ring(at)),
            Commit::Iotlb => return Ok(Self::iotlb_changed()),
            Commit::Stop { .. }
            | Commit::ReadConfig { .. }
            | Commit::StatusZero { .. }
            | Commit::Transfer { .. }
            | Commit::Transferred
            | Commit::Log(_)
            | Commit::Advised
            | Commit::Awaited { .. }
            | Commit::PostcopyEnd
            | Commit::Reset => {
                return Err(Refusal("the back-end reported no result".to_owned()));
            }
        }
        Ok(Verdict::Done)
    }
}

/// Refuses what cannot be a request of this protocol.
fn well_framed(frame: &Frame) -> Result<(), Refusal> {
    let header = frame.header;
    if header.flags.difference(Flags::NEED_REPLY) != Flags::VERSION {
        return Err(Refusal(format!("a request with flags {:#x}", header.flags.bits())));
    }
    let len = frame.payload.len();
    if len > MAX_PAYLOAD || header.size as usize != len {
        return Err(Refusal(format!("a payload of {len} bytes, {} announced", header.size)));
    }
    Ok(())
}

/// The whole payload as its type.
pub(super) fn read<P: Payload>(frame: &Frame) -> Result<P, Refusal> {
    Ok(P::from_bytes(&frame.payload)?)
}

/// The only descriptor of a message that may have one.
pub(super) fn only_fd(mut frame: Frame) -> Result<Option<ReceivedFd>, Refusal> {
    let fd = frame.fds.pop();
    if !frame.fds.is_empty() {
        return Err(Refusal("more than one descriptor".to_owned()));
    }
    Ok(fd)
}
