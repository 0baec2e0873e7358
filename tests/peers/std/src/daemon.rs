//! The disk of `vhost-user-backend` at a socket, on a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;
use vhost::vhost_user::Listener;
use vhost_user_backend::Error;

use crate::disk::Disk;

/// Serves as many front-ends as it was told, one after the other.
pub struct Daemon {
    pub disk: Arc<Disk>,
    folder: TempDir,
    serving: JoinHandle<Result<(), Error>>,
}

impl Daemon {
    pub fn start(content: &[u8], queues: u16, front_ends: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let (socket, image) = (folder.path().join("disk.sock"), folder.path().join("disk.img"));
        std::fs::write(&image, content).unwrap();
        let disk = Arc::new(Disk::open(&image, queues).unwrap());
        let mut listener = Listener::new(socket, false).unwrap();
        let served = Arc::clone(&disk);
        let serving =
            thread::spawn(move || (0..front_ends).try_for_each(|_| served.serve(&mut listener)));
        Self { disk, folder, serving }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("disk.sock")
    }

    /// The image's bytes.
    pub fn image(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("disk.img")).unwrap()
    }

    /// Waits until the last front-end has left, and insists that none was refused anything.
    pub fn finish(self) {
        self.serving.join().unwrap().unwrap();
    }
}
