//! Known front-ends, by the messages that they send: order, bytes and region tables, each with
//! requests through the rings that they describe. See `conversations` for where they are from.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost_user_core::address::GuestAddr;
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::device::Device;
use vhost_user_core::frontend::{
    Descriptor, GuestMemory, NEXT, RegionSpec, RingLayout, SplitRing, WRITE,
};
use vhost_user_core::request::{Batch, Request};
use vhost_user_core::xen::FakeXen;

use super::conversation::{Conversation, Known};
use super::guest::*;
use super::raw::{READ, WRITE_OUT};

const XEN_VHOST_FRONTEND: &str = include_str!("conversations/xen_vhost_frontend.txt");
const XEN_VHOST_FRONTEND_I2C: &str = include_str!("conversations/xen_vhost_frontend_i2c.txt");
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
            let layout = layout(base);
            let bytes = (layout.end().0 - base.0) as usize;
            self.guest.memory.fill(base, bytes, 0).unwrap();
            self.rings.push(SplitRing::new(&self.guest.memory, layout, true).unwrap());
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
        assert_eq!(self.run(ring, 0, &chain), if kind == READ { LEN + 1 } else { 1 });
        let mut byte = [0xff];
        self.guest.memory.read(GuestAddr(status), &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    /// One chain of (address, bytes, flags) in the descriptors from `head` on; what was written.
    fn run(&mut self, ring: usize, head: u16, chain: &[(u64, u32, u16)]) -> u32 {
        let this = &mut self.rings[ring];
        for (&(addr, len, flags), index) in chain.iter().zip(head..) {
            this.set_descriptor(index, Descriptor { addr, len, flags, next: index + 1 });
        }
        this.set_used_event(this.used_index());
        this.push(head);
        this.publish();
        self.wait_called();
        let used = self.rings[ring].pop().unwrap().expect("a request that is used");
        assert_eq!(used.head, head);
        used.len
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

/// Where Linux has the parts of a ring on virtio-mmio: the used part begins on a page of its own.
fn on_mmio(size: u16) -> impl Fn(GuestAddr) -> RingLayout {
    move |descriptors| {
        let available = descriptors.0 + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(PAGE);
        RingLayout { size, descriptors, available: GuestAddr(available), used: GuestAddr(used) }
    }
}

/// The parts that xen-vhost-frontend plays until the rings run.
fn start<'a>(served: &Served, guest: &'a Guest, mapping: &str) -> Replay<'a> {
    let mut replay = Replay::new(served, guest, XEN_VHOST_FRONTEND);
    replay.play("connect");
    replay.play("the driver accepts features");
    replay.play("the driver asks for the number of queues");
    replay.lay_out(&RINGS, on_mmio(256));
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

/// The memory behind a chip's address on an I2C bus: VIRTIO 1.3, "I2C Adapter Device".
struct Chip(Mutex<Vec<u8>>);

/// Entries of the ring that the front-end has for an I2C adapter.
const I2C_RING: u16 = 1024;
/// An address on the bus, as it stands in a request.
const CHIP: u16 = 0x50 << 1;
/// Bit of a request's flags.
const I2C_READ: u32 = 1 << 1;

impl Device for Chip {
    fn virtio_id(&self) -> u32 {
        34
    }
    fn features(&self) -> u64 {
        1 // ZERO_LENGTH_REQUEST
    }
    fn num_queues(&self) -> u16 {
        1
    }
    fn max_queue_size(&self) -> u16 {
        I2C_RING
    }
    fn config_len(&self) -> usize {
        0
    }
    fn read_config(&self, _offset: usize, _out: &mut [u8]) {}
    fn handle(&self, _queue: u16, batch: &mut Batch) {
        while let Some(request) = batch.next() {
            let written = self.transfer(&request);
            batch.complete(request, written);
        }
    }
}

impl Chip {
    fn transfer(&self, request: &Request) -> u32 {
        let mut bytes = vec![0; request.readable().len() as usize];
        assert_eq!(request.readable().read_at(0, &mut bytes), bytes.len());
        let (header, data) = bytes.split_at(8);
        assert_eq!(u16::from_le_bytes([header[0], header[1]]), CHIP);
        let mut memory = self.0.lock().unwrap();
        if header[4] & I2C_READ as u8 == 0 {
            memory.clear();
            memory.extend_from_slice(data);
        }
        let back = request.writable().len() as usize - 1;
        let answer: Vec<u8> = memory.iter().copied().take(back).chain([0]).collect();
        request.writable().write_at(0, &answer) as u32
    }
}

/// A transfer to the chip or from it: header, data and status, each in memory of its own.
fn transfer(replay: &mut Replay<'_>, head: u16, flags: u32, data: u64, len: u32) {
    let (memory, base) = (&replay.guest.memory, replay.guest.base());
    let (header, status) = (base + HEADER, base + STATUS);
    let request = u64::from(CHIP) | u64::from(flags) << 32;
    memory.write(GuestAddr(header), &request.to_le_bytes()).unwrap();
    memory.write(GuestAddr(status), &[0xff]).unwrap();
    let (direction, written) = if flags & I2C_READ == 0 { (0, 1) } else { (WRITE, len + 1) };
    let chain = [(header, 8, NEXT), (data, len, direction | NEXT), (status, 1, WRITE)];
    assert_eq!(replay.run(0, head, &chain), written);
    let mut byte = [0xff];
    replay.guest.memory.read(GuestAddr(status), &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

/// Writes and reads until each entry of each part of the ring was used.
fn go_round_the_i2c_ring(replay: &mut Replay<'_>, data: u64) {
    let memory = Arc::clone(&replay.guest.memory);
    for turn in 0..I2C_RING / 2 + 3 {
        let content = pattern(32, turn.into());
        memory.write(GuestAddr(data), &content).unwrap();
        let head = 6 * turn % (I2C_RING - 5);
        transfer(replay, head, 0, data, 32);
        memory.fill(GuestAddr(data), 32, 0).unwrap();
        transfer(replay, head + 3, I2C_READ, data, 32);
        let mut bytes = [0; 32];
        memory.read(GuestAddr(data), &mut bytes).unwrap();
        assert_eq!(bytes, *content, "turn {turn}");
    }
}

/// What xen-vhost-frontend says for an I2C adapter, with transfers through its ring.
fn i2c(guest: &Guest, mapping: &str, data: u64) {
    let served = Served::new(Arc::new(Chip(Mutex::default())), guest, 0);
    let mut replay = Replay::new(&served, guest, XEN_VHOST_FRONTEND_I2C);
    replay.play("connect");
    replay.play("the driver accepts features");
    replay.lay_out(&RINGS[..1], on_mmio(I2C_RING));
    replay.play(&format!("{mapping}: the rings are set up"));
    go_round_the_i2c_ring(&mut replay, data);
    if mapping == "grants" {
        assert_eq!(guest.xen.in_use(DOMID), [32, 33, 34, 35, 36, 37, 38, 39], "the ring's pages");
    }
    replay.play("the device is removed");
    replay.end(&served);
}

#[test]
fn xen_vhost_frontend_with_the_long_ring_of_an_i2c_adapter_by_foreign_mapping() {
    let guest = Guest::at(0x4000_0000, |memory| memory);
    show_frames(&guest);
    i2c(&guest, "foreign", 0x4000_4ff0);
}

#[test]
fn xen_vhost_frontend_with_the_long_ring_of_an_i2c_adapter_by_grants() {
    i2c(&Guest::granting(), "grants", GRANT | 0x1_4ff0);
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
        replay.lay_out(&RINGS[..1], on_mmio(128));
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
