//! Which bytes describe a memory region.
//!
//! The Xen extension went through several shapes before one was merged, and programs speak more
//! than one of them. The shape is a value that goes with the connection, never a build option.

use std::fmt;

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

impl fmt::Display for RegionLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::XenMerged => "merged",
            Self::XenReview => "review",
        })
    }
}

/// The designs of XEN_MMAP that are understood. Which of them a message follows is told by its
/// size. Plain regions belong to all: front-ends accept XEN_MMAP without knowing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenDesigns {
    /// Two 32-bit fields after each region: what was merged into the specification.
    pub merged: bool,
    /// Two 64-bit fields after each region.
    pub review: bool,
    /// SET_XEN_MMAP in front of plain regions. Its number is also that of GET_SHARED_OBJECT, so
    /// that the two exclude each other.
    pub message: bool,
}

impl XenDesigns {
    /// All three.
    pub const ALL: Self = Self { merged: true, review: true, message: true };
    /// What the specification says.
    pub const MERGED: Self = Self { merged: true, review: false, message: false };
    /// The form proposed in review.
    pub const REVIEW: Self = Self { merged: false, review: true, message: false };
    /// The form with a message.
    pub const MESSAGE: Self = Self { merged: false, review: false, message: true };

    /// The layout with regions of `len` bytes, if it is among these.
    pub fn layout(self, len: usize) -> Option<RegionLayout> {
        self.layouts().find(|layout| layout.region_len() == len)
    }

    /// The layouts that regions may have.
    pub fn layouts(self) -> impl Iterator<Item = RegionLayout> {
        let known = [
            (true, RegionLayout::Plain),
            (self.merged, RegionLayout::XenMerged),
            (self.review, RegionLayout::XenReview),
        ];
        known.into_iter().filter_map(|(on, layout)| on.then_some(layout))
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

    #[test]
    fn a_size_names_a_layout_only_among_the_designs_in_use() {
        for (designs, len, layout) in [
            (XenDesigns::ALL, 32, Some(RegionLayout::Plain)),
            (XenDesigns::ALL, 40, Some(RegionLayout::XenMerged)),
            (XenDesigns::ALL, 48, Some(RegionLayout::XenReview)),
            (XenDesigns::ALL, 36, None),
            (XenDesigns::MERGED, 32, Some(RegionLayout::Plain)),
            (XenDesigns::MERGED, 40, Some(RegionLayout::XenMerged)),
            (XenDesigns::MERGED, 48, None),
            (XenDesigns::REVIEW, 32, Some(RegionLayout::Plain)),
            (XenDesigns::REVIEW, 40, None),
            (XenDesigns::MESSAGE, 32, Some(RegionLayout::Plain)),
            (XenDesigns::MESSAGE, 40, None),
            (XenDesigns::MESSAGE, 48, None),
        ] {
            assert_eq!(designs.layout(len), layout, "{designs:?} {len}");
        }
    }
}
