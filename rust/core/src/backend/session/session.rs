//! One front-end's connection: carries out what its messages ask for.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::logging::Logging;
use super::missing_pages::MissingPages;
use super::records::Records;
use super::vring::Vring;
use crate::backend::channel::{Answer, Channel};
use crate::backend::context::BackendContext;
use crate::backend::event::Event;
use crate::backend::offer::offer;
use crate::backend::options::Threads;
use crate::backend::shared::{PendingEvents, Shared};
use crate::connection::{Action, Connection, Outcome, Refusal, Step};
use crate::device::{Device, NotGivenUp};
use crate::memory::{GuestSlice, Iotlb, Memory, MemoryPolicy, Region};
use crate::request::CompletionQueue;
use crate::socket::{Incoming, Stream};
use crate::state::Transfer;
use crate::sys::guard::Loss;
use crate::wire::features::LOG_ALL;
use crate::wire::{Frame, ProtocolFeatures, ReceivedFd, features};
use crate::worker::Worker;

/// How often a wait for requests in flight asks whether it may go on: a second stop may allow less
/// time than the first.
pub(super) const RECHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How long the files that a front-end passed may keep it waiting to be closed, when there are too
/// many of them.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// One front-end's connection: its protocol state, its memory, its rings and their workers.
pub(in crate::backend) struct Session<'a> {
    pub(super) context: &'a BackendContext,
    pub(super) stream: Stream,
    pub(super) connection: Connection,
    pub(super) memory: Arc<Memory>,
    pub(super) memory_policy: MemoryPolicy,
    /// Every region that was mapped: requests that still hold one at the end lose its memory.
    pub(super) mapped: Vec<Weak<Region>>,
    /// The front-end has taken memory away that it shares.
    pub(super) loss: Arc<Loss>,
    pub(super) vrings: Vec<Vring>,
    /// The records of requests in flight that the front-end keeps, if it does.
    pub(super) records: Option<Records>,
    pub(super) logging: Logging,
    /// What requests read that were left in the record, and still have guest memory.
    pub(super) unfinished_reads: Option<Vec<GuestSlice>>,
    /// The completions of all rings that were started: requests may outlive their ring.
    pub(super) completions: Vec<Weak<CompletionQueue>>,
    /// The completions of rings whose requests did not all come back when they stopped.
    pub(super) late: Vec<Weak<CompletionQueue>>,
    /// Why the device did not give up what it shares with other processes, when it was asked last.
    pub(super) kept: Option<NotGivenUp>,
    pub(super) workers: Vec<Option<Worker>>,
    pub(super) channel: Channel,
    pub(super) postcopy: Option<MissingPages>,
    /// The translations of I/O virtual addresses; without ACCESS_PLATFORM there are none.
    pub(super) iotlb: Arc<Iotlb>,
    /// What the front-end has answered about translations, until it is known whether they came.
    pub(super) answers: Vec<Answer>,
    /// The transfer of the device's state that was begun last.
    pub(super) transfer: Option<Transfer>,
    /// The features and protocol features that the log has been told of.
    told_negotiated: Option<(u64, ProtocolFeatures)>,
    /// The bits without an offer that the log has been told of.
    told_ignored: u64,
    /// A ring could not be stopped, so that the front-end and this session do not agree about it:
    /// the connection ends.
    pub(super) has_lost_a_ring: bool,
    /// Nobody waits for an answer any more.
    pub(super) is_over: bool,
}

impl<'a> Session<'a> {
    pub(in crate::backend) fn new(context: &'a BackendContext, stream: Stream) -> Self {
        let queues = context.device.num_queues();
        let workers = match context.options.threads {
            Threads::PerQueue => queues,
            Threads::Count(count) => queues.min(count.get()),
        };
        Self {
            context,
            stream,
            connection: Connection::new(offer(&*context.device, context.options.xen.as_ref())),
            memory: Arc::default(),
            memory_policy: MemoryPolicy::new(context.options.memory),
            mapped: Vec::new(),
            loss: Loss::new(Arc::clone(&context.shared.wake)),
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            records: None,
            logging: Logging::default(),
            unfinished_reads: None,
            completions: Vec::new(),
            late: Vec::new(),
            kept: None,
            workers: (0..workers).map(|_| None).collect(),
            channel: Channel::default(),
            postcopy: None,
            iotlb: Arc::default(),
            answers: Vec::new(),
            transfer: None,
            told_negotiated: None,
            told_ignored: 0,
            has_lost_a_ring: false,
            is_over: false,
        }
    }

    /// Serves the front-end until it leaves, or breaks the protocol, or the back-end stops.
    pub(in crate::backend) fn run(mut self) {
        loop {
            let wake = self.channel.wakes(self.shared().wake.as_fd());
            let goes_on = match self.stream.receive(wake) {
                Ok(Incoming::Frame(frame)) => self.message(frame) && self.closes_in_time(),
                Ok(Incoming::Woken) => self.pending_events(),
                Ok(Incoming::Closed) => false,
                Err(error) => {
                    self.event(Event::Closed(error.to_string()));
                    false
                }
            };
            if !goes_on {
                break;
            }
        }
        self.end();
    }

    /// Handles one message wholly; `false`: the connection ends.
    fn message(&mut self, frame: Frame) -> bool {
        let goes_on = self.handle(frame);
        self.settle_answers();
        goes_on
    }

    fn handle(&mut self, frame: Frame) -> bool {
        let mut step = self.connection.handle(frame);
        loop {
            step = match step {
                Step::Act(action) => {
                    let outcome = self.carry_out(action).unwrap_or_else(Outcome::Failed);
                    self.connection.done(outcome)
                }
                Step::Reply(None) => return true,
                Step::Reply(Some(reply)) => return self.send(&reply),
                Step::Refuse { reply, why } => {
                    self.event(Event::Refused(why));
                    return !self.is_over && self.send(&reply) && !self.has_lost_a_ring;
                }
                Step::Close(why) => {
                    self.event(Event::Closed(why.to_string()));
                    return false;
                }
            }
        }
    }

    /// `false`: too much of what was passed cannot be closed, and the connection ends.
    fn closes_in_time(&self) -> bool {
        let in_time = self.context.closer.catches_up(CLOSE_LIMIT);
        if !in_time {
            let why = "too many descriptors that were passed cannot be closed: \
                       their files do not answer";
            self.event(Event::Closed(why.to_owned()));
        }
        in_time
    }

    pub(super) fn pending_events(&mut self) -> bool {
        let PendingEvents { stop, broken, panicked, config_changed, pause, wanted } =
            self.shared().pending_events();
        if let Some(pause) = pause {
            self.pass_pause_on(pause);
        }
        self.ask_for_translations(wanted);
        if broken {
            self.connection.reset_needed();
        }
        if broken || config_changed {
            self.notify_config();
        }
        if panicked {
            self.event(Event::Closed("a worker thread panicked".to_owned()));
        }
        let lost = self.loss.has_happened();
        if lost {
            let why = if self.memory.needs_resolving() {
                "memory of the guest's domain is not there any more"
            } else {
                "the front-end has cut the file behind guest memory that it shares"
            };
            self.event(Event::Closed(why.to_owned()));
        }
        !stop && !panicked && !lost
    }

    fn send(&mut self, reply: &Frame) -> bool {
        match self.stream.send(reply) {
            Ok(()) => true,
            Err(error) => {
                self.event(Event::Closed(error.to_string()));
                false
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<Outcome, Refusal> {
        self.before(&action);
        match action {
            Action::Features { features, enable_all, ignored } => {
                self.set_features(features, enable_all)?;
                self.tell_ignored(ignored);
            }
            Action::SetMemory(regions) => self.set_memory(regions)?,
            Action::AddRegion(region) => self.add_region(region)?,
            Action::RemoveRegion(range) => self.remove_region(range)?,
            Action::StartRing { setup, kick, reset } => self.start_ring(setup, kick, reset)?,
            Action::ReplaceKick { index, kick } => self.replace_kick(index, kick)?,
            Action::SetCall { index, fd } => self.set_call(index, fd)?,
            Action::SetError { index, fd } => self.set_error(index, fd)?,
            Action::Enable { index, enabled } => self.enable(index, enabled)?,
            Action::StopRing { index } => return self.stop_ring(index).map(Outcome::Base),
            Action::ReadConfig { offset, size } => {
                return Ok(Outcome::Config(self.read_config(offset, size)));
            }
            Action::WriteConfig { offset, data } => {
                self.device()
                    .write_config(offset as usize, &data)
                    .map_err(|refused| Refusal(format!("SET_CONFIG: {refused}")))?;
                self.make_note();
            }
            Action::Status(byte) => self.shared().set_device_status(byte),
            Action::StopRings { reset } => return self.stop_all(reset).map(Outcome::Stopped),
            Action::MakeRecord { asked } => return self.make_record(asked),
            Action::SetRecord { inflight, fd } => self.set_record(inflight, fd)?,
            Action::AdvisePostcopy => return self.advise_postcopy(),
            Action::AwaitMemory { offers, replace } => return self.await_memory(offers, replace),
            Action::UseAwaited => self.use_awaited(),
            Action::EndPostcopy => self.end_postcopy(),
            Action::TransferState { direction, fd } => self.transfer_state(direction, fd)?,
            Action::AwaitState => self.await_state()?,
            Action::SetLog { log, fd } => self.set_log(log, fd)?,
            Action::SetLogEvent(fd) => self.set_log_event(fd)?,
            Action::LogUsedRing { index, at } => self.log_used_ring(index, at)?,
            Action::Iotlb(change) => self.change_translations(change)?,
            Action::SetBackendChannel(fd) => self.set_channel(fd)?,
        }
        Ok(Outcome::Done)
    }

    fn set_channel(&mut self, fd: ReceivedFd) -> Result<(), Refusal> {
        let channel = Channel::open(fd, &self.context.closer)?;
        let former = std::mem::replace(&mut self.channel, channel);
        self.channel.go_on_for(former);
        self.ask_for_translations(Vec::new());
        Ok(())
    }

    fn set_features(&mut self, features: u64, enable_all: bool) -> Result<(), Refusal> {
        self.switch_logging(features & LOG_ALL != 0)?;
        if self.queues().next().is_none() {
            // While a ring is started nothing of the device's can differ.
            self.device().negotiated(features & !LOG_ALL);
        }
        self.forget_translations();
        if enable_all {
            for index in 0..self.device().num_queues() {
                self.enable(index, true)?;
            }
        }
        Ok(())
    }

    /// Says what was negotiated, when the first ring starts: only then is it all known, as some
    /// front-ends set the features before the protocol features, or both again. Once for each
    /// outcome: firmware and kernel may accept the same.
    pub(super) fn tell_negotiated(&mut self) {
        // Logging is switched on and off again.
        let features = self.connection.features() & !LOG_ALL;
        let protocol = self.connection.protocol_features();
        if self.told_negotiated.replace((features, protocol)) != Some((features, protocol)) {
            let names = features::describe(features, Some(self.device().virtio_id()));
            self.event(Event::Negotiated { features, names, protocol });
        }
    }

    /// Says which bits the front-end has set without an offer, once for each set of them: front-ends
    /// send their features again and again.
    fn tell_ignored(&mut self, ignored: u64) {
        if ignored != 0 && std::mem::replace(&mut self.told_ignored, ignored) != ignored {
            let names = features::describe(ignored, Some(self.device().virtio_id()));
            self.event(Event::FeaturesIgnored { features: ignored, names });
        }
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        if (offset as usize) < self.device().config_len() {
            self.device().read_config(offset as usize, &mut bytes);
        }
        bytes
    }

    pub(super) fn notify_config(&mut self) {
        if self.connection.can_notify_config()
            && let Err(why) = self.channel.config_changed()
        {
            self.event(Event::Refused(why));
        }
    }

    pub(super) fn device(&self) -> &'a dyn Device {
        &*self.context.device
    }

    pub(super) fn shared(&self) -> &'a Shared {
        &self.context.shared
    }

    pub(super) fn event(&self, event: Event) {
        self.shared().event(event);
    }
}
