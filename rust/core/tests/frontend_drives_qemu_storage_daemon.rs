//! The built-in front-end against a back-end that shares no code with it: the vhost-user-blk
//! export of qemu-storage-daemon (Debian package `qemu-utils`).

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use support::{Directory, StorageDaemon};
use vhost_user_core::frontend::block::{Op, feature};
use vhost_user_core::frontend::load::{self, Access, Limit, LoadOptions, Pattern, Verify};
use vhost_user_core::frontend::{BlockDriver, BlockOptions, BlockStatus, Client, FrontendError};
use vhost_user_core::wire::ProtocolFeatures;

const MIB: usize = 1 << 20;

struct Disk {
    directory: Directory,
    _daemon: StorageDaemon,
}

impl Disk {
    fn new(num_queues: u16, writable: bool, content: &[u8]) -> Self {
        let directory = Directory::new();
        fs::write(directory.join("image"), content).unwrap();
        let (image, socket) = (directory.join("image"), directory.join("socket"));
        let daemon = StorageDaemon::start(&image, &socket, num_queues, writable);
        Self { directory, _daemon: daemon }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn image(&self) -> Vec<u8> {
        fs::read(self.directory.join("image")).unwrap()
    }

    fn driver(&self, options: BlockOptions) -> BlockDriver {
        BlockDriver::connect(&self.socket(), options).unwrap()
    }
}

/// Bytes that differ from each other everywhere (xorshift).
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

#[test]
fn ring_features_that_are_not_offered_are_refused_by_name() {
    let disk = Disk::new(1, true, &[0; 4096]);
    for (options, what) in [
        (BlockOptions { packed: true, ..BlockOptions::default() }, "RING_PACKED"),
        (BlockOptions { in_order: true, ..BlockOptions::default() }, "IN_ORDER"),
    ] {
        let error = BlockDriver::connect(&disk.socket(), options).unwrap_err().to_string();
        assert_eq!(error, format!("the back-end does not offer {what}"));
    }
}

#[test]
fn what_is_in_the_image_is_read() {
    let content = noise(4 * MIB, 1);
    let disk = Disk::new(1, true, &content);
    let mut driver = disk.driver(BlockOptions::default());
    assert_eq!(driver.size(), 4 * MIB as u64);
    let mut all = vec![0; 4 * MIB];
    driver.pread(&mut all, 0).unwrap();
    assert!(all == content);
    let mut sector = [0; 512];
    driver.pread(&mut sector, (4 * MIB - 512) as u64).unwrap();
    assert!(sector == content[4 * MIB - 512..]);
}

#[test]
fn what_is_written_and_flushed_is_in_the_image() {
    let disk = Disk::new(1, true, &vec![0; 4 * MIB]);
    let mut driver = disk.driver(BlockOptions::default());
    let data = noise(3 * MIB, 2);
    driver.pwrite(&data, 512 * 3).unwrap();
    driver.flush().unwrap();
    assert!(disk.image()[512 * 3..][..3 * MIB] == data);
    let mut back = vec![0; 3 * MIB];
    driver.pread(&mut back, 512 * 3).unwrap();
    assert!(back == data);
    assert_eq!(driver.stop().unwrap().len(), 1);
}

#[test]
fn every_way_to_lay_out_a_ring_moves_the_same_bytes() {
    let disk = Disk::new(2, true, &vec![0; MIB]);
    for (round, (indirect, event_idx, queue_size, num_queues)) in [
        (true, true, 128, 1),
        (true, false, 2, 2),
        (false, true, 4, 1),
        (false, false, 128, 2),
        (false, true, 64, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let mut driver = disk.driver(BlockOptions {
            indirect,
            event_idx,
            queue_size,
            num_queues,
            request_bytes: 8192,
            ..BlockOptions::default()
        });
        let data = noise(MIB, 3 + round as u64);
        driver.pwrite(&data, 0).unwrap();
        let mut back = vec![0; MIB];
        driver.pread(&mut back, 0).unwrap();
        assert!(back == data, "round {round}");
    }
}

#[test]
fn memory_goes_as_a_table_or_as_slots() {
    let content = noise(64 << 10, 9);
    let disk = Disk::new(1, true, &content);
    for protocol in [
        ProtocolFeatures::CONFIG,
        ProtocolFeatures::CONFIG | ProtocolFeatures::REPLY_ACK,
        ProtocolFeatures::CONFIG | ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        ProtocolFeatures::all(),
    ] {
        let mut driver = disk.driver(BlockOptions { protocol, ..BlockOptions::default() });
        let mut all = vec![0; 64 << 10];
        driver.pread(&mut all, 0).unwrap();
        assert!(all == content, "{}", protocol.describe());
    }
}

#[test]
fn discards_and_zeroes_are_carried_out() {
    let disk = Disk::new(1, true, &noise(MIB, 4));
    let mut driver = disk.driver(BlockOptions::default());
    driver.write_zeroes(4096, 8192, false).unwrap();
    driver.write_zeroes(65536, 65536, true).unwrap();
    driver.discard(128 << 10, 4096).unwrap();
    let mut back = vec![1; 8192];
    driver.pread(&mut back, 4096).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
    let mut back = vec![1; 65536];
    driver.pread(&mut back, 65536).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
}

#[test]
fn errors_of_the_device_are_told_apart_and_leave_the_driver_usable() {
    let content = noise(MIB, 5);
    let disk = Disk::new(1, false, &content);
    let mut driver = disk.driver(BlockOptions::default());
    assert!(driver.read_only());
    let status = |result| match result {
        Err(FrontendError::Request { status, .. }) => Some(status),
        _ => None,
    };
    let mut out = vec![0; 2 * MIB];
    assert_eq!(status(driver.pread(&mut out, 0)), Some(BlockStatus::IoError));
    assert_eq!(status(driver.pwrite(&[0; 512], 0)), Some(BlockStatus::IoError));
    let mut id = [0; 20];
    driver.one(Op::GetId, 0, &[], &mut id).unwrap();
    driver.pread(&mut out[..MIB], 0).unwrap();
    assert!(out[..MIB] == content);
}

#[test]
fn the_name_of_the_device_is_read() {
    let disk = Disk::new(1, true, &[0; 4096]);
    assert_eq!(disk.driver(BlockOptions::default()).id().unwrap(), "vhost_user_blk");
}

#[test]
fn the_write_cache_can_be_switched() {
    let disk = Disk::new(1, true, &[0; 4096]);
    let mut driver = disk.driver(BlockOptions::default());
    assert_ne!(driver.negotiated().features & feature::CONFIG_WCE, 0);
    driver.set_writeback(false).unwrap();
    driver.pwrite(&[7; 512], 0).unwrap();
    assert!(disk.image()[..512] == [7; 512]);
}

#[test]
fn a_driver_connects_again_to_a_daemon_that_was_restarted() {
    let directory = Directory::new();
    let (image, socket) = (directory.join("image"), directory.join("socket"));
    fs::write(&image, vec![0; MIB]).unwrap();
    let daemon = StorageDaemon::start(&image, &socket, 1, true);
    let mut driver = BlockDriver::connect(&socket, BlockOptions::default()).unwrap();
    driver.pwrite(&[1; 4096], 0).unwrap();
    drop(daemon);
    let mut back = [0; 4096];
    let error = driver.pread(&mut back, 0).unwrap_err();
    assert!(matches!(error, FrontendError::Closed { .. }), "{error}");

    let _daemon = StorageDaemon::start(&image, &socket, 1, true);
    driver.reconnect().unwrap();
    driver.pread(&mut back, 0).unwrap();
    assert_eq!(back, [1; 4096]);
}

#[test]
fn asking_for_more_queues_than_there_are_is_refused() {
    let disk = Disk::new(2, true, &[0; 4096]);
    let options = BlockOptions { num_queues: 3, ..BlockOptions::default() };
    let error = BlockDriver::connect(&disk.socket(), options).unwrap_err();
    assert_eq!(error.to_string(), "3 queues asked of a device with 2");
}

#[test]
fn a_socket_where_nobody_listens_is_named() {
    let directory = Directory::new();
    let path = directory.join("nobody");
    let error = Client::connect(&path, Duration::ZERO).unwrap_err();
    assert!(matches!(error, FrontendError::Connect { .. }));
    assert!(error.to_string().contains("nobody"), "{error}");
}

fn load(access: Access, polling: bool) -> LoadOptions {
    LoadOptions {
        access,
        polling,
        depth: 8,
        limit: Limit::Ops(4000),
        verify: Verify::All,
        seed: 42,
        ..LoadOptions::default()
    }
}

#[test]
fn a_load_moves_what_it_says_and_finds_the_pattern() {
    let disk = Disk::new(2, true, &vec![0; 8 * MIB]);
    let options = BlockOptions { num_queues: 2, ..BlockOptions::default() };
    let mut driver = disk.driver(options);
    Pattern { seed: 42 }.prepare(&mut driver).unwrap();
    driver.flush().unwrap();
    assert_eq!(Pattern { seed: 42 }.check(0, &disk.image()), Ok(()));
    for access in [Access::RandRead, Access::RandWrite, Access::Read, Access::Write] {
        for polling in [false, true] {
            let report = load::run(&mut driver, &load(access, polling)).unwrap();
            assert!((4000..4100).contains(&report.ops), "{report:?}");
            assert_eq!(report.bytes, report.ops * 4096);
            assert_eq!((report.errors, report.mismatches), (0, 0));
            assert!(report.p50 <= report.p99 && report.iops() > 0.0);
            let reads = matches!(access, Access::Read | Access::RandRead);
            assert_eq!(report.verified >= 4000, reads);
            assert!(polling || report.calls > 0);
        }
    }
    assert_eq!(Pattern { seed: 42 }.check(0, &disk.image()), Ok(()));
}

#[test]
fn a_load_finds_data_that_are_wrong() {
    let mut content = vec![0; MIB];
    Pattern { seed: 42 }.write(0, &mut content);
    content[700 * 512 + 13] ^= 1;
    let disk = Disk::new(1, true, &content);
    let mut driver = disk.driver(BlockOptions::default());
    let report = load::run(&mut driver, &load(Access::Read, false)).unwrap();
    assert!(report.mismatches > 0);
    assert_eq!(report.first_mismatch, Some(700));
}

#[test]
fn a_load_ends_with_an_error_when_the_back_end_is_gone() {
    for polling in [false, true] {
        let mut disk = Some(Disk::new(1, true, &vec![0; MIB]));
        let mut driver = disk.as_ref().unwrap().driver(BlockOptions::default());
        let options = LoadOptions {
            limit: Limit::Time(Duration::from_secs(60)),
            ..load(Access::RandRead, polling)
        };
        let running = std::thread::spawn(move || load::run(&mut driver, &options));
        disk.take();
        let error = running.join().unwrap().unwrap_err();
        assert!(matches!(error, FrontendError::Closed { .. }), "{error}");
    }
}

#[test]
fn a_load_that_does_not_fit_is_refused() {
    let disk = Disk::new(1, true, &[0; 4096]);
    let mut driver = disk.driver(BlockOptions { queue_size: 16, ..BlockOptions::default() });
    for options in [
        LoadOptions { depth: 0, ..LoadOptions::default() },
        LoadOptions { depth: 17, ..LoadOptions::default() },
        LoadOptions { block_bytes: 4097, ..LoadOptions::default() },
        LoadOptions { block_bytes: 8192, depth: 1, ..LoadOptions::default() },
        LoadOptions { cpus: vec![1 << 20], depth: 1, ..LoadOptions::default() },
    ] {
        let error = load::run(&mut driver, &options).unwrap_err();
        assert!(matches!(error, FrontendError::OutOfRange { .. }), "{error}");
    }
}
