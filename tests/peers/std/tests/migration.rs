//! rust-vmm's front-end moves a machine: the device's own state, and memory whose pages come later.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use peers_std::{Guest, Kind, Ring, Served};
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    FrontendReq, VhostTransferStateDirection as Direction, VhostTransferStatePhase as Phase,
    VhostUserConfigFlags,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_user_core::sys::userfault::{MESSAGE, missing_page, wake};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const SECTORS: u64 = 2048;
const LOW: (u64, usize) = (0x10_0000, 0x10_0000);
const DATA: u64 = LOW.0 + 0x1_0000;
const HIGH: (u64, usize) = (0x1_0000_0000, 0x1_0000);
const PAGE: u64 = 4096;
/// Far longer than any answer takes.
const LIMIT_MS: i32 = 10_000;

/// A disk's state: its cache mode is off. The sum is of Python's `zlib.crc32`.
const OFF: &[u8] =
    b"VHUSTATE\x01\0\0\0\x02\0\0\0\x01\0\0\0\x04\0\0\0\x01\0\0\0\0\0\0\0\x48\x7a\xca\xb0disk\0";

fn set_writeback(frontend: &mut Frontend, on: u8) {
    frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[on]).unwrap();
}

fn writeback(frontend: &mut Frontend) -> u8 {
    frontend.get_config(32, 1, VhostUserConfigFlags::empty(), &[0]).unwrap().1[0]
}

fn save(frontend: &Frontend) -> Vec<u8> {
    let (mut reader, writer) = pipe().unwrap();
    let other = frontend.set_device_state_fd(Direction::SAVE, Phase::STOPPED, writer.into());
    assert!(other.unwrap().is_none(), "it uses the descriptor that it was given");
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    frontend.check_device_state().unwrap();
    state
}

fn load(frontend: &Frontend, state: &[u8]) -> vhost::Result<()> {
    let (reader, mut writer) = pipe().unwrap();
    frontend.set_device_state_fd(Direction::LOAD, Phase::STOPPED, OwnedFd::from(reader))?;
    writer.write_all(state).unwrap();
    drop(writer);
    frontend.check_device_state()
}

#[test]
fn the_state_of_a_disk_goes_from_one_back_end_to_another() {
    let (source, destination) = (Served::new(SECTORS), Served::new(SECTORS));
    let mut from = source.negotiate();
    set_writeback(&mut from, 0);
    let state = save(&from);
    assert_eq!(state, OFF);
    let mut to = destination.negotiate();
    assert_eq!(writeback(&mut to), 1);
    load(&to, &state[..state.len() - 1]).unwrap_err();
    assert_eq!(writeback(&mut to), 1);
    load(&to, &state).unwrap();
    assert_eq!(writeback(&mut to), 0);
}

/// The address of the next page that the back-end misses.
fn next_missing(faults: &mut File) -> u64 {
    let epoll = Epoll::new().unwrap();
    let readable = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, faults.as_raw_fd(), readable).unwrap();
    let mut events = [EpollEvent::default()];
    assert_eq!(epoll.wait(LIMIT_MS, &mut events).unwrap(), 1, "a page is missed");
    let mut message = [0; MESSAGE];
    faults.read_exact(&mut message).unwrap();
    missing_page(&message).unwrap()
}

#[test]
fn a_request_waits_for_the_page_of_its_data_which_comes_later() {
    for slots in [false, true] {
        let served = Served::new(SECTORS);
        let mut frontend = served.negotiate();
        let mut faults = frontend.postcopy_advise().unwrap();
        frontend.postcopy_listen().unwrap();
        let guest = Guest::new(&[LOW, HIGH]);
        let regions = guest.regions();
        let (bases, message) = if slots {
            let bases = regions.iter().map(|r| frontend.add_mem_region(r).unwrap().unwrap());
            (bases.collect(), FrontendReq::ADD_MEM_REG)
        } else {
            (frontend.set_mem_table(&regions).unwrap().unwrap(), FrontendReq::SET_MEM_TABLE)
        };
        frontend.postcopy_ack_mem_regions(message).unwrap();
        let mut ring = Ring::new(&guest, LOW.0);
        ring.start(&mut frontend, 0, 0).unwrap();
        ring.submit(0, Kind::Write, 8, DATA, 4096);
        ring.kick.write(1).unwrap();
        // The ring is in pages that are there.
        let missing = next_missing(&mut faults);
        assert_eq!(missing & !(PAGE - 1), bases[0] + (DATA - LOW.0));
        assert_eq!(served.image()[4096..8192], [0; 4096]);
        guest.write(DATA, &[7; 4096]);
        wake(faults.as_fd(), missing & !(PAGE - 1), PAGE).unwrap();
        assert_eq!(ring.run(1), [(0, 0, 1)]);
        frontend.postcopy_end().unwrap();
        assert_eq!(served.image()[4096..8192], [7; 4096]);
    }
}
