//! The extension module `vhost_user._core`: the core of the package with Python's face.
//!
//! It knows no protocol and no ring. A worker thread attaches to the interpreter once for its
//! life and enters it once per batch; no thread waits with the interpreter held; the core never
//! waits for the interpreter.

mod arguments;
mod attached_lock;
mod backend;
mod block;
mod block_batch;
mod block_command;
mod block_data;
mod block_request;
mod buffer;
mod call;
mod callback_thread;
mod copy_budget;
mod descriptor;
mod device;
mod device_lock;
mod device_numbers;
mod driver;
mod endpoint;
mod error;
mod events;
mod exporter;
mod frontend;
mod interpreter;
mod interrupt;
mod late;
mod line_limit;
mod load;
mod loan;
mod log;
mod metrics;
mod object;
mod origin;
mod pages;
mod py_device;
mod python_thread;
mod queue;
mod raw_bytes;
mod reason;
mod relay;
mod repeats;
mod report;
mod request;
mod seat;
mod send_data;
mod shown_request;
mod stuck;
mod summaries;
mod ticket;
mod traits;
mod turns;
mod worker_state;
mod xen;

use pyo3::prelude::*;

/// The Rust core of `vhost_user`.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::backend::Backend;
    #[pymodule_export]
    use super::block_batch::BlockBatch;
    #[pymodule_export]
    use super::block_request::BlockRequest;
    #[pymodule_export]
    use super::driver::VirtioBlkDriver;
    #[pymodule_export]
    use super::frontend::Frontend;
    #[pymodule_export]
    use super::load::LoadReport;
    #[pymodule_export]
    use super::metrics::{Metrics, check_metrics_address};
    #[pymodule_export]
    use super::queue::Queue;
    #[pymodule_export]
    use super::relay::Relay;
    #[pymodule_export]
    use super::request::QueueRequest;
    #[pymodule_export]
    use super::xen::XenGuest;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::interpreter::check_main(module.py())?;
        super::object::ask_for_lock(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Sets how many bytes of private copies all queues may have together; returns the former
    /// number.
    #[pyfunction]
    #[pyo3(signature = (size, /))]
    fn set_total_copy_budget(size: u64) -> u64 {
        super::copy_budget::set_total(size)
    }

    /// Puts a warning in line with the core's records. Does not wait for its reader.
    #[pyfunction]
    #[pyo3(signature = (text, /))]
    fn log_warning(text: String) {
        let (logger, level) = (super::log::Logger::Backend, super::log::Level::Warning);
        super::log::record(super::log::Record { logger, level, text, exception: None });
    }

    /// Has this process ended with SIGTERM when its parent ends, whatever it executes by then.
    #[pyfunction]
    fn end_with_parent() -> PyResult<()> {
        use rustix::process::{Signal, set_parent_process_death_signal};

        Ok(set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)?)
    }

    /// Hands over the log records that wait, and ends the thread that does so.
    #[pyfunction]
    fn end_logging(py: Python<'_>) -> PyResult<()> {
        super::interrupt::interruptible(py, super::log::end)
    }
}
