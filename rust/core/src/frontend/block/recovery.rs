//! Going on with the next back-end when one is gone in the middle of requests.
//!
//! As QEMU does it: memory, rings and the record of the requests in flight stay as they are, and the
//! next back-end is given the record before the rings.
//!
//! Source: QEMU "Vhost-user Protocol", "Inflight I/O tracking".

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::super::client::Client;
use super::super::error::{FrontendError, Result};
use super::{BlockConfig, BlockDriver};
use crate::error::HostError;
use crate::socket::Stream;
use crate::sys::interrupt;

/// Between two attempts at a back-end that takes the connection and is gone again.
const PAUSE: Duration = Duration::from_millis(5);

impl BlockDriver {
    /// Whether this driver goes on with the next back-end when one is gone, and the error says that
    /// it is.
    pub(in super::super) fn can_resume(&self, error: &FrontendError) -> bool {
        self.record.is_some() && self.path.is_some() && error.is_gone()
    }

    /// How often the driver has gone on with another back-end.
    pub fn reconnections(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.reconnections)
    }

    /// Has the next back-end finish what is in flight. For as long as a request may take, it is
    /// waited for, and for one more if it goes too.
    pub(in super::super) fn resume(&mut self) -> Result<()> {
        let Some(path) = self.path.clone() else {
            return Err(FrontendError::Closed { message: "requests" });
        };
        let until = Instant::now() + self.options.timeout;
        loop {
            match self.connect_again(&path) {
                Err(error) if error.is_gone() && Instant::now() < until => thread::sleep(PAUSE),
                result => return result,
            }
            interrupt::ask().map_err(|e| HostError::new("connect again", e))?;
        }
    }

    /// One attempt.
    fn connect_again(&mut self, path: &Path) -> Result<()> {
        self.hang_up(path)?;
        let mut client = Client::connect(path, self.options.timeout)?;
        let negotiated = client.negotiate(&self.wanted())?;
        if negotiated.features != self.negotiated.features {
            return Err(FrontendError::range(format!(
                "the next back-end at {} has features {:#x} where the rings were made with {:#x}",
                path.display(),
                negotiated.features,
                self.negotiated.features
            )));
        }
        let config = client.config(0, BlockConfig::LEN)?;
        self.config = BlockConfig::new(&config, negotiated.features);
        client.set_features(negotiated.features)?;
        (self.client, self.negotiated) = (client, negotiated);
        self.queues.iter().for_each(|queue| queue.ring().clear_error());
        self.start_all()?;
        if let Some(record) = &mut self.record {
            record.reconnections += 1;
        }
        Ok(())
    }

    /// Closes the connection: a back-end serves one at a time.
    pub(super) fn hang_up(&mut self, path: &Path) -> Result<()> {
        let (stream, _) = Stream::pair()
            .map_err(|source| FrontendError::Connect { path: path.to_owned(), source })?;
        self.client = Client::from_stream(stream, self.options.timeout);
        Ok(())
    }
}
