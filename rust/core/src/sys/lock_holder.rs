//! Which process holds a lock on a file.
//!
//! The kernel does not say which process a lock of an open file description belongs to (fcntl(2),
//! "F_OFD_GETLK": it gives -1). It says of each descriptor which locks its description holds
//! (proc(5), "/proc/pid/fdinfo"). That asks no file system anything, so a dead one holds nothing up.

use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process;
use std::time::{Duration, Instant};

use super::lock::LockRange;

/// Longest search: a host may have very many processes, and the answer is for a message alone.
const SEARCH_LIMIT: Duration = Duration::from_secs(1);

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its number.
    pub pid: u32,
    /// Its name, as ps(1) shows it.
    pub name: String,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid == process::id() {
            true => f.write_str("another back-end of this process"),
            false => write!(f, "process {} ({})", self.pid, self.name),
        }
    }
}

/// Returns a process that holds a lock on a part of `range` of the file of `fd`. `None`: it is on
/// another host, in another PID namespace or another user's, or it has just gone.
pub fn lock_holder(fd: BorrowedFd<'_>, range: LockRange) -> Option<LockHolder> {
    let own = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let file = name_in_locks(&own)?;
    let until = Instant::now() + SEARCH_LIMIT;
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = processes.find(|&pid: &u32| {
        let mut texts = fdinfo_of(pid).take_while(|_| Instant::now() < until);
        texts.any(|text| text.lines().any(|line| is_lock_on(line, &file, range)))
    })?;
    Some(LockHolder { pid, name: name_of(pid) })
}

/// What the kernel says of each descriptor of a process, as far as this one may know.
fn fdinfo_of(pid: u32) -> impl Iterator<Item = String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| fs::read_to_string(entry.path()).ok())
}

/// The word by which lines on locks name the file of a descriptor, as `fe:01:131074`: device and
/// inode of the kernel's own, which are not always those that stat(2) tells.
fn name_in_locks(fdinfo: &str) -> Option<String> {
    let field = |name| fdinfo.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (inode, mount) = (field("ino:")?, field("mnt_id:")?);
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut mounts = mounts.lines().map(str::split_whitespace);
    let device = mounts.find(|words| words.clone().next() == Some(mount))?.nth(2)?;
    let (major, minor) = device.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(format!("{major:02x}:{minor:02x}:{inode}"))
}

/// Whether a line tells of a lock on a part of the range, as
/// `lock: 1: OFDLCK ADVISORY  WRITE -1 fe:01:131074 0 EOF` does.
fn is_lock_on(line: &str, file: &str, range: LockRange) -> bool {
    let mut words = line.split_whitespace();
    if words.next() != Some("lock:") || words.nth(5) != Some(file) {
        return false;
    }
    let (Some(first), Some(last)) = (words.next(), words.next()) else { return false };
    let Ok(first) = first.parse::<i64>() else { return false };
    let last = last.parse().unwrap_or(i64::MAX); // "EOF"
    let end = if range.length == 0 { i64::MAX } else { range.start + (range.length - 1) };
    first <= end && range.start <= last
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of Linux 6.18, with the range that a test names.
    fn line(range: &str) -> String {
        format!("lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:10010850 {range}")
    }

    #[test]
    fn a_lock_counts_if_its_range_meets_the_one_that_is_asked_for() {
        let asked = LockRange { start: 100, length: 10 };
        for (range, meets) in [
            ("0 EOF", true),
            ("0 99", false),
            ("0 100", true),
            ("109 109", true),
            ("110 EOF", false),
        ] {
            assert_eq!(is_lock_on(&line(range), "fe:00:10010850", asked), meets, "{range}");
        }
        let to_the_end = LockRange { start: 100, length: 0 };
        assert!(is_lock_on(&line("200 300"), "fe:00:10010850", to_the_end));
        assert!(!is_lock_on(&line("0 EOF"), "fe:00:1001085", asked));
        assert!(!is_lock_on("ino:\t10010850", "fe:00:10010850", asked));
    }
}
