//! A block device whose data is in Python: per request, or a batch at a time.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::PyBool;
use vhost_user_core::batch_size::{BatchSize, half};
use vhost_user_core::block::{
    BlkOp, BlockCore, BlockOptions, BlockRequest as CoreRequest, ByteRange, FailureObserver,
    Geometry, InvalidBlock, Status, VIRTIO_ID,
};
use vhost_user_core::device::{ConfigRefused, Device, StateForm, StateRefused};
use vhost_user_core::request::{Batch, Request};

use crate::block_batch::BlockBatch;
use crate::block_command::Command;
use crate::block_data::side_of;
use crate::call::call;
use crate::copy_budget::CopyBudget;
use crate::error;
use crate::exporter::{self, BufferExporter};
use crate::late::{LateWrites, leaves_data};
use crate::loan::{LoanedRequest, NotLent, Reclaimed};
use crate::object::is_unshared;
use crate::origin::Origin;
use crate::py_device::{PyDevice, Views, run_worker};
use crate::report::{Context, Fault, Reports, forget_locals};
use crate::shown_request::ShownRequest;
use crate::traits::{Answerable, FlushesFirst};
use crate::worker_state::WorkerState;

/// A block device with Python callbacks.
pub(crate) struct PyBlock {
    device: Arc<PyDevice>,
    core: Arc<BlockCore>,
    /// `on_batch` gets the requests; else `read`, `write` and so on, one by one.
    batched: bool,
    /// There is a `flush` to call.
    flushes: bool,
    /// Bytes of private copies that a queue may have at a time.
    copy_budget: u64,
    /// Writes that are answered after their callback, if there is a `flush`.
    late: Option<Arc<LateWrites>>,
    queues: Vec<QueueSeat>,
}

/// What a device has for one queue.
struct QueueSeat {
    state: WorkerState<BlockQueue>,
    batch_size: BatchSize,
    budget: Arc<CopyBudget>,
}

/// What one queue's worker keeps from batch to batch.
#[derive(Default)]
struct BlockQueue {
    start: u64,
    calls: Option<Calls>,
    loan: LoanedRequest<CoreRequest>,
    /// To be handed out again.
    spare: Option<Py<BlockBatch>>,
}

/// The callbacks, bound to their object.
struct Calls {
    read: Py<PyAny>,
    write: Py<PyAny>,
    flush: Py<PyAny>,
    discard: Py<PyAny>,
    write_zeroes: Py<PyAny>,
    on_batch: Py<PyAny>,
    /// For messages about `read`, `write`, `on_batch`.
    origins: [Arc<Origin>; 3],
}

impl PyBlock {
    /// What the copies of its queues come out of.
    pub(crate) fn budgets(&self) -> Vec<Arc<CopyBudget>> {
        self.queues.iter().map(|seat| Arc::clone(&seat.budget)).collect()
    }

    /// Reads what it is from the Python object. `overrides`: the callbacks that its class has.
    pub(crate) fn new(
        object: &Bound<'_, PyAny>,
        overrides: &[String],
        views: Views,
        reports: Arc<Reports>,
    ) -> PyResult<Self> {
        let has = |name: &str| overrides.iter().any(|known| known == name);
        let read_only: bool = object.getattr("read_only")?.extract()?;
        let block_size: u32 = object.getattr("block_size")?.extract()?;
        let geometry = Geometry {
            block_size,
            physical_block_size: block_size,
            read_only,
            flush: has("flush"),
            discard: has("discard") && !read_only,
            write_zeroes: has("write_zeroes") && !read_only,
            // A class that counts in blocks must not get parts of them.
            whole_blocks: true,
            ..Geometry::new(object.getattr("size")?.extract()?)
        };
        let core = BlockCore::new(&geometry, &options(object)?).map_err(|e| error::block(&e))?;
        let core = core.observed_by(Arc::clone(&reports) as Arc<dyn FailureObserver>);
        let count = core.num_queues();
        let (device, core) =
            (Arc::new(PyDevice::new(object, overrides, views.raw, reports)?), Arc::new(core));
        Ok(Self {
            late: geometry.flush.then(|| LateWrites::new(&device, &core)),
            device,
            core,
            batched: has("on_batch"),
            flushes: geometry.flush,
            copy_budget: views.copy_budget,
            queues: (0..count).map(|index| QueueSeat::new(index, views.copy_budget)).collect(),
        })
    }

    /// The disk has `size` bytes from now on.
    pub(crate) fn resize(&self, size: u64) -> Result<(), InvalidBlock> {
        self.core.resize(size)
    }

    fn serve(
        &self,
        py: Python<'_>,
        queue: &mut BlockQueue,
        budget: &Arc<CopyBudget>,
        batch: &mut Batch,
    ) {
        if let Err(error) = self.prepare(py, queue, budget) {
            let context = Context { callback: "__getattribute__", request: &"the callbacks" };
            self.device.reports.raised(py, error, &context);
            return;
        }
        let BlockQueue { calls: Some(calls), loan, spare, .. } = queue else { return };
        if self.batched {
            // More than one only if the copies of all that is there would be over the budget.
            while !batch.is_empty()
                && !self.device.reports.is_stopping()
                && self.serve_batch(py, calls, spare, batch)
            {}
            return;
        }
        while !self.device.reports.is_stopping()
            && let Some(request) = self.core.next(batch)
        {
            self.serve_one(py, calls, loan, request, batch);
        }
    }

    /// Looks the callbacks up, once for each start of the device.
    fn prepare(
        &self,
        py: Python<'_>,
        queue: &mut BlockQueue,
        budget: &Arc<CopyBudget>,
    ) -> PyResult<()> {
        let start = self.device.start_number();
        if queue.start != start {
            let method = |name| self.device.method(py, name);
            let late = self.late.clone().map(|late| late as Arc<dyn FlushesFirst>);
            let origin = |name| self.device.origin(name, budget, late.clone());
            queue.calls = Some(Calls {
                read: method("read")?,
                write: method("write")?,
                flush: method("flush")?,
                discard: method("discard")?,
                write_zeroes: method("write_zeroes")?,
                on_batch: method("on_batch")?,
                origins: ["read", "write", "on_batch"].map(origin),
            });
            queue.start = start;
        }
        Ok(())
    }

    fn serve_one(
        &self,
        py: Python<'_>,
        calls: &Calls,
        loan: &mut LoanedRequest<CoreRequest>,
        request: CoreRequest,
        batch: &mut Batch,
    ) {
        let shown = ShownRequest::new(&request);
        let result = match shown.op {
            BlkOp::GetId => return self.core.finish_id(request, batch),
            BlkOp::Read => return self.transfer(py, calls, loan, request, batch),
            BlkOp::Write => return self.transfer(py, calls, loan, request, batch),
            _ => Command::of(&request).map_or(Ok(()), |command| self.command(py, calls, &command)),
        };
        request.finish(self.status(py, result, shown.op.name(), &shown), batch);
    }

    /// An operation without data, by the method of its name.
    fn command(&self, py: Python<'_>, calls: &Calls, command: &Command) -> PyResult<()> {
        let Command { op, ranges, unmap } = command;
        let place = |range: &ByteRange| [number(py, range.offset), number(py, range.length)];
        match op {
            BlkOp::Flush if self.flushes => call(py, "flush", &calls.flush, []),
            BlkOp::Discard => ranges.iter().map(place).try_for_each(|[offset, length]| {
                call(py, "discard", &calls.discard, [&offset, &length])
            }),
            BlkOp::WriteZeroes => self.durably(py, calls, || {
                let unmap = PyBool::new(py, *unmap);
                ranges.iter().map(place).try_for_each(|[offset, length]| {
                    call(py, "write_zeroes", &calls.write_zeroes, [&offset, &length, &unmap])
                })
            }),
            // Without a callback there is no cache: what was written is where it should be.
            _ => Ok(()),
        }
    }

    /// What `on_batch` has left of the operations without data goes to their own methods: they
    /// are there, or the driver would not have been offered the operation.
    fn serve_left(&self, py: Python<'_>, calls: &Calls, requests: &BlockBatch) {
        for (place, command) in requests.left_commands(py) {
            let result = self.command(py, calls, &command);
            let status = self.status(py, result, command.op.name(), &"left by on_batch");
            requests.note(py, place, status);
        }
    }

    /// A read or a write: the callback gets a view of the data.
    fn transfer(
        &self,
        py: Python<'_>,
        calls: &Calls,
        loan: &mut LoanedRequest<CoreRequest>,
        request: CoreRequest,
        batch: &mut Batch,
    ) {
        let (shown, side) = (ShownRequest::new(&request), side_of(&request));
        let is_write = shown.op == BlkOp::Write;
        let (method, origin) = match is_write {
            true => (&calls.write, &calls.origins[1]),
            false => (&calls.read, &calls.origins[0]),
        };
        loan.begin(request, self.device.has_raw_views());
        let mut outlasts = false;
        let status = match loan.exporter_unlocked(py, side, &origin.budget) {
            Ok(exporter) => {
                let mut hand_over = || {
                    let result = hand_over(py, loan, &exporter, method, &shown);
                    // What is stored while the flush runs that follows needs another before the
                    // answer.
                    outlasts = loan.is_viewed() && is_write;
                    result
                };
                let result =
                    if is_write { self.durably(py, calls, hand_over) } else { hand_over() };
                self.status(py, result, shown.op.name(), &shown)
            }
            Err(why) => self.not_lent(py, origin, why, &shown),
        };
        let back = loan.end(status, || {
            let origin = Arc::clone(origin);
            let held = origin.reports.numbers().hold();
            move |request| {
                drop(held);
                // Its ring may have stopped meanwhile: then it went back when it did.
                let _ = Answerable::complete(request, status, origin.late.as_ref());
            }
        });
        match back.settled(py, status) {
            Reclaimed::Free(request) if outlasts => {
                let _ = Answerable::complete(request, status, origin.late.as_ref());
            }
            Reclaimed::Free(request) => Answerable::finish(request, status, batch),
            Reclaimed::Held(exports) => origin.hold(py, exports),
            Reclaimed::Copied(_) | Reclaimed::Nothing => {}
        }
    }

    /// A request of which Python gets nothing to see.
    #[cold]
    fn not_lent(
        &self,
        py: Python<'_>,
        origin: &Origin,
        why: NotLent,
        shown: &ShownRequest,
    ) -> Status {
        let is_told = matches!(why, NotLent::Refused(_));
        let error = origin.not_lent(py, why);
        if is_told { Status::IoErr } else { self.status(py, Err(error), shown.op.name(), shown) }
    }

    /// Runs what changes the disk; if the driver has turned the write cache off, or never heard
    /// of one, flushes after it.
    fn durably(
        &self,
        py: Python<'_>,
        calls: &Calls,
        change: impl FnOnce() -> PyResult<()>,
    ) -> PyResult<()> {
        let before = self.core.write_through();
        change()?;
        // Asked again: the flush at the switch may have come too early for this change.
        if self.flushes && (before || self.core.write_through()) {
            call(py, "flush", &calls.flush, [])?;
        }
        Ok(())
    }

    fn status(
        &self,
        py: Python<'_>,
        result: PyResult<()>,
        callback: &'static str,
        request: &dyn fmt::Display,
    ) -> Status {
        let Err(error) = result else { return Status::Ok };
        match self.device.reports.raised(py, error, &Context { callback, request }) {
            Fault::Failed => Status::IoErr,
            Fault::Unsupported => Status::Unsupported,
        }
    }

    /// Hands what `on_batch` is to get at once over; `false` if the interpreter has no room for it.
    fn serve_batch(
        &self,
        py: Python<'_>,
        calls: &Calls,
        spare: &mut Option<Py<BlockBatch>>,
        batch: &mut Batch,
    ) -> bool {
        let through = self.core.write_through();
        let object = match spare.take().map_or_else(|| Py::new(py, BlockBatch::default()), Ok) {
            Ok(object) => object,
            Err(error) => {
                self.status(py, Err(error), "on_batch", &"a batch");
                return false;
            }
        };
        let requests = object.get();
        let mut served = Vec::new();
        let (mut count, mut writes, mut bytes) = (0, false, 0_u64);
        requests.begin(py, through, &calls.origins[2], || {
            loop {
                // What the callback may have copies of together fits the budget of its queue.
                if count > 0 && bytes.saturating_add(batch.next_bytes()) > self.copy_budget {
                    return None;
                }
                let request = self.core.next(batch)?;
                bytes = bytes.saturating_add(request.length());
                if request.op() != BlkOp::GetId {
                    count += 1;
                    writes |= leaves_data(&request);
                    return Some(request);
                }
                served.push(request);
            }
        });
        served.into_iter().for_each(|request| self.core.finish_id(request, batch));
        if count > 0 {
            let result = call(py, "on_batch", &calls.on_batch, [object.bind(py).as_any()]);
            if let Err(error) = &result
                && requests.is_viewed(py)
            {
                forget_locals(py, error);
            }
            let status = self.status(py, result, "on_batch", &format_args!("{count} requests"));
            requests.carry_out(py);
            if status == Status::Ok {
                self.serve_left(py, calls, requests);
            }
            let durable =
                if writes { self.flush_after(py, calls, requests, through) } else { Status::Ok };
            requests.settle(py, batch, |answer, request| match answer.unwrap_or(status) {
                Status::Ok if leaves_data(request) => durable,
                other => other,
            });
        }
        // What Python code still knows keeps its identity: it is not used again.
        *spare = Some(object).filter(|object| is_unshared(py, object));
        true
    }

    /// With the write cache off, writes are answered by how a flush went.
    fn flush_after(
        &self,
        py: Python<'_>,
        calls: &Calls,
        requests: &BlockBatch,
        through: bool,
    ) -> Status {
        // Asked again: the flush at the switch may have come too early for these writes.
        if !self.flushes || !(through || self.core.write_through()) {
            return Status::Ok;
        }
        requests.begin_flush(py);
        let flushed = call(py, "flush", &calls.flush, []);
        self.status(py, flushed, "flush", &"after writes, with the write cache off")
    }
}

impl Device for PyBlock {
    fn virtio_id(&self) -> u32 {
        VIRTIO_ID
    }

    fn features(&self) -> u64 {
        self.core.features()
    }

    fn is_transitional(&self) -> bool {
        true
    }

    fn num_queues(&self) -> u16 {
        self.core.num_queues()
    }

    fn max_queue_size(&self) -> u16 {
        self.core.max_queue_size()
    }

    fn config_len(&self) -> usize {
        self.core.config_len()
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        self.core.read_config(offset, out);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), ConfigRefused> {
        self.core.write_config(offset, data, || {
            if !self.flushes {
                return Ok(());
            }
            let flushed = self
                .device
                .ask("flush", |py| call(py, "flush", &self.device.method(py, "flush")?, []));
            flushed.ok_or_else(|| io::Error::other("flush raised"))
        })
    }

    fn negotiated(&self, features: u64) {
        self.core.negotiated(features);
        self.device.negotiated(features);
    }

    fn started(&self) {
        self.device.started();
    }

    fn stopped(&self) {
        self.device.stopped();
        self.queues.iter().for_each(|seat| seat.budget.forget());
    }

    fn reset(&self) {
        self.core.reset();
        self.device.reset();
    }

    /// A class without `save` has the cache mode alone.
    fn setting(&self) -> Option<u8> {
        self.core.setting()
    }

    fn take_setting(&self, setting: u8) {
        self.core.take_setting(setting);
    }

    fn state_form(&self) -> Option<StateForm> {
        self.device.state_form().cloned().or_else(|| self.core.state_form())
    }

    /// The cache mode, and what `save` writes.
    fn save(&self) -> Result<Vec<u8>, StateRefused> {
        let mut state = vec![self.core.save()];
        if self.device.state_form().is_some() {
            state.extend(self.device.save()?);
        }
        Ok(state)
    }

    fn load(&self, version: u32, state: &[u8]) -> Result<(), StateRefused> {
        let Some((&mode, rest)) = state.split_first() else {
            return Err(StateRefused("a disk's state begins with its cache mode".to_owned()));
        };
        self.core.check(mode)?;
        if self.device.state_form().is_some() {
            self.device.load(version, rest)?;
        } else if !rest.is_empty() {
            let bytes = state.len();
            return Err(StateRefused(format!("a disk's state is 1 byte, not {bytes}")));
        }
        self.core.load(mode)
    }

    fn disconnected(&self) {
        self.device.disconnected();
    }

    fn run_worker(&self, body: &mut (dyn FnMut() + Send)) {
        run_worker(body);
    }

    fn max_request_bytes(&self) -> u64 {
        self.core.max_request_bytes()
    }

    fn wants_mappings(&self) -> bool {
        self.device.has_raw_views()
    }

    fn operations(&self) -> &'static [&'static str] {
        self.core.operations()
    }

    fn framing_bytes(&self) -> u64 {
        self.core.framing_bytes()
    }

    fn can_be_left(&self, _queue: u16, request: &Request) -> bool {
        self.core.can_be_left(request)
    }

    fn refuse(&self, _queue: u16, request: &Request) -> u32 {
        self.core.refuse(request)
    }

    fn batch_limit(&self, queue: u16, available: u16) -> u16 {
        let Some(QueueSeat { batch_size, .. }) = self.queues.get(usize::from(queue)) else {
            return available;
        };
        match self.batched {
            false => half(available).min(batch_size.limit()),
            true if batch_size.is_quick() => half(available),
            // One round trip for all of them, most likely: the more the better.
            true => available,
        }
    }

    fn handle(&self, queue: u16, batch: &mut Batch) {
        let Some(seat) = self.queues.get(usize::from(queue)) else { return };
        if self.device.reports.is_stopping() {
            return;
        }
        self.device.enter(|py| {
            let (requests, begun) = (batch.len(), Instant::now());
            seat.state.with(|state| self.serve(py, state, &seat.budget, batch));
            seat.batch_size.took(requests, begun.elapsed());
        });
    }
}

impl QueueSeat {
    fn new(index: u16, copy_budget: u64) -> Self {
        let budget = CopyBudget::new(index, copy_budget);
        Self { state: WorkerState::default(), batch_size: BatchSize::default(), budget }
    }
}

/// Gives a callback a view of a request's data. The view ends when the callback returns, if nobody
/// has kept it: whatever keeps it may know where the data is without an export of its own, as a
/// tensor does that `torch.frombuffer` has made, and so it holds the request.
fn hand_over(
    py: Python<'_>,
    loan: &LoanedRequest<CoreRequest>,
    exporter: &Py<BufferExporter>,
    method: &Py<PyAny>,
    shown: &ShownRequest,
) -> PyResult<()> {
    let view = exporter::view(py, exporter)?;
    let result = call(py, shown.op.name(), method, [&number(py, shown.offset), view.as_any()]);
    drop(view);
    if let Err(error) = &result
        && loan.is_viewed()
    {
        forget_locals(py, error);
    }
    result
}

/// An offset or a length, as Python has it.
#[inline]
fn number(py: Python<'_>, value: u64) -> Bound<'_, PyAny> {
    let Ok(value) = value.into_pyobject(py);
    value.into_any()
}

/// The options that a Python block device has as attributes.
pub(crate) fn options(object: &Bound<'_, PyAny>) -> PyResult<BlockOptions> {
    Ok(BlockOptions {
        num_queues: object.getattr("num_queues")?.extract()?,
        queue_size: object.getattr("queue_size")?.extract()?,
        serial: object.getattr("serial")?.extract()?,
        max_request_bytes: object.getattr("max_request_bytes")?.extract()?,
    })
}
