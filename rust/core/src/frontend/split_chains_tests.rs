use super::*;
use crate::address::GuestAddr;

const BASE: GuestAddr = GuestAddr(0x1000);

fn chains(size: u16, longest: u16, in_order: bool) -> (Arc<GuestMemory>, SplitChains) {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    let layout = RingLayout::at(BASE, size);
    let chains = SplitChains::new(&memory, layout, longest, false, in_order).unwrap();
    (memory, chains)
}

fn bytes<const N: usize>(memory: &GuestMemory, at: GuestAddr, offset: u64) -> [u8; N] {
    let mut out = [0; N];
    memory.read(GuestAddr(at.0 + offset), &mut out).unwrap();
    out
}

/// The device's part: a used element at `index`, and the index that says how far it has come.
fn use_chains(memory: &GuestMemory, chains: &SplitChains, index: u16, head: u8, len: u8, idx: u8) {
    let layout = chains.ring().layout();
    let at = GuestAddr(layout.used.0 + 4 + 8 * u64::from(index % layout.size));
    memory.write(at, &[head, 0, 0, 0, len, 0, 0, 0]).unwrap();
    memory.write(GuestAddr(layout.used.0 + 2), &[idx, 0]).unwrap();
}

fn two() -> [Segment; 2] {
    [Segment::readable(GuestAddr(0x5000), 16), Segment::writable(GuestAddr(0x6000), 1)]
}

#[test]
fn a_chain_has_entries_of_its_own() {
    let (memory, mut chains) = chains(8, 3, false);
    chains.push(1, &two());
    chains.ring_mut().publish();
    assert_eq!(
        bytes(&memory, BASE, 16 * 3),
        [
            0, 0x50, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 4, 0, // NEXT: 4
            0, 0x60, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, // WRITE
        ]
    );
    let available = chains.ring().layout().available;
    assert_eq!(bytes(&memory, available, 0), [0, 0, 1, 0, 3, 0]);
    use_chains(&memory, &chains, 0, 3, 1, 1);
    assert_eq!(chains.pop().unwrap(), Some(UsedChain { token: 1, len: Some(1) }));
}

#[test]
fn in_order_the_entries_are_taken_round_and_round() {
    let (memory, mut chains) = chains(4, 3, true);
    let available = chains.ring().layout().available;
    for (round, head, next) in [(0_u8, 0, 1), (1, 2, 3), (2, 0, 1)] {
        let [one, other] = two();
        chains.push(9, &[one, other]);
        chains.ring_mut().publish();
        assert_eq!(bytes(&memory, available, 4 + 2 * u64::from(round)), [head, 0]);
        assert_eq!(bytes(&memory, BASE, 16 * u64::from(head) + 12), [1, 0, next, 0]);
        use_chains(&memory, &chains, round.into(), head, 1, round + 1);
        assert!(chains.pop().unwrap().is_some());
    }
    // Three from entry 2 on: over the end of the table.
    chains.push(9, &[two()[0], two()[0], two()[1]]);
    assert_eq!(bytes(&memory, BASE, 16 * 2 + 12), [1, 0, 3, 0]);
    assert_eq!(bytes(&memory, BASE, 16 * 3 + 12), [1, 0, 0, 0]);
    assert_eq!(bytes(&memory, BASE, 12), [2, 0, 0, 0]);
}

#[test]
fn one_used_element_in_order_gives_back_a_batch() {
    let (memory, mut chains) = chains(8, 1, true);
    let table = memory.window(GuestAddr(0x4000), 96).unwrap();
    for token in [5, 3, 7] {
        chains.push_indirect(token, &two(), &table, 0, 0x4000);
    }
    chains.ring_mut().publish();
    // The head of the second, in the batch's first entry; the index moves by two.
    use_chains(&memory, &chains, 0, 1, 17, 2);
    assert_eq!(chains.pop().unwrap(), Some(UsedChain { token: 5, len: None }));
    assert!(chains.is_begun());
    assert_eq!(chains.pop().unwrap(), Some(UsedChain { token: 3, len: Some(17) }));
    assert!(!chains.is_begun());
    assert_eq!(chains.pop().unwrap(), None);
    use_chains(&memory, &chains, 2, 2, 1, 3);
    assert_eq!(chains.pop().unwrap(), Some(UsedChain { token: 7, len: Some(1) }));
}

#[test]
fn a_batch_that_is_longer_than_the_index_says_is_the_back_ends_fault() {
    let (memory, mut chains) = chains(8, 1, true);
    for token in 0..3 {
        chains.push(token, &two()[..1]);
    }
    chains.ring_mut().publish();
    use_chains(&memory, &chains, 0, 2, 0, 2);
    let error = chains.pop().unwrap_err().to_string();
    assert!(error.contains("2 was used and is none of the 2 oldest in flight"), "{error}");
}

#[test]
fn answers_to_what_was_not_asked_are_the_back_ends_fault() {
    // A chain that is not in flight, the middle of one, and the same one twice.
    for (heads, why) in [
        (&[6][..], "head 6 was used and is not in flight"),
        (&[1][..], "head 1 was used and is not in flight"),
        (&[0, 0][..], "head 0 was used and is not in flight"),
    ] {
        let (memory, mut chains) = chains(16, 3, false);
        chains.push(0, &two());
        chains.push(1, &two());
        chains.ring_mut().publish();
        let mut results = (0_u8..).zip(heads).map(|(index, &head)| {
            use_chains(&memory, &chains, index.into(), head, 1, index + 1);
            chains.pop()
        });
        let error = results.find_map(std::result::Result::err).unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
#[should_panic(expected = "chain 1 is in flight")]
fn a_chain_is_in_flight_once() {
    let (_memory, mut chains) = chains(8, 1, false);
    chains.push(1, &two()[..1]);
    chains.push(1, &two()[..1]);
}
