//! What reaches stable storage, and when: seen by the calls that the image gets.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};

use super::image::Call::{DurableWrite, PunchHole, Sync, Write, WriteBytes, ZeroRange};
use super::image::{Script, Scripted};
use super::*;
use crate::device::ConfigRefused;

/// Where the cache mode stands in the configuration space.
const WRITEBACK: usize = 32;

/// Error numbers.
const EIO: i32 = libc::EIO;
const ENOSPC: i32 = libc::ENOSPC;
const EOPNOTSUPP: i32 = libc::EOPNOTSUPP;

/// A device whose image is scripted.
struct Cached {
    device: Arc<BlockDevice<FileDisk<Scripted>>>,
    script: Script,
    driver: Driver,
}

impl Cached {
    /// The driver accepted these features.
    fn new(features: u64) -> Self {
        let image =
            File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        image.write_all_at(&pattern(512 * 64, 77), 0).unwrap();
        Self::on(image, features)
    }

    fn on(image: File, features: u64) -> Self {
        let script = Script::default();
        let image = Scripted { image: HostImage::new(image.into()), script: script.clone() };
        let disk = FileDisk::new(image, false).unwrap();
        let device = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
        device.negotiated(features | VERSION_1);
        Self { device, script, driver: Driver::new() }
    }

    fn status(&mut self, readable: &[u8]) -> u8 {
        self.driver.send(&*self.device, readable, 1).status()
    }

    fn write(&mut self) -> u8 {
        self.status(&header(OUT, 0, &[0xee; 512]))
    }

    fn flush(&mut self) -> u8 {
        self.status(&header(FLUSH, 0, &[]))
    }

    fn set_cache(&self, mode: u8) -> Result<(), ConfigRefused> {
        self.device.write_config(WRITEBACK, &[mode])
    }

    fn cache(&self) -> u8 {
        let mut mode = [9];
        self.device.read_config(WRITEBACK, &mut mode);
        mode[0]
    }
}

#[test]
fn a_flush_puts_completed_writes_on_stable_storage() {
    let mut disk = Cached::new(F_FLUSH);
    assert_eq!((disk.write(), disk.write(), disk.flush()), (OK, OK, OK));
    assert_eq!(disk.script.calls(), [Write, Write, Sync]);
}

#[test]
fn a_flush_with_data_or_a_sector_is_done() {
    let mut disk = Cached::new(F_FLUSH);
    assert_eq!(disk.status(&header(FLUSH, 5, &[])), OK);
    assert_eq!(disk.status(&header(FLUSH, u64::MAX, &[1; 700])), OK);
    assert_eq!(disk.script.calls(), [Sync, Sync]);
}

#[test]
fn without_flush_each_write_is_durable() {
    let mut disk = Cached::new(0);
    assert_eq!(disk.write(), OK);
    assert_eq!(disk.script.calls(), [DurableWrite]);
}

#[test]
fn before_negotiation_each_write_is_durable() {
    let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 512).unwrap();
    let disk = FileDisk::new(HostImage::new(fd.into()), false).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    assert!(device.core().write_through());
}

#[test]
fn turning_the_cache_off_flushes_at_once_and_makes_later_writes_durable() {
    let mut disk = Cached::new(F_FLUSH | F_CONFIG_WCE);
    assert_eq!((disk.cache(), disk.write()), (1, OK));
    assert_eq!(disk.script.calls(), [Write]);
    disk.set_cache(0).unwrap();
    assert_eq!(disk.script.calls(), [Sync]);
    assert_eq!((disk.cache(), disk.write()), (0, OK));
    assert_eq!(disk.script.calls(), [DurableWrite]);
}

#[test]
fn turning_the_cache_on_again_leaves_durability_to_flushes() {
    let mut disk = Cached::new(F_FLUSH | F_CONFIG_WCE);
    disk.set_cache(0).unwrap();
    disk.set_cache(1).unwrap();
    disk.script.calls();
    assert_eq!((disk.cache(), disk.write()), (1, OK));
    assert_eq!(disk.script.calls(), [Write]);
}

#[test]
fn a_write_that_overlaps_the_switch_is_durable_before_it_completes() {
    let mut disk = Cached::new(F_FLUSH | F_CONFIG_WCE);
    let device = Arc::clone(&disk.device);
    // The switch comes, and is answered, while the write is on its way.
    disk.script.at(Write, move || {
        device.write_config(WRITEBACK, &[0]).expect("the cache can be turned off");
        Ok(())
    });
    assert_eq!(disk.write(), OK);
    assert_eq!(disk.script.calls(), [Write, Sync, Sync]);
}

#[test]
fn only_0_and_1_are_cache_modes_and_only_with_the_feature() {
    let disk = Cached::new(F_FLUSH | F_CONFIG_WCE);
    for mode in [2, 3, 0xff] {
        assert!(disk.set_cache(mode).is_err());
    }
    assert_eq!((disk.cache(), disk.script.calls()), (1, vec![]));
    let disk = Cached::new(F_FLUSH);
    assert!(disk.set_cache(0).is_err());
    assert_eq!((disk.cache(), disk.script.calls()), (1, vec![]));
}

#[test]
fn the_cache_stays_on_when_it_cannot_be_flushed() {
    let mut disk = Cached::new(F_FLUSH | F_CONFIG_WCE);
    disk.script.fail(Sync, EIO);
    let refused = disk.set_cache(0).unwrap_err();
    assert!(refused.0.contains("cannot be flushed"), "{refused}");
    assert_eq!((disk.cache(), disk.write()), (1, OK));
    assert_eq!(disk.script.calls(), [Sync, Write]);
    assert_eq!(disk.flush(), IOERR);
}

#[test]
fn the_cache_mode_is_the_drivers_whatever_is_negotiated_between() {
    let features = F_FLUSH | F_CONFIG_WCE;
    let mut disk = Cached::new(features);
    disk.set_cache(0).unwrap();
    // The machine pauses: QEMU resets the device and negotiates again.
    disk.device.reset();
    disk.device.negotiated(features);
    assert_eq!((disk.cache(), disk.write()), (0, OK));
    // The machine reboots: its firmware knows no cache. A reconnect is no different.
    disk.device.negotiated(0);
    disk.device.disconnected();
    disk.device.negotiated(features);
    assert_eq!((disk.cache(), disk.write()), (0, OK));
    assert_eq!(disk.script.calls(), [Sync, DurableWrite, DurableWrite]);
    disk.set_cache(1).unwrap();
    disk.device.reset();
    assert!(disk.device.core().write_through(), "nothing is negotiated");
    disk.device.negotiated(features);
    assert_eq!((disk.cache(), disk.write()), (1, OK));
    assert_eq!(disk.script.calls(), [Write]);
}

#[test]
fn a_driver_that_cannot_flush_reads_that_there_is_no_cache() {
    let disk = Cached::new(F_CONFIG_WCE);
    assert_eq!(disk.cache(), 0);
    disk.device.negotiated(F_FLUSH | F_CONFIG_WCE);
    assert_eq!(disk.cache(), 1);
}

#[test]
fn a_cache_that_the_driver_cannot_flush_is_not_used_whatever_its_mode() {
    let mut disk = Cached::new(F_CONFIG_WCE);
    disk.set_cache(1).unwrap();
    assert_eq!(disk.write(), OK);
    assert_eq!(disk.script.calls(), [DurableWrite]);
}

#[test]
fn a_flush_that_failed_keeps_failing_until_the_image_is_opened_anew() {
    let image =
        File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    image.write_all_at(&pattern(512 * 64, 77), 0).unwrap();
    let mut disk = Cached::on(image.try_clone().unwrap(), F_FLUSH | F_CONFIG_WCE);
    disk.script.fail(Sync, EIO);
    assert_eq!((disk.flush(), disk.flush(), disk.flush()), (IOERR, IOERR, IOERR));
    assert_eq!(disk.script.calls(), [Sync], "the kernel must not be asked again");
    // What promises nothing goes on.
    assert_eq!(disk.write(), OK);
    assert_eq!(disk.driver.send(&*disk.device, &header(IN, 0, &[]), 513).data(), [0xee; 512]);
    disk.device.negotiated(0);
    assert_eq!(disk.write(), IOERR);
    let mut disk = Cached::on(image, F_FLUSH);
    assert_eq!((disk.write(), disk.flush()), (OK, OK));
}

#[test]
fn a_flush_waits_for_the_verdict_of_one_that_is_under_way() {
    let disk = Cached::new(F_FLUSH);
    let (started, begun) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    disk.script.at(Sync, move || {
        started.send(()).unwrap();
        released.recv().unwrap();
        Err(std::io::Error::from_raw_os_error(EIO))
    });
    let flush = |device: Arc<BlockDevice<FileDisk<Scripted>>>| {
        move || Driver::new().send(&*device, &header(FLUSH, 0, &[]), 1).status()
    };
    let first = std::thread::spawn(flush(Arc::clone(&disk.device)));
    begun.recv().unwrap();
    let second = std::thread::spawn(flush(Arc::clone(&disk.device)));
    release.send(()).unwrap();
    assert_eq!((first.join().unwrap(), second.join().unwrap()), (IOERR, IOERR));
    assert_eq!(disk.script.calls(), [Sync]);
}

#[test]
fn a_durable_write_that_the_storage_refused_is_final_too() {
    let mut disk = Cached::new(0);
    disk.script.fail(DurableWrite, EIO);
    assert_eq!((disk.write(), disk.write(), disk.flush()), (IOERR, IOERR, IOERR));
    assert_eq!(disk.script.calls(), [DurableWrite]);
}

#[test]
fn a_full_host_fails_writes_until_there_is_space_again() {
    for (features, call) in [(F_FLUSH, Write), (0, DurableWrite)] {
        let mut disk = Cached::new(features);
        disk.script.fail(call, ENOSPC);
        assert_eq!((disk.write(), disk.write(), disk.flush()), (IOERR, OK, OK));
    }
}

#[test]
fn where_durable_writes_are_not_to_be_had_each_write_is_followed_by_a_sync() {
    let mut disk = Cached::new(0);
    disk.script.fail(DurableWrite, EOPNOTSUPP);
    assert_eq!(disk.write(), OK);
    assert_eq!(disk.script.calls(), [DurableWrite, Write, Sync]);
    assert_eq!(disk.write(), OK);
}

#[test]
fn zeroes_without_a_cache_are_durable() {
    let mut disk = Cached::new(F_WRITE_ZEROES);
    assert_eq!(disk.status(&header(WRITE_ZEROES, 0, &segment(0, 8, UNMAP))), OK);
    assert_eq!(disk.script.calls(), [PunchHole, Sync]);
    let mut disk = Cached::new(F_WRITE_ZEROES | F_FLUSH);
    assert_eq!(disk.status(&header(WRITE_ZEROES, 0, &segment(0, 8, UNMAP))), OK);
    assert_eq!(disk.script.calls(), [PunchHole]);
}

#[test]
fn space_is_given_up_only_when_the_driver_allows_it() {
    // Not supported at all; not for a range of half blocks.
    for number in [EOPNOTSUPP, libc::EINVAL] {
        let mut disk = Cached::new(F_FLUSH | F_WRITE_ZEROES);
        disk.script.fail(ZeroRange, number);
        assert_eq!(disk.status(&header(WRITE_ZEROES, 0, &segment(0, 8, 0))), OK);
        assert_eq!(disk.script.calls(), [ZeroRange, WriteBytes]);
    }
    let mut disk = Cached::new(F_FLUSH | F_WRITE_ZEROES);
    disk.script.fail(ZeroRange, EIO);
    assert_eq!(disk.status(&header(WRITE_ZEROES, 0, &segment(0, 8, 0))), IOERR);
    assert_eq!(disk.script.calls(), [ZeroRange]);
}

#[test]
fn where_nothing_else_works_zeroes_are_written_out_in_bounded_pieces() {
    let mut disk = Cached::new(F_FLUSH | F_WRITE_ZEROES);
    disk.device.resize(1 << 20).unwrap();
    disk.script.fail(PunchHole, EOPNOTSUPP);
    disk.script.fail(ZeroRange, EOPNOTSUPP);
    // 160 KiB, in pieces of 64 KiB.
    assert_eq!(disk.status(&header(WRITE_ZEROES, 0, &segment(1, 320, UNMAP))), OK);
    assert_eq!(disk.script.calls(), [PunchHole, ZeroRange, WriteBytes, WriteBytes, WriteBytes]);
    assert_eq!(disk.driver.send(&*disk.device, &header(IN, 1, &[]), 163_841).data(), [0; 163_840]);
}

#[test]
fn an_image_without_discard_says_unsupported() {
    let mut disk = Cached::new(F_FLUSH | F_DISCARD);
    disk.script.fail(PunchHole, EOPNOTSUPP);
    assert_eq!(disk.status(&header(DISCARD, 0, &segment(0, 8, 0))), UNSUPP);
    assert_eq!(disk.status(&header(DISCARD, 0, &segment(0, 8, 0))), OK);
}
