//! A thread that goes into callbacks: which one it is in, and how far that has come.

use std::cell::OnceCell;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use crate::call::call_for_value;
use crate::log::{self, Level};
use crate::report::Reports;
use crate::traits::CallsBack;
use crate::turns::Turns;

thread_local! {
    static THIS: OnceCell<Arc<CallbackThread>> = const { OnceCell::new() };
}

/// A thread that goes into the callbacks of a device.
pub(crate) struct CallbackThread {
    turns: Turns,
    /// The thread's number in Python: `threading.get_ident`.
    ident: u64,
    /// Weak: a thread keeps nothing of its device alive.
    reports: Weak<Reports>,
}

/// Says that callbacks run on this thread, one or several, until it is dropped there.
pub(crate) struct Running {
    /// It is the outermost.
    begun: bool,
    _here: PhantomData<*const ()>,
}

impl Running {
    /// To be made as a callback begins, with the interpreter.
    pub(crate) fn begin(py: Python<'_>, reports: &Arc<Reports>) -> Self {
        let begun = THIS.with(|this| {
            if this.get().is_none()
                && let Some(new) = CallbackThread::new(py, reports)
            {
                let _ = this.set(new);
            }
            let outermost = this.get().filter(|thread| thread.callback().is_none());
            outermost.inspect(|thread| thread.turns.turn()).is_some()
        });
        Self { begun, _here: PhantomData }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.begun {
            // A thread that is on its way out is in no callback any more.
            let _ =
                THIS.try_with(|this| this.get().inspect(|thread| thread.turns.turn()).is_some());
        }
    }
}

impl CallbackThread {
    /// The thread that calls this; from now on it is looked at. `None`: it has no number, and is not.
    #[cold]
    fn new(py: Python<'_>, reports: &Arc<Reports>) -> Option<Arc<Self>> {
        let ident = py
            .import("threading")
            .and_then(|threading| threading.call_method0("get_ident")?.extract());
        let reports = Arc::downgrade(reports);
        let thread = Arc::new(Self { turns: Turns::of_this_thread(), ident: ident.ok()?, reports });
        let known: Arc<dyn CallsBack> = Arc::clone(&thread) as Arc<dyn CallsBack>;
        log::look_after(Arc::downgrade(&known));
        Some(thread)
    }

    /// The thread's Python calls: the name of the callback, and a line or two for each call, the
    /// callback first.
    fn stack(&self, py: Python<'_>) -> PyResult<Option<(String, String)>> {
        let frames = py.import("sys")?.call_method0("_current_frames")?;
        let Ok(frame) = frames.get_item(self.ident) else { return Ok(None) };
        let mut first = frame.clone();
        while let Some(caller) = first.getattr("f_back")?.extract::<Option<Bound<'_, PyAny>>>()? {
            first = caller;
        }
        let name = first.getattr("f_code")?.getattr("co_name")?.extract()?;
        let format = py.import("traceback")?.getattr("format_stack")?;
        // It reads source files.
        let lines = call_for_value(py, &format.unbind(), [&frame])?;
        Ok(Some((name, lines.extract::<Vec<String>>()?.concat())))
    }
}

impl CallsBack for CallbackThread {
    fn callback(&self) -> Option<u64> {
        self.turns.callback()
    }

    fn tell_stuck(&self, py: Python<'_>) -> PyResult<()> {
        let Some(reports) = self.reports.upgrade() else { return Ok(()) };
        let stack = self.stack(py)?;
        if self.callback().is_none() {
            return Ok(());
        }
        let (name, lines) = stack.unwrap_or_else(|| ("a callback".into(), String::new()));
        let text = format!(
            "{} has not returned for over 5 s; its requests wait. It is here:\n{}",
            reports.callback(&name),
            lines.trim_end()
        );
        reports.say_limited("stuck", Level::Warning, text);
        Ok(())
    }
}
