//! Disks on files of the host: opening, locking, and files that change under the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A directory of this test alone, removed when dropped.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vhost-user-block-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn image(&self, len: u64) -> PathBuf {
        let path = self.0.join("disk.img");
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn refusal(path: &Path, sharing: Sharing) -> String {
    FileDisk::open(path, sharing).expect_err("it cannot be a disk").to_string()
}

fn device(path: &Path) -> BlockDevice<FileDisk> {
    let disk = FileDisk::open(path, Sharing::None).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    device.negotiated(device.features());
    device
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_its_path_and_the_reason() {
    let dir = Dir::new();
    let missing = dir.0.join("missing");
    let message = refusal(&missing, Sharing::None);
    assert!(message.contains(missing.to_str().unwrap()), "{message}");
    assert!(message.contains("No such file"), "{message}");
    let neither = "neither a regular file nor a block device";
    let message = refusal(&dir.0, Sharing::Readers);
    assert!(message.contains(neither), "{message}");
    let message = refusal(Path::new("/dev/null"), Sharing::None);
    assert!(message.contains(neither), "{message}");
    let message = refusal(&dir.image(1000), Sharing::None);
    assert!(message.contains("no multiple of 512 bytes: 1000"), "{message}");
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_other_end() {
    let dir = Dir::new();
    let path = dir.0.join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for sharing in [Sharing::Readers, Sharing::None] {
        let message = refusal(&path, sharing);
        assert!(message.contains("neither"), "{message}");
    }
}

#[test]
fn an_image_in_use_is_refused_and_free_again_afterwards() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let first = FileDisk::open(&path, Sharing::None).unwrap();
    for sharing in [Sharing::None, Sharing::Readers] {
        let message = refusal(&path, sharing);
        assert!(message.contains("in use"), "{message}");
    }
    // Closing another descriptor of the file does not take the lock along.
    drop(File::open(&path).unwrap());
    assert!(FileDisk::open(&path, Sharing::None).is_err());
    drop(first);
    FileDisk::open(&path, Sharing::None).unwrap();
}

#[test]
fn readers_share_an_image_and_keep_writers_out() {
    let dir = Dir::new();
    let path = dir.image(4096);
    let first = FileDisk::open(&path, Sharing::Readers).unwrap();
    let second = FileDisk::open(&path, Sharing::Readers).unwrap();
    assert!(FileDisk::open(&path, Sharing::None).is_err());
    drop((first, second));
    FileDisk::open(&path, Sharing::None).unwrap();
}

#[test]
fn a_read_only_disk_needs_no_right_to_write() {
    let dir = Dir::new();
    let path = dir.image(4096);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let device = BlockDevice::new(
        FileDisk::open(&path, Sharing::Readers).unwrap(),
        &BlockOptions::default(),
    );
    assert!(device.unwrap().core().is_read_only());
}

#[test]
fn what_the_driver_writes_is_in_the_file() {
    let dir = Dir::new();
    let path = dir.image(64 * 512);
    let (device, mut driver) = (device(&path), Driver::new());
    let data = pattern(2048, 8);
    driver.send(&device, &header(OUT, 10, &data), 1).assert_only_status(OK);
    driver.send(&device, &header(FLUSH, 0, &[]), 1).assert_only_status(OK);
    // Without flushes to negotiate, each write is written through.
    device.negotiated(0);
    driver.send(&device, &header(OUT, 60, &data), 1).assert_only_status(OK);
    let mut expected = vec![0; 64 * 512];
    expected[10 * 512..14 * 512].copy_from_slice(&data);
    expected[60 * 512..].copy_from_slice(&data);
    assert!(fs::read(&path).unwrap() == expected, "the file differs");
}

#[test]
fn a_read_past_the_end_of_a_cut_image_is_an_io_error() {
    let mut rig = Rig::new(64);
    rig.image.set_len(0).unwrap();
    rig.send(&header(IN, 0, &[]), 513).assert_only_status(IOERR);
    rig.send(&header(IN, 1, &[]), 1 + 40 * 512).assert_only_status(IOERR);
    // A write brings the image back to the length that it needs.
    let data = pattern(512, 6);
    rig.send(&header(OUT, 3, &data), 1).assert_only_status(OK);
    assert_eq!(rig.send(&header(IN, 3, &[]), 513).data(), data);
    assert_eq!(rig.send(&header(IN, 0, &[]), 513).data(), [0; 512]);
}

#[test]
fn a_host_without_space_is_an_io_error_and_not_the_end() {
    let full = fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let disk = FileDisk::new(HostImage::new(full.into()), false).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    device.resize(4096).unwrap();
    let mut driver = Driver::new();
    for features in [F_FLUSH, 0] {
        device.negotiated(features);
        driver.send(&device, &header(OUT, 0, &[1; 512]), 1).assert_only_status(IOERR);
        assert_eq!(driver.send(&device, &header(IN, 0, &[]), 513).data(), [0; 512]);
    }
}

#[test]
fn a_discard_gives_the_space_back() {
    let mut rig = Rig::new(2048);
    let before = rig.image.metadata().unwrap();
    rig.send(&header(DISCARD, 0, &segment(0, 2040, 0)), 1).assert_only_status(OK);
    let after = rig.image.metadata().unwrap();
    assert_eq!((before.blocks() - after.blocks(), before.len()), (2040, after.len()));
}

#[test]
fn zeroes_are_where_they_were_asked_for_and_keep_the_space() {
    let dir = Dir::new();
    let path = dir.image(0);
    for (flags, shift) in [(0, 1), (UNMAP, 3)] {
        let before = pattern(1 << 20, 21);
        fs::write(&path, &before).unwrap();
        let (device, mut driver) = (device(&path), Driver::new());
        let zero = header(WRITE_ZEROES, 0, &segment(shift, 1001, flags));
        driver.send(&device, &zero, 1).assert_only_status(OK);
        let mut expected = before;
        expected[512 * shift as usize..512 * (shift as usize + 1001)].fill(0);
        assert!(fs::read(&path).unwrap() == expected, "the file differs");
        drop(device);
    }
}

#[test]
fn a_disk_in_memory_starts_with_zeroes() {
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    assert_eq!(Driver::new().send(&device, &header(IN, 2047, &[]), 513).data(), [0; 512]);
    assert!(FileDisk::in_memory(513).is_err());
}
