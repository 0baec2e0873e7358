//! How a Xen domain's memory is to be mapped.
//!
//! | bit | merged | review and message | here |
//! |---|---|---|---|
//! | 0 | foreign | foreign | foreign |
//! | 1 | grant | grant | grant |
//! | 2 | | more may be mapped | the same |
//! | 3 | (rust-vmm sends it for bit 8) | | not in advance |
//! | 8 | not in advance | | not in advance |
//!
//! Source: QEMU "Vhost-user Protocol", "Memory region description" and "Xen mmap flags"; the
//! mails to virtio-dev and qemu-devel that proposed XEN_MMAP (March 2023).

use super::{Payload, PayloadError};
use crate::wire::{Reader, RegionLayout, Writer};

/// Map by foreign mapping.
pub const FOREIGN: u64 = 1 << 0;
/// Map by grant mapping.
pub const GRANT: u64 = 1 << 1;
/// The back-end may map memory outside all regions as well.
pub const MORE: u64 = 1 << 2;
/// Do not map in advance, in rust-vmm's numbering.
pub const NO_ADVANCE_RUST_VMM: u64 = 1 << 3;
/// Do not map in advance, as the specification numbers it.
pub const NO_ADVANCE: u64 = 1 << 8;

/// Domain ids from here on are reserved by the hypervisor: DOMID_FIRST_RESERVED.
pub const FIRST_RESERVED_DOMID: u64 = 0x7ff0;

/// A region's or a SET_XEN_MMAP's two numbers, as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenFields {
    /// Mapping flags.
    pub flags: u64,
    /// The domain whose memory it is.
    pub domid: u64,
}

/// How a domain's memory is to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenMapping {
    /// The domain: below [`FIRST_RESERVED_DOMID`].
    pub domid: u16,
    /// By what means.
    pub means: XenMeans,
    /// Memory outside all regions may be mapped too, when it is needed.
    pub more: bool,
}

/// By what means a domain's memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenMeans {
    /// By frame number, through the control of domains.
    Foreign,
    /// By grant reference, all of the region at once.
    Grant,
    /// By grant reference, pages only while they are in use.
    GrantOnDemand,
}

impl XenFields {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        layout: RegionLayout,
    ) -> Result<Option<Self>, PayloadError> {
        match layout {
            RegionLayout::Plain => Ok(None),
            RegionLayout::XenMerged => {
                Ok(Some(Self { flags: reader.u32()?.into(), domid: reader.u32()?.into() }))
            }
            RegionLayout::XenReview => Payload::read(reader).map(Some),
        }
    }

    /// What has 32 bits there is cut to them: see [`fits`](Self::fits).
    pub(super) fn write(self, writer: &mut Writer, layout: RegionLayout) {
        match layout {
            RegionLayout::Plain => {}
            RegionLayout::XenMerged => {
                writer.u32(self.flags as u32);
                writer.u32(self.domid as u32);
            }
            RegionLayout::XenReview => Payload::write(&self, writer),
        }
    }

    /// Whether the layout has room for the numbers.
    pub fn fits(self, layout: RegionLayout) -> bool {
        layout != RegionLayout::XenMerged || (self.flags | self.domid) >> 32 == 0
    }

    /// What the numbers mean; `None`: an ordinary mapping, whatever the domain. `layout`: that of
    /// the regions, `Plain` for SET_XEN_MMAP.
    pub fn mapping(self, layout: RegionLayout) -> Result<Option<XenMapping>, PayloadError> {
        let Self { flags, domid } = self;
        let more = if layout == RegionLayout::XenMerged { 0 } else { MORE };
        let known = FOREIGN | GRANT | NO_ADVANCE | NO_ADVANCE_RUST_VMM | more;
        PayloadError::check_bits("xen mmap flags", flags, known)?;
        if flags == 0 {
            return Ok(None);
        }
        let means = means(flags)?;
        let most = FIRST_RESERVED_DOMID - 1;
        PayloadError::check_range("xen domain id", domid, 0, most)?;
        Ok(Some(XenMapping { domid: domid as u16, means, more: flags & MORE != 0 }))
    }
}

fn means(flags: u64) -> Result<XenMeans, PayloadError> {
    let wrong = |rule| PayloadError::BadFlags { field: "xen mmap flags", got: flags, rule };
    let on_demand = flags & (NO_ADVANCE | NO_ADVANCE_RUST_VMM);
    if on_demand == NO_ADVANCE | NO_ADVANCE_RUST_VMM {
        return Err(wrong("0x8 and 0x100 both mean no mapping in advance, and one is enough"));
    }
    match (flags & FOREIGN != 0, flags & GRANT != 0, on_demand != 0) {
        (true, true, _) => Err(wrong("foreign and grant mapping exclude each other")),
        (true, false, true) => Err(wrong("foreign memory is mapped in advance")),
        (true, false, false) => Ok(XenMeans::Foreign),
        (false, true, true) => Ok(XenMeans::GrantOnDemand),
        (false, true, false) => Ok(XenMeans::Grant),
        (false, false, _) => Err(wrong("neither foreign nor grant mapping")),
    }
}

/// Two 64-bit numbers: what SET_XEN_MMAP carries, and what follows a region in the review's
/// layout.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | flags |
/// | 8 | 8 | domain id |
impl Payload for XenFields {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        Ok(Self { flags: reader.u64()?, domid: reader.u64()? })
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.flags);
        writer.u64(self.domid);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    const LAYOUTS: [RegionLayout; 3] =
        [RegionLayout::Plain, RegionLayout::XenMerged, RegionLayout::XenReview];

    fn mapping(flags: u64, domid: u64, layout: RegionLayout) -> Result<XenMapping, String> {
        let read = XenFields { flags, domid }.mapping(layout).map_err(|e| e.to_string())?;
        read.ok_or_else(|| "ordinary".to_owned())
    }

    #[test]
    fn set_xen_mmap_is_two_64_bit_numbers() {
        let bytes = [6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        check_vector(&bytes, &XenFields { flags: 6, domid: 7 });
    }

    #[test]
    fn both_numbers_for_no_mapping_in_advance_mean_the_same() {
        for layout in LAYOUTS {
            for flags in [0x102, 0xa] {
                let means = XenMeans::GrantOnDemand;
                let expected = XenMapping { domid: 1, means, more: false };
                assert_eq!(mapping(flags, 1, layout), Ok(expected), "{flags:#x} {layout:?}");
            }
        }
    }

    #[test]
    fn foreign_and_grant_are_told_apart_and_zero_is_ordinary() {
        for layout in LAYOUTS {
            let foreign = XenMapping { domid: 0x7fef, means: XenMeans::Foreign, more: false };
            assert_eq!(mapping(1, 0x7fef, layout), Ok(foreign));
            let grant = XenMapping { domid: 0, means: XenMeans::Grant, more: false };
            assert_eq!(mapping(2, 0, layout), Ok(grant));
            assert_eq!(mapping(0, u64::MAX, layout), Err("ordinary".to_owned()));
        }
    }

    #[test]
    fn mapping_more_exists_in_the_drafts_only() {
        let grant = XenMapping { domid: 3, means: XenMeans::Grant, more: true };
        assert_eq!(mapping(6, 3, RegionLayout::Plain), Ok(grant));
        assert_eq!(mapping(6, 3, RegionLayout::XenReview), Ok(grant));
        let why = mapping(6, 3, RegionLayout::XenMerged).unwrap_err();
        assert_eq!(why, "unknown bits in xen mmap flags: 0x4");
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused_with_their_value() {
        for (flags, rule) in [
            (0x3, "exclude each other"),
            (0x103, "exclude each other"),
            (0x101, "foreign memory is mapped in advance"),
            (0x9, "foreign memory is mapped in advance"),
            (0x100, "neither foreign nor grant"),
            (0x8, "neither foreign nor grant"),
            (0x10a, "both mean"),
        ] {
            let why = mapping(flags, 1, RegionLayout::XenMerged).unwrap_err();
            assert!(why.contains(rule) && why.contains(&format!("{flags:#x}")), "{why}");
        }
        for flags in [0x10, 0x12, 0x202, 1 << 31, 0x1_0000_0001] {
            let why = mapping(flags, 1, RegionLayout::XenMerged).unwrap_err();
            assert!(why.starts_with("unknown bits in xen mmap flags"), "{why}");
        }
    }

    #[test]
    fn domains_that_cannot_be_a_guest_are_refused() {
        for domid in [0x7ff0, 0xffff, 0x1_0000, 0x1_0000_0001, u64::MAX] {
            let why = mapping(1, domid, RegionLayout::XenMerged).unwrap_err();
            assert_eq!(why, format!("xen domain id out of range: {domid} is not 0 to 32751"));
        }
    }

    #[test]
    fn only_the_merged_layout_has_no_room_for_more_than_32_bits() {
        for (flags, domid) in [(0x1_0000_0001, 1), (1, 0x1_0000_0001)] {
            let fields = XenFields { flags, domid };
            assert_eq!(LAYOUTS.map(|layout| fields.fits(layout)), [true, false, true]);
        }
        let most = XenFields { flags: 0xffff_ffff, domid: 0xffff_ffff };
        assert_eq!(LAYOUTS.map(|layout| most.fits(layout)), [true; 3]);
    }
}
