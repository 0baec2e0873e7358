//! Messages about vrings.

use super::device_state::Driver;
use super::state::{Commit, Connection, Handled, Verdict, only_fd, read};
use super::{Action, Refusal, Vring};
use crate::ring_position::RingPosition;
use crate::wire::features::{LOG_ALL, PROTOCOL_FEATURES, RING_PACKED};
use crate::wire::payload::{VringAddress, VringFd, VringState};
use crate::wire::{Frame, Payload, ReceivedFd};

/// The device type whose queues are counted in pairs: VIRTIO 1.3, "Network Device".
const NETWORK: u32 = 1;

impl Connection {
    /// Virtqueues; of a network device pairs of them, where a control queue makes no pair. QEMU
    /// holds the number against the pairs that its user asked for, and so does DPDK.
    pub(super) fn get_queue_num(&self) -> Handled {
        let queues = self.offer.num_queues;
        let number = if self.offer.device_type == NETWORK { queues / 2 } else { queues };
        Ok(Verdict::Answer(u64::from(number).to_bytes()))
    }

    pub(super) fn set_vring_num(&mut self, frame: &Frame) -> Handled {
        let VringState { index, num } = read(frame)?;
        let (max, packed) = (self.offer.max_queue_size, self.is_packed());
        self.vring_mut(index)?.set_size(num, max, packed)?;
        Ok(Verdict::Done)
    }

    pub(super) fn set_vring_base(&mut self, frame: &Frame) -> Handled {
        let VringState { index, num } = read(frame)?;
        let packed = self.is_packed();
        self.vring_mut(index)?.set_base(num, packed)?;
        Ok(Verdict::Done)
    }

    pub(super) fn set_vring_addr(&mut self, frame: &Frame) -> Handled {
        let address: VringAddress = read(frame)?;
        if address.log_used && self.offer.features & LOG_ALL == 0 {
            return Err(Refusal("logging was not offered".to_owned()));
        }
        let packed = self.is_packed();
        let vring = self.vring_mut(address.index)?;
        vring.set_addresses(&address, packed)?;
        let at = address.log_used.then_some(address.log);
        if !vring.is_started() {
            vring.log_used_ring(at);
            return Ok(Verdict::Done);
        }
        // The index of a vring has no more bits.
        let index = address.index as u16;
        let commit = Commit::LogUsedRing { index, at };
        Ok(Verdict::Act(Action::LogUsedRing { index, at }, commit))
    }

    /// Stops a started ring; one that is not started just says where it would start.
    pub(super) fn get_vring_base(&mut self, frame: &Frame) -> Handled {
        let VringState { index, .. } = read(frame)?;
        let (index, vring) = self.vring(index)?;
        if vring.is_started() {
            return Ok(Verdict::Act(Action::StopRing { index }, Commit::Stop { index }));
        }
        Ok(base_answer(index, vring.base(self.is_packed())))
    }

    pub(super) fn stopped(&mut self, index: u16, base: RingPosition) -> Verdict {
        self.ring_has_stopped(index, base);
        base_answer(index, base)
    }

    /// Starts a ring that is complete, or gives a started one another kick descriptor.
    pub(super) fn set_vring_kick(&mut self, frame: Frame) -> Handled {
        let (index, kick) = self.vring_fd(frame)?;
        let (index, vring) = self.vring(index)?;
        if vring.is_started() {
            return Ok(Verdict::Act(Action::ReplaceKick { index, kick }, Commit::Nothing));
        }
        self.not_while_loading(index)?;
        self.not_while_unacknowledged()?;
        let mut setup = vring.setup(index, self.ring_features())?;
        setup.enabled |= self.enable_at_start;
        if self.regions == 0 {
            return Err(Refusal(format!("vring {index} cannot start without memory")));
        }
        self.can_translate()?;
        let missing = self.offer.required_features & !self.features;
        if missing != 0 {
            let required = self.requirement(missing);
            return Err(Refusal(format!("vring {index} cannot start without {required}")));
        }
        let driver = self.device_state.driver_of(vring.left(), &setup);
        let commit = Commit::Start { index, enabled: setup.enabled, driver };
        let reset = driver == Driver::Another;
        Ok(Verdict::Act(Action::StartRing { setup, kick, reset }, commit))
    }

    pub(super) fn set_vring_call(&mut self, frame: Frame) -> Handled {
        let (index, fd) = self.vring_fd(frame)?;
        let (index, _) = self.vring(index)?;
        Ok(Verdict::Act(Action::SetCall { index, fd }, Commit::Nothing))
    }

    pub(super) fn set_vring_err(&mut self, frame: Frame) -> Handled {
        let (index, fd) = self.vring_fd(frame)?;
        let (index, _) = self.vring(index)?;
        Ok(Verdict::Act(Action::SetError { index, fd }, Commit::Nothing))
    }

    pub(super) fn set_vring_enable(&mut self, frame: &Frame) -> Handled {
        let VringState { index, num } = read(frame)?;
        let (index, _) = self.vring(index)?;
        let enabled = match num {
            0 => false,
            1 => true,
            _ => return Err(Refusal(format!("neither 0 nor 1: {num}"))),
        };
        Ok(Verdict::Act(Action::Enable { index, enabled }, Commit::Enable { index, enabled }))
    }

    /// The accepted features that concern rings and device.
    pub(super) fn ring_features(&self) -> u64 {
        self.features & !(LOG_ALL | PROTOCOL_FEATURES)
    }

    /// Whether rings are packed ones.
    fn is_packed(&self) -> bool {
        self.features & RING_PACKED != 0
    }

    /// Changes a vring that an action was about: its index has been checked.
    pub(super) fn change(&mut self, index: u16, change: impl FnOnce(&mut Vring)) {
        if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
            change(vring);
        }
    }

    /// The vring and the descriptor that a kick, call or error message is about; the payload
    /// must tell the truth about whether there is one.
    fn vring_fd(&self, frame: Frame) -> Result<(u32, Option<ReceivedFd>), Refusal> {
        let VringFd { index, no_fd } = read(&frame)?;
        match (only_fd(frame)?, no_fd) {
            (None, false) => Err(Refusal("neither a descriptor nor the no-descriptor bit".into())),
            (Some(_), true) => Err(Refusal("a descriptor and the no-descriptor bit".into())),
            (fd, _) => Ok((index.into(), fd)),
        }
    }

    fn vring(&self, index: u32) -> Result<(u16, &Vring), Refusal> {
        let checked = self.check_index(index)?;
        let vring = self.vrings.get(usize::from(checked)).ok_or_else(|| no_vring(index))?;
        Ok((checked, vring))
    }

    fn vring_mut(&mut self, index: u32) -> Result<&mut Vring, Refusal> {
        let checked = self.check_index(index)?;
        self.vrings.get_mut(usize::from(checked)).ok_or_else(|| no_vring(index))
    }

    fn check_index(&self, index: u32) -> Result<u16, Refusal> {
        u16::try_from(index).map_err(|_| no_vring(index))
    }
}

fn no_vring(index: u32) -> Refusal {
    Refusal(format!("there is no vring {index}"))
}

fn base_answer(index: u16, base: RingPosition) -> Verdict {
    Verdict::Answer(VringState { index: index.into(), num: base.to_word() }.to_bytes())
}
