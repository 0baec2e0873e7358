//! The state of the device behind a connection: fetched from one back-end, given to another.
//!
//! Source: QEMU "Vhost-user Protocol", "Migrating back-end state".

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use super::client::{Client, copy, read};
use super::error::{FrontendError, Result};
use crate::error::HostError;
use crate::sys::pipe_end::{PipeEnd, Way};
use crate::wire::FrontendMessage as M;
use crate::wire::Payload;
use crate::wire::payload::{DeviceStateParams, TransferDirection};

/// Bytes that are read or written at a time.
const CHUNK: usize = 64 << 10;

/// Bits of the answer that say what went wrong.
const ERROR: u64 = 0xff;
/// The bit of the answer that says that no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

impl Client {
    /// Fetches the device's state, of `most` bytes at most: SET_DEVICE_STATE_FD, all that the
    /// back-end writes, CHECK_DEVICE_STATE. No ring may run. Each piece may take as long as a reply.
    pub fn save_state(&mut self, most: u64) -> Result<Vec<u8>> {
        let (reader, writer) = pipe()?;
        let other = self.set_device_state_fd(TransferDirection::Save, writer)?;
        let end = taken(other.unwrap_or(reader), Way::In)?;
        let state = self.read_to_end(&end, most)?;
        drop(end);
        self.check_device_state()?;
        Ok(state)
    }

    /// Gives the device a state that [`save_state`](Self::save_state) has returned. No ring may run;
    /// memory and features may come later.
    pub fn load_state(&mut self, state: &[u8]) -> Result<()> {
        let (reader, writer) = pipe()?;
        let other = self.set_device_state_fd(TransferDirection::Load, reader)?;
        let end = taken(other.unwrap_or(writer), Way::Out)?;
        let written = self.write_all(&end, state);
        // The end of the stream is the end of the state.
        drop(end);
        // Who does not read it says why.
        self.check_device_state()?;
        written
    }

    /// SET_DEVICE_STATE_FD: begins a transfer through the other end of a pipe. Returns the
    /// back-end's own descriptor, if it has one to be used in its place.
    pub fn set_device_state_fd(
        &mut self,
        direction: TransferDirection,
        fd: OwnedFd,
    ) -> Result<Option<OwnedFd>> {
        let message = M::SetDeviceStateFd;
        let params = DeviceStateParams { direction }.to_bytes();
        let mut reply = self.ask_with(message, params, vec![fd])?;
        let code: u64 = read(message, &reply.payload)?;
        if code & ERROR != 0 {
            return Err(FrontendError::Refused { message: message.name(), code });
        }
        let fd = reply.fds.pop();
        if fd.is_some() == (code & NO_FD != 0) {
            let why = format!("{code:#x} with {} descriptors", usize::from(fd.is_some()));
            return Err(FrontendError::BadReply { message: message.name(), why });
        }
        fd.map(|fd| copy(fd.as_fd())).transpose()
    }

    /// CHECK_DEVICE_STATE: waits for the end of a transfer, and says how it went.
    pub fn check_device_state(&mut self) -> Result<()> {
        let message = M::CheckDeviceState;
        match self.ask_for(message, Vec::new())? {
            0_u64 => Ok(()),
            code => Err(FrontendError::Refused { message: message.name(), code }),
        }
    }

    fn read_to_end(&self, end: &PipeEnd, most: u64) -> Result<Vec<u8>> {
        let (mut state, mut buffer) = (Vec::new(), vec![0; CHUNK]);
        loop {
            self.wait_for(end)?;
            match end.read(&mut buffer).map_err(failed)? {
                Some(0) => return Ok(state),
                Some(more) => state.extend_from_slice(&buffer[..more]),
                None => {}
            }
            if state.len() as u64 > most {
                let why = format!("the device's state has more than {most} bytes");
                return Err(FrontendError::range(why));
            }
        }
    }

    fn write_all(&self, end: &PipeEnd, state: &[u8]) -> Result<()> {
        let mut rest = state;
        while !rest.is_empty() {
            self.wait_for(end)?;
            let written = end.write(&rest[..rest.len().min(CHUNK)]).map_err(failed)?;
            rest = &rest[written.unwrap_or(0)..];
        }
        Ok(())
    }

    fn wait_for(&self, end: &PipeEnd) -> Result<()> {
        let timeout = self.timeout();
        match end.wait_until(Instant::now() + timeout).map_err(failed)? {
            true => Ok(()),
            false => Err(FrontendError::TimedOut { message: "the device's state", timeout }),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC).map_err(|error| HostError::new("make a pipe", error))?)
}

fn taken(fd: OwnedFd, way: Way) -> Result<PipeEnd> {
    PipeEnd::new(fd.into(), way).map_err(|what| FrontendError::BadReply {
        message: M::SetDeviceStateFd.name(),
        why: format!("its descriptor is {what}, not the end of a pipe"),
    })
}

fn failed(error: io::Error) -> FrontendError {
    HostError::new("transfer the device's state", error).into()
}
