//! The tables of the page, row by row.

use std::fs;
use std::path::Path;

use vhost_user_core::wire::features::names;
use vhost_user_core::wire::message::{Answer, ErrorForm, Needs};
use vhost_user_core::wire::{BackendMessage, FrontendMessage, ProtocolFeatures};

use super::super::negotiation::REFUSED;
use super::super::support;
use super::asked::Asked;
use super::rows::{self, Line};
use super::{project, tests_named};

/// One table, and the name of its place in the page.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) lines: String,
}

/// The file that most faults are mended in.
const ROWS: &str = "rust/core/tests/connection/page/rows.rs";

/// The feature bits that belong to no device type: VIRTIO 1.3, "Feature Bits", and vhost's two.
const COMMON: std::ops::Range<u32> = 24..50;

/// All tables. What keeps one from being made, or would make it say what no test shows, is said in
/// `faults`.
pub(super) fn all(asked: &Asked, faults: &mut Vec<String>) -> Vec<Table> {
    check_what_is_tried(asked, faults);
    vec![
        Table { name: "messages of the front-end", lines: frontend(asked, faults) },
        Table { name: "messages to the front-end", lines: backend(faults) },
        Table { name: "protocol features", lines: protocol_features(asked, faults) },
        Table { name: "features of rings and transport", lines: features(asked, faults) },
    ]
}

fn frontend(asked: &Asked, faults: &mut Vec<String>) -> String {
    let head = ["number", "message", "payload", "descriptors", "needs", "answer", "here", "test"];
    let lines = known_to_core(FrontendMessage::all()).map(|message| {
        let row = message.row();
        let (here, tests) = match asked.carries_out(row) {
            Ok(()) => {
                let name = format!("M::{message:?}");
                let (remark, tests) =
                    line(rows::MESSAGES, message, ("MESSAGES", &name, row.name), faults);
                let but = asked.refused_with_xen(row);
                let but = but.map(|why| format!("but with XEN_MMAP refused: `{why}`"));
                (joined("carried out", [but.as_deref().unwrap_or(""), remark]), tests)
            }
            Err(why) => {
                let what = format!("refused: {why}");
                let remark = remark(rows::MESSAGES, message, row.name, &what, faults);
                check_refused(message, faults);
                let why = format!("`{why}`");
                (joined("refused", [&why, remark]), &[rows::REFUSED_MESSAGES][..])
            }
        };
        let cells = [
            row.number.to_string(),
            row.name.to_owned(),
            row.payload.to_string(),
            row.fds.to_string(),
            needs(row.needs),
            answer(row.answer),
            here,
            tests_named::links(tests),
        ];
        cells.join(" | ")
    });
    table(&head, lines)
}

/// The messages with a number of their own, and the one that shares its number.
fn known_to_core(
    all: impl Iterator<Item = FrontendMessage>,
) -> impl Iterator<Item = FrontendMessage> {
    all.flat_map(|message| [Some(message), message.namesake()]).flatten()
}

fn backend(faults: &mut Vec<String>) -> String {
    let sources = backend_sources();
    let head = ["number", "message", "payload", "descriptors", "needs", "answer", "here", "test"];
    let lines = BackendMessage::all().map(|message| {
        let row = message.row();
        let (here, tests) = if sources.contains(&format!("BackendMessage::{message:?}")) {
            let name = format!("B::{message:?}");
            let (remark, tests) = line(rows::SENT, message, ("SENT", &name, row.name), faults);
            (joined("sent", [remark]), tests)
        } else {
            let what = "named nowhere in the back-end";
            let remark = remark(rows::SENT, message, row.name, what, faults);
            (joined("not sent", [remark]), &[rows::NOT_SENT][..])
        };
        let cells = [
            row.number.to_string(),
            row.name.to_owned(),
            row.payload.to_string(),
            row.fds.to_string(),
            needs(row.needs),
            answer(row.answer),
            here,
            tests_named::links(tests),
        ];
        cells.join(" | ")
    });
    table(&head, lines)
}

/// All that the back-end is made of.
fn backend_sources() -> String {
    fn read(folder: &Path, into: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, into);
            } else {
                into.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut sources = String::new();
    read(&project().join("rust/core/src/backend"), &mut sources);
    sources
}

fn protocol_features(asked: &Asked, faults: &mut Vec<String>) -> String {
    let (plain, xen) = (asked.plain.protocol_features, asked.xen.protocol_features);
    let lines = ProtocolFeatures::all().iter_names().map(|(name, feature)| {
        let offered = offered(plain.contains(feature), xen.contains(feature));
        let (remark, tests) = match offered {
            Some(_) => {
                let row = format!("P::{name}");
                line(rows::PROTOCOL, feature, ("PROTOCOL", &row, name), faults)
            }
            None => {
                let remark = remark(rows::PROTOCOL, feature, name, "not offered", faults);
                (remark, &[rows::REFUSED_PROTOCOL_FEATURES][..])
            }
        };
        let here = joined(offered.unwrap_or("not offered"), [remark]);
        let bit = feature.bits().trailing_zeros();
        format!("{bit} | {name} | {here} | {}", tests_named::links(tests))
    });
    table(&["bit", "feature", "here", "test"], lines)
}

fn features(asked: &Asked, faults: &mut Vec<String>) -> String {
    let (plain, xen) = (asked.plain.features, asked.xen.features);
    let named = COMMON.filter_map(|bit| {
        let name = names(1 << bit, None).swap_remove(0);
        (!name.starts_with("bit ")).then_some((bit, name))
    });
    let lines = named.map(|(bit, name)| {
        let feature = 1_u64 << bit;
        let offered = offered(plain & feature != 0, xen & feature != 0);
        let (remark, tests) = match offered {
            Some(_) => line(rows::FEATURES, feature, ("FEATURES", &name, &name), faults),
            None => {
                let remark = remark(rows::FEATURES, feature, &name, "not offered", faults);
                (remark, &[rows::REFUSED_FEATURES][..])
            }
        };
        let here = joined(offered.unwrap_or("not offered"), [remark]);
        format!("{bit} | {name} | {here} | {}", tests_named::links(tests))
    });
    table(&["bit", "feature", "here", "test"], lines)
}

fn offered(plain: bool, xen: bool) -> Option<&'static str> {
    match (plain, xen) {
        (true, true) => Some("offered"),
        (true, false) => Some("offered, but not with `--xen`"),
        (false, true) => Some("offered with `--xen`"),
        (false, false) => None,
    }
}

/// The line of what is carried out. `place` is the list that it has to be in, how it is called there,
/// and its name in the specification.
fn line<T: Copy + PartialEq>(
    list: &'static [Line<T>],
    subject: T,
    place: (&str, &str, &str),
    faults: &mut Vec<String>,
) -> (&'static str, &'static [&'static str]) {
    let (list_name, row, name) = place;
    let found = list.iter().find(|line| line.0 == subject);
    let Some(&(_, remark, tests)) = found.filter(|line| !line.2.is_empty()) else {
        faults.push(format!(
            "The core carries out {name}, and no test is named that shows it. Add to {list_name} in \
             {ROWS}\n    ({row}, \"what is particular about it, or nothing\", &[\"FILE::TEST\"]),\n\
             where FILE is the path of a test's source from the top of the repository (Rust or \
             Python) and TEST its name, and run `make protocol-page`."
        ));
        return ("", &[]);
    };
    let wrong = tests.iter().filter_map(|test| tests_named::fault(test));
    faults.extend(wrong.map(|fault| format!("{name}: {fault}. {list_name} in {ROWS} names it.")));
    (remark, tests)
}

/// The remark on what is not carried out, whose line names no test.
fn remark<T: PartialEq>(
    list: &'static [Line<T>],
    subject: T,
    name: &str,
    what: &str,
    faults: &mut Vec<String>,
) -> &'static str {
    let Some((_, remark, tests)) = list.iter().find(|line| line.0 == subject) else { return "" };
    if !tests.is_empty() {
        faults.push(format!(
            "{name} is {what}, and its line in {ROWS} names tests. Take the line out, or leave the \
             remark alone."
        ));
    }
    remark
}

/// The tests of what is refused have to try all of it, and nothing else.
fn check_what_is_tried(asked: &Asked, faults: &mut Vec<String>) {
    let support = "rust/core/tests/connection/support.rs";
    let offered = asked.plain.protocol_features.bits() | ProtocolFeatures::CONFIG.bits();
    if offered != support::PROTOCOL {
        faults.push(format!(
            "A back-end offers the protocol features {offered:#x}, and the tests try all but {:#x}. \
             Change PROTOCOL in {support}.",
            support::PROTOCOL
        ));
    }
    let common = COMMON.fold(0, |bits, bit| bits | 1 << bit);
    let offered = asked.plain.features & common;
    if offered != support::OFFERED & common {
        faults.push(format!(
            "A back-end offers the features {offered:#x}, and the tests try all but {:#x}. Change \
             DEVICE_FEATURES and OFFERED in {support}.",
            support::OFFERED & common
        ));
    }
    for message in REFUSED.iter().filter_map(|&n| FrontendMessage::from_number(n)) {
        let row = message.row();
        if asked.carries_out(row).is_ok() {
            faults.push(format!(
                "{} is carried out: take {} out of REFUSED in \
                 rust/core/tests/connection/negotiation.rs.",
                row.name, row.number
            ));
        }
    }
}

fn check_refused(message: FrontendMessage, faults: &mut Vec<String>) {
    if !REFUSED.contains(&message.number()) {
        faults.push(format!(
            "{} is refused and no test tries it: add {} to REFUSED in \
             rust/core/tests/connection/negotiation.rs.",
            message.name(),
            message.number()
        ));
    }
}

fn needs(needs: Needs) -> String {
    match needs {
        Needs::Nothing => String::new(),
        Needs::Offered(bit) => format!("{} offered", names(bit, None).join(", ")),
        Needs::Accepted(bit) => names(bit, None).join(", "),
        Needs::Protocol(features) => features.describe(),
        Needs::DeviceType(number) => format!("device type {number}"),
    }
}

fn answer(answer: Answer) -> String {
    let Answer::Always { payload, fds, error } = answer else { return "if asked".to_owned() };
    let fds = if fds.max == 0 { String::new() } else { format!(", {fds} descriptors") };
    let error = match error {
        ErrorForm::None => "closed".to_owned(),
        ErrorForm::Empty => "empty".to_owned(),
        ErrorForm::Value(value) => format!("{value:#x}"),
        ErrorForm::Zeroes(count) => format!("{count} zeroes"),
    };
    format!("{payload} bytes{fds}; refused: {error}")
}

/// What is done, and what is to be said of it.
fn joined<const N: usize>(done: &str, said: [&str; N]) -> String {
    let said: Vec<_> = said.into_iter().filter(|part| !part.is_empty()).collect();
    if said.is_empty() { done.to_owned() } else { format!("{done}: {}", said.join("; ")) }
}

fn table(head: &[&str], lines: impl Iterator<Item = String>) -> String {
    let mut all = vec![head.join(" | "), vec!["---"; head.len()].join(" | ")];
    all.extend(lines);
    all.iter().map(|line| format!("| {line} |\n")).collect()
}
