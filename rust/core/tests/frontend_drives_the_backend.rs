//! The project's two ends on one socket.

#[allow(dead_code)] // Each test program uses a part of it.
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::Directory;
use vhost_user_core::backend::{Backend, Event, Observer, Options};
use vhost_user_core::block::{self, BlockDevice, FileDisk};
use vhost_user_core::frontend::block::Op;
use vhost_user_core::frontend::load::{self, Access, Limit, LoadOptions, Pattern, Verify};
use vhost_user_core::frontend::{BlockDriver, BlockOptions, BlockStatus, FrontendError};
use vhost_user_core::socket::{Endpoint, ListenOptions, Stream};
use vhost_user_core::wire::ProtocolFeatures;

const MIB: u64 = 1 << 20;

struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}

type Disk = Arc<BlockDevice<FileDisk>>;

fn disk(size: u64, num_queues: u16) -> Disk {
    let options = block::BlockOptions { num_queues, ..block::BlockOptions::default() };
    Arc::new(BlockDevice::new(FileDisk::in_memory(size).unwrap(), &options).unwrap())
}

fn serve(disk: &Disk, socket: &Path) -> Backend {
    let options = Options::new(Endpoint::Listen(ListenOptions::new(socket)));
    Backend::start(disk.clone(), options, Arc::new(Silent)).unwrap()
}

#[test]
fn what_is_written_is_read_back_in_every_layout_of_the_ring() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let _backend = serve(&disk(4 * MIB, 2), &socket);
    for (round, (indirect, event_idx, queue_size, num_queues)) in [
        (true, true, 256, 2),
        (true, false, 2, 1),
        (false, true, 4, 2),
        (false, false, 128, 1),
        (true, true, 2, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let options = BlockOptions {
            indirect,
            event_idx,
            queue_size,
            num_queues,
            request_bytes: 16384,
            ..BlockOptions::default()
        };
        let mut driver = BlockDriver::connect(&socket, options).unwrap();
        assert_eq!(driver.size(), 4 * MIB);
        let pattern = Pattern { seed: round as u64 };
        pattern.prepare(&mut driver).unwrap();
        driver.flush().unwrap();
        let mut back = vec![0; 4 * MIB as usize];
        driver.pread(&mut back, 0).unwrap();
        assert_eq!(pattern.check(0, &back), Ok(()), "round {round}");
        assert_eq!(driver.stop().unwrap().len(), usize::from(num_queues));
    }
}

/// Packed or not, in order or not.
const FORMS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn what_is_written_is_read_back_in_each_form_of_rings() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let _backend = serve(&disk(4 * MIB, 2), &socket);
    // With 100 entries, which no split ring can have, chains of three lie over the ring's end.
    for (seed, (packed, in_order)) in (0..).zip(FORMS) {
        for (indirect, event_idx, queue_size) in
            [(true, true, 128), (false, false, 4), (false, true, if packed { 100 } else { 64 })]
        {
            let options = BlockOptions {
                indirect,
                event_idx,
                queue_size,
                packed,
                in_order,
                num_queues: 2,
                request_bytes: 4096,
                ..BlockOptions::default()
            };
            let mut driver = BlockDriver::connect(&socket, options).unwrap();
            let pattern = Pattern { seed };
            pattern.prepare(&mut driver).unwrap();
            driver.flush().unwrap();
            let mut back = vec![0; 4 * MIB as usize];
            driver.pread(&mut back, 0).unwrap();
            assert_eq!(pattern.check(0, &back), Ok(()), "{packed} {in_order} {queue_size}");
            for polling in [false, true] {
                let options = LoadOptions {
                    polling,
                    depth: queue_size.min(16) / if indirect { 1 } else { 3 },
                    limit: Limit::Ops(5_000),
                    verify: Verify::All,
                    seed,
                    ..LoadOptions::default()
                };
                let report = load::run(&mut driver, &options).unwrap();
                assert_eq!((report.errors, report.mismatches), (0, 0), "{packed} {in_order}");
            }
            driver.stop().unwrap();
        }
    }
}

#[test]
fn a_driver_that_needs_few_protocol_features_is_served() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let _backend = serve(&disk(MIB, 1), &socket);
    for protocol in [
        ProtocolFeatures::CONFIG,
        ProtocolFeatures::CONFIG | ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        ProtocolFeatures::CONFIG | ProtocolFeatures::REPLY_ACK | ProtocolFeatures::STATUS,
    ] {
        let options = BlockOptions { protocol, ..BlockOptions::default() };
        let mut driver = BlockDriver::connect(&socket, options).unwrap();
        driver.pwrite(&[3; 4096], 8192).unwrap();
        let mut back = [0; 4096];
        driver.pread(&mut back, 8192).unwrap();
        assert_eq!(back, [3; 4096], "{}", protocol.describe());
    }
}

#[test]
fn a_load_on_two_queues_finds_every_byte_right() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let _backend = serve(&disk(8 * MIB, 2), &socket);
    let options = BlockOptions { num_queues: 2, ..BlockOptions::default() };
    let mut driver = BlockDriver::connect(&socket, options).unwrap();
    Pattern { seed: 9 }.prepare(&mut driver).unwrap();
    for access in [Access::RandWrite, Access::RandRead, Access::Write, Access::Read] {
        for polling in [false, true] {
            let options = LoadOptions {
                access,
                polling,
                limit: Limit::Ops(20_000),
                verify: Verify::All,
                seed: 9,
                ..LoadOptions::default()
            };
            let report = load::run(&mut driver, &options).unwrap();
            assert_eq!((report.errors, report.mismatches), (0, 0), "{access:?} {polling}");
            assert!(report.ops >= 20_000);
        }
    }
}

#[test]
fn a_resized_disk_is_seen_without_a_new_connection() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let disk = disk(MIB, 1);
    let backend = serve(&disk, &socket);
    let mut driver = BlockDriver::connect(&socket, BlockOptions::default()).unwrap();
    assert!(!driver.wait_config_change(Duration::ZERO).unwrap());
    disk.resize(MIB / 2).unwrap();
    backend.notify_config();
    assert!(driver.wait_config_change(Duration::from_secs(10)).unwrap());
    assert_eq!(driver.size(), MIB / 2);
}

#[test]
fn a_driver_connects_again_to_the_same_and_to_a_restarted_back_end() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let disk = disk(MIB, 1);
    let mut backend = Some(serve(&disk, &socket));
    let mut driver = BlockDriver::connect(&socket, BlockOptions::default()).unwrap();
    driver.pwrite(&[1; 4096], 0).unwrap();
    let mut back = [0; 4096];
    for restart in [false, true] {
        if restart {
            backend.take();
            let error = driver.pread(&mut back, 0).unwrap_err();
            assert!(matches!(error, FrontendError::Closed { .. }), "{error}");
            backend = Some(serve(&disk, &socket));
        }
        driver.reconnect().unwrap();
        driver.pread(&mut back, 0).unwrap();
        assert_eq!(back, [1; 4096]);
    }
}

#[test]
fn a_driver_with_a_record_goes_on_with_the_next_back_end() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let disk = disk(MIB, 1);
    let mut backend = Some(serve(&disk, &socket));
    let options = BlockOptions { inflight: true, request_bytes: 4096, ..BlockOptions::default() };
    let mut driver = BlockDriver::connect(&socket, options).unwrap();
    let memory = driver.memory().regions()[0].user();
    for round in 1..=3 {
        Pattern { seed: round }.prepare(&mut driver).unwrap();
        backend.take();
        backend = Some(serve(&disk, &socket));
        let mut back = vec![0; MIB as usize];
        driver.pread(&mut back, 0).unwrap();
        assert_eq!(Pattern { seed: round }.check(0, &back), Ok(()));
        assert_eq!(driver.reconnections(), round);
    }
    driver.reconnect().unwrap();
    assert_eq!(driver.reconnections(), 4);
    assert_eq!(driver.memory().regions()[0].user(), memory);
    driver.pread(&mut [0; 512], 0).unwrap();
}

#[test]
fn the_next_back_end_goes_on_with_the_dirty_log() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let disk = disk(MIB, 1);
    let first = serve(&disk, &socket);
    let options = BlockOptions { inflight: true, ..BlockOptions::default() };
    let mut driver = BlockDriver::connect(&socket, options).unwrap();
    driver.start_log().unwrap();
    drop(first);
    let _second = serve(&disk, &socket);
    driver.reconnect().unwrap();
    driver.dirty_pages().unwrap();
    driver.pread(&mut [0; 65536], 0).unwrap();
    assert!(driver.dirty_pages().unwrap().len() >= 16);
}

#[test]
fn what_the_device_refuses_leaves_the_driver_usable() {
    let directory = Directory::new();
    let socket = directory.join("socket");
    let _backend = serve(&disk(MIB, 1), &socket);
    let mut driver = BlockDriver::connect(&socket, BlockOptions::default()).unwrap();
    let status = |result| match result {
        Err(FrontendError::Request { status, .. }) => Some(status),
        _ => None,
    };
    let mut sector = [0; 512];
    assert_eq!(status(driver.pread(&mut sector, MIB)), Some(BlockStatus::IoError));
    assert_eq!(status(driver.pwrite(&sector, MIB - 512)), None);
    // 15 bytes are less than a segment.
    let short = driver.one(Op::Discard, 0, &[0; 15], &mut []);
    assert_eq!(status(short), Some(BlockStatus::IoError));
    driver.pread(&mut sector, 0).unwrap();
}

#[test]
fn a_stream_that_was_handed_over_is_driven_and_cannot_be_made_again() {
    let (ours, theirs) = Stream::pair().unwrap();
    let disk = disk(MIB, 1);
    let fd = std::os::fd::AsFd::as_fd(&theirs).try_clone_to_owned().unwrap();
    drop(theirs);
    let options = Options::new(Endpoint::Inherited(fd));
    let backend = Backend::start(disk, options, Arc::new(Silent)).unwrap();
    let mut driver = BlockDriver::from_stream(ours, BlockOptions::default()).unwrap();
    driver.pwrite(&[2; 512], 0).unwrap();
    assert!(matches!(driver.reconnect(), Err(FrontendError::OutOfRange { .. })));
    drop(driver);
    assert!(backend.wait_stopped(Some(Duration::from_secs(10))));
}
