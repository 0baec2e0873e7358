//! Shared by the integration tests that drive another project's back-end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

/// What a plain device says of itself: so many queues, so large a ring, and no configuration.
#[allow(unused_macros)] // Each test program uses a part of this.
macro_rules! plain {
    (queues: $queues:literal, ring: $ring:literal) => {
        fn virtio_id(&self) -> u32 {
            4
        }
        fn features(&self) -> u64 {
            0
        }
        fn num_queues(&self) -> u16 {
            $queues
        }
        fn max_queue_size(&self) -> u16 {
            $ring
        }
        fn config_len(&self) -> usize {
            0
        }
        fn read_config(&self, _: usize, _: &mut [u8]) {}
    };
}

/// A directory of its own for each test, removed at the end.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("vhost-user-{}-{count}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running qemu-storage-daemon that exports one image, killed at the end.
pub(crate) struct StorageDaemon(Child);

impl StorageDaemon {
    pub(crate) fn start(image: &Path, socket: &Path, num_queues: u16, writable: bool) -> Self {
        let read_only = if writable { "off" } else { "on" };
        let writable = if writable { "on" } else { "off" };
        let (image, socket) = (image.display(), socket.display());
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=disk,filename={image},discard=unmap,read-only={read_only}"
            ))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},\
                 writable={writable},num-queues={num_queues}"
            ))
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot run qemu-storage-daemon ({e}): install the package qemu-utils")
            });
        Self(child)
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
