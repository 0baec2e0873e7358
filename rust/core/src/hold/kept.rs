//! What was told, as messages for the next keeper.

use std::io;

use super::backend::request;
use super::channel::Channel;
use super::parcel::Kept;
use super::told::Told;
use crate::sys::closer::Closer;
use crate::wire::{Flags, Frame, FrontendMessage, Payload, ProtocolFeatures};

impl Told {
    /// All that is kept, as messages that another value learns it from.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(super) fn kept(&self) -> io::Result<Vec<Kept>> {
        let made = self.made();
        let channel = self.channel.as_ref().map(Channel::frame).transpose()?;
        let own = [&self.features, &self.owner, &channel, &self.log, &self.log_event];
        let others = [&self.mtu, &self.record, &self.status];
        let regions = self.regions.frames()?;
        let told = own.into_iter().chain(others).flatten().chain(self.vring_frames());
        let told = told.chain(&made).chain(&regions).map(|frame| (frame, None));
        let shown = self.shown_config.iter().map(|(asked, shown)| (asked, Some(shown.clone())));
        let counts = self.counts();
        let counts = counts.iter().map(|(frame, count)| (frame, Some(count.to_bytes())));
        let all = told.chain(shown).chain(counts);
        all.map(|(frame, answer)| Kept::of(frame, answer.as_deref())).collect()
    }

    /// Learns what another value has kept. `closer` closes what comes through a channel.
    ///
    /// # Errors
    /// The channel cannot be taken up.
    pub(super) fn learn_kept(&mut self, messages: Vec<Kept>, closer: &Closer) -> io::Result<()> {
        let mut channel = None;
        for Kept { frame, answer } in messages {
            let number = frame.header.request;
            if FrontendMessage::from_number(number) == Some(FrontendMessage::SetBackendReqFd) {
                channel = Some(frame);
                continue;
            }
            let flags = Flags::VERSION | Flags::REPLY;
            let reply = answer.map(|bytes| Frame::new(number, flags, bytes, Vec::new()));
            if let Some(message) = FrontendMessage::from_number(number)
                && self.objection(message, &frame).is_none()
            {
                self.learn(message, frame, reply.as_ref());
            }
        }
        let answers = self.protocol.is_some_and(|p| p.contains(ProtocolFeatures::REPLY_ACK));
        let open = |frame| Channel::reopen(&frame, answers, closer).map_err(io::Error::other);
        self.channel = channel.map(open).transpose()?;
        Ok(())
    }

    /// The messages for what is not kept as one.
    fn made(&self) -> Vec<Frame> {
        let mut made = self.config_frames();
        if let Some(protocol) = self.protocol {
            let message = FrontendMessage::SetProtocolFeatures;
            made.push(request(message, protocol.bits().to_bytes()));
        }
        if self.transfers {
            made.push(request(FrontendMessage::SetDeviceStateFd, Vec::new()));
        }
        made
    }

    /// The questions for what the front-end has to have, and their answers.
    fn counts(&self) -> Vec<(Frame, u64)> {
        let asked = |message| request(message, Vec::new());
        let queues = (asked(FrontendMessage::GetQueueNum), self.queues);
        let slots = (asked(FrontendMessage::GetMaxMemSlots), self.slots);
        [queues, slots].into_iter().filter(|(_, count)| *count > 0).collect()
    }
}
