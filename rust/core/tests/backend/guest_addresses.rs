//! Rings and regions by guest addresses: GPA_ADDRESSES, as QEMU 11.1 uses it.

use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{FrontendError, Wanted};
use vhost_user_core::wire::ProtocolFeatures;

use super::served::*;

fn wanted(more: ProtocolFeatures) -> Wanted {
    let Wanted { features, protocol } = Wanted::default();
    Wanted { features, protocol: protocol | ProtocolFeatures::GPA_ADDRESSES | more }
}

#[test]
fn rings_are_found_by_guest_addresses_though_the_regions_have_no_other() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    for slots in [true, false] {
        let mut wanted = wanted(ProtocolFeatures::empty());
        wanted.protocol.set(ProtocolFeatures::CONFIGURE_MEM_SLOTS, slots);
        let mut driver = Driver::connect_as(&served.directory.join("device.sock"), 2, &wanted);
        driver.start();
        assert_eq!(driver.ask(0, &[1, 2]), [254, 253]);
        assert_eq!(driver.ask(1, &[3]), [252]);
        // The regions differ in nothing but their guest addresses, and go by these.
        if slots {
            let region = &driver.memory.regions()[2];
            driver.client.remove_region(region).unwrap();
            driver.client.add_region(region).unwrap();
            assert_eq!(driver.ask(0, &[7]), [248]);
        }
    }
    assert!(!served.events.any(|event| matches!(event, Event::QueueBroken { .. })));
}

#[test]
fn the_meaning_of_addresses_does_not_change_while_a_ring_is_started() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let protocol = driver.client.accepted_protocol_features() | ProtocolFeatures::GPA_ADDRESSES;
    let error = driver.client.set_protocol_features(protocol).unwrap_err();
    assert!(matches!(error, FrontendError::Refused { .. }), "{error}");
    assert_eq!(driver.ask(0, &[1]), [254]);
    let why = "changed while a vring is started: GPA_ADDRESSES";
    assert!(served.events.any(|event| event.to_string().contains(why)));
}

#[test]
fn memory_that_came_before_the_feature_is_looked_up_by_guest_addresses_all_the_same() {
    let served = Served::new(Mirror::default());
    let socket = served.directory.join("device.sock");
    let mut driver = Driver::connect_as(&socket, 1, &Wanted::default());
    let protocol = driver.client.accepted_protocol_features();
    driver.client.set_protocol_features(protocol | ProtocolFeatures::GPA_ADDRESSES).unwrap();
    let ring = &driver.rings[0];
    let mut address = ring.addresses(0);
    // The layout of a split ring at guest address 0.
    (address.descriptors.0, address.available.0, address.used.0) = (0, 0x400, 0x4c0);
    driver.client.set_vring_num(0, RING.into()).unwrap();
    driver.client.set_vring_base(0, 0).unwrap();
    driver.client.set_vring_addr(&address).unwrap();
    driver.client.set_vring_call(0, Some(ring.call_fd())).unwrap();
    driver.client.set_vring_kick(0, Some(ring.kick_fd())).unwrap();
    driver.client.set_vring_enable(0, true).unwrap();
    assert_eq!(driver.ask(0, &[1]), [254]);
}
