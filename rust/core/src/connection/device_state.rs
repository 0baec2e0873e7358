//! What the connection knows of the device's own state, and of who starts a ring.

use super::RingSetup;

/// What the connection knows of the device's own state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DeviceState {
    /// The device was reset, and nothing that could change it has come since.
    Initial,
    /// A driver may have changed it; on a new connection the one of a former connection.
    #[default]
    Used,
    /// All rings have stopped. Their driver goes on later, or has reset the device.
    Unclear,
}

/// Who starts a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    /// The driver that ran the rings before, if any have run since the device was reset.
    Same,
    /// A driver that has reset the device since.
    Another,
    /// Nothing follows from this ring.
    Unknown,
}

impl DeviceState {
    /// The front-end has passed on something that may change the device.
    pub(super) fn touched(&mut self) {
        if *self == Self::Initial {
            *self = Self::Used;
        }
    }

    /// Who starts a ring as `setup` says. `left`: how it ran last and where it stopped, if it did.
    pub(super) fn driver_of(self, left: Option<&RingSetup>, setup: &RingSetup) -> Driver {
        match left {
            _ if self != Self::Unclear => Driver::Same,
            None => Driver::Unknown,
            Some(left) if !goes_on(left, setup) => Driver::Another,
            Some(left) if left.base.is_initial() => Driver::Unknown,
            Some(_) => Driver::Same,
        }
    }
}

/// Whether a ring that was left so is started where it stood.
fn goes_on(left: &RingSetup, setup: &RingSetup) -> bool {
    RingSetup { enabled: setup.enabled, used_log: setup.used_log, ..*left } == *setup
}
