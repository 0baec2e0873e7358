//! A back-end's numbers as families of metrics: their names, their labels, and what they say.

use super::histogram::Distribution;
use super::snapshot::{OperationSnapshot, QueueSnapshot, Snapshot};
use super::stage::Stage;
use super::text::{Kind, Text};

/// The bounds of times, as powers of two in nanoseconds: 1 us to 34 s.
const TIMES: std::ops::RangeInclusive<u32> = 10..=35;

/// The bounds of batches: 1 to 32768 requests.
const SIZES: std::ops::RangeInclusive<u32> = 0..=15;

const NANOSECONDS: f64 = 1e9;

/// Writes what was measured of the back-end that `device` names.
pub fn write(text: &mut Text, device: &str, snapshot: &Snapshot) {
    let queues: Vec<_> = (0..).map(|index: u16| index.to_string()).zip(&snapshot.queues).collect();
    let families = Families { device, queues: &queues };
    families.operations(text);
    families.times(text);
    families.gauges(text);
    families.notifications(text);
    let labels = [("device", device)];
    text.family(
        "vhost_user_guest_errors_total",
        Kind::Counter,
        "Requests that no device could work with and rings that the driver broke, each kind counted \
         once for each start of a ring.",
    );
    text.sample(&labels, snapshot.guest_errors);
    text.family(
        "vhost_user_reconnects_total",
        Kind::Counter,
        "Front-ends that came after the first.",
    );
    text.sample(&labels, snapshot.sessions.saturating_sub(1));
}

struct Families<'a> {
    device: &'a str,
    queues: &'a [(String, &'a QueueSnapshot)],
}

impl Families<'_> {
    fn operations(&self, text: &mut Text) {
        text.family(
            "vhost_user_requests_total",
            Kind::Counter,
            "Requests given back to the driver.",
        );
        self.each_operation(|queue, of| {
            for (status, count) in [("ok", of.done), ("error", of.failed)] {
                let labels = self.labels(queue, [("op", of.name), ("status", status)]);
                text.sample(&labels, count);
            }
        });
        text.family(
            "vhost_user_bytes_total",
            Kind::Counter,
            "Bytes of data of the requests that did not fail.",
        );
        self.each_operation(|queue, of| {
            text.sample(&self.labels(queue, [("op", of.name)]), of.bytes);
        });
        text.family(
            "vhost_user_request_seconds",
            Kind::Histogram,
            "From when a request was taken out of the ring until it was given back.",
        );
        self.each_operation(|queue, of| {
            let labels = self.labels(queue, [("op", of.name)]);
            text.histogram(&labels, &of.nanoseconds, TIMES, NANOSECONDS);
        });
    }

    fn times(&self, text: &mut Text) {
        text.family(
            "vhost_user_stage_seconds",
            Kind::Histogram,
            "How long a batch of requests was in a stage.",
        );
        for (queue, of) in self.queues {
            for (stage, times) in Stage::ALL.iter().zip(&of.measured.stages) {
                let labels = self.labels(queue, [("stage", stage.name())]);
                text.histogram(&labels, times, TIMES, NANOSECONDS);
            }
        }
        text.family(
            "vhost_user_batch_size",
            Kind::Histogram,
            "Requests that were taken out of the ring together.",
        );
        let write = |text: &mut Text, queue: &str, sizes: &Distribution| {
            text.histogram(&self.labels(queue, []), sizes, SIZES, 1.0);
        };
        self.queues.iter().for_each(|(queue, of)| write(text, queue, &of.measured.batch_size));
    }

    fn gauges(&self, text: &mut Text) {
        text.family(
            "vhost_user_queue_depth",
            Kind::Gauge,
            "Requests that the ring had when it was looked at last.",
        );
        self.each_queue(|queue, of| {
            text.sample(&self.labels(queue, []), of.measured.available.into());
        });
        text.family(
            "vhost_user_inflight",
            Kind::Gauge,
            "Requests that were taken from the ring and not given back.",
        );
        self.each_queue(|queue, of| text.sample(&self.labels(queue, []), of.in_flight.into()));
        text.family(
            "vhost_user_oldest_inflight_seconds",
            Kind::Gauge,
            "How long the oldest of the requests in flight has been that. 0 without one.",
        );
        self.each_queue(|queue, of| {
            let seconds = of.measured.oldest_nanoseconds as f64 / NANOSECONDS;
            text.fraction(&self.labels(queue, []), seconds);
        });
    }

    fn notifications(&self, text: &mut Text) {
        text.family("vhost_user_kicks_total", Kind::Counter, "Notifications from the driver.");
        self.each_queue(|queue, of| text.sample(&self.labels(queue, []), of.kicks));
        text.family("vhost_user_calls_total", Kind::Counter, "Notifications to the driver.");
        self.each_queue(|queue, of| text.sample(&self.labels(queue, []), of.calls));
    }

    fn each_queue(&self, mut write: impl FnMut(&str, &QueueSnapshot)) {
        self.queues.iter().for_each(|(queue, of)| write(queue, of));
    }

    fn each_operation(&self, mut write: impl FnMut(&str, &OperationSnapshot)) {
        for (queue, of) in self.queues {
            of.measured.operations.iter().for_each(|operation| write(queue, operation));
        }
    }

    /// The labels of a sample of one queue.
    fn labels<'a, const N: usize>(
        &'a self,
        queue: &'a str,
        more: [(&'a str, &'a str); N],
    ) -> Vec<(&'a str, &'a str)> {
        [("device", self.device), ("queue", queue)].into_iter().chain(more).collect()
    }
}
