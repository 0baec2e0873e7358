//! The message orders of real front-ends, written down from their sources: all of them must work.

use super::support::*;

/// One message of a front-end and what it must get.
struct Line {
    number: u32,
    flags: u32,
    payload: Vec<u8>,
    fds: usize,
    said: Said,
}

/// A request that wants no reply.
fn tell(number: u32, payload: Vec<u8>) -> Line {
    Line { number, flags: PLAIN, payload, fds: 0, said: Said::Nothing }
}

/// A request that wants to be acknowledged.
fn sure(number: u32, payload: Vec<u8>) -> Line {
    Line { flags: NEED_REPLY, said: ack(), ..tell(number, payload) }
}

/// A request with an answer of its own.
fn get(number: u32, payload: Vec<u8>, reply: Vec<u8>) -> Line {
    Line { said: Said::Reply(reply), ..tell(number, payload) }
}

impl Line {
    fn fds(self, fds: usize) -> Self {
        Self { fds, ..self }
    }

    /// Asked for an acknowledgement on top of its own answer: there must not be two.
    fn need_reply(self) -> Self {
        Self { flags: NEED_REPLY, ..self }
    }
}

impl Peer {
    /// A new connection to a device with two queues, after its first messages.
    fn after(lines: impl IntoIterator<Item = Line>) -> Self {
        let mut peer = Self::new(offer(2));
        peer.hears(lines);
        peer
    }

    fn hears(&mut self, lines: impl IntoIterator<Item = Line>) {
        for (at, line) in lines.into_iter().enumerate() {
            let Line { number, flags, payload, fds, said } = line;
            assert_eq!(self.say(number, flags, payload, fds), said, "line {at}, message {number}");
        }
    }

    fn is_running(&self, index: u16) -> bool {
        let ring = self.connection.ring(index).unwrap();
        ring.is_started() && ring.is_enabled()
    }

    /// The rings that the back-end was asked to start since it was last asked for its deeds.
    fn take_starts(&mut self) -> Vec<Deed> {
        let deeds = self.take_deeds();
        deeds.into_iter().filter(|deed| matches!(deed, Deed::Start { .. })).collect()
    }

    /// Both rings run, and were started just now, disabled.
    fn has_started_both(&mut self, size: u16, base: u32) {
        assert_eq!(self.take_starts(), [0, 1].map(|index| started(index, size, base, false)));
        assert!(self.is_running(0) && self.is_running(1));
    }
}

fn parts(index: u32) -> [u64; 3] {
    PARTS.map(|part| part + u64::from(index) * 0x1_0000)
}

fn started(index: u16, size: u16, base: u32, enabled: bool) -> Deed {
    let parts = parts(index.into());
    let (features, used_log) = (DEVICE_FEATURES, None);
    Deed::Start { index, size, parts, base, enabled, features, used_log, reset: false }
}

/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS: all of ours, as
/// QEMU 7.2's block device keeps them.
const QEMU_7_2: u64 = 0x1_a229;
const ADDED: RawRegion = [0x1_0000_0000, 0x4000_0000, 0x7e00_0000_0000, 0x1000_0000];

fn qemu_connect(protocol: u64) -> Vec<Line> {
    vec![
        get(GET_FEATURES, vec![], word(OFFERED)),
        get(GET_PROTOCOL_FEATURES, vec![], word(PROTOCOL)),
        tell(SET_PROTOCOL_FEATURES, word(protocol)),
        get(GET_QUEUE_NUM, vec![], word(2)),
        get(GET_MAX_MEM_SLOTS, vec![], word(509)),
        sure(SET_BACKEND_REQ_FD, vec![]).fds(1),
        tell(SET_OWNER, vec![]),
        get(GET_FEATURES, vec![], word(OFFERED)),
        tell(SET_VRING_CALL, word(0)).fds(1),
        tell(SET_VRING_CALL, word(1)).fds(1),
        tell(SET_VRING_ERR, word(0)).fds(1),
        tell(SET_VRING_ERR, word(1)).fds(1),
        get(GET_CONFIG, config(0, 0, &[0; 60]), config(0, 0, &config_bytes(0, 60))),
    ]
}

fn qemu_ring(index: u32, base: u32) -> [Line; 5] {
    [
        tell(SET_VRING_NUM, state(index, 128)),
        tell(SET_VRING_BASE, state(index, base)),
        tell(SET_VRING_ADDR, address(index, 0, parts(index))),
        tell(SET_VRING_KICK, word(index.into())).fds(1),
        tell(SET_VRING_CALL, word(index.into())).fds(1),
    ]
}

#[test]
fn qemu_7_2_starts_stops_and_starts_a_block_device() {
    let mut peer = Peer::after(qemu_connect(QEMU_7_2));
    assert!(peer.connection.can_notify_config());
    peer.hears([
        tell(SET_FEATURES, word(ACCEPTED)),
        tell(SET_VRING_CALL, word(0)).fds(1),
        tell(SET_VRING_CALL, word(1)).fds(1),
        tell(SET_FEATURES, word(ACCEPTED)),
        sure(ADD_MEM_REG, single(REGION)).fds(1),
        sure(ADD_MEM_REG, single(ADDED)).fds(1),
    ]);
    peer.hears(qemu_ring(0, 0));
    peer.hears(qemu_ring(1, 0));
    peer.hears([0, 1].map(|index| tell(SET_VRING_ENABLE, state(index, 1))));
    peer.has_started_both(128, 0);

    // The machine pauses: the status is cleared first, and the bases are asked for after that.
    peer.base = 601;
    peer.hears([tell(SET_STATUS, word(0))]);
    peer.hears([0, 1].map(|index| tell(SET_VRING_ENABLE, state(index, 0))));
    peer.hears([0, 1].map(|index| get(GET_VRING_BASE, state(index, 0), state(index, 601))));
    peer.hears([tell(SET_FEATURES, word(ACCEPTED))]);
    peer.hears(qemu_ring(0, 601));
    peer.hears([tell(SET_VRING_ENABLE, state(0, 1))]);
    assert!(peer.is_running(0) && !peer.is_running(1));
    assert_eq!(peer.take_starts(), [started(0, 128, 601, false)]);
}

fn qemu_10_start(base: u32) -> Vec<Line> {
    let mut lines = vec![
        sure(SET_FEATURES, word(ACCEPTED)),
        tell(SET_VRING_CALL, word(0)).fds(1),
        tell(SET_VRING_CALL, word(1)).fds(1),
        sure(SET_FEATURES, word(ACCEPTED)),
        get(GET_STATUS, vec![], word(0)),
        sure(SET_STATUS, word(0xb)),
        get(GET_STATUS, vec![], word(0xb)),
    ];
    lines.extend(qemu_ring(0, base));
    lines.extend(qemu_ring(1, base));
    lines.extend([
        sure(SET_VRING_ENABLE, state(0, 1)),
        sure(SET_VRING_ENABLE, state(1, 1)),
        get(GET_STATUS, vec![], word(0xb)),
        sure(SET_STATUS, word(0xf)),
    ]);
    lines
}

#[test]
fn qemu_10_starts_resets_and_starts_a_block_device_with_status_and_slots() {
    let mut peer = Peer::after(qemu_connect(PROTOCOL));
    peer.hears([
        sure(ADD_MEM_REG, single(REGION)).fds(1),
        sure(ADD_MEM_REG, single(ADDED)).fds(1),
        sure(REM_MEM_REG, single([ADDED[0], ADDED[1], ADDED[2], 0])),
    ]);
    peer.hears(qemu_10_start(0));
    assert!(peer.is_running(0) && peer.is_running(1));
    assert_eq!(peer.connection.status(), 0xf);

    // The guest reboots: the device is stopped, its status cleared, the device reset.
    peer.base = 300;
    peer.hears([0, 1].map(|index| sure(SET_VRING_ENABLE, state(index, 0))));
    peer.hears([0, 1].map(|index| get(GET_VRING_BASE, state(index, 0), state(index, 300))));
    peer.hears([sure(SET_STATUS, word(0)), sure(RESET_DEVICE, vec![])]);
    peer.deeds.clear();
    peer.hears(qemu_10_start(0));
    peer.has_started_both(128, 0);

    // The guest masks and unmasks a vector; the host migrates memory slots under way.
    peer.hears([
        tell(SET_VRING_CALL, word(0)).fds(1),
        sure(ADD_MEM_REG, single(ADDED)).fds(1),
        tell(SET_VRING_CALL, word(0)).fds(1),
    ]);
}

#[test]
fn qemu_10_2_wants_acknowledgements_of_kick_call_and_error_descriptors() {
    let mut peer = Peer::ready();
    peer.hears([
        sure(SET_VRING_CALL, word(0)).fds(1),
        sure(SET_VRING_ERR, word(0)).fds(1),
        sure(SET_VRING_KICK, word(0)).fds(1),
        sure(SET_VRING_ENABLE, state(0, 1)),
    ]);
    assert!(peer.is_running(0));
}

#[test]
fn qemu_net_enables_a_ring_before_it_sets_features_and_negotiates_once_per_pair() {
    let mut peer = Peer::new(offer(2));
    let negotiate = || {
        [
            get(GET_FEATURES, vec![], word(OFFERED)),
            get(GET_PROTOCOL_FEATURES, vec![], word(PROTOCOL)),
            tell(SET_PROTOCOL_FEATURES, word(PROTOCOL)),
        ]
    };
    peer.hears(negotiate());
    peer.hears([tell(SET_OWNER, vec![])]);
    peer.hears(negotiate());
    peer.hears([
        tell(SET_VRING_ENABLE, state(0, 1)),
        tell(SET_VRING_ENABLE, state(1, 1)),
        tell(SET_FEATURES, word(ACCEPTED)),
        sure(SET_MEM_TABLE, table(&[REGION, ADDED])).fds(2),
    ]);
    peer.hears(qemu_ring(0, 0));
    assert!(peer.is_running(0));
    assert_eq!(peer.take_starts(), [started(0, 128, 0, true)]);
}

#[test]
fn an_old_qemu_that_leaves_out_bit_30_never_enables_and_its_rings_run() {
    let mut peer = Peer::after(qemu_connect(QEMU_7_2));
    peer.hears([
        tell(SET_FEATURES, word(DEVICE_FEATURES)),
        sure(SET_MEM_TABLE, table(&[REGION])).fds(1),
    ]);
    peer.hears(qemu_ring(0, 0));
    assert!(peer.is_running(0));
    assert_eq!(peer.take_starts(), [started(0, 128, 0, true)]);
}

/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, CONFIGURE_MEM_SLOTS.
const CLOUD_HYPERVISOR: u64 = 0x8229;

#[test]
fn cloud_hypervisor_wants_every_message_acknowledged_and_gives_its_channel_last() {
    let mut peer = Peer::after([
        sure(SET_OWNER, vec![]),
        get(GET_FEATURES, vec![], word(OFFERED)).need_reply(),
        get(GET_PROTOCOL_FEATURES, vec![], word(PROTOCOL)).need_reply(),
        sure(SET_PROTOCOL_FEATURES, word(CLOUD_HYPERVISOR)),
        get(GET_QUEUE_NUM, vec![], word(2)).need_reply(),
        get(GET_CONFIG, config(0, 1, &[0; 8]), config(0, 1, &config_bytes(0, 8))).need_reply(),
        sure(SET_FEATURES, word(ACCEPTED)),
        sure(SET_MEM_TABLE, table(&[REGION])).fds(1),
        sure(SET_VRING_NUM, state(0, 128)),
        sure(SET_VRING_NUM, state(1, 128)),
    ]);
    for index in [0, 1] {
        peer.hears([
            sure(SET_VRING_ADDR, address(index, 0, parts(index))),
            sure(SET_VRING_BASE, state(index, 9)),
            sure(SET_VRING_CALL, word(index.into())).fds(1),
            sure(SET_VRING_KICK, word(index.into())).fds(1),
        ]);
    }
    peer.hears([0, 1].map(|index| sure(SET_VRING_ENABLE, state(index, 1))));
    peer.hears([sure(SET_BACKEND_REQ_FD, vec![]).fds(1)]);
    peer.has_started_both(128, 9);
    assert!(peer.connection.can_notify_config());

    // The guest writes configuration; memory is plugged; pause, resume, reset.
    peer.base = 12;
    peer.hears([
        sure(SET_CONFIG, config(32, 1, &[1])),
        sure(ADD_MEM_REG, single(ADDED)).fds(1),
        sure(SET_VRING_ENABLE, state(0, 0)),
        sure(SET_VRING_ENABLE, state(0, 1)),
        sure(SET_VRING_ENABLE, state(0, 0)),
        get(GET_VRING_BASE, state(0, 0), state(0, 12)).need_reply(),
    ]);
    assert!(!peer.connection.ring(0).unwrap().is_started());
}

#[test]
fn cloud_hypervisor_sets_protocol_features_without_reading_them_after_a_migration() {
    let peer = Peer::after([
        sure(SET_OWNER, vec![]),
        get(GET_FEATURES, vec![], word(OFFERED)).need_reply(),
        sure(SET_PROTOCOL_FEATURES, word(CLOUD_HYPERVISOR)),
        sure(SET_FEATURES, word(ACCEPTED)),
    ]);
    assert_eq!(peer.connection.protocol_features().bits(), CLOUD_HYPERVISOR);
}

/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG.
const CROSVM: u64 = 0x229;

fn crosvm_ring(index: u32, base: u32) -> [Line; 6] {
    [
        tell(SET_VRING_NUM, state(index, 256)),
        tell(SET_VRING_ADDR, address(index, 0, parts(index))),
        tell(SET_VRING_BASE, state(index, base)),
        tell(SET_VRING_CALL, word(index.into())).fds(1),
        tell(SET_VRING_KICK, word(index.into())).fds(1),
        tell(SET_VRING_ENABLE, state(index, 1)),
    ]
}

#[test]
fn crosvm_passes_on_the_features_in_halves_sleeps_and_wakes() {
    let mut peer = Peer::new(offer(2));
    let regions: Vec<RawRegion> = (0..32).map(|n| [n << 30, 1 << 30, (n + 1) << 32, 0]).collect();
    peer.hears([
        tell(SET_OWNER, vec![]),
        get(GET_FEATURES, vec![], word(OFFERED)),
        get(GET_PROTOCOL_FEATURES, vec![], word(PROTOCOL)),
        tell(SET_PROTOCOL_FEATURES, word(CROSVM)),
        tell(SET_BACKEND_REQ_FD, vec![]).fds(1),
        get(GET_QUEUE_NUM, vec![], word(2)),
        // The guest reads configuration at the width that it likes.
        get(GET_CONFIG, config(20, 1, &[0; 4]), config(20, 1, &config_bytes(20, 4))),
        get(GET_CONFIG, config(33, 1, &[0; 1]), config(33, 1, &config_bytes(33, 1))),
        // The driver writes the lower half of its features, then the upper one.
        tell(SET_FEATURES, word(ACCEPTED & 0xffff_ffff)),
        tell(SET_FEATURES, word(ACCEPTED)),
        tell(SET_MEM_TABLE, table(&regions)).fds(32),
    ]);
    peer.hears(crosvm_ring(0, 0));
    peer.hears(crosvm_ring(1, 0));
    peer.has_started_both(256, 0);

    peer.base = 5;
    for index in [0, 1] {
        peer.hears([
            tell(SET_VRING_ENABLE, state(index, 0)),
            get(GET_VRING_BASE, state(index, 0), state(index, 5)),
        ]);
    }
    // Waking up: the features are as before and not sent again.
    peer.hears([tell(SET_MEM_TABLE, table(&regions)).fds(32)]);
    peer.hears(crosvm_ring(0, 5));
    peer.hears(crosvm_ring(1, 5));
    peer.has_started_both(256, 5);

    // A reboot: features come again in halves, now on top of those accepted before.
    for index in [0, 1] {
        let stop = get(GET_VRING_BASE, state(index, 0), state(index, 5));
        peer.hears([tell(SET_VRING_ENABLE, state(index, 0)), stop]);
    }
    peer.hears([tell(SET_FEATURES, word(ACCEPTED)), tell(SET_FEATURES, word(ACCEPTED))]);
    peer.hears(crosvm_ring(0, 0));
    assert!(peer.is_running(0));
}

/// MQ, REPLY_ACK, STATUS.
const VIRTIO_USER: u64 = 0x1_0009;

#[test]
fn dpdk_virtio_user_sets_call_descriptors_first_and_steps_the_status() {
    let mut peer = Peer::after([
        tell(SET_OWNER, vec![]),
        get(GET_FEATURES, vec![], word(OFFERED)),
        get(GET_PROTOCOL_FEATURES, vec![], word(PROTOCOL)),
        tell(SET_PROTOCOL_FEATURES, word(VIRTIO_USER)),
        get(GET_QUEUE_NUM, vec![], word(2)),
        sure(SET_STATUS, word(0)),
        sure(SET_STATUS, word(0x1)),
        sure(SET_STATUS, word(0x3)),
        tell(SET_VRING_CALL, word(0)).fds(1),
        tell(SET_VRING_CALL, word(1)).fds(1),
        sure(SET_FEATURES, word(ACCEPTED)),
        sure(SET_STATUS, word(0xb)),
        get(GET_STATUS, vec![], word(0xb)),
        // Guest addresses are the process's own.
        sure(SET_MEM_TABLE, table(&[[REGION[2], REGION[1], REGION[2], 0]])).fds(1),
    ]);
    for index in [0, 1] {
        peer.hears([
            tell(SET_VRING_NUM, state(index, 256)),
            tell(SET_VRING_BASE, state(index, 0)),
            tell(SET_VRING_ADDR, address(index, 0, parts(index))),
            tell(SET_VRING_KICK, word(index.into())).fds(1),
        ]);
    }
    peer.hears([
        tell(SET_VRING_ENABLE, state(0, 1)),
        tell(SET_VRING_ENABLE, state(1, 1)),
        sure(SET_STATUS, word(0xf)),
        get(GET_STATUS, vec![], word(0xf)),
    ]);
    peer.has_started_both(256, 0);

    peer.hears([
        tell(SET_VRING_ENABLE, state(0, 0)),
        get(GET_VRING_BASE, state(0, 0), state(0, 0)),
        get(GET_VRING_BASE, state(1, 0), state(1, 0)),
        sure(SET_STATUS, word(0)),
    ]);
    assert_eq!(peer.connection.status(), 0);
}

#[test]
fn rust_vmm_asks_for_an_acknowledgement_while_it_negotiates_it() {
    let mut peer = Peer::after([
        tell(SET_OWNER, vec![]),
        get(GET_FEATURES, vec![], word(OFFERED)),
        get(GET_PROTOCOL_FEATURES, vec![], word(PROTOCOL)),
        sure(SET_PROTOCOL_FEATURES, word(PROTOCOL)),
        get(GET_QUEUE_NUM, vec![], word(2)).need_reply(),
        get(GET_MAX_MEM_SLOTS, vec![], word(509)).need_reply(),
        sure(SET_FEATURES, word(ACCEPTED)),
        sure(SET_MEM_TABLE, table(&[REGION])).fds(1),
        sure(ADD_MEM_REG, single(ADDED)).fds(1),
        sure(SET_VRING_NUM, state(0, 64)),
        sure(SET_VRING_BASE, state(0, 0)),
        sure(SET_VRING_ADDR, address(0, 0, parts(0))),
        sure(SET_VRING_CALL, word(0)).fds(1),
        sure(SET_VRING_ERR, word(0)).fds(1),
        sure(SET_VRING_KICK, word(0)).fds(1),
        sure(SET_VRING_ENABLE, state(0, 1)),
        sure(REM_MEM_REG, single(ADDED)).fds(1),
        get(GET_VRING_BASE, state(0, 0), state(0, 0)).need_reply(),
        sure(RESET_DEVICE, vec![]),
        sure(RESET_OWNER, vec![]),
    ]);
    assert_eq!(peer.take_starts(), [started(0, 64, 0, false)]);
}
