//! The core's events on their way into the log. Most are caused by a front-end or a driver, which
//! must not be able to fill the log.

use std::collections::HashMap;
use std::fmt;
use std::mem::{Discriminant, discriminant, replace};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vhost_user_core::backend::{self, Event, Observer};

use crate::line_limit::LimitedLines;
use crate::log::{self, Level, Logger, Record};
use crate::repeats::SUMMARY_EVERY;
use crate::report::Reports;
use crate::traits::SumsUp;

/// The events of one back-end.
pub(crate) struct Events {
    this: Weak<Self>,
    /// Stands before each line.
    label: String,
    reports: Arc<Reports>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By what has happened, and its level: lines that are not shown use up nothing of those that
    /// are. There are as many as the core has kinds of events.
    kinds: HashMap<(Discriminant<Event>, Level), LimitedLines<Event>>,
    /// The log has been asked to have told what was counted.
    counting: bool,
}

impl Events {
    pub(crate) fn new(label: String, reports: Arc<Reports>) -> Arc<Self> {
        Arc::new_cyclic(|this| {
            let (this, state) = (Weak::clone(this), Mutex::default());
            Self { this, label, reports, state }
        })
    }

    /// Logs what was counted and not yet said.
    pub(crate) fn sum_up(&self) {
        self.sum_up_older(Duration::ZERO);
    }

    fn sum_up_older(&self, age: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        let kinds = state.kinds.iter_mut();
        let lines: Vec<_> = kinds
            .filter_map(|((_, level), lines)| Some((*level, lines.sum_up(age, now)?)))
            .collect();
        drop(state);
        for (level, line) in lines {
            self.say(level, &line);
        }
    }

    fn say(&self, level: Level, line: &dyn fmt::Display) {
        let text = format!("{}: {line}", self.label);
        log::record(Record { logger: Logger::Backend, level, text, exception: None });
    }

    /// Has the log look after what was counted.
    fn counted(&self, mut state: MutexGuard<'_, State>) {
        let known = replace(&mut state.counting, true);
        drop(state);
        if !known {
            log::sum_up_later(Weak::clone(&self.this) as Weak<dyn SumsUp>);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Events {
    fn event(&self, event: Event) {
        if matches!(event, Event::RequestFailed { .. }) {
            self.reports.keep_guest_error(&event);
        }
        let (level, now) = (level_of(&event), Instant::now());
        let mut state = self.lock();
        let kind = state.kinds.entry((discriminant(&event), level));
        match kind.or_insert_with(|| LimitedLines::new(now)).pass(event, now) {
            Some(event) => {
                drop(state);
                self.say(level, &event);
            }
            None => self.counted(state),
        }
    }
}

impl SumsUp for Events {
    fn has_counted(&self) -> bool {
        let mut state = self.lock();
        state.counting = state.kinds.values().any(LimitedLines::has_counted);
        state.counting
    }

    fn sum_up_old(&self) {
        self.sum_up_older(SUMMARY_EVERY);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Events({})", self.label)
    }
}

fn level_of(event: &Event) -> Level {
    match event.level() {
        backend::Level::Debug => Level::Debug,
        backend::Level::Info => Level::Info,
        backend::Level::Warning => Level::Warning,
        backend::Level::Error => Level::Error,
    }
}
