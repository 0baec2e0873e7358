//! Which bytes describe a memory region.
//!
//! The Xen extension went through several shapes before one was merged, and programs speak more
//! than one of them. The shape is a value that goes with the connection, never a build option.

/// The layout of one region in SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG.
///
/// | layout | bytes | after the four plain fields |
/// |---|---|---|
/// | `Plain` | 32 | nothing |
/// | `XenMerged` | 40 | u32 flags, u32 domain id |
/// | `XenReview` | 48 | u64 flags, u64 domain id |
///
/// `XenMerged` is what QEMU "Vhost-user Protocol", "Memory region description" says for
/// XEN_MMAP; `XenReview` is the form proposed while that text was under review.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegionLayout {
    /// XEN_MMAP was not accepted.
    #[default]
    Plain,
    /// XEN_MMAP with two appended 32-bit fields.
    XenMerged,
    /// XEN_MMAP with two appended 64-bit fields.
    XenReview,
}

impl RegionLayout {
    /// Bytes of one region.
    pub const fn region_len(self) -> usize {
        match self {
            Self::Plain => 32,
            Self::XenMerged => 40,
            Self::XenReview => 48,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_sizes_of_their_dialects() {
        assert_eq!(RegionLayout::Plain.region_len(), 32);
        assert_eq!(RegionLayout::XenMerged.region_len(), 40);
        assert_eq!(RegionLayout::XenReview.region_len(), 48);
    }
}
