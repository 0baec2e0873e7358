//! The configuration space, and the numbers that a device may be made of.

use super::*;
use crate::block::{BlockCore, Geometry};

/// 1 GiB in blocks of 4096 bytes, 4 queues, all features. Written down from VIRTIO 1.3, "Block
/// Device", "Device configuration layout".
#[rustfmt::skip]
const SPACE: [u8; 60] = [
    0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, // capacity: 2097152 sectors
    0x00, 0x00, 0x00, 0x00, // size_max
    0x7e, 0x00, 0x00, 0x00, // seg_max: 126
    0x00, 0x00, 0x00, 0x00, // geometry
    0x00, 0x10, 0x00, 0x00, // blk_size: 4096
    0x02, 0x00, 0x00, 0x00, // topology: 4 logical blocks in a physical one; min_io_size
    0x00, 0x00, 0x00, 0x00, // opt_io_size
    0x01, 0x00, // writeback
    0x04, 0x00, // num_queues: 4
    0x00, 0x00, 0x40, 0x00, // max_discard_sectors: 2 GiB
    0x20, 0x00, 0x00, 0x00, // max_discard_seg: 32
    0x20, 0x00, 0x00, 0x00, // discard_sector_alignment: 16 KiB
    0x00, 0x00, 0x04, 0x00, // max_write_zeroes_sectors: 128 MiB
    0x08, 0x00, 0x00, 0x00, // max_write_zeroes_seg: 8
    0x01, 0x00, 0x00, 0x00, // write_zeroes_may_unmap
];

fn geometry() -> Geometry {
    Geometry {
        block_size: 4096,
        physical_block_size: 16384,
        discard: true,
        write_zeroes: true,
        ..Geometry::new(1 << 30)
    }
}

fn core() -> BlockCore {
    let options = BlockOptions { num_queues: 4, ..BlockOptions::default() };
    BlockCore::new(&geometry(), &options).unwrap()
}

fn read(core: &BlockCore, offset: usize, len: usize) -> Vec<u8> {
    let mut out = vec![0xcc; len];
    core.read_config(offset, &mut out);
    out
}

#[test]
fn the_space_is_laid_out_as_the_standard_says() {
    assert_eq!(read(&core(), 0, 60), SPACE);
    assert_eq!(read(&core(), 60, 36), [0; 36]);
    assert_eq!(core().config_len(), 96);
}

#[test]
fn any_piece_of_the_space_can_be_read() {
    let (core, mut whole) = (core(), SPACE.to_vec());
    whole.resize(96, 0);
    for offset in 0..96 {
        for len in 0..=96 - offset {
            assert_eq!(read(&core, offset, len), whole[offset..offset + len]);
        }
    }
}

#[test]
fn what_is_past_the_end_is_left_as_it_was() {
    assert_eq!(read(&core(), 95, 3), [0, 0xcc, 0xcc]);
    assert_eq!(read(&core(), 96, 2), [0xcc; 2]);
    assert_eq!(read(&core(), usize::MAX, 2), [0xcc; 2]);
}

#[test]
fn features_follow_from_what_the_disk_can() {
    // SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES.
    assert_eq!(core().features(), 0x7e44);
    let options = BlockOptions::default();
    let features = |disk| BlockCore::new(&disk, &options).unwrap().features();
    // SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ.
    assert_eq!(features(Geometry::new(512)), 0x1e44);
    assert_eq!(features(Geometry { flush: false, ..Geometry::new(512) }), 0x1444);
    // With RO, without what changes the disk.
    assert_eq!(features(Geometry { read_only: true, ..geometry() }), 0x1e64);
    // Without MQ.
    let one = BlockOptions { num_queues: 1, ..BlockOptions::default() };
    let core = BlockCore::new(&Geometry::new(512), &one).unwrap();
    assert_eq!(core.features(), 0x0e44);
}

#[test]
fn fields_of_features_that_are_not_offered_are_zero() {
    let core = BlockCore::new(&Geometry::new(1024), &BlockOptions::default()).unwrap();
    assert_eq!(read(&core, 36, 60), [0; 60]);
}

#[test]
fn a_disk_has_16_queues_of_any_length_if_nothing_is_said() {
    let core = BlockCore::new(&Geometry::new(512), &BlockOptions::default()).unwrap();
    assert_eq!((core.num_queues(), core.max_queue_size()), (16, 32768));
    assert_eq!(read(&core, 34, 2), [16, 0]);
}

#[test]
fn a_short_ring_gets_requests_that_fit_it() {
    for (queue_size, segments) in [(2, 1), (4, 2), (128, 126), (32768, 126)] {
        let options = BlockOptions { queue_size, ..BlockOptions::default() };
        let core = BlockCore::new(&Geometry::new(512), &options).unwrap();
        assert_eq!(read(&core, 12, 4), u32::to_le_bytes(segments));
    }
}

#[test]
fn no_byte_but_the_cache_mode_can_be_written() {
    let core = core();
    core.negotiated(u64::MAX);
    let write = |offset, data: &[u8]| {
        core.write_config(offset, data, || panic!("no flush: nothing was written"))
    };
    for offset in (0..96).filter(|&offset| offset != 32).chain([96, 97, usize::MAX]) {
        assert!(write(offset, &[1]).is_err(), "offset {offset}");
    }
    assert!(write(32, &[]).is_err());
    assert!(write(32, &[1, 0]).is_err());
    assert!(write(0, &[1; 96]).is_err());
    assert_eq!(read(&core, 0, 60), SPACE);
}

#[test]
fn a_resize_is_seen_by_the_driver_and_by_requests() {
    let mut rig = Rig::new(8);
    rig.send(&header(IN, 8, &[]), 513).assert_only_status(IOERR);
    rig.image.set_len(16 * 512).unwrap();
    rig.device.resize(rig.device.disk().measure().unwrap()).unwrap();
    assert_eq!(read(rig.device.core(), 0, 8), 16_u64.to_le_bytes());
    assert_eq!(rig.send(&header(IN, 8, &[]), 513).data(), [0; 512]);
    rig.device.resize(4 * 512).unwrap();
    rig.send(&header(IN, 4, &[]), 513).assert_only_status(IOERR);
    assert!(rig.device.resize(1000).is_err());
    assert_eq!(rig.device.core().size(), 4 * 512);
}

#[test]
fn numbers_that_break_a_rule_are_refused_by_name() {
    let make = |disk: Geometry, options: &BlockOptions| {
        BlockCore::new(&disk, options).expect_err("the rule was broken").to_string()
    };
    let (good, usual) = (Geometry::new(1024), BlockOptions::default());
    let cases = [
        (
            make(Geometry::new(1025), &usual),
            "size must be a multiple of block_size, 512 bytes: 1025",
        ),
        (make(Geometry { block_size: 256, ..good.clone() }, &usual), "block_size"),
        (make(Geometry { block_size: 1536, ..good.clone() }, &usual), "block_size"),
        (make(Geometry { block_size: 0, ..good.clone() }, &usual), "block_size"),
        (make(Geometry { physical_block_size: 0, ..good.clone() }, &usual), "physical_block_size"),
        (make(good.clone(), &BlockOptions { num_queues: 0, ..usual.clone() }), "num_queues"),
        (make(good.clone(), &BlockOptions { num_queues: 257, ..usual.clone() }), "num_queues"),
        (make(good.clone(), &BlockOptions { queue_size: 1, ..usual.clone() }), "queue_size"),
        (make(good.clone(), &BlockOptions { queue_size: 100, ..usual.clone() }), "queue_size"),
        (make(good, &BlockOptions { serial: "é".repeat(11), ..usual }), "serial"),
    ];
    for (message, named) in cases {
        assert!(message.contains(named), "{message:?} does not name {named}");
    }
}
