//! Memory of a domain that is mapped when it is needed.

use std::sync::Arc;

use super::foreign::Foreign;
use super::grant::Grants;

/// Memory of a domain that is mapped when it is needed.
#[derive(Clone, Debug)]
pub(in crate::memory) enum OnDemand {
    /// It is mapped by the grants of a domain.
    Grants(Arc<Grants>, u16),
    /// It is mapped by the frames of a domain.
    Frames(Arc<Foreign>),
}

impl OnDemand {
    /// Returns whether nothing is mapped or copied any more.
    pub(in crate::memory) fn has_ended(&self) -> bool {
        match self {
            Self::Grants(grants, _) => grants.have_ended(),
            Self::Frames(foreign) => foreign.have_ended(),
        }
    }

    /// Returns the largest number of pages of one call.
    pub(super) fn limit(&self) -> usize {
        match self {
            Self::Grants(grants, _) => grants.limit(),
            Self::Frames(_) => usize::MAX,
        }
    }

    /// Returns whether it is the same device.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Grants(one, _), Self::Grants(other, _)) => Arc::ptr_eq(one, other),
            (Self::Frames(one), Self::Frames(other)) => Arc::ptr_eq(one, other),
            (Self::Grants(..), Self::Frames(_)) | (Self::Frames(_), Self::Grants(..)) => false,
        }
    }
}
