//! The region tables of known front-ends, as they send them.

use std::os::fd::AsFd;
use std::sync::Arc;

use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::device::Device;
use vhost_user_core::frontend::{
    GuestMemory, IMPLEMENTED, RegionSpec, RingLayout, SplitRing, XenMemory, XenRegion,
};
use vhost_user_core::wire::payload::{Region, XenFields};
use vhost_user_core::wire::{ProtocolFeatures, RegionLayout};
use vhost_user_core::xen::FakeXen;

use super::guest::*;
use super::raw::connect;

fn disk() -> Arc<dyn Device> {
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap())
}

fn write_and_read(served: &Served, memory: XenMemory, size: u64) {
    // Neither front-end sends regions one by one.
    let mut driver = served.driver_with(memory, |options| {
        options.protocol = IMPLEMENTED - ProtocolFeatures::CONFIGURE_MEM_SLOTS;
        options.memory = size;
    });
    let content = pattern(1 << 20, 11);
    driver.pwrite(&content, 0).unwrap();
    let mut read = vec![0; 1 << 20];
    driver.pread(&mut read, 0).unwrap();
    assert!(read == content);
    driver.stop().unwrap();
}

/// xen-vhost-frontend, foreign mapping: the RAM of an Arm guest from its base on, but for the
/// last four pages; privcmd; the address at which the front-end has mapped it.
#[test]
fn xen_vhost_frontend_with_foreign_mapping() {
    let guest = Guest::at(0x4000_0000, |memory| memory);
    let file = guest.memory.regions()[0].as_fd().try_clone_to_owned().unwrap();
    guest.xen.add_memory(DOMID, 0x4000_0000 / PAGE, SIZE / PAGE, file);
    let size = SIZE - 4 * PAGE;
    let ram = guest.region(0, size, guest.memory.regions()[0].user().0, 0x1);
    let served = Served::new(disk(), &guest, 0);
    write_and_read(&served, guest.told(RegionLayout::XenMerged, vec![ram]), size);
    served.events.wait_disconnected();
    guest.assert_left_alone();
}

/// xen-vhost-frontend, grants: the three parts of a ring as regions of their exact sizes, granted
/// in advance; all space between and behind them not in advance (0x8) and with user address 0;
/// sorted by address, from the first grant address on.
#[test]
fn xen_vhost_frontend_with_grants() {
    const ENTRIES: u64 = 256;
    let guest = Guest::granting();
    let served = Served::new(disk(), &guest, 0);
    let base = guest.base();
    let parts = [(0, 16 * ENTRIES), (0x1000, 6 + 2 * ENTRIES), (0x2000, 6 + 8 * ENTRIES)];
    let user = guest.memory.regions()[0].user().0;
    let mut regions = Vec::new();
    let mut at = GRANT;
    for (offset, size) in parts {
        let start = base + offset;
        if start > at {
            regions.push(space(&guest, at, start - at));
        }
        regions.push(guest.region(offset, size, user + offset, 0x2));
        at = start + size;
    }
    regions.push(space(&guest, at, base + SIZE - at));
    assert_eq!(regions.len(), 6, "the ring's table and the rest of its page leave no gap");

    let mut client = connect(&served);
    client.set_xen_table(&regions, RegionLayout::XenMerged).unwrap();
    let layout = RingLayout {
        size: ENTRIES as u16,
        descriptors: GuestAddr(base),
        available: GuestAddr(base + 0x1000),
        used: GuestAddr(base + 0x2000),
    };
    let mut ring = SplitRing::new(&guest.memory, layout, true).unwrap();
    client.start_ring(0, &ring).unwrap();
    client.set_vring_enable(0, true).unwrap();
    let (header, data, status) = (base + 0x4000, base + 0x5a00, base + 0x9fff);
    for kind in [1_u128, 0] {
        let content = pattern(8192, 3);
        if kind == 1 {
            guest.memory.write(GuestAddr(data), &content).unwrap();
        }
        guest.memory.write(GuestAddr(header), &kind.to_le_bytes()).unwrap();
        guest.memory.write(GuestAddr(status), &[0xff]).unwrap();
        for (index, (addr, len, flags)) in
            (0..).zip([(header, 16, 1), (data, 8192, 3 - 2 * kind as u16), (status, 1, 2)])
        {
            let next = index + 1;
            let descriptor = vhost_user_core::frontend::Descriptor { addr, len, flags, next };
            ring.set_descriptor(index, descriptor);
        }
        ring.push(0);
        ring.publish();
        assert!(ring.wait(LIMIT, client.as_fd()).unwrap());
        ring.pop().unwrap().unwrap();
        let (mut byte, mut bytes) = ([0], vec![0; 8192]);
        guest.memory.read(GuestAddr(status), &mut byte).unwrap();
        guest.memory.read(GuestAddr(data), &mut bytes).unwrap();
        assert_eq!(byte, [0]);
        assert!(bytes == content);
        guest.memory.fill(GuestAddr(data), 8192, 0).unwrap();
    }
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF, FIRST_REF + 1, FIRST_REF + 2]);
    drop(client);
    served.events.wait_disconnected();
    guest.assert_left_alone();
}

/// Grant space that nobody has mapped.
fn space(guest: &Guest, start: u64, size: u64) -> XenRegion {
    let xen = Some(XenFields { flags: 0xa, domid: DOMID.into() });
    let (guest_address, user) = (GuestAddr(start), UserAddr(0));
    let region = Region { guest: guest_address, size, user, mmap_offset: 0, xen };
    XenRegion { region, fd: guest.device(0xa) }
}

/// QEMU's series of July 2026: a region for each section of RAM, below and above the hole under
/// 4 GiB, foreign; user addresses and addresses of rings are guest addresses.
#[test]
fn qemu_with_foreign_mapping() {
    let sections = [(0x1_0000_0000, SIZE), (0, SIZE)];
    let specs = sections.map(|(at, size)| RegionSpec { guest: GuestAddr(at), size });
    let memory = Arc::new(GuestMemory::new(&specs).unwrap().with_guest_addresses());
    let guest = Guest { xen: FakeXen::new(), memory };
    let mut regions = Vec::new();
    for region in guest.memory.regions() {
        let file = region.as_fd().try_clone_to_owned().unwrap();
        guest.xen.add_memory(DOMID, region.guest().0 / PAGE, SIZE / PAGE, file);
        let xen = Some(XenFields { flags: 0x1, domid: DOMID.into() });
        let region = Region { xen, ..region.description() };
        assert_eq!(region.user.0, region.guest.0);
        regions.push(XenRegion { region, fd: guest.device(FOREIGN) });
    }
    regions.reverse();
    let served = Served::new(disk(), &guest, 0);
    write_and_read(&served, guest.told(RegionLayout::XenMerged, regions), SIZE);
    served.events.wait_disconnected();
    guest.assert_left_alone();
}
