//! One front-end's connection: carries out what its messages ask for.

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::control::Control;
use super::shared::{PendingEvents, Shared, State};
use super::{Event, Stuck, Threads, XenOptions};
use crate::connection::{
    Action, Connection, Offer, Outcome, Refusal, RegionOffer, RegionRange, RingSetup, Step,
};
use crate::device::Device;
use crate::memory::{Gone, Memory, Region, XenKind};
use crate::request::CompletionQueue;
use crate::ring::{SplitLayout, SplitRing};
use crate::socket::{Incoming, Stream};
use crate::sys::guard::Loss;
use crate::wire::features::{self, EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::wire::payload::XenMeans;
use crate::wire::{Frame, ProtocolFeatures};
use crate::worker::{Command, Queue, Signal, Worker, WorkerConfig};

/// Longest wait for requests in flight when the front-end has gone: nobody waits for their
/// answers, but a device may be in the middle of reading their data.
const DISCONNECT_DRAIN: Duration = Duration::from_secs(1);

/// How often a wait for requests in flight asks whether it may go on: a second stop may allow less
/// time than the first.
const RECHECK_INTERVAL: Duration = Duration::from_millis(50);

/// What an idle worker may take to end when the others have used up the time to drain.
const LAST_GRACE: Duration = Duration::from_millis(100);

/// Regions taken at the same time: what libvhost-user takes, and as many as KVM has slots for.
const MEMORY_SLOTS: u64 = 509;

/// The feature bits that belong to device types: VIRTIO 1.3, "Feature Bits".
const DEVICE_BITS: u64 = ((1 << 24) - 1) | !((1 << 50) - 1);

/// A vring's descriptors and flags, as long as the session lasts.
#[derive(Default)]
struct Vring {
    started: bool,
    enabled: bool,
    call: Option<Signal>,
    error: Option<Signal>,
    /// Where its requests come back, since it was last started.
    completions: Option<Arc<CompletionQueue>>,
}

/// See the module.
pub(super) struct Session<'a> {
    control: &'a Control,
    stream: Stream,
    connection: Connection,
    memory: Arc<Memory>,
    /// Every region that was mapped: those still in somebody's hands at the end are severed.
    mapped: Vec<Weak<Region>>,
    /// The front-end has taken memory away that it shares.
    loss: Arc<Loss>,
    vrings: Vec<Vring>,
    /// Of all rings that were started: their requests may outlive them.
    completion_queues: Vec<Weak<CompletionQueue>>,
    workers: Vec<Option<Worker>>,
    channel: Channel,
}

impl<'a> Session<'a> {
    pub(super) fn new(control: &'a Control, stream: Stream) -> Self {
        let queues = control.device.num_queues();
        let workers = match control.options.threads {
            Threads::PerQueue => queues,
            Threads::Count(count) => queues.min(count.get()),
        };
        Self {
            control,
            stream,
            connection: Connection::new(offer(&*control.device, control.options.xen.as_ref())),
            memory: Arc::default(),
            mapped: Vec::new(),
            loss: Loss::new(Arc::clone(&control.shared.wake)),
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            completion_queues: Vec::new(),
            workers: (0..workers).map(|_| None).collect(),
            channel: Channel::default(),
        }
    }

    /// Serves the front-end until it leaves, or breaks the protocol, or the back-end stops.
    pub(super) fn run(mut self) {
        loop {
            let goes_on = match self.stream.receive(self.shared().wake.as_fd()) {
                Ok(Incoming::Frame(frame)) => self.message(frame),
                Ok(Incoming::Woken) => self.pending_events(),
                Ok(Incoming::Closed) => false,
                Err(error) => {
                    self.event(Event::Closed(error.to_string()));
                    false
                }
            };
            if !goes_on {
                break;
            }
        }
        self.end();
    }

    /// Handles one message wholly; `false`: the connection ends.
    fn message(&mut self, frame: Frame) -> bool {
        let mut step = self.connection.handle(frame);
        loop {
            step = match step {
                Step::Act(action) => {
                    let outcome = self.carry_out(action).unwrap_or_else(Outcome::Failed);
                    self.connection.done(outcome)
                }
                Step::Reply(None) => return true,
                Step::Reply(Some(reply)) => return self.send(&reply),
                Step::Refuse { reply, why } => {
                    self.event(Event::Refused(why));
                    return self.send(&reply);
                }
                Step::Close(why) => {
                    self.event(Event::Closed(why.to_string()));
                    return false;
                }
            }
        }
    }

    fn pending_events(&mut self) -> bool {
        let PendingEvents { stop, broken, panicked, config_changed } =
            self.shared().pending_events();
        if broken {
            self.connection.reset_needed();
        }
        if broken || config_changed {
            self.notify_config();
        }
        if panicked {
            self.event(Event::Closed("a worker thread panicked".to_owned()));
        }
        let lost = self.loss.has_happened();
        if lost {
            let why = if self.memory.is_xen() {
                "memory of the guest's domain is not there any more"
            } else {
                "the front-end has cut the file behind guest memory that it shares"
            };
            self.event(Event::Closed(why.to_owned()));
        }
        !stop && !panicked && !lost
    }

    fn send(&mut self, reply: &Frame) -> bool {
        match self.stream.send(reply) {
            Ok(()) => true,
            Err(error) => {
                self.event(Event::Closed(error.to_string()));
                false
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<Outcome, Refusal> {
        match action {
            Action::Features { features, enable_all } => self.set_features(features, enable_all)?,
            Action::SetMemory(regions) => self.set_memory(regions)?,
            Action::AddRegion(region) => self.add_region(region)?,
            Action::RemoveRegion(range) => self.remove_region(range)?,
            Action::StartRing { setup, kick } => self.start_ring(setup, kick)?,
            Action::ReplaceKick { index, kick } => self.replace_kick(index, kick)?,
            Action::SetCall { index, fd } => self.set_call(index, fd.map(Signal::new)),
            Action::SetError { index, fd } => self.set_error(index, fd.map(Signal::new)),
            Action::Enable { index, enabled } => self.enable(index, enabled)?,
            Action::StopRing { index } => return self.stop_ring(index).map(Outcome::Base),
            Action::ReadConfig { offset, size } => {
                return Ok(Outcome::Config(self.read_config(offset, size)));
            }
            Action::WriteConfig { offset, data } => self
                .device()
                .write_config(offset as usize, &data)
                .map_err(|refused| Refusal(format!("SET_CONFIG: {refused}")))?,
            Action::Status(0) | Action::Reset => return self.reset().map(Outcome::Stopped),
            Action::Status(_) => {}
            Action::SetBackendChannel(fd) => self.channel = Channel::open(fd)?,
        }
        Ok(Outcome::Done)
    }

    // --- features, configuration, channel ------------------------------------------------------

    fn set_features(&mut self, features: u64, enable_all: bool) -> Result<(), Refusal> {
        self.device().negotiated(features);
        let protocol = self.connection.protocol_features();
        let names = features::describe_of(features, |bit| self.device().feature_name(bit));
        self.event(Event::Negotiated { features, names, protocol });
        if enable_all {
            for index in 0..self.device().num_queues() {
                self.enable(index, true)?;
            }
        }
        Ok(())
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        if (offset as usize) < self.device().config_len() {
            self.device().read_config(offset as usize, &mut bytes);
        }
        bytes
    }

    fn notify_config(&mut self) {
        if self.connection.can_notify_config()
            && let Err(why) = self.channel.config_changed()
        {
            self.event(Event::Refused(why));
        }
    }

    // --- memory --------------------------------------------------------------------------------

    fn set_memory(&mut self, offers: Vec<RegionOffer>) -> Result<(), Refusal> {
        let map = |offer| self.map("SET_MEM_TABLE", offer);
        let regions = offers.into_iter().map(map).collect::<Result<Vec<_>, _>>()?;
        let memory = Memory::new(regions).map_err(|e| Refusal(format!("SET_MEM_TABLE: {e}")))?;
        // A guest's kernel ends its grants as soon as it hears that they are not used any more.
        let removed = self.memory.domains_regions_outside(&memory);
        self.swap_memory(memory);
        self.wait_for_end(removed);
        Ok(())
    }

    fn add_region(&mut self, offer: RegionOffer) -> Result<(), Refusal> {
        let region = self.map("ADD_MEM_REG", offer)?;
        let memory = self.memory.with(region).map_err(|e| Refusal(format!("ADD_MEM_REG: {e}")))?;
        self.swap_memory(memory);
        Ok(())
    }

    /// A region, with one for all other addresses if the front-end allows to map more.
    fn map(&self, message: &str, offer: RegionOffer) -> Result<Arc<Region>, Refusal> {
        let RegionOffer { range: RegionRange { guest, size, user }, mmap_offset, xen, fd } = offer;
        let refused = |why: &dyn Display| {
            let what = xen.map_or_else(
                || format!("file offset {mmap_offset:#x}"),
                |xen| format!("domain {}", xen.domid),
            );
            let place = format!("guest address {guest}, {size:#x} bytes, {what}");
            Refusal(format!("{message}: the region at {place}: {why}"))
        };
        let Some(mapping) = xen else {
            let region = Region::map(guest, user, size, mmap_offset, fd);
            return region.map_err(|e| refused(&e));
        };
        let Some(options) = &self.control.options.xen else {
            return Err(refused(&"XEN_MMAP was not offered"));
        };
        let domid = mapping.domid;
        if let Some(only) = options.domain.filter(|&only| only != domid) {
            return Err(refused(&format!("xen domain id {domid}: only domain {only} is served")));
        }
        let access = &options.access;
        let kind = kind(mapping.means);
        let more = mapping.more.then(|| fd.try_clone()).transpose().map_err(|e| refused(&e))?;
        let region = Region::xen(access, kind, domid, guest, user, size, fd);
        let mut region = region.map_err(|e| refused(&e))?;
        if let Some(fd) = more {
            let beyond = Region::beyond(access, kind, domid, fd);
            region.allow_more(beyond.map_err(|e| refused(&e))?);
        }
        Ok(region)
    }

    /// Answered only when nothing uses the region any more.
    fn remove_region(&mut self, range: RegionRange) -> Result<(), Refusal> {
        let RegionRange { guest, size, user } = range;
        let (memory, region) = self.memory.without(guest, user, size).map_err(|e| {
            Refusal(format!("REM_MEM_REG: guest {guest}, user {user}, {size:#x} bytes: {e}"))
        })?;
        self.swap_memory(memory);
        self.wait_for_end(vec![region]);
        Ok(())
    }

    /// Waits until nothing uses regions that are in the table no more. What is still used when
    /// the time for that is over is taken away.
    fn wait_for_end(&self, regions: Vec<Arc<Region>>) {
        let (begun, limit) = (Instant::now(), self.shared().drain());
        let waits: Vec<_> = regions.iter().map(|r| (r.gone(), Arc::downgrade(r))).collect();
        drop(regions);
        let is_late = |gone: &Gone| loop {
            let left = self.left(begun, limit);
            if gone.wait(left.min(RECHECK_INTERVAL)) {
                break false;
            }
            if left.is_zero() {
                break true;
            }
        };
        let late = waits.iter().filter(|(gone, _)| is_late(gone));
        self.take_away(&late.filter_map(|(_, region)| region.upgrade()).collect::<Vec<_>>());
    }

    /// Takes memory away from the requests that still have it.
    fn take_away(&self, regions: &[Arc<Region>]) {
        if regions.is_empty() {
            return;
        }
        // In this order: a request that is not among those that need something finds the end.
        regions.iter().for_each(|region| region.end());
        let completion_queues = self.completion_queues.iter().filter_map(Weak::upgrade);
        let needed: Vec<_> =
            completion_queues.flat_map(|completions| completions.needed()).collect();
        regions.iter().for_each(|region| region.detach(&needed));
        // A batch that ended meanwhile has found its pages held, and waits with its answers.
        self.workers.iter().flatten().for_each(|worker| worker.doorbell().ring());
    }

    fn swap_memory(&mut self, memory: Memory) {
        self.mapped.retain(|region| region.strong_count() > 0);
        let known = |r: &Arc<Region>| self.mapped.iter().any(|m| m.as_ptr() == Arc::as_ptr(r));
        let all = memory.regions().iter().chain(memory.beyond());
        let new = all.filter(|r| !known(r)).inspect(|r| r.watch(&self.loss));
        let new: Vec<_> = new.map(Arc::downgrade).collect();
        self.mapped.extend(new);
        self.memory = Arc::new(memory);
        for worker in self.workers.iter().flatten() {
            worker.post(Command::Memory(Arc::clone(&self.memory)));
        }
    }

    // --- vrings --------------------------------------------------------------------------------

    fn start_ring(&mut self, setup: RingSetup, kick: Option<OwnedFd>) -> Result<(), Refusal> {
        let index = setup.index;
        let ring = SplitRing::start(&self.memory, layout(&setup), setup.base)
            .map_err(|e| Refusal(format!("SET_VRING_KICK: queue {index}: {e}")))?;
        let base = ring.next_available();
        let worker = self.worker(index)?;
        if let Some(kick) = &kick {
            worker.watch(index, kick.as_fd()).map_err(|e| bad_kick(index, &e))?;
        }
        let doorbell = Arc::clone(worker.doorbell());
        let counters = self.shared().queue(index);
        let vring = &mut self.vrings[usize::from(index)];
        vring.enabled = setup.enabled;
        let loss = Arc::clone(&self.loss);
        let queue = Queue::new(index, ring, setup.enabled, &doorbell, loss, counters).with_fds(
            kick,
            vring.call.clone(),
            vring.error.clone(),
        );
        vring.completions = Some(queue.completions());
        self.completion_queues.retain(|completions| completions.strong_count() > 0);
        self.completion_queues.push(Arc::downgrade(&queue.completions()));
        let first = !self.vrings.iter().any(|vring| vring.started);
        self.vrings[usize::from(index)].started = true;
        if first {
            self.device().started();
        }
        self.post(index, Command::Start(Box::new(queue)));
        let instead_of = (base != setup.base).then_some(setup.base);
        self.event(Event::QueueStarted { queue: index, size: setup.size, base, instead_of });
        self.update_state();
        Ok(())
    }

    fn replace_kick(&mut self, index: u16, kick: Option<OwnedFd>) -> Result<(), Refusal> {
        if let Some(kick) = &kick {
            let worker = self.worker(index)?;
            worker.watch(index, kick.as_fd()).map_err(|e| bad_kick(index, &e))?;
        }
        self.post(index, Command::Kick(index, kick));
        Ok(())
    }

    fn set_call(&mut self, index: u16, call: Option<Signal>) {
        self.vrings[usize::from(index)].call = call.clone();
        self.post(index, Command::Call(index, call));
    }

    fn set_error(&mut self, index: u16, error: Option<Signal>) {
        self.vrings[usize::from(index)].error = error.clone();
        self.post(index, Command::Error(index, error));
    }

    /// Answered only when the worker has left the ring alone, or has taken it up.
    fn enable(&mut self, index: u16, enabled: bool) -> Result<(), Refusal> {
        let vring = &mut self.vrings[usize::from(index)];
        let was = std::mem::replace(&mut vring.enabled, enabled);
        if vring.started {
            let (reply, answer) = mpsc::channel();
            self.post(index, Command::Enable(index, enabled, reply));
            if answer.recv_timeout(self.shared().drain()) == Err(RecvTimeoutError::Timeout)
                && !enabled
            {
                self.vrings[usize::from(index)].enabled = was;
                return Err(Refusal(format!(
                    "SET_VRING_ENABLE: queue {index} is still in the device's hands"
                )));
            }
        }
        self.update_state();
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u16, Refusal> {
        let base = self.drain_rings(&[index], self.shared().drain()).pop().flatten();
        base.ok_or_else(|| {
            Refusal(format!("GET_VRING_BASE: queue {index}: its requests did not come back"))
        })
    }

    /// Stops rings, all at the same time, and waits for their requests. `None` for a ring:
    /// not all came back within `limit`.
    fn drain_rings(&mut self, indices: &[u16], limit: Duration) -> Vec<Option<u16>> {
        let begun = Instant::now();
        let ask = |&index: &u16| {
            let (reply, answer) = mpsc::channel();
            self.post(index, Command::Stop(index, reply));
            answer
        };
        let answers: Vec<_> = indices.iter().map(ask).collect();
        let hear = |(&index, answer): (&u16, mpsc::Receiver<u16>)| {
            let base = self.hear(&answer, begun, limit);
            if base.is_none() {
                self.report_stuck(index);
                self.give_up(index);
            }
            self.ring_has_stopped(index, base);
            base
        };
        indices.iter().zip(answers).map(hear).collect()
    }

    /// Takes a ring away from its worker. From now on, though the worker may be in the device's
    /// hands for long, no request of the ring is live: its memory may be severed.
    fn give_up(&self, index: u16) {
        if let Some(completions) = &self.vrings[usize::from(index)].completions {
            completions.close();
        }
        self.post(index, Command::Abandon(index));
    }

    /// Waits for a worker's answer; no longer than a stop that is asked for meanwhile allows.
    fn hear(&self, answer: &mpsc::Receiver<u16>, begun: Instant, limit: Duration) -> Option<u16> {
        loop {
            let left = self.left(begun, limit);
            match answer.recv_timeout(left.min(RECHECK_INTERVAL)) {
                Ok(base) => return Some(base),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(_) => return None,
            }
        }
    }

    /// What is left of a wait for requests; a stop that was asked for meanwhile may shorten it.
    fn left(&self, begun: Instant, limit: Duration) -> Duration {
        let stopping = self.shared().is_stopping();
        let limit = if stopping { limit.min(self.shared().drain()) } else { limit };
        (begun + limit).saturating_duration_since(Instant::now())
    }

    fn ring_has_stopped(&mut self, index: u16, base: Option<u16>) {
        self.vrings[usize::from(index)].started = false;
        if let Some(base) = base {
            self.event(Event::QueueStopped { queue: index, base });
        }
        if !self.vrings.iter().any(|vring| vring.started) {
            self.device().stopped();
        }
        self.update_state();
    }

    /// All rings stopped and disabled, the device as new; memory stays. Returns where the rings
    /// stopped that were started and came to an end.
    fn reset(&mut self) -> Result<Vec<(u16, u16)>, Refusal> {
        let started = self.started();
        let bases = self.drain_rings(&started, self.shared().drain());
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
        self.device().reset();
        let base = |(index, base): (u16, Option<u16>)| {
            let stuck = || Refusal(format!("reset: queue {index}: its requests did not come back"));
            base.map(|base| (index, base)).ok_or_else(stuck)
        };
        started.into_iter().zip(bases).map(base).collect()
    }

    // --- workers -------------------------------------------------------------------------------

    /// The worker of a queue, started now if it is the first time.
    fn worker(&mut self, index: u16) -> Result<&Worker, Refusal> {
        let place = usize::from(index) % self.workers.len();
        let options = &self.control.options;
        if self.workers[place].is_none() {
            let cpus = &options.cpus;
            let cpu = (!cpus.is_empty()).then(|| cpus[place % cpus.len()]);
            let config = WorkerConfig { batch: options.batch, poll: options.poll, cpu };
            let worker = Worker::spawn(
                format!("vhost-user q{place}"),
                Arc::clone(&self.control.device),
                Arc::clone(&self.control.shared) as Arc<_>,
                config,
            )
            .map_err(|e| Refusal(format!("SET_VRING_KICK: queue {index}: {e}")))?;
            self.control.shared.adopt(worker.thread_id());
            self.workers[place] = Some(worker);
        }
        Ok(self.workers[place].as_ref().expect("it was just started"))
    }

    fn post(&self, index: u16, command: Command) {
        let place = usize::from(index) % self.workers.len();
        if let Some(worker) = &self.workers[place] {
            worker.post(command);
        }
    }

    fn report_stuck(&self, queue: u16) {
        use std::sync::atomic::Ordering;
        let requests = self.shared().queue(queue).in_flight.load(Ordering::Relaxed);
        self.event(Event::Stuck(Stuck { queue, requests }));
    }

    // --- the end -------------------------------------------------------------------------------

    /// Stops everything, unmaps everything, and closes the connection last: the front-end must
    /// not come back while its memory is still in use.
    fn end(mut self) {
        let stopping = self.shared().is_stopping();
        let mut drain = self.shared().drain();
        if stopping {
            self.shared().set_state(State::Draining);
        } else {
            drain = drain.min(DISCONNECT_DRAIN);
        }
        let begun = Instant::now();
        self.drain_rings(&self.started(), drain);
        let deadline = (begun + drain.min(self.shared().drain())).max(Instant::now() + LAST_GRACE);
        for worker in std::mem::take(&mut self.workers).into_iter().flatten() {
            let thread = worker.thread_id();
            if worker.end(deadline) {
                self.shared().disown(thread);
            }
        }
        self.channel = Channel::default();
        self.vrings.clear();
        self.memory = Arc::default();
        let mapped = std::mem::take(&mut self.mapped);
        self.take_away(&mapped.iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
        self.device().disconnected();
    }

    fn started(&self) -> Vec<u16> {
        let vrings = (0..).zip(&self.vrings);
        vrings.filter(|(_, vring)| vring.started).map(|(index, _)| index).collect()
    }

    fn update_state(&self) {
        let started = || self.vrings.iter().filter(|vring| vring.started);
        self.shared().set_state(if started().any(|vring| vring.enabled) {
            State::Running
        } else if started().next().is_some() {
            State::Paused
        } else {
            State::Negotiating
        });
    }

    fn device(&self) -> &'a dyn Device {
        &*self.control.device
    }

    fn shared(&self) -> &'a Shared {
        &self.control.shared
    }

    fn event(&self, event: Event) {
        self.shared().event(event);
    }
}

/// What the device and the core can do together.
pub(super) fn offer(device: &dyn Device, xen: Option<&XenOptions>) -> Offer {
    let mut protocol_features = Offer::CARRIED_OUT;
    // QEMU warns about a configuration space that its device type has no use for.
    protocol_features.set(ProtocolFeatures::CONFIG, device.config_len() > 0);
    Offer {
        features: device.features() & DEVICE_BITS | VERSION_1 | INDIRECT_DESC | EVENT_IDX,
        required_features: VERSION_1,
        protocol_features,
        num_queues: device.num_queues(),
        max_queue_size: device.max_queue_size(),
        max_memory_slots: MEMORY_SLOTS,
        config_len: device.config_len(),
        xen: xen.map(|xen| xen.designs),
    }
}

fn layout(setup: &RingSetup) -> SplitLayout {
    SplitLayout {
        size: setup.size,
        descriptors: setup.descriptors,
        available: setup.available,
        used: setup.used,
        indirect: setup.features & INDIRECT_DESC != 0,
        event_idx: setup.features & EVENT_IDX != 0,
    }
}

fn kind(means: XenMeans) -> XenKind {
    match means {
        XenMeans::Foreign => XenKind::Foreign,
        XenMeans::Grant => XenKind::Grant,
        XenMeans::GrantOnDemand => XenKind::GrantOnDemand,
    }
}

fn bad_kick(queue: u16, error: &std::io::Error) -> Refusal {
    Refusal(format!("SET_VRING_KICK: queue {queue}: its descriptor cannot be waited for: {error}"))
}
