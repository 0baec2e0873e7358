//! What the front-end has said about one vring.

use super::{Refusal, RingSetup};
use crate::address::UserAddr;
use crate::wire::payload::VringAddress;

/// One vring's configuration and its two flags.
///
/// ```text
///              SET_VRING_KICK                      SET_VRING_ENABLE 1
///   stopped -------------------> started   disabled ------------------> enabled
///           <-------------------                    <------------------
///              GET_VRING_BASE                      SET_VRING_ENABLE 0
/// ```
///
/// A ring is run while it is both started and enabled. A reset clears both flags and the
/// configuration; one by the status byte leaves the base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vring {
    size: Option<u16>,
    addresses: Option<Addresses>,
    base: u16,
    started: bool,
    enabled: bool,
    /// How it ran last, with the base at which it stopped; `None` if it has run since, or never
    /// for this driver.
    left: Option<RingSetup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    descriptors: UserAddr,
    available: UserAddr,
    used: UserAddr,
}

/// Alignment of a split ring's parts: VIRTIO 1.3, "Split Virtqueues".
const DESCRIPTORS_ALIGN: u64 = 16;
const AVAILABLE_ALIGN: u64 = 2;
const USED_ALIGN: u64 = 4;

impl Vring {
    /// SET_VRING_NUM: entries, a power of two up to `max`.
    pub(super) fn set_size(&mut self, num: u32, max: u16) -> Result<(), Refusal> {
        self.must_be_stopped()?;
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= max);
        let Some(size) = size else {
            return Err(Refusal(format!("size {num} is not a power of two up to {max}")));
        };
        self.size = Some(size);
        Ok(())
    }

    /// SET_VRING_BASE: the next available index, 16 bits and free-running.
    pub(super) fn set_base(&mut self, num: u32) -> Result<(), Refusal> {
        self.must_be_stopped()?;
        self.base = u16::try_from(num)
            .map_err(|_| Refusal(format!("base {num:#x} is more than 16 bits")))?;
        Ok(())
    }

    /// SET_VRING_ADDR: where the parts are. A started ring takes its own addresses again, which
    /// is how a front-end switches logging.
    pub(super) fn set_addresses(&mut self, address: &VringAddress) -> Result<(), Refusal> {
        let addresses = Addresses {
            descriptors: aligned("descriptor table", address.descriptors, DESCRIPTORS_ALIGN)?,
            available: aligned("available ring", address.available, AVAILABLE_ALIGN)?,
            used: aligned("used ring", address.used, USED_ALIGN)?,
        };
        if self.addresses != Some(addresses) {
            self.must_be_stopped()?;
        }
        self.addresses = Some(addresses);
        Ok(())
    }

    /// Everything that is needed to start the ring, or what is missing.
    pub(super) fn setup(&self, index: u16, features: u64) -> Result<RingSetup, Refusal> {
        let missing = |message| Refusal(format!("vring {index} has had no {message}"));
        let size = self.size.ok_or_else(|| missing("SET_VRING_NUM"))?;
        let parts = self.addresses.ok_or_else(|| missing("SET_VRING_ADDR"))?;
        Ok(RingSetup {
            index,
            size,
            descriptors: parts.descriptors,
            available: parts.available,
            used: parts.used,
            base: self.base,
            enabled: self.enabled,
            features,
        })
    }

    /// The ring runs from now on if it is enabled.
    pub(super) fn start(&mut self, enabled: bool) {
        self.started = true;
        self.enabled = enabled;
        self.left = None;
    }

    /// The ring stands still; `base` is where it goes on.
    pub(super) fn stop(&mut self, index: u16, base: u16, features: u64) {
        self.started = false;
        self.base = base;
        self.left = self.setup(index, features).ok();
    }

    /// How the ring ran last, if it has stopped since.
    pub(super) fn left(&self) -> Option<&RingSetup> {
        self.left.as_ref()
    }

    /// Whoever starts the ring next, nothing follows from how it ran last.
    pub(super) fn forget_last_run(&mut self) {
        self.left = None;
    }

    pub(super) fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Back to the initial state.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Back to the initial state, but for where the ring goes on and how it ran last.
    pub(super) fn reset_but_base(&mut self) {
        *self = Self { base: self.base, left: self.left.take(), ..Self::default() };
    }

    /// Between SET_VRING_KICK and GET_VRING_BASE.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Enabled by SET_VRING_ENABLE, or by SET_FEATURES without PROTOCOL_FEATURES.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The next available index with which the ring starts, or last started.
    pub fn base(&self) -> u16 {
        self.base
    }

    fn must_be_stopped(&self) -> Result<(), Refusal> {
        if self.started {
            return Err(Refusal("the vring is started".to_owned()));
        }
        Ok(())
    }
}

fn aligned(part: &str, address: UserAddr, align: u64) -> Result<UserAddr, Refusal> {
    if !address.0.is_multiple_of(align) {
        return Err(Refusal(format!("{part} at {address} is not aligned to {align}")));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::GuestAddr;

    fn address(descriptors: u64, available: u64, used: u64) -> VringAddress {
        VringAddress {
            index: 0,
            log_used: false,
            descriptors: UserAddr(descriptors),
            used: UserAddr(used),
            available: UserAddr(available),
            log: GuestAddr(0),
        }
    }

    #[test]
    fn size_must_be_a_power_of_two_up_to_the_limit() {
        for num in [1, 2, 4, 128, 256] {
            assert!(Vring::default().set_size(num, 256).is_ok(), "{num}");
        }
        for num in [0, 3, 100, 257, 512, 32769, 65536, 65537, u32::MAX] {
            assert!(Vring::default().set_size(num, 256).is_err(), "{num}");
        }
        assert!(Vring::default().set_size(32768, 32768).is_ok());
    }

    #[test]
    fn base_is_sixteen_bits() {
        let mut vring = Vring::default();
        assert!(vring.set_base(0xffff).is_ok());
        assert!(vring.set_base(0x1_2345).is_err());
        assert_eq!(vring.base(), 0xffff);
    }

    #[test]
    fn misaligned_parts_are_refused() {
        for (descriptors, available, used) in [(8, 0, 0), (0, 1, 0), (0, 0, 2)] {
            let bad = address(descriptors, available, used);
            assert!(Vring::default().set_addresses(&bad).is_err());
        }
        assert!(Vring::default().set_addresses(&address(16, 2, 4)).is_ok());
    }

    #[test]
    fn a_started_ring_keeps_its_configuration() {
        let mut vring = Vring::default();
        vring.set_size(16, 256).unwrap();
        vring.set_addresses(&address(16, 32, 64)).unwrap();
        vring.start(true);
        let before = vring.clone();
        assert!(vring.set_size(16, 256).is_err());
        assert!(vring.set_base(0).is_err());
        assert!(vring.set_addresses(&address(16, 32, 68)).is_err());
        assert!(vring.set_addresses(&address(16, 32, 64)).is_ok());
        assert_eq!(vring, before);
    }

    #[test]
    fn a_stopped_ring_remembers_where_it_was_and_that_it_is_enabled() {
        let mut vring = Vring::default();
        vring.start(true);
        vring.stop(0, 77, 0);
        assert_eq!((vring.is_started(), vring.is_enabled(), vring.base()), (false, true, 77));
    }
}
