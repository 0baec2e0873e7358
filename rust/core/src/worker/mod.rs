//! A thread that serves started vrings: it waits or polls, drains, hands over, publishes and
//! signals. It knows no protocol message; the back-end tells it what to do by [`Command`]s, which
//! it carries out between two batches.

mod demand;
mod poll;
mod queue;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;

use crate::device::Device;
use crate::error::HostError;
use crate::memory::{Fault, Memory};
use crate::request::{Batch, Done, Doorbell};
use crate::ring::{RingError, StartError};
use crate::sys::sigbus;
use poll::PollWindow;
use queue::{Look, WorkerContext};
pub(crate) use queue::{Phase, Queue, QueueCounters, Signal};

/// The doorbell's place among the events; queues have their index.
const DOORBELL: u64 = u64::MAX;

/// How often a ring without a kick descriptor is looked at.
const UNKICKED: Duration = Duration::from_millis(1);

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve this queue; its kick descriptor is registered already.
    Start(Box<Queue>),
    /// Take no more from the queue; answer with its next available index once it is drained.
    Stop(u16, Sender<u16>),
    /// Let go of a queue as it is: the time to drain it is over.
    Abandon(u16),
    /// Replace the kick descriptor; the new one is registered already.
    Kick(u16, Option<OwnedFd>),
    /// Replace the call descriptor.
    Call(u16, Option<Signal>),
    /// Replace the error descriptor.
    Error(u16, Option<Signal>),
    /// Serve the queue, or leave it alone; then answer.
    Enable(u16, bool, Sender<()>),
    /// Go on in another table of memory.
    Memory(Arc<Memory>),
    /// End the thread.
    Exit,
}

/// What a worker reports of itself. Called on its thread, with no lock held.
pub(crate) trait Report: Send + Sync {
    /// The driver broke a ring.
    fn queue_broken(&self, queue: u16, error: Broken);
    /// A request's buffers could not be reached: it failed. Told once for each start of a ring.
    fn request_failed(&self, queue: u16, fault: Fault);
    /// The thread ended by a panic, with this message.
    fn worker_panicked(&self, message: String);
}

/// How a ring got broken.
#[derive(Debug)]
pub(crate) enum Broken {
    /// By the driver.
    Driver(RingError),
    /// Its memory was taken away.
    Memory(StartError),
}

/// The back-end's handle on a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

#[derive(Debug)]
struct Mailbox {
    commands: Mutex<Vec<Command>>,
    /// There are commands.
    called: AtomicBool,
    doorbell: Arc<Doorbell>,
    epoll: OwnedFd,
}

/// How a worker is to work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerConfig {
    /// Most requests handed over at once.
    pub(crate) batch: u16,
    /// Longest busy polling.
    pub(crate) poll: Duration,
    /// The processor to stay on.
    pub(crate) cpu: Option<usize>,
}

impl Worker {
    /// Starts a thread that serves nothing yet.
    pub(crate) fn spawn(
        name: String,
        device: Arc<dyn Device>,
        report: Arc<dyn Report>,
        config: WorkerConfig,
    ) -> Result<Self, HostError> {
        let mailbox = Arc::new(Mailbox::new().map_err(|e| HostError::new("make a worker", e))?);
        let (end, ended) = mpsc::channel();
        let own = Arc::clone(&mailbox);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || {
                pin(config.cpu);
                sigbus::unblock();
                device.run_worker(&mut || run(&own, &*device, &*report, config));
                // Nobody may be left to hear it.
                let _ = end.send(());
            })
            .map_err(|e| HostError::new("start a worker thread", e))?;
        Ok(Self { mailbox, thread, ended })
    }

    /// The doorbell that completions of this worker's queues ring.
    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.mailbox.doorbell
    }

    /// Posts a command; it is carried out after the batch at hand, of which what waits for the
    /// hypervisor is left for later.
    pub(crate) fn post(&self, command: Command) {
        self.mailbox.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.mailbox.called.store(true, Ordering::SeqCst);
        self.mailbox.doorbell.ring();
    }

    /// Registers a kick descriptor for `queue`. Edge-triggered: every write to it is an event,
    /// and it need never be read, so that no blocking descriptor can hold the worker up.
    pub(crate) fn watch(&self, queue: u16, kick: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(u64::from(queue));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.mailbox.epoll, kick, data, flags)?)
    }

    /// The thread's name to the system.
    pub(crate) fn thread_id(&self) -> ThreadId {
        self.thread.thread().id()
    }

    /// Ends the thread and waits for it; `false` if it is still in the device's hands at
    /// `deadline`. It then ends by itself when the device returns.
    pub(crate) fn end(self, deadline: Instant) -> bool {
        self.post(Command::Exit);
        let left = deadline.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        // A panic was reported by the thread itself.
        let _ = self.thread.join();
        true
    }
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let doorbell = Doorbell::new()?;
        let data = epoll::EventData::new_u64(DOORBELL);
        epoll::add(&epoll, doorbell.event(), data, epoll::EventFlags::IN)?;
        Ok(Self { commands: Mutex::default(), called: AtomicBool::new(false), doorbell, epoll })
    }
}

fn pin(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    // The options were checked when the back-end started; a processor that went away since costs
    // speed only.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// The thread's whole life. A panic ends here: it is a bug, of the device or of ours, and must
/// not take the process along.
fn run(mailbox: &Mailbox, device: &dyn Device, report: &dyn Report, config: WorkerConfig) {
    let mut thread = Thread::new(mailbox, device, report, config);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| thread.run())) {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        report.worker_panicked(message.to_owned());
    }
    thread.end_all();
}

/// What the thread owns.
struct Thread<'a> {
    mailbox: &'a Mailbox,
    device: &'a dyn Device,
    report: &'a dyn Report,
    limit: u16,
    window: PollWindow,
    queues: Vec<Queue>,
    batch: Batch,
    done: Vec<Done>,
    events: Vec<epoll::Event>,
    exit: bool,
}

impl<'a> Thread<'a> {
    fn new(
        mailbox: &'a Mailbox,
        device: &'a dyn Device,
        report: &'a dyn Report,
        config: WorkerConfig,
    ) -> Self {
        Self {
            mailbox,
            device,
            report,
            limit: config.batch.max(1),
            window: PollWindow::new(config.poll),
            queues: Vec::new(),
            batch: Batch::default(),
            done: Vec::new(),
            events: Vec::with_capacity(16),
            exit: false,
        }
    }

    fn run(&mut self) {
        while !self.exit {
            if self.mailbox.doorbell.is_rung() {
                self.answer();
            } else if self.look_at_all() {
                self.window.found_work();
            } else if self.window.look_again() {
                std::hint::spin_loop();
            } else {
                self.sleep();
            }
        }
    }

    /// One turn: at most one batch of each queue, so that none starves another.
    fn look_at_all(&mut self) -> bool {
        let mut busy = false;
        for queue in &mut self.queues {
            let mut context = WorkerContext {
                device: self.device,
                report: self.report,
                doorbell: &self.mailbox.doorbell,
                called: &self.mailbox.called,
                batch: &mut self.batch,
                limit: self.limit,
            };
            match queue.look(&mut context) {
                Look::Idle => {}
                Look::Busy => busy = true,
                Look::Broke(error) => {
                    self.report.queue_broken(queue.index, Broken::Driver(error));
                }
            }
        }
        busy
    }

    fn sleep(&mut self) {
        let mut work = false;
        for queue in &mut self.queues {
            work |= queue.enable_kicks();
        }
        if !work && self.mailbox.doorbell.fall_asleep() {
            let began = Instant::now();
            self.wait();
            self.window.slept(began.elapsed());
        }
        self.mailbox.doorbell.wake();
        self.queues.iter_mut().for_each(Queue::disable_kicks);
    }

    fn wait(&mut self) {
        let unkicked = self.queues.iter().any(Queue::is_unkicked);
        let limit =
            unkicked.then(|| Timespec { tv_sec: 0, tv_nsec: i64::from(UNKICKED.subsec_nanos()) });
        self.events.clear();
        // EINTR is as good as an event: everything is looked at anyway.
        let _ = epoll::wait(&self.mailbox.epoll, spare_capacity(&mut self.events), limit.as_ref());
        for event in &self.events {
            let data = event.data.u64();
            if data == DOORBELL {
                self.mailbox.doorbell.silence();
            }
            for queue in self.queues.iter_mut().filter(|q| u64::from(q.index) == data) {
                queue.kicked();
            }
        }
        if unkicked {
            self.queues.iter_mut().filter(|q| q.is_unkicked()).for_each(Queue::kicked);
        }
    }

    /// Commands first, in the order in which they were posted, then completions.
    fn answer(&mut self) {
        self.mailbox.doorbell.answer();
        self.mailbox.called.store(false, Ordering::SeqCst);
        let commands = std::mem::take(
            &mut *self.mailbox.commands.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for command in commands {
            self.carry_out(command);
        }
        for queue in &mut self.queues {
            queue.collect(&mut self.done, self.device, self.report);
        }
        while let Some(at) = self.queues.iter().position(Queue::is_drained) {
            self.remove(at);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Start(queue) => self.queues.push(*queue),
            Command::Stop(index, reply) => {
                self.with(index, |queue| queue.phase = Phase::Stopping(reply));
            }
            Command::Abandon(index) => {
                if let Some(at) = self.queues.iter().position(|q| q.index == index) {
                    self.remove(at);
                }
            }
            Command::Kick(index, kick) => self.replace_kick(index, kick),
            Command::Call(index, call) => self.with(index, |queue| queue.call = call),
            Command::Error(index, error) => self.with(index, |queue| queue.error = error),
            Command::Enable(index, enabled, reply) => {
                self.with(index, |queue| {
                    queue.enabled = enabled;
                    queue.kicked();
                });
                let _ = reply.send(());
            }
            Command::Memory(memory) => self.move_to(&memory),
            Command::Exit => self.exit = true,
        }
    }

    fn move_to(&mut self, memory: &Arc<Memory>) {
        for queue in &mut self.queues {
            if let Err(error) = queue.move_to(memory)
                && !queue.is_broken()
            {
                queue.break_off();
                self.report.queue_broken(queue.index, Broken::Memory(error));
            }
            // Told first: the front-end is answered when the memory is free.
            queue.leave();
        }
    }

    fn replace_kick(&mut self, index: u16, kick: Option<OwnedFd>) {
        let epoll = self.mailbox.epoll.as_fd();
        self.with(index, |queue| {
            unwatch(epoll, queue.kick.as_ref());
            queue.kick = kick;
            queue.kicked();
        });
    }

    fn with(&mut self, index: u16, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.queues.iter_mut().find(|q| q.index == index) {
            change(queue);
        }
    }

    fn remove(&mut self, at: usize) {
        let queue = self.queues.swap_remove(at);
        unwatch(self.mailbox.epoll.as_fd(), queue.kick.as_ref());
        queue.end();
    }

    fn end_all(&mut self) {
        while !self.queues.is_empty() {
            self.remove(0);
        }
    }
}

/// The front-end holds the same open file, so closing our descriptor alone would leave it
/// registered.
fn unwatch(epoll: BorrowedFd<'_>, kick: Option<&OwnedFd>) {
    if let Some(kick) = kick {
        let _ = epoll::delete(epoll, kick);
    }
}
