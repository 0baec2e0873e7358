//! A second, small state machine, written from the specification and apart from the crate: given
//! the raw bytes of a message it says what must be answered, what the back-end must be asked to
//! do and what the state is afterwards.

use vhost_user_core::address::{Iova, UserAddr};
use vhost_user_core::connection::IotlbChange;

use super::support::*;

pub(crate) const QUEUES: usize = 3;
pub(crate) const SLOTS: u64 = 4;
const VERSION_1: u64 = 1 << 32;
const BIT_30: u64 = 1 << 30;
const RESET_DEVICE_BIT: u64 = 1 << 13;
const GPA_ADDRESSES: u64 = 1 << 21;
const BACKEND_REQ: u64 = 1 << 5;

/// A message as sent, and how the back-end will behave if it is asked to act.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) number: u32,
    pub(crate) flags: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: usize,
    /// The back-end fails.
    pub(crate) fails: bool,
    /// Where a ring would be stopped.
    pub(crate) base: u16,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    size: u32,
    parts: Option<[u64; 3]>,
    used_log: Option<u64>,
    /// Where it stands, and whether that is a place in a packed ring.
    base: Option<(u32, bool)>,
    pub(crate) started: bool,
    pub(crate) enabled: bool,
    stopped_once: bool,
    /// Where it stood when it stopped: size, parts, base and features.
    stood: Option<(u32, [u64; 3], u32, u64)>,
}

impl Ring {
    pub(crate) fn base(&self, packed: bool) -> u32 {
        let beginning = if packed { 0x8000_8000 } else { 0 };
        self.base.filter(|base| base.1 == packed).map_or(beginning, |base| base.0)
    }

    /// Whether all that was said of it fits a ring of this kind.
    fn fits(&self, packed: bool) -> bool {
        let aligned = self.parts.is_some_and(|parts| is_aligned(parts, packed));
        let base = self.base(packed);
        let inside = |slot: u32| !packed || slot & 0x7fff < self.size;
        aligned && (packed || self.size.is_power_of_two()) && inside(base) && inside(base >> 16)
    }
}

fn is_aligned(parts: [u64; 3], packed: bool) -> bool {
    let available = if packed { 3 } else { 1 };
    parts[0] & 15 == 0 && parts[1] & available == 0 && parts[2] & 3 == 0
}

/// A packed ring's position has two halves; the lower one may stand for both.
fn position(word: u32, packed: bool) -> Option<u32> {
    match (packed, word >> 16) {
        (true, 0) => Some(word << 16 | word),
        (true, _) | (false, 0) => Some(word),
        (false, _) => None,
    }
}

/// Whether the device has been reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Device {
    #[default]
    InUse,
    /// Reset, and touched by nothing since.
    Clean,
    /// Every ring stands still, and none has shown yet whether the same driver goes on.
    Open,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) features: u64,
    pub(crate) protocol: u64,
    pub(crate) rings: [Ring; QUEUES],
    pub(crate) channel: bool,
    enable_at_start: bool,
    regions: u64,
    written_status: u8,
    reset_needed: bool,
    device: Device,
    /// A state is on its way in.
    loading: bool,
    /// POSTCOPY_ADVISE and POSTCOPY_LISTEN came.
    advised: bool,
    listening: bool,
    /// How many regions there will be once they are acknowledged.
    awaited: Option<u64>,
}

/// How a message says that it was refused.
#[derive(Clone, Copy)]
enum Refused {
    /// 1, if an acknowledgement was asked for.
    Ack,
    /// It cannot say it.
    Close,
    /// No payload.
    Empty,
    /// This number.
    Code(u64),
    /// So many zeroes.
    Zeroes(usize),
}

/// Needs no protocol feature.
const FREE: u64 = 0;
/// Needs something that this back-end never offers.
const NEVER: u64 = 1 << 63;

/// Number, least and most payload bytes, least and most descriptors, protocol feature, refusal.
type Row = (u32, (usize, usize), (usize, usize), u64, Refused);

const ROWS: [Row; 44] = [
    (1, (0, 0), (0, 0), FREE, Refused::Close),
    (2, (8, 8), (0, 0), FREE, Refused::Ack),
    (3, (0, 0), (0, 0), FREE, Refused::Ack),
    (4, (0, 0), (0, 0), FREE, Refused::Ack),
    (5, (40, 8 + 32 * 32), (1, 32), FREE, Refused::Ack),
    // Without LOG_SHMFD it has no answer of its own, and is refused by an acknowledgement.
    (6, (16, 16), (1, 1), 1 << 1, Refused::Close),
    (7, (0, 0), (1, 1), 1 << 1, Refused::Ack),
    (8, (8, 8), (0, 0), FREE, Refused::Ack),
    (9, (40, 40), (0, 0), FREE, Refused::Ack),
    (10, (8, 8), (0, 0), FREE, Refused::Ack),
    (11, (8, 8), (0, 0), FREE, Refused::Close),
    (12, (8, 8), (0, 1), FREE, Refused::Ack),
    (13, (8, 8), (0, 1), FREE, Refused::Ack),
    (14, (8, 8), (0, 1), FREE, Refused::Ack),
    (15, (0, 0), (0, 0), FREE, Refused::Close),
    (16, (8, 8), (0, 0), FREE, Refused::Ack),
    (17, (0, 0), (0, 0), 1 << 0, Refused::Close),
    (18, (8, 8), (0, 0), FREE, Refused::Ack),
    (19, (8, 8), (0, 0), NEVER, Refused::Ack),
    (20, (8, 8), (0, 0), NEVER, Refused::Ack),
    (21, (0, 8), (1, 1), 1 << 5, Refused::Ack),
    (22, (32, 32), (0, 0), FREE, Refused::Code(1)),
    (23, (8, 8), (0, 0), NEVER, Refused::Ack),
    (24, (12, 4096), (0, 0), 1 << 9, Refused::Empty),
    (25, (12, 4096), (0, 0), 1 << 9, Refused::Ack),
    (26, (0, 4096), (0, 0), NEVER, Refused::Close),
    (27, (8, 8), (0, 0), NEVER, Refused::Ack),
    (28, (0, 0), (0, 0), 1 << 8, Refused::Empty),
    (29, (0, 0), (0, 0), 1 << 8, Refused::Ack),
    (30, (0, 0), (0, 0), 1 << 8, Refused::Code(1)),
    (31, (20, 24), (0, 0), 1 << 12, Refused::Zeroes(24)),
    (32, (20, 24), (1, 1), 1 << 12, Refused::Ack),
    (33, (0, 0), (1, 1), NEVER, Refused::Ack),
    (34, (0, 0), (0, 0), 1 << 13, Refused::Ack),
    (35, (8, 8), (0, 0), NEVER, Refused::Ack),
    (36, (0, 0), (0, 0), 1 << 15, Refused::Close),
    (37, (40, 40), (1, 1), 1 << 15, Refused::Ack),
    (38, (40, 40), (0, 1), 1 << 15, Refused::Ack),
    (39, (8, 8), (0, 0), 1 << 16, Refused::Ack),
    (40, (0, 0), (0, 0), 1 << 16, Refused::Close),
    (41, (16, 16), (0, 0), NEVER, Refused::Empty),
    (42, (8, 8), (1, 1), 1 << 19, Refused::Code(0x101)),
    (43, (0, 0), (0, 0), 1 << 19, Refused::Code(1)),
    (44, (0, 0), (0, 0), NEVER, Refused::Close),
];

/// What a message that is not refused leads to: its answer, if it has one of its own, and what
/// the back-end is asked to do.
type Effect = (Option<Vec<u8>>, Option<Deed>);

impl Model {
    /// What must come back, and what the back-end must be asked to do; the state moves on.
    pub(crate) fn expect(&mut self, message: &Message) -> (Said, Option<Deed>) {
        if message.flags != PLAIN && message.flags != NEED_REPLY {
            return (Said::Closed, None);
        }
        let mut next = self.clone();
        let effect = next.admit(message).and_then(|()| next.apply(message));
        let Some((answer, deed)) = effect else {
            return (self.refusal(message), None);
        };
        if deed.is_some() && message.fails {
            // Who has asked knows, whatever the answer is.
            self.loading &= message.number != CHECK_DEVICE_STATE;
            return (self.refusal(message), deed);
        }
        *self = next;
        let said = match answer {
            Some(payload) => Said::Reply(payload),
            None if message.flags == NEED_REPLY => ack(),
            None => Said::Nothing,
        };
        (said, deed)
    }

    pub(crate) fn status(&self) -> u8 {
        self.written_status | if self.reset_needed { 0x40 } else { 0 }
    }

    pub(crate) fn reset_needed(&mut self) {
        self.reset_needed = true;
    }

    /// Fresh, negotiated, memory set, started, stopped, broken: as far as the connection has got.
    pub(crate) fn stage(&self) -> usize {
        let any = |test: fn(&Ring) -> bool| self.rings.iter().any(test);
        match () {
            () if self.reset_needed => 5,
            () if any(|ring| ring.started) => 3,
            () if any(|ring| ring.stopped_once) => 4,
            () if self.regions > 0 => 2,
            () if self.features != 0 || self.protocol != 0 => 1,
            () => 0,
        }
    }

    fn admit(&self, message: &Message) -> Option<()> {
        let &(_, bytes, fds, needs, _) = ROWS.iter().find(|row| row.0 == message.number)?;
        if self.is_acknowledgement(message) {
            return (self.protocol & needs == needs).then_some(());
        }
        let translates = message.number != 22 || self.features & ACCESS_PLATFORM != 0;
        let fits = translates
            && self.protocol & needs == needs
            && (bytes.0..=bytes.1).contains(&message.payload.len())
            && (fds.0..=fds.1).contains(&message.fds);
        fits.then_some(())
    }

    /// 8 bytes and no descriptor where regions come by postcopy.
    fn is_acknowledgement(&self, message: &Message) -> bool {
        let tells_regions = [SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG].contains(&message.number);
        self.listening && tells_regions && message.payload.len() == 8 && message.fds == 0
    }

    fn acknowledge(&mut self, payload: &[u8]) -> Option<Effect> {
        (quad(payload, 0) == 0).then_some(())?;
        let Some(regions) = self.awaited.take() else { return nothing() };
        self.regions = regions;
        deed(Deed::UseAwaited)
    }

    fn apply(&mut self, message: &Message) -> Option<Effect> {
        let payload = &message.payload[..];
        if self.is_acknowledgement(message) {
            return self.acknowledge(payload);
        }
        match message.number {
            1 => answer(word(OFFERED)),
            2 => self.features(quad(payload, 0), message.flags),
            3 | 4 => nothing(),
            5 => self.table(payload, message.fds),
            6 => {
                let (bytes, offset) = (quad(payload, 0), quad(payload, 8));
                bytes.checked_add(offset).filter(|_| bytes > 0)?;
                Some((Some(payload.to_vec()), Some(Deed::SetLog { bytes, offset })))
            }
            7 => deed(Deed::LogEvent),
            8 => {
                let num = long(payload, 4);
                let power = self.is_packed() || num.is_power_of_two();
                let fits = power && num > 0 && num <= u32::from(MAX_QUEUE_SIZE);
                self.stopped_ring(payload)?.size = fits.then_some(num)?;
                nothing()
            }
            9 => self.addresses(payload),
            10 => {
                let packed = self.is_packed();
                let base = position(long(payload, 4), packed)?;
                self.stopped_ring(payload)?.base = Some((base, packed));
                nothing()
            }
            11 => self.base(long(payload, 0), message.base),
            12 => self.kick(payload, message.fds),
            13 => {
                let (index, fd) = vring_fd(payload, message.fds)?;
                deed(Deed::Call { index, fd })
            }
            14 => {
                let (index, fd) = vring_fd(payload, message.fds)?;
                deed(Deed::Error { index, fd })
            }
            15 => answer(word(PROTOCOL)),
            16 => {
                let protocol = quad(payload, 0);
                let addresses_change = (protocol ^ self.protocol) & GPA_ADDRESSES != 0;
                let started = self.rings.iter().any(|ring| ring.started);
                let leaves_without_record = protocol & (1 << 20 | 1 << 12) == 1 << 20;
                let taken = protocol & !PROTOCOL == 0
                    && !(addresses_change && started)
                    && !leaves_without_record;
                self.protocol = taken.then_some(protocol)?;
                nothing()
            }
            17 => answer(word(QUEUES as u64)),
            18 => {
                let (index, num) = (long(payload, 0), long(payload, 4));
                let enabled = [false, true].into_iter().nth(num as usize)?;
                self.rings.get_mut(index as usize)?.enabled = enabled;
                deed(Deed::Enable { index: index as u16, enabled })
            }
            21 => {
                self.channel = matches!(payload.len(), 0 | 8).then_some(true)?;
                deed(Deed::Channel)
            }
            22 => {
                let change = iotlb_change(payload)?;
                Some((Some(word(0)), Some(Deed::Iotlb(change))))
            }
            24 => {
                let (offset, data) = config_range(payload, 0x1000)?;
                let size = data.len() as u32;
                let bytes = config_bytes(offset, size);
                let reply = config(offset, long(payload, 8), &bytes);
                Some((Some(reply), Some(Deed::ReadConfig { offset, size })))
            }
            25 => {
                let (offset, data) = config_range(payload, CONFIG_LEN as u64)?;
                self.touch();
                deed(Deed::WriteConfig { offset, data: data.to_vec() })
            }
            28 => {
                (!self.listening).then_some(())?;
                self.advised = true;
                Some((Some(vec![]), Some(Deed::Advise)))
            }
            29 => {
                (self.advised && self.regions == 0).then_some(())?;
                self.listening = true;
                nothing()
            }
            30 => {
                self.awaited.is_none().then_some(())?;
                (self.advised, self.listening) = (false, false);
                Some((Some(word(0)), Some(Deed::EndPostcopy)))
            }
            31 => {
                let (queues, entries) = good_record(payload)?;
                let answer = inflight(RECORD, 0, queues, entries);
                Some((Some(answer), Some(Deed::MakeRecord { queues, entries })))
            }
            32 => {
                let (queues, entries) = good_record(payload)?;
                let running = self.rings.iter().any(|ring| ring.started);
                let bytes = (!running).then(|| quad(payload, 0))?;
                deed(Deed::SetRecord { queues, entries, bytes })
            }
            34 => {
                let reset = self.device != Device::Clean;
                self.reset();
                self.clean();
                deed(Deed::StopRings { reset })
            }
            36 => answer(word(SLOTS)),
            37 => {
                let region = good_region(payload, 8)?;
                if self.listening {
                    let known = self.awaited.unwrap_or(self.regions);
                    self.awaited = (known < SLOTS).then_some(Some(known + 1))?;
                    let [guest, size, _, offset] = region;
                    let answer = single([guest, size, place(0), offset]);
                    let regions = vec![region];
                    return Some((
                        Some(answer),
                        Some(Deed::AwaitMemory { regions, replace: false }),
                    ));
                }
                self.regions = (self.regions < SLOTS).then_some(self.regions + 1)?;
                deed(Deed::AddRegion(region))
            }
            38 => {
                self.awaited.is_none().then_some(())?;
                let [guest, size, user, _] = good_region(payload, 8)?;
                self.regions = self.regions.checked_sub(1)?;
                deed(Deed::RemoveRegion([guest, size, user]))
            }
            39 => self.set_status(quad(payload, 0), message.base),
            40 => answer(word(self.status().into())),
            42 => {
                let load = [false, true].into_iter().nth(long(payload, 0) as usize)?;
                let stopped = self.rings.iter().all(|ring| !ring.started);
                (stopped && long(payload, 4) == 0).then_some(())?;
                self.loading = load;
                if load {
                    self.settle();
                }
                Some((Some(word(0x100)), Some(Deed::Transfer { load })))
            }
            43 => {
                self.loading = false;
                Some((Some(word(0)), Some(Deed::Await)))
            }
            number => panic!("message {number} needs what is never offered"),
        }
    }

    fn features(&mut self, features: u64, flags: u32) -> Option<Effect> {
        let ignored = features & NOT_OFFERED_AND_HARMLESS;
        let features = features - ignored;
        if features & !OFFERED != 0 {
            return None;
        }
        if self.features == 0 && flags == PLAIN && features < VERSION_1 {
            return nothing();
        }
        let running = self.rings.iter().any(|ring| ring.started);
        // VERSION_1 is required in any case, and by RING_PACKED too.
        if features & VERSION_1 == 0 || (running && (features ^ self.features) & !LOG_ALL != 0) {
            return None;
        }
        let enable_all = features & BIT_30 == 0;
        self.features = features;
        self.enable_at_start = enable_all;
        if enable_all {
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        deed(Deed::Features { features, enable_all, ignored })
    }

    fn table(&mut self, payload: &[u8], fds: usize) -> Option<Effect> {
        let count = long(payload, 0) as usize;
        if count == 0 || count != fds || payload.len() != 8 + 32 * count {
            return None;
        }
        let regions = (0..count).map(|n| good_region(payload, 8 + 32 * n));
        let regions = regions.collect::<Option<Vec<RawRegion>>>()?;
        if self.listening {
            self.awaited = Some(count as u64);
            let there = |(n, &[guest, size, _, offset]): (usize, &RawRegion)| {
                [guest, size, place(n), offset]
            };
            let answer = table(&regions.iter().enumerate().map(there).collect::<Vec<_>>());
            return Some((Some(answer), Some(Deed::AwaitMemory { regions, replace: true })));
        }
        self.regions = count as u64;
        deed(Deed::SetMemory(regions))
    }

    fn addresses(&mut self, payload: &[u8]) -> Option<Effect> {
        let packed = self.is_packed();
        let ring = self.rings.get_mut(long(payload, 0) as usize)?;
        let parts = [quad(payload, 8), quad(payload, 24), quad(payload, 16)];
        let aligned = is_aligned(parts, packed);
        let changed = ring.parts != Some(parts);
        if long(payload, 4) > 1 || !aligned || (ring.started && changed) {
            return None;
        }
        ring.parts = Some(parts);
        ring.used_log = (long(payload, 4) == 1).then(|| quad(payload, 32));
        if !ring.started {
            return nothing();
        }
        deed(Deed::LogUsedRing { index: payload[0].into(), at: ring.used_log })
    }

    fn base(&mut self, index: u32, stopped_at: u16) -> Option<Effect> {
        let packed = self.is_packed();
        let ring = self.rings.get_mut(index as usize)?;
        if !ring.started {
            return answer(state(index, ring.base(packed)));
        }
        ring.stopped_once = true;
        self.stop(index as usize, stopped_at);
        let stop = Deed::Stop { index: index as u16 };
        let base = self.rings[index as usize].base(packed);
        Some((Some(state(index, base)), Some(stop)))
    }

    fn kick(&mut self, payload: &[u8], fds: usize) -> Option<Effect> {
        let (index, fd) = vring_fd(payload, fds)?;
        let translates = self.features & ACCESS_PLATFORM != 0;
        let can_ask = self.protocol & BACKEND_REQ != 0;
        let can_start =
            self.regions > 0 && self.features & VERSION_1 != 0 && (!translates || can_ask);
        let (enable_at_start, packed) = (self.enable_at_start, self.is_packed());
        let ring = &mut self.rings[usize::from(index)];
        if ring.started {
            return deed(Deed::ReplaceKick { index, fd });
        }
        let whole = ring.size != 0 && ring.fits(packed);
        if !whole || !can_start || self.loading || self.awaited.is_some() {
            return None;
        }
        let (size, parts, used_log) = (ring.size, ring.parts?, ring.used_log);
        let base = ring.base(packed);
        let features = self.features & !BIT_30 & !LOG_ALL;
        let stood = ring.stood.take();
        ring.started = true;
        ring.enabled |= enable_at_start;
        let enabled = ring.enabled;
        let goes_on = stood.map(|stood| stood == (size, parts, base, features));
        let reset = self.device == Device::Open && goes_on == Some(false);
        let beginning = if packed { 0x8000_8000 } else { 0 };
        let tells = goes_on.is_some_and(|same| !same || base != beginning);
        if self.device != Device::Open || tells {
            self.settle();
        }
        let size = size as u16;
        deed(Deed::Start { index, size, parts, base, enabled, features, used_log, reset })
    }

    fn stop(&mut self, index: usize, at: u16) {
        let (features, packed) = (self.features & !BIT_30 & !LOG_ALL, self.is_packed());
        let ring = &mut self.rings[index];
        ring.started = false;
        ring.base = position(at.into(), packed).map(|base| (base, packed));
        // Where no ring of its kind can stand no ring goes on.
        let whole = ring.parts.filter(|_| ring.fits(packed));
        ring.stood = whole.map(|parts| (ring.size, parts, ring.base(packed), features));
        let running = self.rings.iter().any(|ring| ring.started);
        self.device = if running { Device::InUse } else { Device::Open };
    }

    fn is_packed(&self) -> bool {
        self.features & 1 << 34 != 0
    }

    /// The same driver is at work.
    fn settle(&mut self) {
        self.device = Device::InUse;
        self.rings.iter_mut().for_each(|ring| ring.stood = None);
    }

    fn clean(&mut self) {
        self.settle();
        self.device = Device::Clean;
    }

    fn touch(&mut self) {
        if self.device == Device::Clean {
            self.device = Device::InUse;
        }
    }

    fn set_status(&mut self, value: u64, stopped_at: u16) -> Option<Effect> {
        let byte = u8::try_from(value).ok()?;
        if byte == 0 {
            let reset = self.protocol & RESET_DEVICE_BIT == 0 && self.device != Device::Clean;
            for index in (0..QUEUES).filter(|&index| self.rings[index].started).collect::<Vec<_>>()
            {
                self.stop(index, stopped_at);
            }
            let kept = self.rings.clone().map(|ring| (ring.base, ring.stood));
            self.reset();
            for (ring, (base, stood)) in self.rings.iter_mut().zip(kept) {
                (ring.base, ring.stood) = (base, stood);
            }
            if reset {
                self.clean();
            }
            return deed(Deed::StopRings { reset });
        }
        let unhappy = if self.features & VERSION_1 == 0 { 0x8 } else { 0 };
        self.written_status = byte & !unhappy;
        self.touch();
        if self.written_status & 0x4 != 0 && self.rings.iter().any(|ring| ring.started) {
            self.settle();
        }
        deed(Deed::Status(self.written_status))
    }

    fn reset(&mut self) {
        self.rings = Default::default();
        self.written_status = 0;
        self.reset_needed = false;
    }

    fn stopped_ring(&mut self, payload: &[u8]) -> Option<&mut Ring> {
        self.rings.get_mut(long(payload, 0) as usize).filter(|ring| !ring.started)
    }

    fn refusal(&self, message: &Message) -> Said {
        let row = ROWS.iter().find(|row| row.0 == message.number);
        let has_answer = message.number != 6 || self.protocol & 2 != 0;
        match row.filter(|_| has_answer).map_or(Refused::Ack, |row| row.4) {
            Refused::Ack if message.flags == NEED_REPLY => nack(),
            Refused::Ack | Refused::Close => Said::Closed,
            Refused::Empty => Said::Refused(vec![]),
            Refused::Code(code) => Said::Refused(word(code)),
            Refused::Zeroes(count) => Said::Refused(vec![0; count]),
        }
    }
}

fn nothing() -> Option<Effect> {
    Some((None, None))
}

fn answer(payload: Vec<u8>) -> Option<Effect> {
    Some((Some(payload), None))
}

fn deed(deed: Deed) -> Option<Effect> {
    Some((None, Some(deed)))
}

fn long(payload: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(payload[offset..offset + 4].try_into().unwrap())
}

fn quad(payload: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(payload[offset..offset + 8].try_into().unwrap())
}

/// The index of an existing ring, and whether there is a descriptor.
fn vring_fd(payload: &[u8], fds: usize) -> Option<(u16, bool)> {
    let value = quad(payload, 0);
    let (index, without) = (value & 0xff, value & 0x100 != 0);
    let good = value < 0x200 && index < QUEUES as u64 && without == (fds == 0);
    good.then_some((index as u16, fds == 1))
}

fn good_region(payload: &[u8], at: usize) -> Option<RawRegion> {
    let raw @ [guest, size, user, offset] = [0, 8, 16, 24].map(|n| quad(payload, at + n));
    let ends = [guest, user, offset].map(|start| u128::from(start) + u128::from(size));
    let good = size > 0 && size <= 1 << 46 && ends.iter().all(|end| *end < 1 << 64);
    good.then_some(raw)
}

/// A translation that is told, or an invalidation.
fn iotlb_change(payload: &[u8]) -> Option<IotlbChange> {
    let [iova, size, to] = [0, 8, 16].map(|at| quad(payload, at));
    let (access, kind) = (payload[24], payload[25]);
    match kind {
        _ if access > 3 => None,
        2 => Some(IotlbChange::Update {
            iova: Iova(iova),
            size,
            to: UserAddr(to),
            read: access & 1 != 0,
            write: access & 2 != 0,
        }),
        3 if iova == 0 && (size == 0 || size == u64::MAX) => {
            Some(IotlbChange::Invalidate { first: Iova(0), last: Iova(u64::MAX) })
        }
        3 => {
            let last = u128::from(iova) + u128::from(size);
            let good = size > 0 && last <= 1 << 64;
            let last = Iova(iova.wrapping_add(size).wrapping_sub(1));
            good.then_some(IotlbChange::Invalidate { first: Iova(iova), last })
        }
        _ => None,
    }
}

/// Queues and entries of a record that lies somewhere.
fn good_record(payload: &[u8]) -> Option<(u16, u16)> {
    quad(payload, 0).checked_add(quad(payload, 8))?;
    let short = |at: usize| u16::from_ne_bytes([payload[at], payload[at + 1]]);
    let well_formed = [20, 24].contains(&payload.len());
    let queues = well_formed.then(|| short(16))?;
    (1..=QUEUES as u16).contains(&queues).then(|| (queues, short(18)))
}

fn config_range(payload: &[u8], limit: u64) -> Option<(u32, &[u8])> {
    let (offset, size, flags) = (long(payload, 0), long(payload, 4), long(payload, 8));
    let data = &payload[12..];
    let end = u64::from(offset) + u64::from(size);
    let good = size > 0 && size as usize == data.len() && end <= limit && flags < 4;
    good.then_some((offset, data))
}
