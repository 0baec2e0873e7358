//! How the regions in a payload are laid out: the size of one tells.

use super::words::{count, list};
use super::{Connection, Refusal};
use crate::wire::message::Size;
use crate::wire::payload::{MAX_REGIONS, PayloadError};
use crate::wire::{Reader, RegionLayout, XenDesigns};

/// Bytes in front of the regions: their number, or padding.
const HEAD: usize = 8;

impl Connection {
    /// The layout of the regions in a payload of this form, which has as many bytes as they take.
    /// `Plain` for payloads without regions.
    pub(super) fn layout_of(&self, size: Size, payload: &[u8]) -> Result<RegionLayout, Refusal> {
        let regions = match size {
            Size::Table => number(payload)?,
            Size::OneRegion => 1,
            Size::Exact(_) | Size::OneOf(_) | Size::Within(..) => return Ok(RegionLayout::Plain),
        };
        let each = payload.len().checked_sub(HEAD).filter(|bytes| bytes % regions == 0);
        let each = each.map(|bytes| bytes / regions);
        let designs = self.xen();
        let taken = |len| match designs {
            Some(designs) => designs.layout(len),
            None => (len == RegionLayout::Plain.region_len()).then_some(RegionLayout::Plain),
        };
        each.and_then(taken).ok_or_else(|| {
            let known = each.and_then(|each| XenDesigns::ALL.layout(each));
            known.map_or_else(
                || of_no_layout(payload.len(), regions, designs),
                |layout| not_taken(layout, designs),
            )
        })
    }
}

/// The number of regions that a table says it has.
fn number(payload: &[u8]) -> Result<usize, PayloadError> {
    let regions = Reader::new(payload).u32()?;
    PayloadError::check_range("number of regions", regions.into(), 1, MAX_REGIONS as u64)?;
    Ok(regions as usize)
}

/// Regions of a layout that is known, and not understood on this connection.
fn not_taken(layout: RegionLayout, designs: Option<XenDesigns>) -> Refusal {
    let sent = format!("regions of {} bytes ({layout})", layout.region_len());
    Refusal(match designs {
        None => format!("{sent} need XEN_MMAP, which was not negotiated"),
        Some(designs) => {
            let taken = sizes(designs.layouts(), "and");
            format!("{sent}, but only those of {taken} are taken: use --xen={layout} or auto")
        }
    })
}

/// A payload that no number of bytes for each region makes up.
fn of_no_layout(len: usize, regions: usize, designs: Option<XenDesigns>) -> Refusal {
    let each = match designs {
        None => sizes([RegionLayout::Plain].into_iter(), "or"),
        Some(designs) => sizes(designs.layouts(), "or"),
    };
    let (regions, head) = (count(regions, "region"), HEAD);
    Refusal(format!("{len} bytes of payload for {regions}, expected {head} and for each {each}"))
}

/// `32 (plain) and 40 (merged) bytes`.
fn sizes(layouts: impl Iterator<Item = RegionLayout>, and: &str) -> String {
    let sizes = layouts.map(|layout| format!("{} ({layout})", layout.region_len()));
    format!("{} bytes", list(sizes, and))
}
