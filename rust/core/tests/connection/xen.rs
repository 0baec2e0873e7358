//! XEN_MMAP: three designs told apart by their bytes, and what is refused. Regions are laid out
//! by hand. The design with a message of its own is in `set_xen_mmap.rs`.

use std::fs::File;

use vhost_user_core::connection::{Action, Connection, Offer, Outcome, Refusal, Step};
use vhost_user_core::wire::payload::{XenMapping, XenMeans};
use vhost_user_core::wire::{Flags, Frame, ProtocolFeatures, XenDesigns};

use super::support::*;

pub(crate) const XEN_MMAP: u64 = 1 << 17;
pub(crate) const SET_XEN_MMAP: u32 = 41;
/// A grant's address has bit 63.
pub(crate) const GRANT: u64 = 1 << 63;

/// What follows the four numbers of a region.
#[derive(Clone, Copy)]
pub(crate) enum Tail {
    None,
    Merged(u32, u32),
    Review(u64, u64),
}

fn tail(tail: Tail) -> Vec<u8> {
    match tail {
        Tail::None => Vec::new(),
        Tail::Merged(flags, domid) => [flags.to_ne_bytes(), domid.to_ne_bytes()].concat(),
        Tail::Review(flags, domid) => [word(flags), word(domid)].concat(),
    }
}

pub(crate) fn xen_table(regions: &[(RawRegion, Tail)]) -> Vec<u8> {
    let each = regions.iter().flat_map(|(raw, more)| [region(*raw), tail(*more)].concat());
    [state(regions.len() as u32, 0), each.collect()].concat()
}

pub(crate) fn xen_single(raw: RawRegion, more: Tail) -> Vec<u8> {
    [word(0), region(raw), tail(more)].concat()
}

/// A connection that was asked for XEN_MMAP in `designs`, with the bit accepted.
pub(crate) struct Xen(Connection);

/// How a message ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The mappings of the regions that were to be mapped.
    Mapped(Vec<Option<XenMapping>>),
    /// Nothing to carry out.
    Done,
    Refused(String),
}

impl Xen {
    pub(crate) fn new(designs: XenDesigns) -> Self {
        let mut connection = Connection::new(xen_offer(Some(designs)));
        let accept = word(PROTOCOL_ON_XEN | XEN_MMAP);
        let step = connection.handle(frame(SET_PROTOCOL_FEATURES, accept, 0));
        assert!(matches!(step, Step::Reply(Some(_))), "{step:?}");
        let mut xen = Self(connection);
        assert_eq!(xen.say(SET_FEATURES, word(ACCEPTED), 0), End::Done);
        xen
    }

    pub(crate) fn say(&mut self, number: u32, payload: Vec<u8>, fds: usize) -> End {
        let step = match self.0.handle(frame(number, payload, fds)) {
            Step::Act(action) => {
                let mappings = match &action {
                    Action::SetMemory(offers) => offers.iter().map(|o| o.xen).collect(),
                    Action::AddRegion(offer) => vec![offer.xen],
                    _ => Vec::new(),
                };
                let Step::Reply(Some(_)) = self.0.done(Outcome::Done) else { panic!() };
                let silent = matches!(action, Action::Features { .. } | Action::RemoveRegion(_));
                return if silent { End::Done } else { End::Mapped(mappings) };
            }
            step => step,
        };
        match step {
            Step::Reply(Some(_)) => End::Done,
            Step::Refuse { why: Refusal(why), .. } => End::Refused(why),
            step => panic!("{step:?}"),
        }
    }

    pub(crate) fn why(&mut self, number: u32, payload: Vec<u8>, fds: usize) -> String {
        match self.say(number, payload, fds) {
            End::Refused(why) => why,
            end => panic!("{end:?}"),
        }
    }
}

pub(crate) fn xen_offer(xen: Option<XenDesigns>) -> Offer {
    Offer { xen, ..offer(2) }
}

pub(crate) fn frame(number: u32, payload: Vec<u8>, fds: usize) -> Frame {
    let fds = (0..fds).map(|_| File::open("/dev/null").unwrap().into()).collect();
    Frame::new(number, Flags::from_bits_retain(NEED_REPLY), payload, fds)
}

pub(crate) fn mapped(domid: u16, means: XenMeans) -> Option<XenMapping> {
    Some(XenMapping { domid, means, more: false })
}

/// Guest RAM of an Arm guest, and grants from reference 16 on.
pub(crate) const RAM: RawRegion = [0x4000_0000, 0x1000_0000, 0x7f00_0000_0000, 0];
pub(crate) const GRANTS: RawRegion = [GRANT | 16 << 12, 0x8000, 0, 0];

#[test]
fn designs_are_told_apart_by_the_bytes_of_a_region() {
    let mut xen = Xen::new(XenDesigns::ALL);
    let foreign = End::Mapped(vec![mapped(5, XenMeans::Foreign)]);
    assert_eq!(xen.say(SET_MEM_TABLE, xen_table(&[(RAM, Tail::Merged(1, 5))]), 1), foreign);
    assert_eq!(xen.say(SET_MEM_TABLE, xen_table(&[(RAM, Tail::Review(1, 5))]), 1), foreign);
    assert_eq!(xen.say(SET_XEN_MMAP, [word(1), word(5)].concat(), 0), End::Done);
    assert_eq!(xen.say(SET_MEM_TABLE, xen_table(&[(RAM, Tail::None)]), 1), foreign);
}

#[test]
fn single_regions_follow_the_same_designs() {
    let mut xen = Xen::new(XenDesigns::ALL);
    let grant = End::Mapped(vec![mapped(7, XenMeans::Grant)]);
    for more in [Tail::Merged(2, 7), Tail::Review(2, 7)] {
        assert_eq!(xen.say(ADD_MEM_REG, xen_single(GRANTS, more), 1), grant);
        assert_eq!(xen.say(REM_MEM_REG, xen_single(GRANTS, more), 0), End::Done);
    }
}

#[test]
fn the_number_of_regions_tells_sizes_apart_that_several_designs_could_have() {
    // 8 + 240 bytes: 6 regions of 40 bytes, or 5 of 48.
    let mut xen = Xen::new(XenDesigns::ALL);
    let at = |n: u64| [n << 30, 1 << 20, n << 40, 0];
    let merged: Vec<_> = (0..6).map(|n| (at(n), Tail::Merged(1, n as u32))).collect();
    let review: Vec<_> = (0..5).map(|n| (at(n), Tail::Review(1, n))).collect();
    assert_eq!(xen_table(&merged).len(), xen_table(&review).len());
    for (table, count) in [(xen_table(&merged), 6), (xen_table(&review), 5)] {
        let expected = (0..count).map(|n| mapped(n, XenMeans::Foreign)).collect();
        assert_eq!(xen.say(SET_MEM_TABLE, table, count.into()), End::Mapped(expected));
    }
}

#[test]
fn a_table_whose_count_fits_no_design_is_refused() {
    let mut xen = Xen::new(XenDesigns::ALL);
    for (count, bytes, part) in [
        (2, 40, "48 bytes of payload for 2 regions, expected 8 and for each 32 (plain), 40 (merg"),
        (1, 36, "44 bytes of payload for 1 region, expected 8 and for each 32 (plain), 40 (merge"),
        (1, 80, "88 bytes of payload for 1 region, "),
        (3, 112, "120 bytes of payload for 3 regions, "),
        (0, 40, "number of regions out of range: 0 "),
        (u32::MAX, 40, "number of regions out of range: 4294967295 "),
    ] {
        let payload = [state(count, 0), vec![0; bytes]].concat();
        let why = xen.why(SET_MEM_TABLE, payload, 1);
        assert!(why.starts_with(&format!("SET_MEM_TABLE: {part}")), "{why}");
    }
}

#[test]
fn a_design_that_is_not_in_use_is_refused_by_its_name_and_size() {
    for (designs, more, what) in [
        (
            XenDesigns::MERGED,
            Tail::Review(1, 1),
            "regions of 48 bytes (review), but only those of 32 (plain) and 40 (merged) bytes are \
             taken: use --xen=review or auto",
        ),
        (
            XenDesigns::REVIEW,
            Tail::Merged(1, 1),
            "regions of 40 bytes (merged), but only those of 32 (plain) and 48 (review) bytes are \
             taken: use --xen=merged or auto",
        ),
        (
            XenDesigns::MESSAGE,
            Tail::Merged(1, 1),
            "regions of 40 bytes (merged), but only those of 32 (plain) bytes are taken: use \
             --xen=merged or auto",
        ),
    ] {
        let mut xen = Xen::new(designs);
        let why = xen.why(SET_MEM_TABLE, xen_table(&[(RAM, more)]), 1);
        assert_eq!(why, format!("SET_MEM_TABLE: {what}"));
        for number in [ADD_MEM_REG, REM_MEM_REG] {
            let why = xen.why(number, xen_single(RAM, more), 1);
            assert!(why.ends_with(what), "{why}");
        }
    }
}

#[test]
fn without_xen_mmap_regions_have_32_bytes_and_nothing_else() {
    let mut connection = Connection::new(xen_offer(Some(XenDesigns::ALL)));
    connection.handle(frame(SET_PROTOCOL_FEATURES, word(PROTOCOL_ON_XEN), 0));
    let step = connection.handle(frame(SET_MEM_TABLE, xen_table(&[(RAM, Tail::Merged(1, 1))]), 1));
    let Step::Refuse { why: Refusal(why), .. } = step else { panic!("{step:?}") };
    let needs = "regions of 40 bytes (merged) need XEN_MMAP, which was not negotiated";
    assert_eq!(why, format!("SET_MEM_TABLE: {needs}"));
    let step = connection.handle(frame(SET_XEN_MMAP, [word(1), word(1)].concat(), 0));
    assert!(matches!(step, Step::Refuse { .. }), "{step:?}");
    let step = connection.handle(frame(SET_MEM_TABLE, xen_table(&[(REGION, Tail::None)]), 1));
    let Step::Act(Action::SetMemory(offers)) = step else { panic!("{step:?}") };
    assert_eq!(offers[0].xen, None);
}

#[test]
fn a_front_end_that_acknowledges_the_bit_and_sends_plain_regions_is_an_ordinary_one() {
    let each = [XenDesigns::MERGED, XenDesigns::REVIEW, XenDesigns::MESSAGE, XenDesigns::ALL];
    for designs in each {
        let mut xen = Xen::new(designs);
        assert_eq!(xen.say(SET_MEM_TABLE, table(&[REGION]), 1), End::Mapped(vec![None]));
        let more = [4 << 30, 1 << 20, 0x7e00_0000_0000, 0x3000];
        let added = xen.say(ADD_MEM_REG, xen_single(more, Tail::None), 1);
        assert_eq!(added, End::Mapped(vec![None]), "{designs:?}");
        assert_eq!(xen.say(REM_MEM_REG, xen_single(more, Tail::None), 0), End::Done);
    }
}

#[test]
fn flags_0_are_an_ordinary_mapping() {
    let mut xen = Xen::new(XenDesigns::ALL);
    let file = [0, 0x1000_0000, 0x7f00_0000_0000, 0x3000];
    let table = xen_table(&[(file, Tail::Merged(0, 0))]);
    assert_eq!(xen.say(SET_MEM_TABLE, table, 1), End::Mapped(vec![None]));
}

#[test]
fn xen_mmap_is_not_accepted_when_it_was_not_offered() {
    let mut connection = Connection::new(xen_offer(None));
    let step = connection.handle(frame(SET_PROTOCOL_FEATURES, word(PROTOCOL_ON_XEN | XEN_MMAP), 0));
    let Step::Refuse { why, .. } = step else { panic!("{step:?}") };
    assert!(why.0.contains("not offered: XEN_MMAP"), "{why}");
    assert!(!connection.protocol_features().contains(ProtocolFeatures::XEN_MMAP));
}

#[test]
fn bad_regions_are_refused_by_field_and_value() {
    let offset = [0x4000_0000, 0x1000, 0x7f00_0000_0000, 0x1000];
    let foreign_grant = [GRANT | 0x1000, 0x1000, 0, 0];
    let no_bit = [0x1000, 0x1000, 0, 0];
    let high_bit = [GRANT | 1 << 44, 0x1000, 0, 0];
    let last = [GRANT | ((1 << 44) - 0x1000), 0x1001, 0, 0];
    for (raw, flags, domid, part) in [
        (RAM, 3, 1, "xen mmap flags 0x3: foreign and grant"),
        (RAM, 0x101, 1, "xen mmap flags 0x101: foreign memory is mapped in advance"),
        (RAM, 0x9, 1, "xen mmap flags 0x9: foreign memory is mapped in advance"),
        (GRANTS, 0x100, 1, "xen mmap flags 0x100: neither"),
        (GRANTS, 0x10a, 1, "xen mmap flags 0x10a: 0x8 and 0x100"),
        (GRANTS, 0x42, 1, "unknown bits in xen mmap flags: 0x40"),
        (GRANTS, 0x6, 1, "unknown bits in xen mmap flags: 0x4"),
        (RAM, 1, 0x7ff0, "xen domain id out of range: 32752"),
        (RAM, 1, 0x1_0000, "xen domain id out of range: 65536"),
        (RAM, 1, u32::MAX, "xen domain id out of range: 4294967295"),
        (offset, 1, 1, "mmap offset 0x1000"),
        (foreign_grant, 1, 1, "guest address 0x8000000000001000: bit 63"),
        (no_bit, 2, 1, "guest address 0x1000, 0x1000 bytes: grants lie from bit 63"),
        (high_bit, 0x102, 1, "grants lie from bit 63 on, with references of 32 bits"),
        (last, 2, 1, "grants lie from bit 63 on, with references of 32 bits"),
    ] {
        let mut xen = Xen::new(XenDesigns::ALL);
        let more = Tail::Merged(flags, domid);
        let why = xen.why(ADD_MEM_REG, xen_single(raw, more), 1);
        assert!(why.starts_with("ADD_MEM_REG: ") && why.contains(part), "{why}");
        let why = xen.why(SET_MEM_TABLE, xen_table(&[(raw, more)]), 1);
        assert!(why.starts_with("SET_MEM_TABLE: ") && why.contains(part), "{why}");
    }
}

#[test]
fn a_bad_region_among_others_is_counted() {
    let table = xen_table(&[(RAM, Tail::Merged(1, 5)), (GRANTS, Tail::Merged(0x10a, 5))]);
    let why = Xen::new(XenDesigns::ALL).why(SET_MEM_TABLE, table, 2);
    assert!(why.starts_with("SET_MEM_TABLE: region 2 of 2: xen mmap flags 0x10a: "), "{why}");
}

#[test]
fn a_region_that_cannot_be_removed_is_named_by_its_addresses() {
    let why = Xen::new(XenDesigns::ALL).why(REM_MEM_REG, xen_single(RAM, Tail::Merged(1, 5)), 0);
    let region = "guest 0x40000000, user 0x7f0000000000, 0x10000000 bytes";
    assert_eq!(why, format!("REM_MEM_REG: {region}: no region is mapped"));
}

#[test]
fn a_whole_space_of_grants_is_one_region() {
    let mut xen = Xen::new(XenDesigns::ALL);
    let all = [GRANT, 1 << 44, 0, 0];
    let added = xen.say(ADD_MEM_REG, xen_single(all, Tail::Merged(0x102, 1)), 1);
    assert_eq!(added, End::Mapped(vec![mapped(1, XenMeans::GrantOnDemand)]));
}

#[test]
fn dirty_logging_is_neither_offered_where_xen_mmap_is_nor_taken() {
    let logging = || Connection::new(xen_offer(Some(XenDesigns::ALL)));
    let offered = |number| match logging().handle(frame(number, vec![], 0)) {
        Step::Reply(Some(reply)) => u64::from_ne_bytes(reply.payload.try_into().unwrap()),
        step => panic!("{step:?}"),
    };
    assert_eq!(offered(GET_FEATURES), OFFERED & !(LOG_ALL | ACCESS_PLATFORM));
    assert_eq!(offered(GET_PROTOCOL_FEATURES), PROTOCOL_ON_XEN | XEN_MMAP);
    for (number, bits) in [(SET_FEATURES, ACCEPTED | LOG_ALL), (SET_PROTOCOL_FEATURES, PROTOCOL)] {
        let Step::Refuse { why, .. } = logging().handle(frame(number, word(bits), 0)) else {
            panic!("taken: {number}");
        };
        assert!(why.0.ends_with("(not possible with XEN_MMAP)"), "{why}");
    }
}

#[test]
fn postcopy_and_dirty_logging_are_refused_with_xen_mmap() {
    let everything = Offer { protocol_features: ProtocolFeatures::all(), ..offer(2) };
    let connection = |accepted: u64| {
        let xen = Some(XenDesigns::ALL);
        let mut connection = Connection::new(Offer { xen, ..everything.clone() });
        let step = connection.handle(frame(SET_PROTOCOL_FEATURES, word(accepted), 0));
        assert!(matches!(step, Step::Reply(_)), "{step:?}");
        connection
    };
    let of_each = [(6, 16, 1), (7, 0, 1), (28, 0, 0), (29, 0, 0), (30, 0, 0)];
    for (number, bytes, fds) in of_each {
        let payload = vec![0; bytes];
        let step = connection(PROTOCOL_ON_XEN | XEN_MMAP).handle(frame(number, payload, fds));
        let (Step::Refuse { why, .. } | Step::Close(why)) = step else { panic!("{step:?}") };
        assert!(why.0.contains("not possible with XEN_MMAP"), "{number}: {why}");
    }
}

#[test]
fn what_does_not_go_together_with_xen_mmap_is_refused_by_its_name() {
    for (bit, name) in
        [(1, "LOG_SHMFD"), (8, "PAGEFAULT"), (20, "GET_VRING_BASE_INFLIGHT"), (21, "GPA_ADDRESSES")]
    {
        let mut connection = Connection::new(xen_offer(Some(XenDesigns::ALL)));
        let accepted = word(PROTOCOL_ON_XEN | XEN_MMAP | 1 << bit);
        let step = connection.handle(frame(SET_PROTOCOL_FEATURES, accepted, 0));
        let Step::Refuse { why, .. } = step else { panic!("{step:?}") };
        let expected =
            format!("SET_PROTOCOL_FEATURES: not offered: {name} (not possible with XEN_MMAP)");
        assert_eq!(why.0, expected);
    }
}

#[test]
fn rings_of_both_formats_are_offered_with_xen_mmap_and_taken() {
    const RINGS: u64 = 1 << 34 | 1 << 35;
    let mut connection = Connection::new(xen_offer(Some(XenDesigns::ALL)));
    let accepted = word(PROTOCOL_ON_XEN | XEN_MMAP);
    connection.handle(frame(SET_PROTOCOL_FEATURES, accepted, 0));
    let Step::Reply(Some(reply)) = connection.handle(frame(GET_FEATURES, vec![], 0)) else {
        panic!("no reply");
    };
    assert_eq!(u64::from_ne_bytes(reply.payload.try_into().unwrap()) & RINGS, RINGS);
    let step = connection.handle(frame(SET_FEATURES, word(ACCEPTED | RINGS), 0));
    assert!(matches!(step, Step::Act { .. }), "{step:?}");
}
