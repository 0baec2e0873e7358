//! What the front-end has told the back-end, and what the next one is to be told.

use std::collections::BTreeMap;

use super::Failure;
use super::backend::{Backend, request};
use super::channel::Channel;
use super::regions::Regions;
use super::vring::{Vring, say};
use crate::wire::features::{RING_PACKED, describe};
use crate::wire::payload::{Config, MAX_CONFIG_DATA, VringState};
use crate::wire::{Frame, FrontendMessage, Payload, ProtocolFeatures};

/// VIRTIO 1.3, "Device Status Field": the driver is set up and ready to drive the device.
const DRIVER_OK: u64 = 0x04;

/// Vrings that kick, call and error messages can name: an index has 8 bits.
const MAX_VRINGS: u32 = 256;

/// Where the configuration space that is kept ends. Devices have some hundred bytes, and this many
/// fit into one message.
const MAX_CONFIG_END: u32 = MAX_CONFIG_DATA as u32;

/// What rings a record was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) packed: bool,
    pub(super) entries: u32,
}

/// All that a connection consists of beside its requests.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Protocol features that the front-end accepted.
    pub(super) protocol: Option<ProtocolFeatures>,
    pub(super) features: Option<Frame>,
    pub(super) owner: Option<Frame>,
    /// For the back-end's own requests.
    pub(super) channel: Option<Channel>,
    pub(super) log: Option<Frame>,
    pub(super) log_event: Option<Frame>,
    pub(super) mtu: Option<Frame>,
    /// Bytes of the configuration space that were written.
    config: BTreeMap<u32, (u32, u8)>,
    /// The last question for the configuration, and the bytes that answered it.
    pub(super) shown_config: Option<(Frame, Vec<u8>)>,
    /// The record of requests in flight: the front-end's, or the one that is kept for it.
    pub(super) record: Option<Frame>,
    /// What the one that is kept for it was made for; `None`: it is the front-end's own.
    pub(super) made_for: Option<Made>,
    pub(super) regions: Regions,
    vrings: BTreeMap<u32, Vring>,
    pub(super) status: Option<Frame>,
    /// The greatest answers to GET_QUEUE_NUM and GET_MAX_MEM_SLOTS that the front-end got.
    pub(super) queues: u64,
    pub(super) slots: u64,
    /// A transfer of the device's state has begun.
    pub(super) transfers: bool,
}

impl Told {
    /// Why a message cannot be passed on.
    pub(super) fn objection(&self, message: FrontendMessage, frame: &Frame) -> Option<String> {
        use FrontendMessage as M;
        match message {
            M::AddMemReg if self.regions.is_full() => {
                Some("more regions than can be kept".to_owned())
            }
            M::SetVringNum | M::SetVringBase | M::SetVringAddr | M::SetVringEnable => {
                let index = index(frame)?;
                (index >= MAX_VRINGS).then(|| format!("vring {index}, {MAX_VRINGS} can be kept"))
            }
            _ => None,
        }
    }

    /// Keeps a message that the back-end has taken. `reply`: its answer, if there was one.
    pub(super) fn learn(&mut self, message: FrontendMessage, frame: Frame, reply: Option<&Frame>) {
        use FrontendMessage as M;
        match message {
            M::SetFeatures => self.features = Some(frame),
            M::SetProtocolFeatures => {
                let accepted = number(&frame).map(ProtocolFeatures::from_bits_retain);
                self.protocol = accepted.or(self.protocol);
            }
            M::SetOwner => self.owner = Some(frame),
            M::SetLogBase => self.log = Some(frame),
            M::SetLogFd => self.log_event = Some(frame),
            M::NetSetMtu => self.mtu = Some(frame),
            M::SetConfig => self.config_written(&frame),
            M::GetConfig => {
                self.shown_config = reply.map(|reply| (frame, reply.payload.clone()));
            }
            M::SetInflightFd => (self.record, self.made_for) = (Some(frame), None),
            M::SetMemTable => self.regions.replace(frame),
            M::AddMemReg => self.regions.add(frame),
            M::RemMemReg => self.regions.remove(&frame),
            M::SetStatus => self.status_written(frame),
            M::ResetDevice => self.reset(),
            M::GetQueueNum => self.queues = self.queues.max(reply.and_then(number).unwrap_or(0)),
            M::GetMaxMemSlots => self.slots = self.slots.max(reply.and_then(number).unwrap_or(0)),
            M::GetVringBase => self.ring_stopped(reply),
            M::SetDeviceStateFd => self.transfers = true,
            M::CheckDeviceState => self.transfers = false,
            _ => self.vring_told(message, frame),
        }
    }

    /// Whether the driver uses packed rings.
    pub(super) fn is_packed(&self) -> bool {
        self.features.as_ref().and_then(number).unwrap_or(0) & RING_PACKED != 0
    }

    /// Whether a ring has started.
    pub(super) fn runs(&self) -> bool {
        self.vrings.values().any(Vring::is_started)
    }

    /// The vrings that have started.
    pub(super) fn started(&self) -> Vec<u32> {
        let started = self.vrings.iter().filter(|(_, vring)| vring.is_started());
        started.map(|(index, _)| *index).collect()
    }

    /// All that is kept of all vrings.
    pub(super) fn vring_frames(&self) -> impl Iterator<Item = &Frame> {
        self.vrings.values().flat_map(Vring::frames)
    }

    /// Vrings up to the last that was spoken of.
    pub(super) fn vrings(&self) -> u64 {
        self.vrings.last_key_value().map_or(0, |(index, _)| u64::from(*index) + 1)
    }

    /// Entries of the longest vring.
    pub(super) fn entries(&self) -> u32 {
        self.vrings.values().map(Vring::entries).max().unwrap_or(0)
    }

    /// A ring was asked to stand still and goes on from `base`.
    pub(super) fn stands_at(&mut self, base: VringState) {
        if let Some(vring) = self.vrings.get_mut(&base.index) {
            vring.stands_at(base);
        }
    }

    /// Refuses a back-end that offers less than was negotiated.
    pub(super) fn check(&self, backend: &Backend) -> Result<(), Failure> {
        let lacks = |what: String| Err(Failure::Refused(format!("the back-end lacks {what}")));
        let accepted = self.features.as_ref().and_then(number).unwrap_or(0);
        let missing = accepted & !backend.features;
        if missing != 0 {
            return lacks(format!("what the driver uses: {}", describe(missing, None)));
        }
        let missing = self.protocol.unwrap_or_default() - backend.protocol;
        if !missing.is_empty() {
            return lacks(format!("what the front-end uses: {}", missing.describe()));
        }
        let too_few = |had: u64, has: Option<u64>| has.filter(|has| *has < had);
        if let Some(has) = too_few(self.queues, backend.queues) {
            return lacks(format!("queues: it has {has}, the last one had {}", self.queues));
        }
        if let Some(has) = too_few(self.slots, backend.slots) {
            return lacks(format!("memory slots: it has {has}, the last one had {}", self.slots));
        }
        Ok(())
    }

    /// Tells a back-end everything, in the order in which QEMU does when it reconnects.
    pub(super) fn say(&mut self, backend: &mut Backend) -> Result<(), Failure> {
        if let Some(protocol) = self.protocol {
            backend.accept(protocol)?;
        }
        if let Some(channel) = &mut self.channel {
            backend.tell(&mut channel.offer()?)?;
        }
        say(backend, [&mut self.owner, &mut self.log, &mut self.log_event])?;
        self.each_vring(|vring| vring.say_notifiers(backend))?;
        say(backend, [&mut self.features, &mut self.mtu])?;
        self.say_config(backend)?;
        say(backend, [&mut self.record])?;
        self.say_status(backend, !DRIVER_OK)?;
        self.regions.say(backend)?;
        let started = |vring: &mut Vring| vring.say_start(backend);
        self.each_vring(started)?;
        self.each_vring(|vring| vring.say_enable(backend))?;
        self.say_status(backend, !0)?;
        self.compare_config(backend)
    }

    /// Tells the front-end, as a back-end does, if this one has another configuration: a disk that
    /// has grown.
    fn compare_config(&mut self, backend: &mut Backend) -> Result<(), Failure> {
        let Some((question, shown)) = &mut self.shown_config else { return Ok(()) };
        let payload = backend.ask(question)?.payload;
        if payload == *shown {
            return Ok(());
        }
        *shown = payload;
        if let Some(channel) = &self.channel {
            channel.config_changed();
        }
        Ok(())
    }

    fn each_vring(
        &mut self,
        say: impl FnMut(&mut Vring) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.vrings.values_mut().try_for_each(say)
    }

    /// Says the bits of the status that are in `mask`.
    fn say_status(&self, backend: &mut Backend, mask: u64) -> Result<(), Failure> {
        match self.status.as_ref().and_then(number).map(|status| status & mask) {
            None | Some(0) => Ok(()),
            Some(status) => {
                backend.tell(&mut request(FrontendMessage::SetStatus, status.to_bytes()))
            }
        }
    }

    /// Says what was written to the configuration space.
    fn say_config(&self, backend: &mut Backend) -> Result<(), Failure> {
        self.config_frames().iter_mut().try_for_each(|frame| backend.tell(frame))
    }

    /// What was written to the configuration space, in as few messages as there are gaps.
    pub(super) fn config_frames(&self) -> Vec<Frame> {
        let mut writes: Vec<Config> = Vec::new();
        for (&offset, &(flags, byte)) in &self.config {
            match writes.last_mut() {
                Some(last) if last.flags == flags && end(last) == offset => last.data.push(byte),
                _ => writes.push(Config { offset, flags, data: vec![byte] }),
            }
        }
        let frame = |write: &Config| request(FrontendMessage::SetConfig, write.to_bytes());
        writes.iter().map(frame).collect()
    }

    fn config_written(&mut self, frame: &Frame) {
        if let Ok(Config { offset, flags, data }) = Config::from_bytes(&frame.payload) {
            let bytes = (offset..MAX_CONFIG_END).zip(data);
            self.config.extend(bytes.map(|(at, byte)| (at, (flags, byte))));
        }
    }

    /// Status 0 stops all rings.
    fn status_written(&mut self, frame: Frame) {
        if number(&frame) == Some(0) {
            self.vrings.values_mut().for_each(Vring::stop);
            self.status = None;
        } else {
            self.status = Some(frame);
        }
    }

    fn reset(&mut self) {
        self.vrings.values_mut().for_each(Vring::reset);
        self.config.clear();
        self.status = None;
    }

    fn ring_stopped(&mut self, reply: Option<&Frame>) {
        let state = reply.and_then(|reply| VringState::from_bytes(&reply.payload).ok());
        let Some(state) = state else { return };
        if let Some(vring) = self.vrings.get_mut(&state.index) {
            vring.stop();
            vring.stands_at(state);
        }
    }

    fn vring_told(&mut self, message: FrontendMessage, frame: Frame) {
        use FrontendMessage as M;
        let index = match message {
            M::SetVringKick | M::SetVringCall | M::SetVringErr => {
                // Bit 8 says that there is no descriptor.
                number(&frame).map(|value| (value & 0xff) as u32)
            }
            M::SetVringNum | M::SetVringBase | M::SetVringAddr => index(&frame),
            M::SetVringEnable | M::SetVringEndian => index(&frame),
            _ => return,
        };
        if let Some(index) = index.filter(|index| *index < MAX_VRINGS) {
            self.vrings.entry(index).or_default().learn(message, frame);
        }
    }
}

/// The number that a message consists of.
pub(super) fn number(frame: &Frame) -> Option<u64> {
    u64::from_bytes(&frame.payload).ok()
}

/// The index with which a message about a vring begins.
fn index(frame: &Frame) -> Option<u32> {
    frame.payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Where a write ends.
fn end(write: &Config) -> u32 {
    // A message is shorter than 4 KiB.
    write.offset.saturating_add(write.data.len() as u32)
}
