//! SET_XEN_MMAP: how the regions that follow are mapped, and the number that it shares with
//! another message.

use vhost_user_core::connection::{Connection, Refusal, Step};
use vhost_user_core::wire::payload::{XenMapping, XenMeans};
use vhost_user_core::wire::{Flags, Frame, XenDesigns};

use super::support::*;
use super::xen::*;

#[test]
fn the_message_holds_for_later_regions_until_it_comes_again() {
    let mut xen = Xen::new(XenDesigns::MESSAGE);
    let high = [8 << 30, 1 << 20, 0x7f80_0000_0000, 0];
    for (fields, raw, expected) in [
        ((1_u64, 3_u64), RAM, mapped(3, XenMeans::Foreign)),
        ((2, 4), GRANTS, mapped(4, XenMeans::Grant)),
        ((0x102, 4), [GRANT | 32 << 12, 0x8000, 0, 0], mapped(4, XenMeans::GrantOnDemand)),
        ((0xa, 4), [GRANT | 64 << 12, 0x8000, 0, 0], mapped(4, XenMeans::GrantOnDemand)),
        ((0, 0), high, None),
    ] {
        let payload = [word(fields.0), word(fields.1)].concat();
        assert_eq!(xen.say(SET_XEN_MMAP, payload, 0), End::Done);
        let added = xen.say(ADD_MEM_REG, xen_single(raw, Tail::None), 1);
        assert_eq!(added, End::Mapped(vec![expected]));
    }
}

#[test]
fn the_message_may_allow_more_to_be_mapped() {
    let mut xen = Xen::new(XenDesigns::MESSAGE);
    assert_eq!(xen.say(SET_XEN_MMAP, [word(6), word(9)].concat(), 0), End::Done);
    let more = XenMapping { domid: 9, means: XenMeans::Grant, more: true };
    let added = xen.say(ADD_MEM_REG, xen_single(GRANTS, Tail::None), 1);
    assert_eq!(added, End::Mapped(vec![Some(more)]));
}

#[test]
fn a_refused_message_leaves_the_former_one_in_force() {
    let mut xen = Xen::new(XenDesigns::MESSAGE);
    assert_eq!(xen.say(SET_XEN_MMAP, [word(1), word(3)].concat(), 0), End::Done);
    for (flags, domid, part) in [
        (3, 1, "xen mmap flags 0x3"),
        (0x10, 1, "unknown bits in xen mmap flags: 0x10"),
        (1 << 32, 1, "unknown bits in xen mmap flags: 0x100000000"),
        (1, 0x7ff0, "xen domain id out of range: 32752"),
        (1, 1 << 32, "xen domain id out of range: 4294967296 is not 0 to 32751"),
    ] {
        let why = xen.why(SET_XEN_MMAP, [word(flags), word(domid)].concat(), 0);
        assert!(why.starts_with("SET_XEN_MMAP: ") && why.contains(part), "{why}");
    }
    for (bytes, fds, what) in [
        (8, 0, "8 bytes of payload, 16 expected"),
        (15, 0, "15 bytes of payload, 16 expected"),
        (16, 1, "1 descriptor, 0 expected"),
    ] {
        let why = xen.why(SET_XEN_MMAP, vec![0; bytes], fds);
        assert_eq!(why, format!("SET_XEN_MMAP: {what}"));
    }
    let added = xen.say(ADD_MEM_REG, xen_single(RAM, Tail::None), 1);
    assert_eq!(added, End::Mapped(vec![mapped(3, XenMeans::Foreign)]));
}

/// Number 41 with a payload of 16 bytes, on a connection that was offered XEN_MMAP in `xen`.
fn say_41(xen: Option<XenDesigns>, accepted: u64, flags: u32) -> Step {
    let mut connection = Connection::new(xen_offer(xen));
    connection.handle(frame(SET_PROTOCOL_FEATURES, word(PROTOCOL_ON_XEN | accepted), 0));
    let payload = [word(1), word(5)].concat();
    connection.handle(Frame::new(41, Flags::from_bits_retain(flags), payload, Vec::new()))
}

#[test]
fn number_41_is_set_xen_mmap_in_every_design_and_answered_only_if_asked() {
    for designs in [XenDesigns::MERGED, XenDesigns::REVIEW] {
        let step = say_41(Some(designs), XEN_MMAP, NEED_REPLY);
        let Step::Refuse { reply, why: Refusal(why) } = step else { panic!("{step:?}") };
        let advice = "not of the design that is served: use --xen=message or auto";
        assert_eq!(why, format!("SET_XEN_MMAP: {advice}"));
        assert_eq!(reply.payload, [1, 0, 0, 0, 0, 0, 0, 0]);
        let step = say_41(Some(designs), XEN_MMAP, 0x1);
        assert!(matches!(&step, Step::Close(Refusal(why)) if why.ends_with(advice)), "{step:?}");
    }
    let step = say_41(Some(XenDesigns::MESSAGE), XEN_MMAP, 0x1);
    assert!(matches!(step, Step::Reply(None)), "{step:?}");
}

#[test]
fn number_41_is_refused_by_both_names_when_neither_was_negotiated() {
    let step = say_41(Some(XenDesigns::ALL), 0, 0x1);
    let Step::Close(Refusal(why)) = step else { panic!("{step:?}") };
    let expected = "SET_XEN_MMAP: needs XEN_MMAP, and GET_SHARED_OBJECT, which has the same \
                    number, needs SHARED_OBJECT: neither was negotiated";
    assert_eq!(why, expected);

    let step = say_41(None, 0, 0x1);
    let Step::Refuse { reply, why: Refusal(why) } = step else { panic!("{step:?}") };
    let expected = "GET_SHARED_OBJECT: needs SHARED_OBJECT, and SET_XEN_MMAP, which has the same \
                    number, needs XEN_MMAP: neither was negotiated";
    assert_eq!(why, expected);
    assert!(reply.payload.is_empty(), "as GET_SHARED_OBJECT says that there is no object");
}

#[test]
fn one_message_holds_for_each_region_of_a_table_and_for_those_added_later() {
    let mut xen = Xen::new(XenDesigns::MESSAGE);
    assert_eq!(xen.say(SET_XEN_MMAP, [word(1), word(3)].concat(), 0), End::Done);
    let at = |n: u64| [n << 30, 1 << 20, n << 40, 0];
    let foreign = mapped(3, XenMeans::Foreign);
    let table = xen_table(&[1, 2, 3].map(|n| (at(n), Tail::None)));
    assert_eq!(xen.say(SET_MEM_TABLE, table, 3), End::Mapped(vec![foreign; 3]));
    for n in [4, 5] {
        let added = xen.say(ADD_MEM_REG, xen_single(at(n), Tail::None), 1);
        assert_eq!(added, End::Mapped(vec![foreign]), "region {n}");
    }
    assert_eq!(xen.say(REM_MEM_REG, xen_single(at(5), Tail::None), 0), End::Done);
    let table = xen_table(&[(at(6), Tail::None)]);
    assert_eq!(xen.say(SET_MEM_TABLE, table, 1), End::Mapped(vec![foreign]));
}

#[test]
fn regions_that_say_themselves_how_they_are_mapped_do_not_ask_the_message() {
    let mut xen = Xen::new(XenDesigns::ALL);
    assert_eq!(xen.say(SET_XEN_MMAP, [word(1), word(3)].concat(), 0), End::Done);
    for (n, tail) in [(4, Tail::Merged(0, 0)), (5, Tail::Review(0, 0))] {
        let file = [n << 30, 1 << 20, n << 40, 0x3000];
        let added = xen.say(ADD_MEM_REG, xen_single(file, tail), 1);
        assert_eq!(added, End::Mapped(vec![None]), "flags 0 are an ordinary mapping");
    }
    let added = xen.say(ADD_MEM_REG, xen_single(GRANTS, Tail::Merged(2, 7)), 1);
    assert_eq!(added, End::Mapped(vec![mapped(7, XenMeans::Grant)]));
}
