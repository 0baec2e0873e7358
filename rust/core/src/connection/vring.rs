//! What the front-end has said about one vring.

use super::{Refusal, RingSetup};
use crate::address::{GuestAddr, UserAddr};
use crate::ring_position::RingPosition;
use crate::wire::features::RING_PACKED;
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
    /// Where the dirty log knows the used ring, if writes to it are to be noted.
    used_log: Option<GuestAddr>,
    /// `None`: where a new ring stands.
    base: Option<RingPosition>,
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

impl Vring {
    /// SET_VRING_NUM: entries, up to `max`; of a split ring a power of two.
    pub(super) fn set_size(&mut self, num: u32, max: u16, packed: bool) -> Result<(), Refusal> {
        self.must_be_stopped()?;
        self.size = Some(checked_size(num, max, packed)?);
        Ok(())
    }

    /// SET_VRING_BASE: where the ring stands.
    pub(super) fn set_base(&mut self, num: u32, packed: bool) -> Result<(), Refusal> {
        self.must_be_stopped()?;
        let base = RingPosition::from_word(num, packed);
        self.base =
            Some(base.ok_or_else(|| Refusal(format!("base {num:#x} is more than 16 bits")))?);
        Ok(())
    }

    /// SET_VRING_ADDR: where the parts are. A started ring takes its own addresses again, which
    /// is how a front-end [switches logging](Self::log_used_ring).
    pub(super) fn set_addresses(
        &mut self,
        address: &VringAddress,
        packed: bool,
    ) -> Result<(), Refusal> {
        let addresses = Addresses {
            descriptors: address.descriptors,
            available: address.available,
            used: address.used,
        };
        addresses.check(packed)?;
        if self.addresses != Some(addresses) {
            self.must_be_stopped()?;
        }
        self.addresses = Some(addresses);
        Ok(())
    }

    /// Has writes to the used ring noted under this address of the dirty log, or no more.
    pub(super) fn log_used_ring(&mut self, at: Option<GuestAddr>) {
        self.used_log = at;
    }

    /// Everything that is needed to start the ring, or what is missing.
    pub(super) fn setup(&self, index: u16, features: u64) -> Result<RingSetup, Refusal> {
        let missing = |message| Refusal(format!("vring {index} has had no {message}"));
        let packed = features & RING_PACKED != 0;
        let size = self.size.ok_or_else(|| missing("SET_VRING_NUM"))?;
        let parts = self.addresses.ok_or_else(|| missing("SET_VRING_ADDR"))?;
        // They may have come before the features that say what kind of ring it is.
        checked_size(size.into(), size, packed)?;
        parts.check(packed)?;
        let base = self.base(packed);
        if !base.fits(size) {
            let word = base.to_word();
            return Err(Refusal(format!(
                "vring {index}: base {word:#x} ({base}) is not in a ring of {size} entries"
            )));
        }
        Ok(RingSetup {
            index,
            size,
            descriptors: parts.descriptors,
            available: parts.available,
            used: parts.used,
            base,
            enabled: self.enabled,
            features,
            used_log: self.used_log,
        })
    }

    /// The ring runs from now on if it is enabled.
    pub(super) fn start(&mut self, enabled: bool) {
        self.started = true;
        self.enabled = enabled;
        self.left = None;
    }

    /// The ring stands still; `base` is where it goes on.
    pub(super) fn stop(&mut self, index: u16, base: RingPosition, features: u64) {
        self.started = false;
        self.base = Some(base);
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

    /// Where the ring starts, or last started. One of the other kind is forgotten: rings of both
    /// kinds may stand at the same place, one after the other.
    pub fn base(&self, packed: bool) -> RingPosition {
        let base = self.base.filter(|base| base.is_packed() == packed);
        base.unwrap_or(RingPosition::initial(packed))
    }

    fn must_be_stopped(&self) -> Result<(), Refusal> {
        if self.started {
            return Err(Refusal("the vring is started".to_owned()));
        }
        Ok(())
    }
}

/// A ring's parts with their alignment: VIRTIO 1.3, "Split Virtqueues" and "Packed Virtqueues".
const SPLIT_PARTS: [(&str, u64); 3] =
    [("descriptor table", 16), ("available ring", 2), ("used ring", 4)];
const PACKED_PARTS: [(&str, u64); 3] =
    [("descriptor ring", 16), ("driver event area", 4), ("device event area", 4)];

impl Addresses {
    fn check(&self, packed: bool) -> Result<(), Refusal> {
        let parts = if packed { PACKED_PARTS } else { SPLIT_PARTS };
        let addresses = [self.descriptors, self.available, self.used];
        for ((part, align), address) in parts.into_iter().zip(addresses) {
            if !address.0.is_multiple_of(align) {
                return Err(Refusal(format!("{part} at {address} is not aligned to {align}")));
            }
        }
        Ok(())
    }
}

fn checked_size(num: u32, max: u16, packed: bool) -> Result<u16, Refusal> {
    let size = u16::try_from(num).ok().filter(|&size| size > 0 && size <= max);
    let size = size.filter(|size| packed || size.is_power_of_two());
    size.ok_or_else(|| {
        let kind = if packed { "between 1 and" } else { "a power of two up to" };
        Refusal(format!("size {num} is not {kind} {max}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(Vring::default().set_size(num, 256, false).is_ok(), "{num}");
        }
        for num in [0, 3, 100, 257, 512, 32769, 65536, 65537, u32::MAX] {
            assert!(Vring::default().set_size(num, 256, false).is_err(), "{num}");
        }
        assert!(Vring::default().set_size(32768, 32768, false).is_ok());
    }

    #[test]
    fn a_packed_ring_has_any_size_up_to_the_limit() {
        for num in [1, 3, 100, 255, 256] {
            assert!(Vring::default().set_size(num, 256, true).is_ok(), "{num}");
        }
        for num in [0, 257, 32769, 65536, 65537, u32::MAX] {
            assert!(Vring::default().set_size(num, 256, true).is_err(), "{num}");
        }
        assert!(Vring::default().set_size(32768, 32768, true).is_ok());
    }

    #[test]
    fn what_was_said_before_the_kind_of_ring_was_known_is_checked_at_the_start() {
        let setup = |size, base, parts: [u64; 3]| {
            let mut vring = Vring::default();
            vring.set_size(size, 256, true)?;
            vring.set_base(base, true)?;
            vring.set_addresses(&address(parts[0], parts[1], parts[2]), false)?;
            vring.setup(0, RING_PACKED)
        };
        let base = RingPosition::from_word(0x8005_0006, true).unwrap();
        assert_eq!(setup(100, 0x8005_0006, [16, 4, 4]).unwrap().base, base);
        assert!(setup(6, 0x8005_0006, [16, 4, 4]).unwrap_err().0.contains("0x80050006"));
        let misaligned = setup(100, 0, [16, 2, 4]).unwrap_err();
        assert_eq!(misaligned.0, "driver event area at 0x2 is not aligned to 4");
        let mut odd = Vring::default();
        odd.set_size(100, 256, true).unwrap();
        odd.set_addresses(&address(16, 4, 4), true).unwrap();
        assert!(odd.setup(0, RING_PACKED).is_ok());
        assert!(odd.setup(0, 0).is_err(), "100 entries, split");
    }

    #[test]
    fn a_base_of_the_other_kind_is_forgotten() {
        let mut vring = Vring::default();
        vring.set_base(77, false).unwrap();
        assert_eq!(vring.base(false).to_word(), 77);
        assert_eq!(vring.base(true).to_word(), 0x8000_8000);
    }

    #[test]
    fn base_is_sixteen_bits() {
        let mut vring = Vring::default();
        assert!(vring.set_base(0xffff, false).is_ok());
        assert!(vring.set_base(0x1_2345, false).is_err());
        assert_eq!(vring.base(false), RingPosition::Split(0xffff));
    }

    #[test]
    fn misaligned_parts_are_refused() {
        for (descriptors, available, used) in [(8, 0, 0), (0, 1, 0), (0, 0, 2)] {
            let bad = address(descriptors, available, used);
            assert!(Vring::default().set_addresses(&bad, false).is_err());
        }
        assert!(Vring::default().set_addresses(&address(16, 2, 4), false).is_ok());
        assert!(Vring::default().set_addresses(&address(16, 2, 4), true).is_err());
        assert!(Vring::default().set_addresses(&address(16, 4, 4), true).is_ok());
    }

    #[test]
    fn a_started_ring_keeps_its_configuration() {
        let mut vring = Vring::default();
        vring.set_size(16, 256, false).unwrap();
        vring.set_addresses(&address(16, 32, 64), false).unwrap();
        vring.start(true);
        let before = vring.clone();
        assert!(vring.set_size(16, 256, false).is_err());
        assert!(vring.set_base(0, false).is_err());
        assert!(vring.set_addresses(&address(16, 32, 68), false).is_err());
        assert!(vring.set_addresses(&address(16, 32, 64), false).is_ok());
        assert_eq!(vring, before);
    }

    #[test]
    fn a_stopped_ring_remembers_where_it_was_and_that_it_is_enabled() {
        let mut vring = Vring::default();
        vring.start(true);
        let base = RingPosition::Split(77);
        vring.stop(0, base, 0);
        assert_eq!((vring.is_started(), vring.is_enabled()), (false, true));
        assert_eq!(vring.base(false), base);
    }
}
