//! rust-vmm's front-end, built for Xen, drives the core over each mapping that it knows.

use peers_xen::{DOMID, Guest, Ring, Served};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const GRANTS: u64 = (1 << 63) | (64 << 12);

/// Flags of the crate's regions: ordinary, foreign, grant, grant not in advance.
const CASES: [(u32, u64); 4] = [(0, 0x10_0000), (1, 5 << 30), (2, GRANTS), (0xa, GRANTS)];

fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(seed | 1) >> 3) as u8 ^ seed as u8).collect()
}

fn exercise(ring: &mut Ring<'_>, seed: u32) {
    for len in [512, 4096, 64 << 10] {
        let content = pattern(seed + len, len as usize);
        ring.set_data(&content);
        assert_eq!(ring.run(true, len), 0);
        ring.set_data(&vec![0; len as usize]);
        assert_eq!(ring.run(false, len), 0);
        assert!(ring.data(len as usize) == content);
    }
}

#[test]
fn data_goes_to_the_disk_and_back_over_every_mapping_in_one_table() {
    for (flags, base) in CASES {
        for copy_below in [0, u64::MAX] {
            let guest = Guest::new(base);
            let served = Served::new(&guest, copy_below);
            let mut frontend = served.negotiate();
            let (region, _fd) = guest.region(flags);
            frontend.set_mem_table(&[region]).unwrap();
            let mut ring = Ring::start(&guest, &mut frontend);
            exercise(&mut ring, flags);
            frontend.get_vring_base(0).unwrap();
            if flags == 0xa {
                assert!(guest.xen.in_use(DOMID).is_empty());
            }
        }
    }
}

#[test]
fn regions_come_and_go_one_by_one() {
    for (flags, base) in CASES {
        let guest = Guest::new(base);
        let served = Served::new(&guest, 0);
        let mut frontend = served.negotiate();
        let (region, _fd) = guest.region(flags);
        frontend.add_mem_region(&region).unwrap();
        let mut ring = Ring::start(&guest, &mut frontend);
        exercise(&mut ring, flags);
        frontend.get_vring_base(0).unwrap();
        frontend.remove_mem_region(&region).unwrap();
        assert!(guest.xen.in_use(DOMID).is_empty());
    }
}

#[test]
fn a_domain_that_does_not_exist_is_refused() {
    let guest = Guest::new(5 << 30);
    guest.xen.destroy(DOMID);
    let served = Served::new(&guest, 0);
    let frontend = served.negotiate();
    let (region, _fd) = guest.region(1);
    assert!(frontend.set_mem_table(&[region]).is_err());
}
