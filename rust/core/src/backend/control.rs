//! The control thread: takes front-ends, one after the other.

use std::sync::Arc;
use std::time::Duration;

use super::context::BackendContext;
use super::event::Event;
use super::offer::postcopy;
use super::options::Options;
use super::session::Session;
use super::shared::{Shared, State};
use super::start_failed::StartFailed;
use crate::device::Device;
use crate::socket::{Endpoint, Next, Source, Stream};
use crate::sys::closer::Closer;
use crate::sys::sigbus;
use std::os::fd::AsFd;

/// Longest wait for descriptors to be closed before it is asked whether the back-end stops.
const CLOSE_LIMIT: Duration = Duration::from_millis(100);

/// What the control thread owns.
pub(super) struct Control {
    context: BackendContext,
    source: Source,
}

impl Control {
    /// Opens the endpoint: what fails is known before there is a thread.
    pub(super) fn open(
        device: Arc<dyn Device>,
        mut options: Options,
        shared: Arc<Shared>,
    ) -> Result<Self, StartFailed> {
        let place = describe(&options.endpoint);
        let endpoint = std::mem::replace(&mut options.endpoint, Endpoint::Dial { path: "".into() });
        let mut source = endpoint.open()?;
        let closer = Closer::default();
        source.close_with(&closer);
        shared.event(Event::Listening(place));
        if let Err(why) = postcopy() {
            shared.event(Event::PostcopyWithheld(why));
        }
        Ok(Self { context: BackendContext { device, options, shared, closer }, source })
    }

    pub(super) fn run(mut self) {
        sigbus::unblock();
        while let Some(stream) = self.next() {
            self.serve(stream);
            if !self.context.options.keep_listening || self.context.shared.is_stopping() {
                break;
            }
            self.context.shared.set_state(State::Listening);
        }
        let Self { source, context: BackendContext { device, options, shared, closer } } = self;
        // Whoever hears of the end may open what the device had open.
        drop((source, options, device));
        // What does not answer is left behind.
        closer.finishes(CLOSE_LIMIT);
        shared.event(Event::Stopped);
        shared.set_state(State::Stopped);
        shared.stopped_event.signal();
    }

    /// The next front-end; `None` when there is none to come.
    fn next(&mut self) -> Option<Stream> {
        self.catch_up();
        while !self.context.shared.is_stopping() {
            match self.source.next(self.context.shared.wake.as_fd()) {
                Ok(Next::Stream(stream)) => return Some(stream),
                // Nothing but a stop and a pause concerns a back-end without a front-end.
                Ok(Next::Woken) => {
                    let shared = &self.context.shared;
                    if let Some(pause) = shared.pending_events().pause {
                        shared.pause_is_known(pause);
                    }
                }
                Ok(Next::Held(error)) => {
                    self.context.shared.event(Event::AcceptHeld(error.to_string()));
                }
                Ok(Next::Over) => return None,
                Err(error) => {
                    self.context.shared.event(Event::AcceptFailed(error.to_string()));
                    return None;
                }
            }
        }
        None
    }

    /// Waits until what former front-ends have passed is closed, but for a few: else whoever comes
    /// again and again takes all the descriptors of this process.
    fn catch_up(&self) {
        let BackendContext { shared, closer, .. } = &self.context;
        if closer.is_behind() {
            let why = "the files that former front-ends have passed do not answer to a close";
            shared.event(Event::AcceptHeld(why.to_owned()));
        }
        while !shared.is_stopping() && !closer.catches_up(CLOSE_LIMIT) {}
    }

    fn serve(&mut self, mut stream: Stream) {
        stream.close_with(&self.context.closer);
        stream.set_deadline(self.context.options.message_deadline);
        self.context.shared.begin_session();
        self.context.shared.set_state(State::Negotiating);
        self.context.shared.event(Event::Connected(stream.peer()));
        Session::new(&self.context, stream).run();
        self.context.shared.event(Event::Disconnected);
    }
}

fn describe(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Listen(options) => options.path.display().to_string(),
        Endpoint::Dial { path } => format!("a connection to {}", path.display()),
        Endpoint::Inherited(_) => "an inherited socket".to_owned(),
    }
}
