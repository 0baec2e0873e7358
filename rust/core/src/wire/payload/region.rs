//! Regions of guest memory.

use super::{PayloadError, XenFields};
use crate::address::{GuestAddr, UserAddr};
use crate::wire::{MAX_FDS, Reader, RegionLayout, Writer};

/// Regions accepted in one table: each brings a descriptor.
pub const MAX_REGIONS: usize = MAX_FDS;

/// Bytes accepted in one region: 64 TiB, well above any guest and half of the address space that
/// a process has on x86-64, so that a mapping of that size fails cleanly and sums stay small.
pub const MAX_REGION_SIZE: u64 = 1 << 46;

/// One region of guest memory.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | guest address |
/// | 8 | 8 | bytes |
/// | 16 | 8 | user address: where the front-end has it mapped |
/// | 24 | 8 | first byte in the descriptor's file |
/// | 32 | 0, 8 or 16 | Xen's fields, as [`RegionLayout`] says |
///
/// A region that exists is neither empty nor larger than [`MAX_REGION_SIZE`], and none of the
/// three starts plus the size wraps. QEMU "Vhost-user Protocol", "Memory region description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub guest: GuestAddr,
    /// Bytes.
    pub size: u64,
    /// First address in the front-end.
    pub user: UserAddr,
    /// First byte in the descriptor's file.
    pub mmap_offset: u64,
    /// Xen's fields, present when the layout has them.
    pub xen: Option<XenFields>,
}

impl Region {
    /// Reads the fields in order and checks the ranges.
    pub fn read(reader: &mut Reader<'_>, layout: RegionLayout) -> Result<Self, PayloadError> {
        let region = Self {
            guest: GuestAddr(reader.u64()?),
            size: reader.u64()?,
            user: UserAddr(reader.u64()?),
            mmap_offset: reader.u64()?,
            xen: XenFields::read(reader, layout)?,
        };
        PayloadError::check_range("region size", region.size, 1, MAX_REGION_SIZE)?;
        PayloadError::check_sum("region guest address", region.guest.0, region.size)?;
        PayloadError::check_sum("region user address", region.user.0, region.size)?;
        PayloadError::check_sum("region mmap offset", region.mmap_offset, region.size)?;
        Ok(region)
    }

    /// Writes the fields in order. Xen's fields are zero where the layout has them and the
    /// region has not.
    pub fn write(&self, writer: &mut Writer, layout: RegionLayout) {
        writer.u64(self.guest.0);
        writer.u64(self.size);
        writer.u64(self.user.0);
        writer.u64(self.mmap_offset);
        self.xen.unwrap_or_default().write(writer, layout);
    }
}

/// All of guest memory: SET_MEM_TABLE.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | number of regions |
/// | 4 | 4 | padding |
/// | 8 | n regions | only as many as there are |
///
/// A table that exists has 1 to [`MAX_REGIONS`] regions. QEMU "Vhost-user Protocol", "Multiple
/// Memory regions description".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTable {
    /// The regions; the n-th descriptor of the message belongs to the n-th.
    pub regions: Vec<Region>,
}

impl MemoryTable {
    /// Reads a whole payload; bytes left over are an error.
    pub fn from_bytes(bytes: &[u8], layout: RegionLayout) -> Result<Self, PayloadError> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32()?;
        reader.padding::<4>()?;
        PayloadError::check_range("number of regions", count.into(), 1, MAX_REGIONS as u64)?;
        let regions =
            (0..count).map(|_| Region::read(&mut reader, layout)).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { regions })
    }

    /// The payload as it travels.
    pub fn to_bytes(&self, layout: RegionLayout) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u32(self.regions.len() as u32);
        writer.padding::<4>();
        for region in &self.regions {
            region.write(&mut writer, layout);
        }
        writer.into_bytes()
    }
}

/// One region: ADD_MEM_REG and REM_MEM_REG.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | padding |
/// | 8 | 1 region | |
///
/// QEMU "Vhost-user Protocol", "Single memory region description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SingleRegion(pub Region);

impl SingleRegion {
    /// Reads a whole payload; bytes left over are an error.
    pub fn from_bytes(bytes: &[u8], layout: RegionLayout) -> Result<Self, PayloadError> {
        let mut reader = Reader::new(bytes);
        reader.padding::<8>()?;
        let region = Region::read(&mut reader, layout)?;
        reader.finish()?;
        Ok(Self(region))
    }

    /// The payload as it travels.
    pub fn to_bytes(&self, layout: RegionLayout) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.padding::<8>();
        self.0.write(&mut writer, layout);
        writer.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::super::testing::check_vector;
    use super::*;

    impl Payload for Region {
        fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
            Region::read(reader, RegionLayout::Plain)
        }

        fn write(&self, writer: &mut Writer) {
            Region::write(self, writer, RegionLayout::Plain);
        }
    }

    /// Guest memory above the 4 GiB hole: laid out by hand.
    const REGION: [u8; 32] = [
        0, 0, 0, 0, 1, 0, 0, 0, // guest 0x1_0000_0000
        0, 0, 0, 0x40, 0, 0, 0, 0, // size 1 GiB
        0, 0, 0, 0x80, 0xab, 0x7f, 0, 0, // user 0x7fab_8000_0000
        0, 0, 0, 0xc0, 0, 0, 0, 0, // mmap offset 3 GiB
    ];

    fn region() -> Region {
        Region {
            guest: GuestAddr(0x1_0000_0000),
            size: 0x4000_0000,
            user: UserAddr(0x7fab_8000_0000),
            mmap_offset: 0xc000_0000,
            xen: None,
        }
    }

    fn with(offset: usize, value: u64) -> [u8; 32] {
        let mut bytes = REGION;
        bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_plain_region_is_four_numbers() {
        check_vector(&REGION, &region());
    }

    #[test]
    fn xen_fields_are_read_and_written_when_the_layout_has_them() {
        let xen = Some(XenFields { flags: 0x102, domid: 7 });
        let expected = Region { xen, ..region() };
        let merged = [&[0; 8][..], &REGION, &[2, 1, 0, 0, 7, 0, 0, 0]].concat();
        let review =
            [&[0; 8][..], &REGION, &[2, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]].concat();
        for (bytes, layout) in
            [(merged, RegionLayout::XenMerged), (review, RegionLayout::XenReview)]
        {
            let single = SingleRegion::from_bytes(&bytes, layout).unwrap();
            assert_eq!(single, SingleRegion(expected));
            assert_eq!(single.to_bytes(layout), bytes);
            assert!(SingleRegion::from_bytes(&bytes, RegionLayout::Plain).is_err());
        }
    }

    #[test]
    fn xen_fields_of_64_bits_are_read_whole() {
        let fields = [0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0];
        let bytes = [&[0; 8][..], &REGION, &fields].concat();
        let single = SingleRegion::from_bytes(&bytes, RegionLayout::XenReview).unwrap();
        let xen = Some(XenFields { flags: 0x2_0000_0000, domid: 0x1_0000_0005 });
        assert_eq!(single, SingleRegion(Region { xen, ..region() }));
    }

    #[test]
    fn an_empty_or_huge_region_is_refused() {
        for size in [0, MAX_REGION_SIZE + 1, 1 << 63, u64::MAX] {
            assert!(
                matches!(
                    Region::from_bytes(&with(8, size)),
                    Err(PayloadError::OutOfRange { field: "region size", .. })
                ),
                "{size:#x}"
            );
        }
        assert!(Region::from_bytes(&with(8, 1 << 45)).is_ok());
    }

    #[test]
    fn a_region_that_wraps_is_refused_for_each_of_its_starts() {
        for (offset, field) in
            [(0, "region guest address"), (16, "region user address"), (24, "region mmap offset")]
        {
            let start = 0xffff_ffff_ffff_f000;
            assert_eq!(
                Region::from_bytes(&with(offset, start)),
                Err(PayloadError::Wraps { field, start, size: 0x4000_0000 })
            );
        }
    }

    fn table(count: u32, regions: usize) -> Vec<u8> {
        [&count.to_ne_bytes()[..], &[0xee; 4], &REGION.repeat(regions)].concat()
    }

    #[test]
    fn a_table_is_a_count_and_that_many_regions() {
        for n in [1, 2, 8, 32] {
            let read = MemoryTable::from_bytes(&table(n, n as usize), RegionLayout::Plain).unwrap();
            assert_eq!(read.regions, vec![region(); n as usize]);
            let written = read.to_bytes(RegionLayout::Plain);
            assert_eq!(written[..8], [n as u8, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(written[8..], REGION.repeat(n as usize));
        }
    }

    #[test]
    fn a_table_whose_count_does_not_fit_its_bytes_is_refused() {
        for (count, regions) in [(0, 0), (0, 1), (2, 1), (1, 2), (9, 8), (33, 33), (u32::MAX, 1)] {
            let read = MemoryTable::from_bytes(&table(count, regions), RegionLayout::Plain);
            assert!(read.is_err(), "{count} {regions}");
        }
    }

    #[test]
    fn every_truncation_of_a_table_or_single_region_is_refused() {
        let table = table(2, 2);
        let single = [&[0; 8][..], &REGION].concat();
        for len in 0..table.len() {
            assert!(MemoryTable::from_bytes(&table[..len], RegionLayout::Plain).is_err());
        }
        for len in 0..single.len() {
            assert!(SingleRegion::from_bytes(&single[..len], RegionLayout::Plain).is_err());
        }
    }
}
