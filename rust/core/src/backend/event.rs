//! What a back-end reports to the program that runs it.

use std::fmt;

use crate::connection::Refusal;
use crate::device::NotGivenUp;
use crate::memory::Beyond;
use crate::ring_position::RingPosition;
use crate::wire::ProtocolFeatures;

/// Hears what happens. Called on the back-end's own threads, and on threads on which a device uses
/// a queue, possibly with that queue's lock held: it must neither block nor use the back-end.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn event(&self, event: Event);
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Of use in the search for a fault.
    Debug,
    /// The ordinary course of a back-end.
    Info,
    /// A front-end, a driver or a device did something wrong; service goes on.
    Warning,
    /// Service is impaired.
    Error,
}

/// Something that happened. `Display` gives one line for a log.
#[derive(Clone, Debug)]
pub enum Event {
    /// Front-ends can connect, at this place.
    Listening(String),
    /// A front-end has connected: the process at its end, as far as the system tells.
    Connected(String),
    /// The front-end has accepted these features, and the first ring starts with them.
    Negotiated {
        /// Virtio and vhost feature bits.
        features: u64,
        /// The names of these bits.
        names: String,
        /// Protocol features.
        protocol: ProtocolFeatures,
    },
    /// The front-end has set bits of the device type that were not offered. They are harmless, and
    /// do not count as accepted.
    FeaturesIgnored {
        /// These bits.
        features: u64,
        /// Their names.
        names: String,
    },
    /// A vring was started.
    QueueStarted {
        /// The vring's number.
        queue: u16,
        /// The ring's entries.
        size: u16,
        /// Where it starts.
        base: RingPosition,
        /// What the front-end named, if the ring says otherwise.
        instead_of: Option<RingPosition>,
    },
    /// Requests that a process had when it died come again, before any other.
    Resubmitted {
        /// The vring's number.
        queue: u16,
        /// The number of these requests.
        requests: u32,
    },
    /// A vring's requests in flight are not recorded: a crash would lose them.
    NotRecorded {
        /// The vring's number.
        queue: u16,
        /// Why not.
        why: String,
    },
    /// A vring was stopped.
    QueueStopped {
        /// The vring's number.
        queue: u16,
        /// Where it goes on.
        base: RingPosition,
    },
    /// The driver broke a vring, or its memory was taken away.
    QueueBroken {
        /// The vring's number.
        queue: u16,
        /// What was wrong.
        error: String,
    },
    /// A request failed before the device saw it: its memory could not be reached, or it was too
    /// long. Reported for the first request of each kind after each start of a vring.
    RequestFailed {
        /// The vring's number.
        queue: u16,
        /// What was wrong.
        error: String,
    },
    /// The dirty log is too short for the memory that a vring's requests were in: a front-end that
    /// copies the memory elsewhere does not hear of some writes. Reported once for each log.
    LogTooShort {
        /// The vring's number.
        queue: u16,
        /// What it has no bit for.
        beyond: Beyond,
    },
    /// A vring cannot be changed or stopped: guest memory that does not answer holds it up.
    HeldUp {
        /// The vring's number.
        queue: u16,
    },
    /// Memory of late requests could not be taken away from the device, for this reason.
    NotTaken(String),
    /// What the device shares with other processes is not as it was when its rings stopped.
    DeviceChanged(String),
    /// The device keeps from other processes what it should give up when its rings stop.
    NotGivenUp(NotGivenUp),
    /// Postcopy is not offered, for this reason.
    PostcopyWithheld(String),
    /// The guest's memory is in use here while pages of it are still on their way.
    PostcopyBegan,
    /// All of the guest's memory is here.
    PostcopyEnded,
    /// The front-end has left, or the back-end ends, before all of the guest's memory was here.
    PostcopyGivenUp,
    /// The device's state was saved, for another back-end or for later.
    StateSaved {
        /// Bytes of it.
        bytes: u64,
    },
    /// The device goes on with a state that was saved before.
    StateLoaded {
        /// Bytes of it.
        bytes: u64,
    },
    /// The front-end has begun to save or to load the state of the device, has not asked how that
    /// went, and it failed for this reason.
    StateFailed(String),
    /// A message had no effect; the connection goes on.
    Refused(Refusal),
    /// The back-end has closed the connection, for this reason.
    Closed(String),
    /// The front-end is gone.
    Disconnected,
    /// Requests were still in the device's hands when the time to drain was over.
    Stuck(Stuck),
    /// A ring has stopped with requests that are left unfinished, and stay in the record.
    LeftInRecord {
        /// The vring's number.
        queue: u16,
        /// The number of these requests.
        requests: u32,
    },
    /// The time to drain is over, and the kernel is still moving data straight to or from a
    /// request's memory: nobody can take that back, so it is waited for.
    HeldByKernel {
        /// The vring.
        queue: u16,
    },
    /// A worker thread ended by a panic.
    WorkerPanicked(String),
    /// No front-end can be taken for now, for this reason, and it is tried again. Reported once
    /// until one was taken.
    AcceptHeld(String),
    /// No front-end can be taken any more, for this reason.
    AcceptFailed(String),
    /// The control thread does not end: something outside this process holds it up.
    NotStopped,
    /// The back-end has ended.
    Stopped,
}

/// Requests that did not come back in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The vring's number.
    pub queue: u16,
    /// The number of these requests.
    pub requests: u32,
}

impl Event {
    /// How much it matters.
    pub fn level(&self) -> Level {
        match self {
            Self::QueueStarted { instead_of: Some(_), .. }
            | Self::FeaturesIgnored { .. }
            | Self::LeftInRecord { .. }
            | Self::Resubmitted { .. }
            | Self::PostcopyBegan
            | Self::PostcopyEnded
            | Self::StateSaved { .. }
            | Self::StateLoaded { .. } => Level::Info,
            Self::QueueStarted { .. }
            | Self::QueueStopped { .. }
            | Self::PostcopyWithheld(_)
            | Self::Negotiated { .. } => Level::Debug,
            Self::Listening(_) | Self::Connected(_) | Self::Disconnected | Self::Stopped => {
                Level::Info
            }
            Self::QueueBroken { .. }
            | Self::RequestFailed { .. }
            | Self::HeldUp { .. }
            | Self::LogTooShort { .. }
            | Self::HeldByKernel { .. }
            | Self::NotTaken(_)
            | Self::NotRecorded { .. }
            | Self::DeviceChanged(_)
            | Self::NotGivenUp(_)
            | Self::StateFailed(_)
            | Self::PostcopyGivenUp
            | Self::Refused(_)
            | Self::Closed(_)
            | Self::AcceptHeld(_)
            | Self::Stuck(_) => Level::Warning,
            Self::WorkerPanicked(_) | Self::AcceptFailed(_) | Self::NotStopped => Level::Error,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening(at) => write!(f, "listening on {at}"),
            Self::Connected(peer) => write!(f, "front-end connected: {peer}"),
            Self::Negotiated { features, names, protocol } => write!(
                f,
                "negotiated features {features:#x} ({names}), protocol features {:#x} ({})",
                protocol.bits(),
                protocol.describe()
            ),
            Self::FeaturesIgnored { features, names } => write!(
                f,
                "SET_FEATURES: {features:#x} ({names}) was not offered, and is ignored: the \
                 front-end answers the driver for it"
            ),
            Self::QueueStarted { queue, size, base, instead_of: None } => {
                write!(f, "queue {queue} started: {size} entries, base {base}")
            }
            Self::QueueStarted { queue, size, base, instead_of: Some(named) } => write!(
                f,
                "queue {queue} started: {size} entries, base {base} as the used ring says, not {named} as the front-end said"
            ),
            Self::Resubmitted { queue, requests } => {
                let noun = if *requests == 1 { "request comes" } else { "requests come" };
                write!(
                    f,
                    "queue {queue}: {requests} {noun} again: the process that had them died before \
                     it gave them back"
                )
            }
            Self::LeftInRecord { queue, requests } => {
                let noun = if *requests == 1 { "request is" } else { "requests are" };
                write!(
                    f,
                    "queue {queue}: {requests} {noun} left unfinished in the record, to be done from \
                     the beginning where the machine goes on"
                )
            }
            Self::NotRecorded { queue, why } => write!(
                f,
                "queue {queue}: requests in flight are not recorded, and a crash loses them: {why}"
            ),
            Self::QueueStopped { queue, base } => write!(f, "queue {queue} stopped at {base}"),
            Self::QueueBroken { queue, error } => write!(f, "queue {queue} is broken: {error}"),
            Self::RequestFailed { queue, error } => {
                write!(f, "queue {queue}: a request failed: {error}")
            }
            Self::LogTooShort { queue, beyond: Beyond { at, log_bytes, needed } } => write!(
                f,
                "queue {queue}: the page at guest address {at} was written, and the dirty log \
                 (SET_LOG_BASE) has {log_bytes} bytes where {needed} are needed for that: the \
                 front-end does not hear of it"
            ),
            Self::HeldByKernel { queue } => write!(
                f,
                "queue {queue}: direct I/O of its requests is still under way, and is waited for: \
                 it cannot be taken out of the guest's memory"
            ),
            Self::HeldUp { queue } => {
                write!(f, "queue {queue} is held up by guest memory that does not answer")
            }
            Self::NotTaken(why) => write!(
                f,
                "the device can still write to memory of requests that were failed: {why}"
            ),
            Self::DeviceChanged(what) => f.write_str(what),
            Self::NotGivenUp(why) => why.fmt(f),
            Self::PostcopyWithheld(why) => write!(f, "postcopy is not offered: {why}"),
            Self::PostcopyBegan => {
                f.write_str("postcopy: the guest runs here, and pages of it are on their way")
            }
            Self::PostcopyEnded => f.write_str("postcopy: all of the guest's memory is here"),
            Self::PostcopyGivenUp => f.write_str(
                "postcopy: the connection ends before all of the guest's memory is here; requests \
                 in flight are not answered",
            ),
            Self::StateSaved { bytes } => {
                write!(f, "the device's state was saved: {bytes} bytes")
            }
            Self::StateLoaded { bytes } => {
                write!(f, "the device's state was loaded: {bytes} bytes")
            }
            Self::StateFailed(why) => f.write_str(why),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Closed(why) => write!(f, "connection closed: {why}"),
            Self::Disconnected => f.write_str("front-end disconnected"),
            Self::Stuck(stuck) => stuck.fmt(f),
            Self::WorkerPanicked(why) => write!(f, "a worker thread panicked: {why}"),
            Self::AcceptHeld(why) => write!(f, "no front-end can be taken for now: {why}"),
            Self::AcceptFailed(why) => write!(f, "no front-end can be taken: {why}"),
            Self::NotStopped => f.write_str(
                "the back-end does not stop: something outside this process holds its control \
                 thread up; it was left behind",
            ),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, requests } = self;
        let noun = if *requests == 1 { "request" } else { "requests" };
        write!(f, "queue {queue}: {requests} {noun} did not come back in time")
    }
}
