//! A disk served by rust-vmm's `vhost-user-backend`: VIRTIO 1.3, "Block Device".

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Result, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost::vhost_user::{Error as ProtocolError, Listener, VhostUserProtocolFeatures as Protocol};
use vhost_user_backend::{Error, VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::ring::{Kind, SECTOR};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<<Memory as GuestAddressSpace>::T>;

const SEG_MAX: u64 = 1 << 2;
const FLUSH: u64 = 1 << 9;
const MQ: u64 = 1 << 12;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// The most entries of a ring.
pub const RING: usize = 1024;
/// The most segments of data in a request.
const SEGMENTS: u32 = 126;
/// Bytes of a request's header.
const HEADER: usize = 16;

/// A disk in a file, with a thread for each queue.
pub struct Disk {
    image: File,
    queues: u16,
    memory: Memory,
    /// What the driver accepted.
    pub accepted: AtomicU64,
}

impl Disk {
    pub fn open(image: &Path, queues: u16) -> Result<Self> {
        let image = OpenOptions::new().read(true).write(true).open(image)?;
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        Ok(Self { image, queues, memory, accepted: AtomicU64::new(0) })
    }

    /// Serves one front-end, from when it connects until it leaves.
    ///
    /// # Errors
    /// It said something that the library refuses, or did not leave in order.
    pub fn serve(self: &Arc<Self>, listener: &mut Listener) -> std::result::Result<(), Error> {
        // The memory of a front-end that has left stays where it is until somebody takes it out.
        self.memory.lock().expect("nobody panics with it").replace(GuestMemoryMmap::new());
        let name = "disk".to_owned();
        let mut daemon = VhostUserDaemon::new(name, Arc::clone(self), self.memory.clone())?;
        daemon.start(listener)?;
        match daemon.wait() {
            Err(Error::HandleRequest(ProtocolError::Disconnected)) => Ok(()),
            ended => ended,
        }
    }

    fn answer(&self, chain: Chain) -> io::Result<u32> {
        let memory = self.memory.memory();
        let mut readable = chain.clone().reader(&memory).map_err(io::Error::other)?;
        let mut writable = chain.writer(&memory).map_err(io::Error::other)?;
        let mut header = [0; HEADER];
        readable.read_exact(&mut header)?;
        let kind = u32::from_le_bytes(*header.first_chunk().expect("four of sixteen bytes"));
        let sector = u64::from_le_bytes(*header.last_chunk().expect("eight of sixteen bytes"));
        let mut status_at =
            writable.split_at(writable.available_bytes() - 1).map_err(io::Error::other)?;
        let done = match kind {
            kind if kind == Kind::Read as u32 => {
                let mut data = vec![0; writable.available_bytes()];
                let read = self.image.read_exact_at(&mut data, sector * SECTOR);
                read.and_then(|()| writable.write_all(&data))
            }
            kind if kind == Kind::Write as u32 => {
                let mut data = vec![0; readable.available_bytes()];
                readable.read_exact(&mut data)?;
                self.write(&data, sector * SECTOR)
            }
            kind if kind == Kind::Flush as u32 => self.image.sync_data(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let status = match done {
            Ok(()) => OK,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => UNSUPPORTED,
            Err(_) => IOERR,
        };
        status_at.write_all(&[status])?;
        Ok((writable.bytes_written() + status_at.bytes_written()) as u32)
    }

    /// The image does not grow.
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.image.metadata().map_or(0, |found| found.len())) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.image.write_all_at(data, offset)
    }

    /// All that is available; returns whether there was any.
    fn drain(&self, vring: &VringRwLock) -> io::Result<bool> {
        let memory = self.memory.memory();
        let chains: Vec<Chain> = {
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            queue.iter(memory).map_err(io::Error::other)?.collect()
        };
        for chain in &chains {
            let written = self.answer(chain.clone())?;
            vring.add_used(chain.head_index(), written).map_err(io::Error::other)?;
        }
        if !chains.is_empty() && vring.needs_notification().map_err(io::Error::other)? {
            vring.signal_used_queue()?;
        }
        Ok(!chains.is_empty())
    }
}

impl VhostUserBackend for Disk {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        RING
    }

    fn features(&self) -> u64 {
        SEG_MAX | FLUSH | MQ | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1
    }

    fn acked_features(&self, features: u64) {
        self.accepted.store(features, Ordering::Release);
    }

    fn protocol_features(&self) -> Protocol {
        Protocol::MQ
            | Protocol::CONFIG
            | Protocol::REPLY_ACK
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::RESET_DEVICE
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// Up to `num_queues`: VIRTIO 1.3, "Device configuration layout".
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.image.metadata().map_or(0, |found| found.len());
        let mut space = [0; 60];
        space[..8].copy_from_slice(&(bytes / SECTOR).to_le_bytes());
        space[12..16].copy_from_slice(&SEGMENTS.to_le_bytes());
        space[34..36].copy_from_slice(&self.queues.to_le_bytes());
        let wanted = offset as usize..(offset + size) as usize;
        space.get(wanted).map_or_else(Vec::new, <[u8]>::to_vec)
    }

    fn update_memory(&self, _memory: Memory) -> Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queues).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> Result<()> {
        let vring = &vrings[usize::from(event)];
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            while self.drain(vring)? {}
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}
