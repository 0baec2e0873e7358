//! What threads may see of each other on processors that reorder loads and stores: all that the
//! language's memory model allows, gone through by a model checker, on the sources themselves.

use std::ptr;

use loom::sync::Arc;
use loom::thread;

use atomics::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use guard_table::{FREE, Owner, Slot, Table};
use loss_flag::LossFlag;

/// In place of the standard library's.
mod atomics {
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
    };
}

#[allow(dead_code)]
#[path = "../src/sys/guard_table.rs"]
mod guard_table;

#[path = "../src/sys/loss_flag.rs"]
mod loss_flag;

const PROCESS: u32 = 1;

fn table() -> Table<1> {
    let slot = Slot {
        start: AtomicUsize::new(FREE),
        len: AtomicUsize::new(0),
        loss: AtomicPtr::new(ptr::null_mut()),
        lent: AtomicBool::new(false),
        process: AtomicU32::new(0),
    };
    Table { slots: [slot], used: AtomicUsize::new(0), hint: AtomicUsize::new(0) }
}

#[test]
fn whoever_reads_the_zeroes_of_lost_memory_knows_of_the_loss() {
    loom::model(|| {
        let flag = Arc::new(LossFlag(AtomicBool::new(false)));
        let page = Arc::new(AtomicU32::new(7));
        let (lost, replaced) = (Arc::clone(&flag), Arc::clone(&page));
        let handler = thread::spawn(move || {
            lost.set();
            // The kernel puts the new page there after all that this thread has done.
            replaced.store(0, Ordering::Release);
        });
        if page.load(Ordering::Relaxed) == 0 {
            assert!(flag.is_set(), "zeroes count as what the driver wrote");
        }
        handler.join().unwrap();
    });
}

#[test]
fn a_slot_that_changes_hands_is_never_seen_half() {
    let mut model = loom::model::Builder::new();
    // What threads see of each other matters here, more than how often they take turns: with no
    // bound it takes ten times as long and finds no more.
    model.preemption_bound = Some(3);
    model.check(|| {
        let table = Arc::new(table());
        let note = |table: &Table<1>, start, len| {
            let (number, _) = table.note(start, len, Owner::File, PROCESS).expect("a free slot");
            number
        };
        let number = note(&table, 0x1000, 0x1000);
        let shared = Arc::clone(&table);
        let writer = thread::spawn(move || {
            shared.free(number);
            note(&shared, 0x10_0000, 0x10_0000);
        });
        // In the long range only if it starts where the short one does.
        assert!(table.find(0x8_0000, PROCESS).is_none());
        writer.join().unwrap();
    });
}

#[test]
fn a_mapping_is_found_by_whoever_was_given_its_address() {
    loom::model(|| {
        let table = Arc::new(table());
        let address = Arc::new(AtomicUsize::new(0));
        let (shared, given) = (Arc::clone(&table), Arc::clone(&address));
        let mapper = thread::spawn(move || {
            let noted = shared.note(0x4000, 0x1000, Owner::Domain, PROCESS).is_some();
            assert!(noted);
            given.store(0x4800, Ordering::Release);
        });
        let given = address.load(Ordering::Acquire);
        if given != 0 {
            let found = table.find(given, PROCESS).expect("it is noted");
            assert_eq!((found.start, found.len), (0x4000, 0x1000));
            assert_eq!(found.owner, Owner::Domain);
        }
        mapper.join().unwrap();
    });
}
