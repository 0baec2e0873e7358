//! The life of a worker thread: it waits or polls, and serves its queues in turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;

use super::cell::QueueCell;
use super::context::WorkerContext;
use super::mailbox::{DOORBELL, Mailbox};
use super::poll::PollWindow;
use super::queue::Queue;
use super::report::Report;
use crate::device::Device;
use crate::request::Batch;

/// How often a ring without a kick descriptor is looked at.
const UNKICKED: Duration = Duration::from_millis(1);

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

/// The thread's whole life. A panic ends here: it is a bug, of the device or of ours, and must
/// not take the process along.
pub(super) fn run(
    mailbox: &Mailbox,
    device: &dyn Device,
    report: &dyn Report,
    config: WorkerConfig,
) {
    pin(config.cpu);
    let mut thread = Thread::new(mailbox, device, report, config);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| thread.run())) {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        report.worker_panicked(message.to_owned());
    }
    mailbox.queues().iter().for_each(|queue| queue.orphan());
}

fn pin(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    // The options were checked when the back-end started; a processor that went away since costs
    // speed only.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// What the thread owns.
struct Thread<'a> {
    mailbox: &'a Mailbox,
    device: &'a dyn Device,
    report: &'a dyn Report,
    limit: u16,
    window: PollWindow,
    queues: Vec<Arc<QueueCell>>,
    batch: Batch,
    events: Vec<epoll::Event>,
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
            events: Vec::with_capacity(16),
        }
    }

    fn run(&mut self) {
        loop {
            if self.mailbox.doorbell.is_rung() {
                self.mailbox.doorbell.answer();
                if self.mailbox.is_to_exit() {
                    return;
                }
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
        let Self { device, report, batch, limit, .. } = self;
        let mut context = WorkerContext { device: *device, report: *report, batch, limit: *limit };
        let mut busy = false;
        for queue in &self.queues {
            busy |= queue.look(&mut context);
        }
        busy
    }

    fn sleep(&mut self) {
        let mut work = false;
        for queue in &self.queues {
            work |= queue.with(Queue::enable_kicks).unwrap_or(false);
        }
        if !work && self.mailbox.doorbell.fall_asleep() {
            let began = Instant::now();
            self.wait();
            self.window.slept(began.elapsed());
        }
        self.mailbox.doorbell.wake();
        for queue in &self.queues {
            queue.with(Queue::disable_kicks);
        }
    }

    fn wait(&mut self) {
        let is_unkicked =
            |queue: &&Arc<QueueCell>| queue.with(|queue| queue.is_unkicked()) == Some(true);
        let unkicked = self.queues.iter().any(|queue| is_unkicked(&queue));
        let limit =
            unkicked.then(|| Timespec { tv_sec: 0, tv_nsec: i64::from(UNKICKED.subsec_nanos()) });
        self.events.clear();
        // EINTR is as good as an event: everything is looked at anyway.
        let epoll = self.mailbox.epoll();
        let _ = epoll::wait(epoll, spare_capacity(&mut self.events), limit.as_ref());
        for event in &self.events {
            let data = event.data.u64();
            if data == DOORBELL {
                self.mailbox.doorbell.silence();
            }
            for queue in self.queues.iter().filter(|queue| u64::from(queue.index()) == data) {
                queue.with(Queue::kicked);
            }
        }
        for queue in self.queues.iter().filter(|queue| unkicked && is_unkicked(queue)) {
            queue.with(Queue::offer_left);
        }
    }

    /// The doorbell was rung: queues may have come or gone, or requests come back.
    #[inline(never)]
    fn answer(&mut self) {
        if self.mailbox.has_changed() {
            self.queues = self.mailbox.queues();
        }
        self.queues.iter().for_each(|queue| queue.collect());
    }
}
