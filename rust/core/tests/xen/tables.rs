//! Indirect tables that lie in granted pages, and what is wrong with them.

use vhost_user_core::backend::Event;

use super::guest::*;
use super::raw::*;

const TABLE_PAGE: u64 = 16;

/// Eight requests at once, each in a table in a page of its own from `TABLE_PAGE` on.
fn push_eight_tables(raw: &mut Raw) {
    raw.write(HEADER_PAGE, &u128::from(WRITE_OUT).to_le_bytes());
    raw.write(STATUS_PAGE, &[0xff; 8]);
    for number in 0..8 {
        let header = (raw.address(HEADER_PAGE), 16, false);
        let data = (raw.address(DATA_PAGE), 4096, false);
        let status = (raw.address(STATUS_PAGE) + number, 1, true);
        raw.push_table(number as u16, TABLE_PAGE + number, &[header, data, status]);
    }
}

#[test]
fn an_indirect_table_that_cannot_be_read_fails_its_request_alone() {
    for copy_below in COPIED_OR_MAPPED {
        let guest = Guest::granting();
        let served = Served::disk(&guest, copy_below);
        let mut raw = Raw::start(&served, guest.all_on_demand());
        for bad in [0, 3, 7] {
            guest.xen.revoke(DOMID, FIRST_REF + (TABLE_PAGE + bad) as u32);
            raw.publish_at_once(push_eight_tables);
            let mut used: Vec<_> = (0..8).map(|_| raw.used()).collect();
            used.sort_unstable_by_key(|used| used.head);
            let written: Vec<_> = used.iter().map(|used| used.len).collect();
            let expected: Vec<_> = (0..8).map(|number| u32::from(number != bad)).collect();
            assert_eq!(written, expected, "the status bytes of the others");
            let left: Vec<_> = (0..8).map(|n| if n == bad { 0xff } else { OK }).collect();
            assert_eq!(raw.read(STATUS_PAGE, 8), left);
            let frame = FIRST_FRAME + TABLE_PAGE + bad;
            guest.xen.grant(DOMID, FIRST_REF + (TABLE_PAGE + bad) as u32, frame, true);
        }
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page");
        let told = |event: &Event| matches!(event, Event::RequestFailed { .. });
        assert_eq!(served.events.count(told), 1, "it is said once");
    }
}

#[test]
fn an_indirect_table_that_is_malformed_breaks_the_ring_after_those_before_it() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    raw.publish_at_once(|raw| {
        push_eight_tables(raw);
        // The sixth table's first descriptor goes on at one that the table does not have.
        raw.write(TABLE_PAGE + 5, &[&[0_u8; 12][..], &[1, 0, 3, 0]].concat());
    });
    let heads: Vec<_> = (0..5).map(|_| raw.used().head).collect();
    assert_eq!(heads, [0, 1, 2, 3, 4]);
    let why = served.events.wait(|event| match event {
        Event::QueueBroken { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(why.contains("chain 5: next is 3, the table has 3 descriptors"), "{why}");
    assert!(raw.ring.pop().unwrap().is_none());
    assert_eq!(raw.read(STATUS_PAGE, 8), [0, 0, 0, 0, 0, 0xff, 0xff, 0xff]);
    assert_eq!(raw.client.vring_base(0).unwrap(), 5);
}

#[test]
fn a_chain_that_is_bad_in_the_ring_does_not_hide_a_bad_table_before_it() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    raw.publish_at_once(|raw| {
        raw.push_indirect(0, TABLE_PAGE, 16);
        raw.write(TABLE_PAGE, &[&[0_u8; 12][..], &[4, 0, 0, 0]].concat());
        raw.push_indirect(1, TABLE_PAGE, 15);
    });
    let why = served.events.wait(|event| match event {
        Event::QueueBroken { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(why.contains("chain 0: an indirect table"), "{why}");
}
