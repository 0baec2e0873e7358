//! A driver of network devices for back-ends that send each packet back: `peers-packets SOCKET
//! COUNT [packed] [in-order]` listens at SOCKET, takes the back-end that connects, sends
//! COUNT packets with known bytes, and ends with status 0 when each has come back once, whole and
//! in order.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost_user_core::address::GuestAddr;
use vhost_user_core::frontend::{
    Client, GuestMemory, Ring, RingFeatures, Segment, UsedChain, Wanted,
};
use vhost_user_core::socket::Stream;
use vhost_user_core::wire::ProtocolFeatures;
use vhost_user_core::wire::features::{EVENT_IDX, INDIRECT_DESC};

type Error = Box<dyn std::error::Error>;

const LIMIT: Duration = Duration::from_secs(60);
const MEMORY: u64 = 16 << 20;
const RING: u16 = 256;
/// Where the rings are, and the buffers for packets that come and packets that go.
const RINGS: [u64; 2] = [0, 0x1_0000];
const RECEIVE: u64 = 1 << 20;
const SEND: u64 = 8 << 20;
/// Bytes of a buffer, and of the header in front of a packet.
const BUFFER: u64 = 2048;
const HEADER: usize = 12;
/// Device status: ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK.
const DRIVER_OK: u8 = 0x0f;
/// The number of the packets that are sent until one comes back: a switch may throw away what comes
/// before it is ready.
const KNOCK: u64 = u64::MAX;
const BETWEEN_KNOCKS: Duration = Duration::from_millis(20);
/// Packets on their way at most: a device with no room for one throws it away.
const ON_THEIR_WAY: u64 = 64;

struct Net {
    client: Client,
    memory: Arc<GuestMemory>,
    receive: Ring,
    send: Ring,
    free: Vec<u16>,
}

fn main() -> Result<(), Error> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [socket, count, rest @ ..] = words.as_slice() else {
        return Err("SOCKET COUNT [packed] [in-order]".into());
    };
    let has = |word: &str| rest.iter().any(|given| given == word);
    let (stream, _) = UnixListener::bind(socket)?.accept()?;
    let stream = Stream::new(OwnedFd::from(stream));
    let mut net = Net::start(stream, has("packed"), has("in-order"))?;
    net.run(count.parse()?)?;
    println!("{count} packets came back");
    Ok(())
}

/// What packet `number` holds.
fn packet(number: u64) -> Vec<u8> {
    let len = [60, 61, 590, 1514][number as usize % 4];
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word as u8
    });
    // Two addresses of nobody's, and the type of experiments (IEEE 802).
    let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    head.into_iter().chain(number.to_be_bytes()).chain(noise).take(len).collect()
}

impl Net {
    fn start(stream: Stream, packed: bool, in_order: bool) -> Result<Self, Error> {
        let mut client = Client::from_stream(stream, LIMIT);
        let wanted = Wanted { features: INDIRECT_DESC | EVENT_IDX, ..Wanted::default() };
        let negotiated = client.negotiate(&wanted.with_rings(packed, in_order))?;
        negotiated.need_ring_features(packed, in_order)?;
        client.set_features(negotiated.features)?;
        let memory = Arc::new(GuestMemory::with_size(MEMORY)?);
        client.set_memory(&memory)?;
        let event_idx = negotiated.features & EVENT_IDX != 0;
        let features = RingFeatures { packed, in_order, event_idx };
        let [receive, send] =
            RINGS.map(|base| Ring::new(&memory, GuestAddr(base), RING, 2, features));
        let free = (0..RING / 2).rev().collect();
        let mut net = Self { client, memory, receive: receive?, send: send?, free };
        (0..RING / 2).for_each(|token| net.give_buffer(token));
        for (index, ring) in [(0, &net.receive), (1, &net.send)] {
            net.client.start_ring(index, ring)?;
        }
        for index in [0, 1] {
            net.client.set_vring_enable(index, true)?;
        }
        if negotiated.protocol.contains(ProtocolFeatures::STATUS) {
            net.client.set_status(DRIVER_OK)?;
        }
        net.receive.publish();
        net.receive.kick();
        Ok(net)
    }

    /// Sends packets until one comes back.
    fn knock(&mut self) -> Result<(), Error> {
        let until = Instant::now() + LIMIT;
        loop {
            self.take_sent()?;
            // The next when the device has taken the last.
            if self.free.len() == usize::from(RING / 2)
                && let Some(token) = self.free.pop()
            {
                self.push(token, &packet(KNOCK))?;
                self.send.publish();
            }
            if self.receive.wait(BETWEEN_KNOCKS, self.client.as_fd())? {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!("no packet came back in {LIMIT:?}").into());
            }
        }
    }

    fn take_sent(&mut self) -> Result<(), Error> {
        while let Some(used) = self.send.pop()? {
            self.free.push(used.token);
        }
        Ok(())
    }

    fn run(&mut self, count: u64) -> Result<(), Error> {
        self.knock()?;
        let (mut sent, mut back) = (0, 0);
        while back < count {
            self.take_sent()?;
            while sent < count && sent - back < ON_THEIR_WAY {
                let Some(token) = self.free.pop() else { break };
                self.push(token, &packet(sent))?;
                sent += 1;
            }
            self.send.publish();
            if !self.receive.wait(LIMIT, self.client.as_fd())? {
                return Err(format!("{back} packets of {count} came back in {LIMIT:?}").into());
            }
            while let Some(used) = self.receive.pop()? {
                back += u64::from(self.check(used, back)?);
                self.give_buffer(used.token);
            }
            self.receive.publish();
        }
        Ok(())
    }

    /// Compares what came with packet `number`. `false`: it is one of those sent before.
    fn check(&self, used: UsedChain, number: u64) -> Result<bool, Error> {
        let expected = packet(number);
        let len = used.len.ok_or("a received packet without a length")? as usize;
        let mut found = vec![0; len];
        self.memory.read(buffer(RECEIVE, used.token), &mut found)?;
        if found.get(HEADER..) == Some(&packet(KNOCK)[..]) {
            return Ok(false);
        }
        if found.get(HEADER..) != Some(&expected[..]) {
            let why = format!("packet {number} of {} bytes is not what {len} hold", expected.len());
            return Err(why.into());
        }
        Ok(true)
    }

    fn give_buffer(&mut self, token: u16) {
        self.receive.push(token, &[Segment::writable(buffer(RECEIVE, token), BUFFER as u32)]);
    }

    /// Header and packet in a chain of two.
    fn push(&mut self, token: u16, packet: &[u8]) -> Result<(), Error> {
        let at = buffer(SEND, token);
        self.memory.write(at, &[0; HEADER])?;
        let data = GuestAddr(at.0 + HEADER as u64);
        self.memory.write(data, packet)?;
        let header = Segment::readable(at, HEADER as u32);
        self.send.push(token, &[header, Segment::readable(data, packet.len() as u32)]);
        Ok(())
    }
}

fn buffer(first: u64, token: u16) -> GuestAddr {
    GuestAddr(first + BUFFER * u64::from(token))
}
