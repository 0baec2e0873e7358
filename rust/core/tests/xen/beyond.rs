//! "More may be mapped": what the design with a message allows once holds as the table changes.

use std::os::fd::AsFd;
use std::sync::Arc;

use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{Client, RingLayout, XenRegion};
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::wire::payload::XenFields;

use super::guest::*;
use super::raw::*;

/// Grants, and more may be mapped.
const MORE: u32 = 0x6;
const PLAIN: RegionLayout = RegionLayout::Plain;

/// A region of one page.
fn page(guest: &Guest, number: u64, flags: u32) -> XenRegion {
    let offset = number * PAGE;
    guest.region(offset, PAGE, guest.memory.regions()[0].user().0 + offset, flags)
}

/// Says how the region's like are mapped.
fn say(client: &mut Client, region: &XenRegion) {
    client.set_xen_mmap(region.region.xen.unwrap()).unwrap();
}

fn raw(client: Client, guest: &Guest) -> Raw {
    Raw::over(
        client,
        Arc::clone(&guest.memory),
        RingLayout::at(guest.memory.regions()[0].guest(), 128),
    )
}

/// Header, status and data lie in no region.
fn assert_more_is_mapped(raw: &mut Raw) {
    let data = [(raw.address(DATA_PAGE), 8192)];
    assert_eq!(raw.block(WRITE_OUT, &data), (0, 1));
    assert_eq!(raw.block(READ, &data), (0, 8193));
}

/// A request with a buffer that lies in no region fails.
fn assert_no_more_is_mapped(served: &Served, raw: &mut Raw) {
    raw.push(0, &[(raw.address(DATA_PAGE), 512, true)]);
    raw.ring.publish();
    assert_eq!(raw.used().len, 0);
    let outside = |event: &Event| match event {
        Event::RequestFailed { error, .. } => error.contains("no memory region that the front-end"),
        _ => false,
    };
    assert_eq!(served.events.count(outside), 1);
}

#[test]
fn one_region_of_a_table_allows_it_for_all() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut client = connect(&served);
    let table = [page(&guest, 0, MORE), page(&guest, 100, MORE)];
    say(&mut client, &table[0]);
    client.set_xen_table(&table, PLAIN).unwrap();
    assert_more_is_mapped(&mut raw(client, &guest));
}

#[test]
fn a_region_that_is_added_without_it_leaves_it_as_it_was() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut client = connect(&served);
    for (number, flags) in [(0, MORE), (100, IN_ADVANCE)] {
        let region = page(&guest, number, flags);
        say(&mut client, &region);
        client.add_xen_region(&region, PLAIN).unwrap();
    }
    assert_more_is_mapped(&mut raw(client, &guest));
}

#[test]
fn it_ends_with_the_region_that_allowed_it() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut client = connect(&served);
    let [ring, other] = [page(&guest, 0, IN_ADVANCE), page(&guest, 100, MORE)];
    for region in [&ring, &other] {
        say(&mut client, region);
        client.add_xen_region(region, PLAIN).unwrap();
    }
    let mut raw = raw(client, &guest);
    assert_more_is_mapped(&mut raw);
    raw.client.remove_xen_region(&other, PLAIN).unwrap();
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page alone");
    assert_no_more_is_mapped(&served, &mut raw);
}

#[test]
fn a_new_table_without_it_ends_it() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut client = connect(&served);
    for flags in [MORE, IN_ADVANCE] {
        let table = [page(&guest, 0, flags)];
        say(&mut client, &table[0]);
        client.set_xen_table(&table, PLAIN).unwrap();
    }
    let mut raw = raw(client, &guest);
    assert_no_more_is_mapped(&served, &mut raw);
}

#[test]
fn it_cannot_be_of_two_domains() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut client = connect(&served);
    let mut second = page(&guest, 1, MORE);
    let ours = second.region.xen.unwrap();
    client.add_xen_region(&page(&guest, 0, MORE), PLAIN).unwrap();
    let access = Arc::clone(&guest.xen);
    let file = guest.memory.regions()[0].as_fd().try_clone_to_owned().unwrap();
    access.add_memory(DOMID + 1, FIRST_FRAME, 2, file);
    access.grant(DOMID + 1, FIRST_REF + 1, FIRST_FRAME + 1, true);
    second.region.xen = Some(XenFields { domid: u64::from(DOMID) + 1, ..ours });
    client.add_xen_region(&second, PLAIN).unwrap_err();
    let why = served.events.wait(|event| match event {
        Event::Refused(why) => Some(why.to_string()),
        _ => None,
    });
    assert!(why.contains("allow to map more, of different domains"), "{why}");
    second.region.xen = Some(ours);
    client.add_xen_region(&second, PLAIN).unwrap();
}
