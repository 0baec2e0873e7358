//! What a virtio device is to the core.

use std::fmt;
use std::sync::Arc;

use crate::batch_size::half;
use crate::memory::Parts;
use crate::request::{Batch, Request};

/// A configuration write that the device did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRefused(pub String);

impl fmt::Display for ConfigRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a device found when it took what it shares with other processes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Acquired {
    /// Its configuration space is not as it was: the front-end is to be told.
    pub config_changed: bool,
    /// What the user should know.
    pub warning: Option<String>,
}

/// Why a device cannot be used now: no ring of it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a device keeps what it shares with other processes though no ring of it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotGivenUp(pub String);

impl fmt::Display for NotGivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a device saves is of this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateForm {
    /// A name that no other form has, at most 255 bytes.
    pub name: String,
    /// Grows when what is saved changes. A device takes what older versions have saved, or says in
    /// [`load`](Device::load) that it does not.
    pub version: u32,
}

/// A device did not save its state, or did not take one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRefused(pub String);

impl fmt::Display for StateRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A running virtqueue in the hands of a device that takes buffers from it by itself: from any
/// thread, when it has something to put into them.
pub trait QueueHandle: Send + Sync {
    /// Takes the next chain out of the ring. `None`: there is none, or the queue does not run.
    /// [`Device::buffers_available`] then tells when there is one.
    fn take(&self) -> Option<Request>;

    /// Puts `data` into the driver's next buffers, and publishes these together: wholly or not at
    /// all. Returns how many buffers that took; 0: there are not enough of them now, or the queue
    /// does not run. [`Device::buffers_available`] then tells when there are more.
    ///
    /// `most`: the most buffers that it may take. `count_at`: where in the data their number is to
    /// be written, as a little-endian `u16`.
    ///
    /// # Errors
    /// The data does not fit, however long one waits.
    fn send(&self, data: &dyn SendData, most: u16, count_at: Option<u64>) -> Result<u16, TooLarge>;

    /// Whether a call may wait: for another thread that uses the ring at this moment, or for guest
    /// memory that is mapped anew for each buffer.
    fn may_wait(&self) -> bool;
}

/// What a device puts into a driver's buffers.
pub trait SendData {
    /// Bytes.
    fn len(&self) -> u64;

    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies what begins at `from` to `to`, as many bytes as that has.
    fn copy_to(&self, from: u64, to: Parts<'_>);
}

/// Data that does not fit into the buffers that a driver makes available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes of the data.
    pub bytes: u64,
    /// Bytes of the buffers that might have been used.
    pub room: u64,
    /// How many buffers they are.
    pub buffers: u16,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, room, buffers } = self;
        write!(
            f,
            "{bytes} bytes do not fit into the driver's next {buffers} buffers of {room} bytes"
        )
    }
}

impl std::error::Error for TooLarge {}

/// A virtio device. One value serves every connection of a back-end, one after the other, and
/// all its queues, possibly from several threads at once.
pub trait Device: Send + Sync + 'static {
    /// The device type's number: VIRTIO 1.3, "Device Types".
    fn virtio_id(&self) -> u32;

    /// The device type's feature bits. The core adds the ring's and the transport's own.
    fn features(&self) -> u64;

    /// Whether the device is a transitional one, which serves drivers without VERSION_1 too: VIRTIO
    /// 1.3, "Legacy Interface: A Note on Feature Negotiation" and the notes on the legacy interface
    /// with the device type. Its requests and its configuration space must then be the same for
    /// both, but for the order of bytes, which is the guest's own: such drivers are served on
    /// little-endian hosts only.
    fn is_transitional(&self) -> bool {
        false
    }

    /// How many virtqueues the device has.
    fn num_queues(&self) -> u16;

    /// The largest ring that the device takes, a power of two.
    fn max_queue_size(&self) -> u16;

    /// Bytes of the configuration space.
    fn config_len(&self) -> usize;

    /// Copies the configuration space from `offset` on. Bytes past its end are left as they are
    /// (the caller has zeroed them).
    fn read_config(&self, offset: usize, out: &mut [u8]);

    /// Takes a write to the configuration space. The default refuses all.
    fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), ConfigRefused> {
        let len = data.len();
        Err(ConfigRefused(format!(
            "offset {offset}, {len} bytes: this device's configuration is read-only"
        )))
    }

    /// The driver accepted these features (the device type's and the ring's).
    fn negotiated(&self, features: u64) {
        let _ = features;
    }

    /// The first ring is about to start. The device takes what its guest leaves behind in another
    /// back-end, which has [released](Self::release) it. May be called again while it has it.
    ///
    /// # Errors
    /// Somebody else has it. The ring does not start, and the front-end's message fails.
    fn acquire(&self) -> Result<Acquired, Unavailable> {
        Ok(Acquired::default())
    }

    /// No ring runs: the last has stopped, or the first did not start. The device gives up what its
    /// guest may need in another back-end, before the front-end hears of the stop. `settled`: the
    /// device has no request any more. Else requests that did not come back in time are still in
    /// its hands, be they failed or recorded, and it is asked once more when the front-end is gone.
    ///
    /// # Errors
    /// It was not given up. The ring has stopped all the same.
    fn release(&self, settled: bool) -> Result<(), NotGivenUp> {
        let _ = settled;
        Ok(())
    }

    /// The first ring of a session has started.
    fn started(&self) {}

    /// The last ring has stopped.
    fn stopped(&self) {}

    /// A ring has started; `handle` is there for it until it stops.
    fn queue_started(&self, queue: u16, handle: Arc<dyn QueueHandle>) {
        let _ = (queue, handle);
    }

    /// A ring is about to stop. No more of it is taken; requests that the device still holds are
    /// waited for, but for those whose claim it has
    /// [parked](crate::request::RequestClaim::park).
    fn queue_stopping(&self, queue: u16) {
        let _ = queue;
    }

    /// Whether the device takes the buffers of this queue by itself: they are then not given to
    /// [`handle`](Self::handle).
    fn receives(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }

    /// A queue that the device takes buffers from by itself has some, or has more after there were
    /// too few.
    fn buffers_available(&self, queue: u16) {
        let _ = queue;
    }

    /// The driver reset the device: back to the initial state. No ring runs; where the front-end
    /// did not tell and a ring shows it that starts, none runs but those that started just before
    /// it. Features are negotiated anew.
    fn reset(&self) {}

    /// What the driver has set that holds beyond this process: after a crash the next one takes it, by
    /// a record of requests in flight. `None`: it can set nothing of that kind.
    fn setting(&self) -> Option<u8> {
        None
    }

    /// Takes the [`setting`](Self::setting) of a process that died; one that there is not changes
    /// nothing. No ring runs.
    fn take_setting(&self, setting: u8) {
        let _ = setting;
    }

    /// What the device saves, if it has a state that a front-end is to carry to another back-end:
    /// what a driver has set or is owed, and neither its data nor what it was made with.
    fn state_form(&self) -> Option<StateForm> {
        None
    }

    /// Saves the state. No ring runs, and the rings may go on afterwards: nothing is given up. On a
    /// thread of its own, as is [`load`](Self::load).
    ///
    /// # Errors
    /// The migration or the snapshot fails, and the driver goes on here.
    fn save(&self) -> Result<Vec<u8>, StateRefused> {
        Err(StateRefused("this device has no state to save".to_owned()))
    }

    /// Takes a state, of this `version` of its form, in place of the present one. No ring runs, and
    /// there may have been neither memory nor features yet. Who refuses it changes nothing.
    ///
    /// # Errors
    /// The machine does not go on here.
    fn load(&self, version: u32, state: &[u8]) -> Result<(), StateRefused> {
        let _ = (version, state);
        Err(StateRefused("this device has no state to load".to_owned()))
    }

    /// The front-end is gone and its memory with it.
    fn disconnected(&self) {}

    /// Runs `body`, the whole life of one worker thread, between whatever the device needs
    /// around it.
    fn run_worker(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }

    /// How many of the requests that are available to hand over at once; the back-end's own limit
    /// holds too. See [`crate::batch_size`].
    fn batch_limit(&self, queue: u16, available: u16) -> u16 {
        let _ = queue;
        half(available)
    }

    /// Whether [`handle`](Self::handle) may return while requests of the batch are neither
    /// completed nor left in it. A device that never keeps one says so: the memory of a batch is
    /// then mapped at once, where it has to be. To say so and keep one is safe, and holds up the
    /// answers of the batch.
    fn keeps_requests(&self) -> bool {
        true
    }

    /// Whether the data of each request is to be mapped for as long as the device has it, where it
    /// would be copied else because that is cheaper. For devices that show it to others as it
    /// lies.
    fn wants_mappings(&self) -> bool {
        false
    }

    /// The most bytes of one request, both directions together. The driver may describe any number
    /// of bytes, up to the length of a chain times 4 GiB, out of little memory: a device that makes
    /// room for them says how far it goes. A longer request is [refused](Self::refuse).
    fn max_request_bytes(&self) -> u64 {
        u64::MAX
    }

    /// Bytes of each request that are no data, such as a disk's header and status: what is counted
    /// as moved is without them.
    fn framing_bytes(&self) -> u64 {
        0
    }

    /// The names of the operations that requests are counted by; the first is that of all whose
    /// operation is not [marked](Request::mark_operation).
    fn operations(&self) -> &'static [&'static str] {
        &["request"]
    }

    /// Answers a request that `handle` does not get to see, or whose answer could not be written:
    /// some of its memory cannot be reached, or it is too long. Of a request with a
    /// [fault](Request::fault) nothing is to be read, and what can be written may lack its
    /// beginning, but not its last byte if that can be reached. Writes whatever says so; returns
    /// the bytes written.
    fn refuse(&self, queue: u16, request: &Request) -> u32 {
        let _ = (queue, request);
        0
    }

    /// Whether a request that the device keeps may be left unfinished when the machine stops, to be
    /// done from its beginning later, perhaps by another back-end: whatever the device still does
    /// for it changes nothing but the request's own memory. A read of a disk is one; a write is
    /// not: carried out late, it would undo what was written to the same place meanwhile.
    fn can_be_left(&self, queue: u16, request: &Request) -> bool {
        let _ = (queue, request);
        false
    }

    /// Handles what the driver made available on `queue`. Requests that are left in the batch
    /// stay in the ring and are offered again at the next kick.
    fn handle(&self, queue: u16, batch: &mut Batch);
}
