//! Known front-ends, by the messages that they send: order, bytes and region tables, each with
//! requests through the rings that they describe. See `conversations` for where they are from.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost_user_core::address::GuestAddr;
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::device::Device;
use vhost_user_core::frontend::{
    Descriptor, GuestMemory, NEXT, RegionSpec, RingLayout, SplitRing, WRITE,
};
use vhost_user_core::xen::FakeXen;

use super::conversation::{Conversation, Known};
use super::guest::*;
use super::raw::{READ, WRITE_OUT};

const XEN_VHOST_FRONTEND: &str = include_str!("conversations/xen_vhost_frontend.txt");
const QEMU_SERIES: &str = include_str!("conversations/qemu_series.txt");

/// Where the rings are, from the start of memory.
const RINGS: [u64; 2] = [0x1_0000, 0x2_0000];
/// Where a request's header and its status byte are.
const HEADER: u64 = 0x2040;
const STATUS: u64 = 0x3fff;
/// Bytes of data, which starts and ends inside pages.
const LEN: u32 = 8192;

fn disk(num_queues: u16) -> Arc<dyn Device> {
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    let options = BlockOptions { num_queues, ..BlockOptions::default() };
    Arc::new(BlockDevice::new(disk, &options).unwrap())
}

/// A guest whose driver runs rings, behind a front-end that says what is written down.
struct Replay<'a> {
    guest: &'a Guest,
    rings: Vec<SplitRing>,
    said: Conversation,
}

impl<'a> Replay<'a> {
    fn new(served: &Served, guest: &'a Guest, text: &'static str) -> Self {
        Self { guest, rings: Vec::new(), said: Conversation::connect(served, text) }
    }

    /// The driver lays out its rings anew.
    fn lay_out(&mut self, places: &[u64], layout: impl Fn(GuestAddr) -> RingLayout) {
        self.rings.clear();
        for place in places {
            let base = GuestAddr(self.guest.base() + place);
            self.guest.memory.fill(base, 0x3000, 0).unwrap();
            self.rings.push(SplitRing::new(&self.guest.memory, layout(base), true).unwrap());
        }
    }

    fn play(&mut self, part: &str) {
        let fd = |name: &str| match name {
            "privcmd" => self.guest.device(FOREIGN),
            "gntdev" => self.guest.device(IN_ADVANCE),
            "socket" => UnixStream::pair().unwrap().0.into(),
            "masked" | "err0" => eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            "kick0" => copy(self.rings[0].kick_fd()),
            "kick1" => copy(self.rings[1].kick_fd()),
            "call0" => copy(self.rings[0].call_fd()),
            _ => panic!("what is @{name}?"),
        };
        let number = |name: &str| match name {
            "base0" => self.rings[0].base().into(),
            "base1" => self.rings[1].base().into(),
            _ => panic!("what is ${name}?"),
        };
        self.said.play(part, &Known { fd: &fd, number: &number });
    }

    /// The front-end goes, whatever it has said before, and leaves the guest alone.
    fn end(&mut self, served: &Served) {
        self.said.hang_up();
        served.events.wait_disconnected();
        self.guest.assert_left_alone();
    }

    /// The connection breaks, and the back-end is dialled again.
    fn reconnect(&mut self, served: &Served) {
        self.end(served);
        served.events.forget();
        self.said.dial(served);
    }

    /// Writes a pattern to the disk through a ring and reads it back, by a buffer at `data`.
    fn write_and_read(&mut self, ring: usize, data: u64) {
        let memory = Arc::clone(&self.guest.memory);
        let content = pattern(LEN as usize, data);
        memory.write(GuestAddr(data), &content).unwrap();
        self.request(ring, WRITE_OUT, data);
        memory.fill(GuestAddr(data), LEN as usize, 0).unwrap();
        self.request(ring, READ, data);
        let mut bytes = vec![0; LEN as usize];
        memory.read(GuestAddr(data), &mut bytes).unwrap();
        assert!(bytes == content);
    }

    fn request(&mut self, ring: usize, kind: u32, data: u64) {
        let (memory, base) = (&self.guest.memory, self.guest.base());
        let (header, status) = (base + HEADER, base + STATUS);
        memory.write(GuestAddr(header), &u128::from(kind).to_le_bytes()).unwrap();
        memory.write(GuestAddr(status), &[0xff]).unwrap();
        let direction = if kind == READ { WRITE } else { 0 };
        let chain = [(header, 16, NEXT), (data, LEN, direction | NEXT), (status, 1, WRITE)];
        let this = &mut self.rings[ring];
        for ((addr, len, flags), next) in chain.into_iter().zip(1..) {
            this.set_descriptor(next - 1, Descriptor { addr, len, flags, next });
        }
        this.set_used_event(this.used_index());
        this.push(0);
        this.publish();
        self.wait_called();
        let used = self.rings[ring].pop().unwrap().expect("a request that is used");
        assert_eq!(used.len, if kind == READ { LEN + 1 } else { 1 });
        let mut byte = [0xff];
        self.guest.memory.read(GuestAddr(status), &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    /// Sleeps on the one call descriptor until it is signalled.
    fn wait_called(&self) {
        let call = self.rings[0].call_fd();
        let timeout = Timespec::try_from(LIMIT).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "there was no call");
        rustix::io::read(call, &mut [0; 8]).unwrap();
    }
}

fn copy(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

/// On virtio-mmio Linux has each part of a ring of 256 entries in a page of its own.
fn apart(descriptors: GuestAddr) -> RingLayout {
    let [available, used] = [0x1000, 0x2000].map(|offset| GuestAddr(descriptors.0 + offset));
    RingLayout { size: 256, descriptors, available, used }
}

/// And one of 128 has its used part alone in one.
fn together(descriptors: GuestAddr) -> RingLayout {
    let [available, used] = [0x800, 0x1000].map(|offset| GuestAddr(descriptors.0 + offset));
    RingLayout { size: 128, descriptors, available, used }
}

/// The parts that xen-vhost-frontend plays until the rings run.
fn start<'a>(served: &Served, guest: &'a Guest, mapping: &str) -> Replay<'a> {
    let mut replay = Replay::new(served, guest, XEN_VHOST_FRONTEND);
    replay.play("connect");
    replay.play("the driver accepts features");
    replay.play("the driver asks for the number of queues");
    replay.lay_out(&RINGS, apart);
    replay.play(&format!("{mapping}: the rings are set up"));
    replay.play("the driver asks for the size");
    replay
}

/// Each page of memory is the frame of its guest address.
fn show_frames(guest: &Guest) {
    for region in guest.memory.regions() {
        guest.xen.add_memory(DOMID, region.guest().0 / PAGE, SIZE / PAGE, copy(region));
    }
}

#[test]
fn xen_vhost_frontend_with_foreign_mapping() {
    let guest = Guest::at(0x4000_0000, |memory| memory);
    show_frames(&guest);
    let served = Served::new(disk(2), &guest, 0);
    let mut replay = start(&served, &guest, "foreign");
    replay.write_and_read(0, 0x4000_4a00);
    replay.write_and_read(1, 0x407f_9e00);
    replay.play("the device is removed");
    replay.end(&served);
}

/// Requests of both rings, with data in each space that is not mapped in advance.
fn use_grants(guest: &Guest, replay: &mut Replay<'_>) {
    let rings = [32, 33, 34, 48, 49, 50];
    for (ring, data) in [(0, 0x1_4a00), (1, 0x2_4000), (0, 0x4_0fff), (1, 0x7f_9e00)] {
        replay.write_and_read(ring, GRANT | data);
        assert_eq!(guest.xen.in_use(DOMID), rings, "no page but those of the rings");
    }
}

#[test]
fn xen_vhost_frontend_with_grants() {
    let guest = Guest::granting();
    let served = Served::new(disk(2), &guest, 0);
    let mut replay = start(&served, &guest, "grants");
    use_grants(&guest, &mut replay);
    replay.play("the device is removed");
    replay.end(&served);
}

#[test]
fn xen_vhost_frontend_that_finds_a_lost_back_end_again() {
    let guest = Guest::granting();
    let served = Served::new(disk(2), &guest, 0);
    let mut replay = start(&served, &guest, "grants");
    use_grants(&guest, &mut replay);
    replay.reconnect(&served);
    replay.play("the back-end is found again");
    replay.play("grants: the rings are set up");
    use_grants(&guest, &mut replay);
    replay.play("the device is removed");
    replay.end(&served);
}

#[test]
fn xen_vhost_frontend_that_is_killed() {
    let guest = Guest::granting();
    let served = Served::new(disk(2), &guest, 0);
    let mut replay = start(&served, &guest, "grants");
    use_grants(&guest, &mut replay);
    replay.end(&served);
}

/// RAM below 4 GiB and above it, as guests of Xen on Arm64 have it.
fn guest_of_qemu() -> Guest {
    let sections = [0x4000_0000, 0x2_0000_0000];
    let specs = sections.map(|at| RegionSpec { guest: GuestAddr(at), size: SIZE });
    let guest = Guest {
        xen: FakeXen::new(),
        memory: Arc::new(GuestMemory::new(&specs).unwrap().with_guest_addresses()),
    };
    show_frames(&guest);
    guest
}

#[test]
fn qemu_with_foreign_mapping() {
    let guest = guest_of_qemu();
    let served = Served::new(disk(1), &guest, 0);
    let mut replay = Replay::new(&served, &guest, QEMU_SERIES);
    replay.play("connect");
    replay.play("the machine is ready");
    // Two drivers, one after the other.
    for data in [0x4000_4a00, 0x2_0000_0e00] {
        replay.play("the driver resets the device");
        replay.lay_out(&RINGS[..1], together);
        replay.play("the driver is ready");
        replay.write_and_read(0, data);
        replay.play("the device is stopped");
    }
    // The virtual machine goes on after a stop.
    replay.play("the driver is ready");
    replay.write_and_read(0, 0x2_007f_ce00);
    // The back-end is lost and found, and the machine stopped for good.
    replay.reconnect(&served);
    replay.play("connect");
    replay.play("the driver is ready");
    replay.write_and_read(0, 0x2_007f_ce00);
    replay.play("the device is stopped");
    replay.end(&served);
}
