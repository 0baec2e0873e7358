//! Drivers that use the legacy interface: they accept no VERSION_1.
//!
//! VIRTIO 1.3, "Block Device", "Legacy Interface: Device Initialization" and "Legacy Interface: Device
//! Operation".

use super::*;

/// VIRTIO_BLK_T_FLUSH_OUT.
const FLUSH_OUT: u32 = 5;
/// The flag of a request of old drafts.
const BARRIER: u32 = 0x8000_0000;

/// Where the cache mode stands in the configuration space.
const WRITEBACK: usize = 32;

fn legacy(features: u64) -> Rig {
    let rig = Rig::new(64);
    rig.device.negotiated(features);
    rig
}

fn mode(rig: &Rig) -> u8 {
    let mut mode = [9];
    rig.device.read_config(WRITEBACK, &mut mode);
    mode[0]
}

#[test]
fn the_disk_is_served_without_version_1() {
    let mut rig = legacy(F_FLUSH);
    let before = rig.content();
    assert_eq!(rig.send(&header(IN, 2, &[]), 1025).data(), &before[1024..2048]);
    assert_eq!(rig.send(&header(OUT, 3, &[0xee; 512]), 1).status(), OK);
    assert_eq!(rig.content()[1536..2048], [0xee; 512]);
    assert_eq!(rig.send(&header(FLUSH, 0, &[]), 1).status(), OK);
    assert_eq!(rig.send(&header(GET_ID, 0, &[]), 21).data()[..6], *b"disk-7");
}

#[test]
fn a_flush_may_have_its_old_number_and_with_version_1_it_may_not() {
    let mut rig = legacy(F_FLUSH);
    assert_eq!(rig.send(&header(FLUSH_OUT, 0, &[]), 1).status(), OK);
    rig.send(&header(FLUSH_OUT | BARRIER, 0, &[]), 1).assert_only_status(UNSUPP);
    rig.device.negotiated(F_FLUSH | VERSION_1);
    rig.send(&header(FLUSH_OUT, 0, &[]), 1).assert_only_status(UNSUPP);
}

#[test]
fn the_cache_mode_may_be_written_before_the_features_are_known() {
    let rig = legacy(0);
    assert_eq!(mode(&rig), 1);
    rig.device.write_config(WRITEBACK, &[0]).unwrap();
    rig.device.negotiated(F_FLUSH | F_CONFIG_WCE);
    assert_eq!(mode(&rig), 0);
    assert!(rig.device.core().write_through());
    rig.device.write_config(WRITEBACK, &[1]).unwrap();
    assert!(!rig.device.core().write_through());
}

#[test]
fn features_do_not_change_the_cache_mode_that_is_read_and_writes_are_durable_without_flushes() {
    let rig = legacy(F_CONFIG_WCE);
    assert_eq!(mode(&rig), 1);
    assert!(rig.device.core().write_through());
    rig.device.negotiated(F_CONFIG_WCE | VERSION_1);
    assert_eq!(mode(&rig), 0);
    rig.device.negotiated(F_FLUSH);
    assert!(rig.device.write_config(WRITEBACK, &[0]).is_err(), "CONFIG_WCE was not accepted");
}
