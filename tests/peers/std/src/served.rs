//! A disk that the core serves, and front-ends of it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost_user_core::backend::{Backend, Event, Observer, Options};
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk, Sharing};
use vhost_user_core::socket::{Endpoint, ListenOptions};

const VERSION_1: u64 = 1 << 32;

/// The features that this front-end and its driver do without: EVENT_IDX, ACCESS_PLATFORM,
/// RING_PACKED and IN_ORDER.
pub const LEFT_OUT: u64 = 1 << 29 | 1 << 33 | 1 << 34 | 1 << 35;

/// A back-end with a disk in a file.
pub struct Served {
    pub backend: Backend,
    pub device: Arc<BlockDevice<FileDisk>>,
    socket: PathBuf,
    image: PathBuf,
    _folder: TempDir,
}

/// Nobody listens: the tests look at what the back-end does.
struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}

impl Served {
    /// A disk of `sectors` zeroes with two queues.
    pub fn new(sectors: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let (socket, image) = (folder.path().join("disk.sock"), folder.path().join("disk.img"));
        File::create(&image).unwrap().set_len(sectors * 512).unwrap();
        let disk = FileDisk::open(&image, Sharing::None).unwrap();
        let options = BlockOptions { num_queues: 2, ..BlockOptions::default() };
        let device = Arc::new(BlockDevice::new(disk, &options).unwrap());
        let endpoint = Endpoint::Listen(ListenOptions::new(&socket));
        let backend =
            Backend::start(Arc::clone(&device) as _, Options::new(endpoint), Arc::new(Silent))
                .unwrap();
        Self { backend, device, socket, image, _folder: folder }
    }

    /// The image's bytes.
    pub fn image(&self) -> Vec<u8> {
        std::fs::read(&self.image).unwrap()
    }

    /// A front-end that has connected and said nothing yet.
    pub fn connect(&self) -> Frontend {
        Frontend::connect(&self.socket, 2).unwrap()
    }

    /// A front-end that has negotiated all but guest addresses and [what it leaves out](LEFT_OUT), and
    /// asks for a reply to every message.
    pub fn negotiate(&self) -> Frontend {
        let mut frontend = self.connect();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert_eq!(features & VERSION_1, VERSION_1);
        let bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(features & bit, bit);
        // Rings are told by this process's own addresses.
        let known =
            frontend.get_protocol_features().unwrap() & !VhostUserProtocolFeatures::GPA_ADDRESSES;
        frontend.set_protocol_features(known).unwrap();
        assert!(known.contains(VhostUserProtocolFeatures::REPLY_ACK));
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features & !LEFT_OUT).unwrap();
        frontend
    }
}
