//! Another project's back-end.

use std::path::Path;
use std::process::{Child, Command};

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
