//! Random messages: mostly sensible, often slightly wrong, sometimes noise.

use super::model::{Message, QUEUES};
use super::support::*;

/// SplitMix64: the same sequence for the same seed, on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True `percent` times in a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn message(&mut self) -> Message {
        let number = self.number();
        let (payload, fds) = self.sensible(number);
        self.finish(number, payload, fds)
    }

    /// The messages that bring a connection some way, not always all of them.
    pub(crate) fn prelude(&mut self) -> Vec<Message> {
        let depth = self.below(9) as usize;
        let steps: [(u32, Vec<u8>, usize); 8] = [
            (SET_PROTOCOL_FEATURES, word(PROTOCOL), 0),
            (SET_FEATURES, word(ACCEPTED), 0),
            (SET_MEM_TABLE, table(&[REGION]), 1),
            (SET_VRING_NUM, state(0, 64), 0),
            (SET_VRING_ADDR, address(0, 0, PARTS), 0),
            (SET_VRING_KICK, word(0), 1),
            (SET_VRING_ENABLE, state(0, 1), 0),
            (GET_VRING_BASE, state(0, 0), 0),
        ];
        let good = |(number, payload, fds)| Message {
            number,
            flags: NEED_REPLY,
            payload,
            fds,
            fails: false,
            base: 5,
        };
        steps.into_iter().take(depth).map(good).collect()
    }

    fn number(&mut self) -> u32 {
        const CARRIED_OUT: [u32; 39] = [
            1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 18, 21, 22, 24,
            25, 31, 32, 34, 36, 37, 38, 39, 42, 43, 43, 28, 29, 29, 30,
        ];
        match self.below(20) {
            0..16 => self.pick(&CARRIED_OUT),
            16..19 => self.below(47) as u32,
            _ => self.next() as u32,
        }
    }

    fn finish(&mut self, number: u32, mut payload: Vec<u8>, mut fds: usize) -> Message {
        match self.below(40) {
            0 => payload.push(0),
            1 => drop(payload.pop()),
            2 => {
                let len = self.below(80) as usize;
                payload = self.bytes(len);
            }
            3 | 4 if !payload.is_empty() => {
                let at = self.below(payload.len() as u64) as usize;
                payload[at] ^= 1 << self.below(8);
            }
            5 => fds = self.below(4) as usize,
            _ => {}
        }
        let flags = match self.below(200) {
            0 => self.next() as u32,
            1..40 => PLAIN,
            _ => NEED_REPLY,
        };
        Message { number, flags, payload, fds, fails: self.chance(5), base: self.next() as u16 }
    }

    /// A payload and a number of descriptors that often fit the message.
    fn sensible(&mut self, number: u32) -> (Vec<u8>, usize) {
        match number {
            // Regions that came by postcopy are acknowledged so.
            SET_MEM_TABLE | ADD_MEM_REG | REM_MEM_REG if self.chance(20) => {
                (word(u64::from(self.chance(5))), 0)
            }
            SET_FEATURES => (word(self.features()), 0),
            SET_MEM_TABLE => self.table(),
            SET_LOG_BASE => {
                let bytes = self.pick(&[0x2000, 0x2000, 1, 0, u64::MAX]);
                let offset = self.pick(&[0, 0, 0x1000, u64::MAX]);
                ([word(bytes), word(offset)].concat(), 1)
            }
            SET_VRING_NUM => {
                let num = self.pick(&[1, 4, 64, 64, 128, 256, 100, 0, 3, 512, 0x1_0000]);
                (state(self.index(), num), 0)
            }
            SET_VRING_ADDR => {
                let flags = self.pick(&[0, 0, 0, 0, 0, 1, 1, 1, 2]);
                let shift = self.pick(&[0, 0, 0, 0, 0, 16, 8, 4, 2, 1]);
                let log = self.pick(&[0x2000, 0x2000, 1, u64::MAX]);
                let parts = PARTS.map(|part| part + shift);
                (logged_address(self.index(), flags, parts, log), 0)
            }
            SET_VRING_BASE => {
                let base =
                    self.pick(&[0, 1, 300, 0xffff, 0x8000, 0x8000_8000, 0x0003_8002, 0x1_0000]);
                (state(self.index(), base), 0)
            }
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
                let without = self.chance(20);
                let value = u64::from(self.index()) | if without { 0x100 } else { 0 };
                (word(value), usize::from(!without))
            }
            SET_DEVICE_STATE_FD => (state(self.pick(&[0, 0, 1, 1, 1, 2]), 0), 1),
            SET_PROTOCOL_FEATURES => {
                let accepted = match self.below(4) {
                    0 => PROTOCOL & self.next(),
                    1 => PROTOCOL | 1 << self.below(64),
                    _ => PROTOCOL,
                };
                (word(accepted), 0)
            }
            SET_VRING_ENABLE => {
                let num = self.pick(&[0, 1, 1, 1, 2]);
                (state(self.index(), num), 0)
            }
            GET_VRING_BASE => (state(self.index(), 0), 0),
            SET_BACKEND_REQ_FD => (if self.chance(50) { vec![] } else { word(0) }, 1),
            IOTLB_MSG => {
                let iova = self.pick(&[0, 0, 0x1000, u64::MAX]);
                let size = self.pick(&[0x1000, 0x1000, 1, 0, u64::MAX]);
                let (access, kind) = (self.below(5) as u8, self.pick(&[2, 2, 3, 3, 1, 4, 5]));
                (iotlb(iova, size, 0x7f00_0000_0000, access, kind), 0)
            }
            GET_CONFIG | SET_CONFIG => self.config(),
            ADD_MEM_REG => (single(self.region()), 1),
            REM_MEM_REG => (single(self.region()), usize::from(self.chance(20))),
            GET_INFLIGHT_FD | SET_INFLIGHT_FD => {
                let queues = self.pick(&[0, 1, 1, 1, QUEUES as u16, QUEUES as u16 + 1]);
                let bytes = self.pick(&[0, RECORD, RECORD, u64::MAX]);
                let offset = self.pick(&[0, 0, 0, 0x1000]);
                let fds = usize::from(number == SET_INFLIGHT_FD);
                (inflight(bytes, offset, queues, 128), fds)
            }
            SET_STATUS => (word(self.pick(&[0, 1, 3, 8, 0xb, 0xf, 0x80, 0x100])), 0),
            7 | 33 => (vec![], 1),
            19 | 20 | 23 | 27 | 35 => (word(0), 0),
            _ => (vec![], 0),
        }
    }

    fn index(&mut self) -> u32 {
        match self.below(40) {
            0 => self.pick(&[QUEUES as u32, 0xff, 0x1_0000, u32::MAX]),
            1..20 => 0,
            _ => self.below(QUEUES as u64) as u32,
        }
    }

    fn features(&mut self) -> u64 {
        match self.below(8) {
            0 => DEVICE_FEATURES,
            1 => ACCEPTED & 0xffff_ffff,
            2 => OFFERED & self.next(),
            3 => ACCEPTED | 1 << self.below(64),
            4 => ACCEPTED | LOG_ALL | ACCESS_PLATFORM,
            5 => OFFERED & !LOG_ALL & !ACCESS_PLATFORM,
            6 => OFFERED,
            _ => ACCEPTED,
        }
    }

    fn region(&mut self) -> RawRegion {
        match self.below(12) {
            0 => [0, 0, 0, 0],
            1 => [0xffff_ffff_ffff_f000, 0x1000, 0, 0],
            2 => [0, 0x1000, u64::MAX, 0],
            3 => [0, 1 << (40 + self.below(24)), 0, 0],
            n => [n << 32, 0x1000, n << 32, 0],
        }
    }

    fn table(&mut self) -> (Vec<u8>, usize) {
        let count = self.pick(&[0, 1, 1, 1, 1, 2, 2, 3]);
        let regions: Vec<RawRegion> = (0..count)
            .map(|n| if self.chance(10) { self.region() } else { [n << 32, 0x1000, 0, 0] })
            .collect();
        let surplus = usize::from(self.chance(5));
        (table(&regions), regions.len() + surplus)
    }

    fn config(&mut self) -> (Vec<u8>, usize) {
        let offset = self.pick(&[0, 0, 0, 8, 59, 60, 4000, u32::MAX]);
        let size = self.pick(&[0, 1, 4, 8, 60, 61, 97]);
        let flags = self.pick(&[0, 0, 1, 2, 4]);
        (config(offset, flags, &vec![0xcc; size]), 0)
    }
}
