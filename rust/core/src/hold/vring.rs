//! What a back-end was told of one vring.

use super::Failure;
use super::backend::{Backend, request};
use crate::wire::payload::VringState;
use crate::wire::{Frame, FrontendMessage, Payload};

/// The last message of each kind about one vring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    endian: Option<Frame>,
    num: Option<Frame>,
    base: Option<Frame>,
    addresses: Option<Frame>,
    error: Option<Frame>,
    call: Option<Frame>,
    /// It has started.
    kick: Option<Frame>,
    enable: Option<Frame>,
}

impl Vring {
    /// Keeps a message about this vring.
    pub(super) fn learn(&mut self, message: FrontendMessage, frame: Frame) {
        let place = match message {
            FrontendMessage::SetVringEndian => &mut self.endian,
            FrontendMessage::SetVringNum => &mut self.num,
            FrontendMessage::SetVringBase => &mut self.base,
            FrontendMessage::SetVringAddr => &mut self.addresses,
            FrontendMessage::SetVringErr => &mut self.error,
            FrontendMessage::SetVringCall => &mut self.call,
            FrontendMessage::SetVringKick => &mut self.kick,
            FrontendMessage::SetVringEnable => &mut self.enable,
            _ => return,
        };
        *place = Some(frame);
    }

    /// All that is kept of it.
    pub(super) fn frames(&self) -> impl Iterator<Item = &Frame> {
        let setup = [&self.endian, &self.num, &self.base, &self.addresses];
        let rest = [&self.error, &self.call, &self.kick, &self.enable];
        setup.into_iter().chain(rest).flatten()
    }

    pub(super) fn is_started(&self) -> bool {
        self.kick.is_some()
    }

    /// Entries, as far as they were told.
    pub(super) fn entries(&self) -> u32 {
        let told = self.num.as_ref().and_then(|frame| VringState::from_bytes(&frame.payload).ok());
        told.map_or(0, |state| state.num)
    }

    /// It stands still, and goes on from `base`.
    pub(super) fn stands_at(&mut self, base: VringState) {
        self.base = Some(request(FrontendMessage::SetVringBase, base.to_bytes()));
    }

    /// It has stopped: another message starts it again.
    pub(super) fn stop(&mut self) {
        self.kick = None;
    }

    /// The device was reset. Its driver says all anew, but perhaps whom to call.
    pub(super) fn reset(&mut self) {
        *self = Self { error: self.error.take(), call: self.call.take(), ..Self::default() };
    }

    /// Says whom it calls.
    pub(super) fn say_notifiers(&mut self, backend: &mut Backend) -> Result<(), Failure> {
        say(backend, [&mut self.error, &mut self.call])
    }

    /// Says how it is set up, and starts it.
    pub(super) fn say_start(&mut self, backend: &mut Backend) -> Result<(), Failure> {
        let setup = [&mut self.endian, &mut self.num, &mut self.base, &mut self.addresses];
        say(backend, setup)?;
        say(backend, [&mut self.kick])
    }

    /// Says whether it is enabled.
    pub(super) fn say_enable(&mut self, backend: &mut Backend) -> Result<(), Failure> {
        say(backend, [&mut self.enable])
    }
}

/// Says what there is to say.
pub(super) fn say<const N: usize>(
    backend: &mut Backend,
    frames: [&mut Option<Frame>; N],
) -> Result<(), Failure> {
    frames.into_iter().flatten().try_for_each(|frame| backend.tell(frame))
}
