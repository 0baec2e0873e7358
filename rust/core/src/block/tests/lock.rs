//! The lock on an image follows the guest from one back-end to another.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;

use super::files::Dir;
use super::image::{Call, Script, Scripted};
use super::*;
use crate::block::{Disk, Taken};
use crate::device::Acquired;
use crate::sys::lock::{Hold, LockRange, lock_range};

/// The first of the bytes that QEMU locks of an image which it uses: qemu(1), "locking=".
const BYTES_OF_QEMU: LockRange = LockRange { start: 100, length: 1 };

fn open(path: &Path, sharing: Sharing) -> FileDisk {
    FileDisk::open(path, sharing).unwrap()
}

#[track_caller]
fn assert_in_use(disk: &FileDisk) {
    let error = disk.take().expect_err("it is somebody else's");
    let expected = "is in use: another back-end of this process has locked it";
    assert!(error.0.contains(expected), "{error}");
}

#[test]
fn the_lock_goes_from_the_source_to_the_destination_and_back() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let (source, destination) = (open(&path, Sharing::None), open(&path, Sharing::Incoming));
    assert_in_use(&destination);
    source.take().unwrap();
    assert_in_use(&destination);
    source.give_up(true).unwrap();
    assert_eq!(destination.take(), Ok(Taken::default()));
    assert_in_use(&source);
    destination.give_up(true).unwrap();
    assert_eq!(source.take(), Ok(Taken::default()));
    assert_in_use(&destination);
    drop(source);
    destination.take().unwrap();
}

#[test]
fn who_waits_for_a_guest_keeps_out_no_back_end_of_the_guest_that_starts_again() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let (source, destination) = (open(&path, Sharing::None), open(&path, Sharing::Incoming));
    source.take().unwrap();
    drop(source);
    let again = open(&path, Sharing::None);
    assert_in_use(&destination);
    again.take().unwrap();
    again.give_up(true).unwrap();
    destination.take().unwrap();
    destination.give_up(true).unwrap();
    drop(again);
    // The guest is there now, though it does not run.
    let error = FileDisk::open(&path, Sharing::None).expect_err("a guest has it").to_string();
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn nobody_only_reads_what_a_guest_is_to_come_to() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let _destination = open(&path, Sharing::Incoming);
    let error = FileDisk::open(&path, Sharing::Readers).expect_err("it waits").to_string();
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn an_image_whose_guest_is_paused_can_be_opened_for_that_guest_alone() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let paused = open(&path, Sharing::None);
    paused.give_up(true).unwrap();
    for sharing in [Sharing::None, Sharing::Readers] {
        let error = FileDisk::open(&path, sharing).expect_err("a guest has it").to_string();
        assert!(error.contains("it is in use: another back-end of this process"), "{error}");
    }
    open(&path, Sharing::Incoming).take().unwrap();
    drop(paused);
    open(&path, Sharing::None);
}

#[test]
fn no_guest_comes_to_an_image_that_others_read() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let reader = open(&path, Sharing::Readers);
    let error = FileDisk::open(&path, Sharing::Incoming).expect_err("others read it").to_string();
    assert!(error.contains("in use"), "{error}");
    // Nor does a reader ever give it up.
    reader.give_up(true).unwrap();
    assert!(FileDisk::open(&path, Sharing::None).is_err());
}

#[test]
fn a_program_that_locks_as_qemu_does_keeps_the_rings_from_running() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let other = File::open(&path).unwrap();
    let lock = || lock_range(other.as_fd(), Hold::Shared, BYTES_OF_QEMU);
    let disk = open(&path, Sharing::None);
    assert!(lock().is_err(), "an image that waits for its guest is locked");
    disk.give_up(true).unwrap();
    lock().unwrap();
    assert_in_use(&disk);
    drop(disk);
    assert!(FileDisk::open(&path, Sharing::None).is_err());
    open(&path, Sharing::Incoming);
}

#[test]
fn what_was_written_is_on_stable_storage_before_the_lock_is_given_up() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let script = Script::default();
    let image = |fd| Ok(Scripted { image: HostImage::new(fd), script: script.clone() });
    let disk = FileDisk::open_as(&path, Sharing::None, image).unwrap();
    let destination = open(&path, Sharing::Incoming);
    let at_sync = open(&path, Sharing::Incoming);
    script.at(Call::Sync, move || {
        assert_in_use(&at_sync);
        Ok(())
    });
    disk.give_up(true).unwrap();
    assert_eq!(script.calls(), [Call::Sync]);
    destination.take().unwrap();
    // Nothing is left to do.
    disk.give_up(true).unwrap();
    assert_eq!(script.calls(), []);
}

#[test]
fn an_image_whose_data_may_be_lost_stays_where_that_is_known() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let script = Script::default();
    let image = |fd| Ok(Scripted { image: HostImage::new(fd), script: script.clone() });
    let disk = FileDisk::open_as(&path, Sharing::None, image).unwrap();
    let destination = open(&path, Sharing::Incoming);
    script.fail(Call::Sync, libc::EIO);
    let kept = disk.give_up(true).expect_err("nothing is durable").0;
    assert!(kept.contains("disk.img stays locked: what was written is not on stable"), "{kept}");
    assert_in_use(&destination);
    disk.take().unwrap();
    assert!(disk.give_up(true).is_err(), "a failure is final");
    assert_in_use(&destination);
}

#[test]
fn an_image_that_may_still_be_written_to_stays_locked() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let (disk, destination) = (open(&path, Sharing::None), open(&path, Sharing::Incoming));
    let kept = disk.give_up(false).expect_err("a write may come").0;
    assert!(kept.contains("stays locked: requests that did not come back"), "{kept}");
    assert_in_use(&destination);
    disk.give_up(true).unwrap();
    destination.take().unwrap();
}

#[test]
fn a_size_that_changed_while_others_had_the_image_is_the_disks() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let source = open(&path, Sharing::None);
    let disk = open(&path, Sharing::Incoming);
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    source.give_up(true).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8192).unwrap();
    let told = Acquired { config_changed: true, warning: None };
    assert_eq!(device.acquire(), Ok(told));
    assert_eq!(device.core().size(), 8192);
    device.release(true).unwrap();
    assert_eq!(device.acquire(), Ok(Acquired::default()));
    // What cannot be the size of a disk is told, and the disk stays as it is.
    device.release(true).unwrap();
    file.set_len(8191).unwrap();
    let Acquired { config_changed, warning } = device.acquire().unwrap();
    assert!(!config_changed && warning.unwrap().contains("8191 bytes now, the disk 8192"));
    assert_eq!(device.core().size(), 8192);
}

#[test]
fn a_guest_hears_of_it_that_others_wrote_while_its_rings_had_stopped() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let disk = open(&path, Sharing::None);
    let write_as_somebody_else = || {
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        // The clock of file systems is a coarse one.
        while fs::metadata(&path).unwrap().modified().unwrap() == before {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[1], 0).unwrap();
        }
    };
    disk.give_up(true).unwrap();
    write_as_somebody_else();
    let warning = disk.take().unwrap().warning.expect("the guest's caches are wrong");
    assert!(warning.contains("disk.img was written to by somebody else"), "{warning}");
    // Its own writes are none, and the next guest has cached nothing.
    write_as_somebody_else();
    disk.give_up(true).unwrap();
    assert_eq!(disk.take().unwrap().warning, None);
    disk.give_up(true).unwrap();
    write_as_somebody_else();
    disk.disconnected();
    assert_eq!(disk.take().unwrap().warning, None);
}
