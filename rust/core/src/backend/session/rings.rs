//! The vrings of a session: started, changed while they run, and stopped.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{RECHECK_INTERVAL, Session};
use crate::backend::event::{Event, Stuck};
use crate::backend::shared::State;
use crate::connection::{Refusal, RingSetup};
use crate::device::{Acquired, Device, Unavailable};
use crate::request::CompletionQueue;
use crate::ring::{PackedLayout, Ring, RingLayout, SplitLayout};
use crate::ring_position::RingPosition;
use crate::sys::event_kind::EventKind;
use crate::wire::ReceivedFd;
use crate::wire::features::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, LOG_ALL, RING_PACKED};
use crate::worker::{HeldUp, Notifier, QueueCell, QueueParts, ReceiveHandle, Worker};

/// The device type of network devices: VIRTIO 1.3, "Device Types".
const NETWORK: u32 = 1;

/// Longest wait for workers to look at new rings that are to stop already.
const BEGIN_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked whether what is in flight may be left.
const LEAVE_INTERVAL: Duration = Duration::from_millis(1);

/// What becomes of requests that do not come back while their ring stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// They fail: their driver goes on.
    Fails,
    /// They stay in the record, if there is one, and come again when the ring is started; else they
    /// fail.
    IsRecorded,
    /// As that, but what the device may leave is not even waited for.
    IsSuspended,
    /// Nothing: their driver is gone, and its memory is not touched any more.
    IsLeft,
}

impl Session<'_> {
    /// Has all queues know that they are paused, or not any more, by the change of this number.
    pub(super) fn pass_pause_on(&self, number: u64) {
        for queue in self.vrings.iter().filter_map(|vring| vring.queue.as_ref()) {
            // One that is held up by guest memory pops nothing now, and looks before it does.
            let _ = queue.pause_changed();
        }
        self.shared().pause_is_known(number);
    }

    pub(super) fn start_ring(
        &mut self,
        setup: RingSetup,
        kick: Option<ReceivedFd>,
        reset: bool,
    ) -> Result<(), Refusal> {
        let index = setup.index;
        let first = self.queues().next().is_none();
        if first {
            self.acquire_device()
                .map_err(|why| Refusal(format!("SET_VRING_KICK: queue {index}: {why}")))?;
        }
        let started = self.start_ring_of_device(setup, kick, reset);
        if first && started.is_err() {
            self.release_device();
        }
        started
    }

    fn start_ring_of_device(
        &mut self,
        setup: RingSetup,
        kick: Option<ReceivedFd>,
        reset: bool,
    ) -> Result<(), Refusal> {
        let index = setup.index;
        if reset {
            self.forget_records();
        }
        self.settle_addressing("SET_VRING_KICK")?;
        let record = self.record(&setup);
        let (ring, apart) = self
            .find_ring(&setup)
            .map_err(|why| Refusal(format!("SET_VRING_KICK: queue {index}: {why}")))?;
        let ring = ring.in_order(setup.features & IN_ORDER != 0).with_record(record);
        let worker = self.worker(index)?;
        let kick = watch(worker, index, kick)?;
        let doorbell = Arc::clone(worker.doorbell());
        let log = self.logging.of_queue(setup.used_log);
        let vring = &self.vrings[usize::from(index)];
        let queue = QueueCell::new(QueueParts {
            index,
            ring,
            apart,
            enabled: setup.enabled,
            kick,
            call: vring.call.clone(),
            error: vring.error.clone(),
            device: Arc::clone(&self.context.device),
            report: Arc::clone(&self.context.shared) as Arc<_>,
            doorbell,
            loss: Arc::clone(&self.loss),
            counters: self.shared().queue(index),
            log,
        });
        if reset {
            self.device().reset();
            self.device().negotiated(self.connection.features() & !LOG_ALL);
        }
        self.vrings[usize::from(index)].used_log = setup.used_log;
        self.ring_has_started(index, setup.enabled, queue);
        Ok(())
    }

    /// Finds a ring in memory. Where its addresses are translated the front-end may have to be asked
    /// first, which it cannot be while it waits for the answer to this message: the ring then stands
    /// apart (`true`) until it was.
    fn find_ring(&self, setup: &RingSetup) -> Result<(Ring, bool), String> {
        let (memory, layout) = (self.memory.for_queue(), self.layout(setup));
        match Ring::find(&memory, &layout, setup.base) {
            Ok(ring) => Ok((ring, false)),
            Err(_) if memory.translates() => {
                let ring = Ring::apart(&memory, &layout, setup.base);
                ring.map(|ring| (ring, true)).map_err(|error| format!("make a ring: {error}"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn layout(&self, setup: &RingSetup) -> RingLayout {
        let RingSetup { size, descriptors, available, used, features, .. } = *setup;
        let indirect = features & INDIRECT_DESC != 0;
        let event_idx = features & EVENT_IDX != 0;
        if features & RING_PACKED == 0 {
            let layout = SplitLayout { size, descriptors, available, used, indirect, event_idx };
            return RingLayout::Split(layout);
        }
        RingLayout::Packed(PackedLayout {
            size,
            descriptors,
            driver_area: available,
            device_area: used,
            indirect,
            event_idx,
            tables_are_readable: is_transmit_queue(self.device(), setup.index),
        })
    }

    fn ring_has_started(&mut self, index: u16, enabled: bool, queue: Arc<QueueCell>) {
        self.completions.retain(|completions| completions.strong_count() > 0);
        self.completions.push(Arc::downgrade(queue.completions()));
        let first = self.queues().next().is_none();
        let vring = &mut self.vrings[usize::from(index)];
        vring.enabled = enabled;
        vring.queue = Some(Arc::clone(&queue));
        if first {
            self.tell_negotiated();
            self.device().started();
        }
        self.device().queue_started(index, Arc::new(ReceiveHandle(Arc::clone(&queue))));
        if let Some(worker) = self.known_worker(index) {
            worker.add(queue);
        }
        self.update_state();
    }

    pub(super) fn replace_kick(
        &mut self,
        index: u16,
        kick: Option<ReceivedFd>,
    ) -> Result<(), Refusal> {
        let worker = self.worker(index)?;
        let kick = watch(worker, index, kick)?;
        if let Some(queue) = self.started(index) {
            let former = queue.set_kick(kick).map_err(|HeldUp| held_up("SET_VRING_KICK", index))?;
            self.worker(index)?.unwatch(former);
        }
        Ok(())
    }

    pub(super) fn set_call(&mut self, index: u16, fd: Option<ReceivedFd>) -> Result<(), Refusal> {
        let call = self.notifier("SET_VRING_CALL", index, fd)?;
        self.vrings[usize::from(index)].call = call.clone();
        let changed = self.started(index).map_or(Ok(()), |queue| queue.set_call(call));
        changed.map_err(|HeldUp| held_up("SET_VRING_CALL", index))
    }

    pub(super) fn set_error(&mut self, index: u16, fd: Option<ReceivedFd>) -> Result<(), Refusal> {
        let error = self.notifier("SET_VRING_ERR", index, fd)?;
        self.vrings[usize::from(index)].error = error.clone();
        let changed = self.started(index).map_or(Ok(()), |queue| queue.set_error(error));
        changed.map_err(|HeldUp| held_up("SET_VRING_ERR", index))
    }

    fn notifier(
        &self,
        message: &str,
        index: u16,
        fd: Option<ReceivedFd>,
    ) -> Result<Option<Notifier>, Refusal> {
        let notifier = fd.map(|fd| Notifier::new(fd, &self.shared().signaller(index))).transpose();
        notifier.map_err(|what| {
            Refusal(format!("{message}: queue {index}: its descriptor is {what}, not an eventfd"))
        })
    }

    /// Enables or disables a ring, at once: nothing more is taken from one that is disabled. The
    /// device still answers what it has of it.
    pub(super) fn enable(&mut self, index: u16, enabled: bool) -> Result<(), Refusal> {
        if let Some(queue) = self.started(index) {
            let changed = queue.set_enabled(enabled);
            changed.map_err(|HeldUp| held_up("SET_VRING_ENABLE", index))?;
        }
        self.vrings[usize::from(index)].enabled = enabled;
        self.update_state();
        Ok(())
    }

    pub(super) fn stop_ring(&mut self, index: u16) -> Result<RingPosition, Refusal> {
        let rest = if self.is_suspending() { Rest::IsSuspended } else { Rest::IsRecorded };
        let base = self.stop_rings(&[index], rest, self.shared().drain()).pop().flatten();
        if self.queues().next().is_none() {
            self.take_from_left();
        }
        base.ok_or_else(|| held_up("GET_VRING_BASE", index))
    }

    /// Stops rings, all at the same time, and waits for their requests; `rest` is what becomes of
    /// those that are not back within `limit`. Returns where each ring stands; `None` for a ring that
    /// guest memory holds up.
    pub(super) fn stop_rings(
        &mut self,
        indices: &[u16],
        rest: Rest,
        limit: Duration,
    ) -> Vec<Option<RingPosition>> {
        let begun = Instant::now();
        let stopping = |&index: &u16| {
            let queue = self.started(index)?;
            let finishes = matches!(rest, Rest::Fails | Rest::IsRecorded);
            let stopped = queue.stop(begun + BEGIN_LIMIT, finishes);
            self.device().queue_stopping(index);
            stopped.and_then(|()| queue.return_unused()).ok()?;
            Some(queue)
        };
        let queues: Vec<_> = indices.iter().map(stopping).collect();
        let late: Vec<_> =
            queues.iter().flatten().filter(|queue| !self.wait(queue, begun, limit, rest)).collect();
        let (left, late): (Vec<&Arc<QueueCell>>, Vec<_>) =
            late.into_iter().partition(|queue| rest == Rest::IsSuspended && queue.may_be_left());
        left.iter().for_each(|queue| self.leave_in_record(queue));
        self.late.extend(late.iter().map(|queue| Arc::downgrade(queue.completions())));
        self.end_late(&late, rest);
        let end = |(&index, queue): (&u16, Option<Arc<QueueCell>>)| {
            let base = queue.and_then(|queue| self.end_ring(&queue));
            if base.is_none() {
                self.late
                    .extend(self.started(index).map(|held| Arc::downgrade(held.completions())));
            }
            self.ring_has_stopped(index, base);
            base
        };
        indices.iter().zip(queues).map(end).collect()
    }

    /// Waits for the requests of a ring that is stopping; `false`: not all came back. What the
    /// kernel does to a request's memory by itself has to end first, and be it after the limit, but
    /// for a stop of the back-end.
    fn wait(&self, queue: &QueueCell, begun: Instant, limit: Duration, rest: Rest) -> bool {
        let mut told = false;
        loop {
            let left = self.left(begun, limit);
            let held = left.is_zero() && self.is_held(queue.completions());
            if held && !told {
                told = true;
                self.event(Event::HeldByKernel { queue: queue.index() });
            }
            if rest == Rest::IsSuspended && queue.may_be_left() {
                return false;
            }
            let often = if rest == Rest::IsSuspended { LEAVE_INTERVAL } else { RECHECK_INTERVAL };
            let interval = if held { often } else { left.min(often) };
            if queue.wait_drained(Instant::now() + interval) || left.is_zero() && !held {
                return !queue.has_rest();
            }
            // The device may have looked at a buffer just when it was to go back.
            let _ = queue.return_unused();
        }
    }

    /// Whether requests cannot be given up yet, and nobody has asked the back-end to stop.
    fn is_held(&self, completions: &CompletionQueue) -> bool {
        completions.kernel_holds().any() && !self.shared().is_stopping()
    }

    /// Deals with requests that did not come back. Unless they are left, their memory is taken away
    /// from the device first. Then the driver gets them back, or they stay in the record.
    fn end_late(&mut self, queues: &[&Arc<QueueCell>], rest: Rest) {
        let fails = |queue: &&Arc<QueueCell>| {
            rest != Rest::IsLeft && !queue.completions().kernel_holds().any()
        };
        let (failing, left): (Vec<&Arc<QueueCell>>, Vec<_>) =
            queues.iter().copied().partition(fails);
        for queue in left {
            let requests = queue.in_flight().unwrap_or(0);
            self.event(Event::Stuck(Stuck { queue: queue.index(), requests }));
        }
        let (mut reads, mut recorded) = (Vec::new(), Vec::new());
        for queue in &failing {
            let late = queue.close().unwrap_or_default();
            reads.extend(late.reads);
            recorded.push(late.recorded && rest != Rest::Fails);
            self.event(Event::Stuck(Stuck { queue: queue.index(), requests: late.requests }));
        }
        if !failing.is_empty() {
            self.take_from_device(&reads);
        }
        // One that guest memory holds up is not stopped at all.
        queues.iter().for_each(|queue| queue.mark_rest().unwrap_or_default());
        for (queue, _) in failing.iter().zip(recorded).filter(|(_, recorded)| !recorded) {
            // One that guest memory holds up does not end either, which is said then.
            let _ = self.fail_rest(queue);
        }
    }

    /// Ends a ring that has stopped; returns where it stands.
    fn end_ring(&self, queue: &QueueCell) -> Option<RingPosition> {
        let ended = queue.end().ok()?;
        if let Some(worker) = self.known_worker(queue.index()) {
            worker.unwatch(ended.kick);
        }
        Some(ended.base)
    }

    /// What is left of a wait for requests; a stop that was asked for meanwhile may shorten it.
    pub(super) fn left(&self, begun: Instant, limit: Duration) -> Duration {
        let stopping = self.shared().is_stopping();
        let limit = if stopping { limit.min(self.shared().drain()) } else { limit };
        (begun + limit).saturating_duration_since(Instant::now())
    }

    fn ring_has_stopped(&mut self, index: u16, base: Option<RingPosition>) {
        let vring = &mut self.vrings[usize::from(index)];
        vring.left_at = base;
        let queue = vring.queue.take();
        if let (Some(queue), Some(worker)) = (queue, self.known_worker(index)) {
            worker.remove(&queue);
        }
        match base {
            Some(base) => self.event(Event::QueueStopped { queue: index, base }),
            None => {
                self.has_lost_a_ring = true;
                self.event(Event::HeldUp { queue: index });
            }
        }
        if self.queues().next().is_none() {
            self.device().stopped();
            self.release_device();
            self.forget_translations();
        }
        self.update_state();
    }

    fn acquire_device(&mut self) -> Result<(), Unavailable> {
        let Acquired { config_changed, warning } = self.device().acquire()?;
        if let Some(warning) = warning {
            self.event(Event::DeviceChanged(warning));
        }
        if config_changed {
            self.notify_config();
        }
        Ok(())
    }

    /// Lets the device give up what it shares with other processes, unless it has requests still.
    pub(super) fn release_device(&mut self) {
        self.late.retain(|completions| completions.strong_count() > 0);
        let kept = self.device().release(self.late.is_empty()).err();
        if let Some(why) = kept.as_ref().filter(|&why| self.kept.as_ref() != Some(why)) {
            self.event(Event::NotGivenUp(why.clone()));
        }
        self.kept = kept;
    }

    /// Stops and disables all rings, sets the status to 0, and with `reset` resets the device;
    /// memory stays. Returns where each ring stands that was started, with its number.
    pub(super) fn stop_all(&mut self, reset: bool) -> Result<Vec<(u16, RingPosition)>, Refusal> {
        self.shared().set_device_status(0);
        let started = self.all_started();
        // Without a reset the machine may only have paused, and go on later.
        let rest = if reset { Rest::Fails } else { Rest::IsRecorded };
        let bases = self.stop_rings(&started, rest, self.shared().drain());
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
        if reset {
            self.device().reset();
            self.forget_records();
        }
        let base = |(index, base): (u16, Option<RingPosition>)| {
            base.map(|base| (index, base)).ok_or_else(|| held_up("reset", index))
        };
        started.into_iter().zip(bases).map(base).collect()
    }

    /// A vring's queue, if it is started.
    pub(super) fn started(&self, index: u16) -> Option<Arc<QueueCell>> {
        self.vrings[usize::from(index)].queue.clone()
    }

    /// The queues of all started vrings.
    pub(super) fn queues(&self) -> impl Iterator<Item = &Arc<QueueCell>> {
        self.vrings.iter().filter_map(|vring| vring.queue.as_ref())
    }

    pub(super) fn all_started(&self) -> Vec<u16> {
        self.queues().map(|queue| queue.index()).collect()
    }

    pub(super) fn update_state(&self) {
        let started = || self.vrings.iter().filter(|vring| vring.queue.is_some());
        self.shared().set_state(if started().any(|vring| vring.enabled) {
            State::Running
        } else if started().next().is_some() {
            State::Paused
        } else {
            State::Negotiating
        });
    }
}

/// Whether a driver sends by this queue, and has nothing else done: VIRTIO 1.3, "Network Device",
/// "Virtqueues".
fn is_transmit_queue(device: &dyn Device, index: u16) -> bool {
    device.virtio_id() == NETWORK && index % 2 == 1
}

/// Registers a kick descriptor, and gives it back.
fn watch(
    worker: &Worker,
    queue: u16,
    kick: Option<ReceivedFd>,
) -> Result<Option<ReceivedFd>, Refusal> {
    let Some(kick) = kick else { return Ok(None) };
    let message = |why| Refusal(format!("SET_VRING_KICK: queue {queue}: its descriptor {why}"));
    // Before its file is asked whether it is readable: a file system may not answer.
    if let Err(name) = EventKind::of(kick.as_fd()) {
        return Err(message(format!("is {name}, not an eventfd")));
    }
    let watched = worker.watch(queue, kick.as_fd());
    watched.map_err(|error| message(format!("cannot be waited for: {error}")))?;
    Ok(Some(kick))
}

pub(super) fn held_up(message: &str, queue: u16) -> Refusal {
    Refusal(format!("{message}: queue {queue} is held up by guest memory that does not answer"))
}
