//! The core's front-end drives a back-end on rust-vmm's `vhost-user-backend`.

use std::sync::atomic::Ordering;

use peers_std::{Daemon, RING};
use vhost_user_core::frontend::block::Op;
use vhost_user_core::frontend::load::{self, Access, Limit, LoadOptions, Pattern, Verify};
use vhost_user_core::frontend::{BlockDriver, BlockOptions, BlockStatus, FrontendError};
use vhost_user_core::wire::ProtocolFeatures;

const MIB: usize = 1 << 20;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Bytes that differ from place to place.
fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Pattern { seed }.write(0, &mut bytes);
    bytes
}

fn connect(daemon: &Daemon, options: BlockOptions) -> BlockDriver {
    BlockDriver::connect(&daemon.socket(), options).unwrap()
}

#[test]
fn what_is_in_the_image_is_read_and_what_is_written_and_flushed_is_in_it() {
    let before = content(4 * MIB, 1);
    let daemon = Daemon::start(&before, 1, 1);
    let mut driver = connect(&daemon, BlockOptions::default());
    assert_eq!(driver.size(), 4 * MIB as u64);
    let mut all = vec![0; 4 * MIB];
    driver.pread(&mut all, 0).unwrap();
    assert!(all == before);
    let data = content(3 * MIB, 2);
    driver.pwrite(&data, 3 * 512).unwrap();
    driver.flush().unwrap();
    let image = daemon.image();
    assert!(image[..3 * 512] == before[..3 * 512]);
    assert!(image[3 * 512..][..3 * MIB] == data);
    assert!(image[3 * 512 + 3 * MIB..] == before[3 * 512 + 3 * MIB..]);
    assert_eq!(driver.stop().unwrap().len(), 1);
    drop(driver);
    daemon.finish();
}

#[test]
fn every_way_to_lay_out_a_ring_moves_the_same_bytes() {
    let ways = [
        (true, true, 128, 1),
        (true, false, 2, 2),
        (false, true, 4, 1),
        (false, false, 128, 2),
        (false, true, RING as u16, 2),
    ];
    let daemon = Daemon::start(&vec![0; MIB], 2, ways.len());
    for (round, (indirect, event_idx, queue_size, num_queues)) in ways.into_iter().enumerate() {
        let options = BlockOptions {
            indirect,
            event_idx,
            queue_size,
            num_queues,
            request_bytes: 8192,
            ..BlockOptions::default()
        };
        let mut driver = connect(&daemon, options);
        let accepted = daemon.disk.accepted.load(Ordering::Acquire);
        assert_eq!(accepted & INDIRECT_DESC != 0, indirect);
        assert_eq!(accepted & EVENT_IDX != 0, event_idx);
        let data = content(MIB, 3 + round as u64);
        driver.pwrite(&data, 0).unwrap();
        let mut back = vec![0; MIB];
        driver.pread(&mut back, 0).unwrap();
        assert!(back == data, "round {round}");
        assert!(daemon.image() == data, "round {round}");
    }
    daemon.finish();
}

#[test]
fn memory_goes_as_a_table_or_as_slots() {
    let before = content(64 << 10, 9);
    let ways = [
        ProtocolFeatures::CONFIG,
        ProtocolFeatures::CONFIG | ProtocolFeatures::REPLY_ACK,
        ProtocolFeatures::CONFIG | ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        ProtocolFeatures::all(),
    ];
    let daemon = Daemon::start(&before, 1, ways.len());
    for protocol in ways {
        let mut driver = connect(&daemon, BlockOptions { protocol, ..BlockOptions::default() });
        let mut all = vec![0; 64 << 10];
        driver.pread(&mut all, 0).unwrap();
        assert!(all == before, "{}", protocol.describe());
    }
    daemon.finish();
}

#[test]
fn a_driver_that_connects_again_finds_its_data() {
    let daemon = Daemon::start(&vec![0; MIB], 2, 2);
    let options = BlockOptions { num_queues: 2, ..BlockOptions::default() };
    let mut driver = connect(&daemon, options);
    driver.pwrite(&content(MIB, 5), 0).unwrap();
    driver.reconnect().unwrap();
    let mut back = vec![0; MIB];
    driver.pread(&mut back, 0).unwrap();
    assert!(back == content(MIB, 5));
    drop(driver);
    daemon.finish();
}

#[test]
fn the_base_of_a_stopped_ring_is_the_number_of_its_requests() {
    let daemon = Daemon::start(&[0; 4096], 1, 1);
    let mut driver = connect(&daemon, BlockOptions::default());
    for _ in 0..5 {
        driver.flush().unwrap();
    }
    assert_eq!(driver.stop().unwrap(), [5]);
    drop(driver);
    daemon.finish();
}

#[test]
fn errors_of_the_device_are_told_apart_and_leave_the_driver_usable() {
    let before = content(MIB, 6);
    let daemon = Daemon::start(&before, 1, 1);
    let mut driver = connect(&daemon, BlockOptions::default());
    let status = |result| match result {
        Err(FrontendError::Request { status, .. }) => Some(status),
        _ => None,
    };
    let mut out = vec![0; 2 * MIB];
    assert_eq!(status(driver.pread(&mut out, 0)), Some(BlockStatus::IoError));
    let mut id = [0; 20];
    assert_eq!(status(driver.one(Op::GetId, 0, &[], &mut id)), Some(BlockStatus::Unsupported));
    driver.pread(&mut out[..MIB], 0).unwrap();
    assert!(out[..MIB] == before);
    assert!(daemon.image() == before);
    drop(driver);
    daemon.finish();
}

#[test]
fn more_queues_than_there_are_are_refused_before_a_ring_starts() {
    let daemon = Daemon::start(&[0; 4096], 2, 1);
    let options = BlockOptions { num_queues: 3, ..BlockOptions::default() };
    let error = BlockDriver::connect(&daemon.socket(), options).unwrap_err();
    assert_eq!(error.to_string(), "3 queues asked of a device with 2");
    daemon.finish();
}

#[test]
fn a_load_on_two_queues_moves_what_it_says_and_finds_the_pattern() {
    let daemon = Daemon::start(&vec![0; 8 * MIB], 2, 1);
    let options = BlockOptions { num_queues: 2, ..BlockOptions::default() };
    let mut driver = connect(&daemon, options);
    Pattern { seed: 42 }.prepare(&mut driver).unwrap();
    driver.flush().unwrap();
    assert_eq!(Pattern { seed: 42 }.check(0, &daemon.image()), Ok(()));
    for access in [Access::RandRead, Access::RandWrite] {
        for polling in [false, true] {
            let options = LoadOptions {
                access,
                polling,
                depth: 8,
                limit: Limit::Ops(4000),
                verify: Verify::All,
                seed: 42,
                ..LoadOptions::default()
            };
            let report = load::run(&mut driver, &options).unwrap();
            assert!((4000..4100).contains(&report.ops), "{report:?}");
            assert_eq!((report.errors, report.mismatches), (0, 0));
            assert_eq!(report.verified >= 4000, access == Access::RandRead);
        }
    }
    assert_eq!(Pattern { seed: 42 }.check(0, &daemon.image()), Ok(()));
    drop(driver);
    daemon.finish();
}
