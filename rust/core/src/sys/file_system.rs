//! Whether a file's data come from this host, or from somebody who may stop to answer.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags, fcntl_get_seals, fstatfs, statx};

use super::received_fd::ReceivedFd;

/// Longest wait for a file system to say what it is.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Threads that may wait for file systems which have stopped to answer.
const MOST_WAITING: usize = 8;

/// File systems whose data another process or another host sends, by the number that statfs(2)
/// tells of them.
const REMOTE: [(u32, &str); 24] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9P"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x564c, "NCP"),
    (0x2003_0528, "OrangeFS"),
    (0x1983_0326, "BeeGFS"),
    (0x4750_4653, "GPFS"),
    (0xaad7_aaea, "PanFS"),
    (0x6163_6673, "ACFS"),
    (0xbeef_dead, "StorNext"),
    (0x0131_11a8, "IBRIX"),
    (0xbacb_acbc, "a shared folder of VMware"),
    (0x786f_4256, "a shared folder of VirtualBox"),
    (0x7c7c_6673, "a shared folder of Parallels"),
];

/// The types under which those that this process can see are mounted: mount(8). A type with a dot
/// is FUSE's, with the name of its server.
const REMOTE_TYPES: [&str; 22] = [
    "fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs",
    "coda", "lustre", "gfs2", "ocfs2", "ncpfs", "orangefs", "beegfs", "gpfs", "panfs", "vboxsf",
    "vmhgfs",
];

/// Returns the name of the file system that a file lies on, if that may stop to answer; `None` for
/// those of this host alone. Memory files and those of tmpfs and hugetlbfs are known without
/// asking, and so are all that are mounted where this process sees it. Others are asked, for a
/// limited time.
///
/// # Errors
/// The file system does not say what it is.
pub fn remote_file_system(file: &ReceivedFd) -> io::Result<Option<String>> {
    // Nothing else has seals.
    if fcntl_get_seals(file).is_ok() {
        return Ok(None);
    }
    match mounted_type(file.as_fd()) {
        Some(kind) => Ok(is_remote_type(&kind).then_some(kind)),
        None => Ok(remote_name(ask(file)?).map(str::to_owned)),
    }
}

/// Returns the type of the file system as it is mounted, if this process sees that.
fn mounted_type(file: BorrowedFd<'_>) -> Option<String> {
    let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, c"", known, StatxFlags::empty()).ok()?;
    let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    type_of(&fs::read_to_string("/proc/self/mountinfo").ok()?, &device)
}

/// Returns the type of a device in the text of proc_pid_mountinfo(5).
fn type_of(mounts: &str, device: &str) -> Option<String> {
    let here = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    Some(here.split_once(" - ")?.1.split(' ').next()?.to_owned())
}

fn is_remote_type(kind: &str) -> bool {
    kind.contains('.') || REMOTE_TYPES.contains(&kind)
}

/// Runs `work` on a thread that is left behind if a file system does not answer; there are so many of
/// them at most.
fn on_a_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    struct Waiting;
    impl Drop for Waiting {
        fn drop(&mut self) {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let waiting = (WAITING.fetch_add(1, Ordering::Relaxed), Waiting);
    if waiting.0 >= MOST_WAITING {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "too many of them do not answer"));
    }
    let thread = thread::Builder::new().name("vhost-user file".to_owned());
    let run = move || {
        work();
        drop(waiting);
    };
    thread.spawn(run).map(drop)
}

/// Asks a file system for its number, on a thread that is left behind if no answer comes.
fn ask(file: &ReceivedFd) -> io::Result<u32> {
    let unanswered = || io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    let file = file.try_clone()?;
    let (answer, answered) = mpsc::channel();
    on_a_thread(move || {
        // Nobody may be left to hear it.
        let _ = answer.send(fstatfs(file.as_fd()).map(|stat| stat.f_type as u32));
    })?;
    let found = answered.recv_timeout(ANSWER_LIMIT).map_err(|_| unanswered())?;
    Ok(found?)
}

fn remote_name(number: u32) -> Option<&'static str> {
    REMOTE.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn file_systems_that_others_serve_are_known_by_their_numbers() {
        // NFS_SUPER_MAGIC and FUSE_SUPER_MAGIC of linux/magic.h.
        assert_eq!(remote_name(0x6969), Some("NFS"));
        assert_eq!(remote_name(0x6573_5546), Some("FUSE"));
        // EXT4, XFS, BTRFS, OVERLAYFS, TMPFS, HUGETLBFS.
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630, 0x0102_1994, 0x9584_58f6] {
            assert_eq!(remote_name(local), None, "{local:#x}");
        }
    }

    #[test]
    fn a_mount_that_this_process_sees_tells_its_type() {
        // The example of proc_pid_mountinfo(5), and mounts as Linux shows them.
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                      40 35 0:52 / /net rw shared:2 - nfs4 host:/x rw\n\
                      41 35 0:53 / /sshfs rw - fuse.sshfs host: rw\n";
        let kind = |device| type_of(mounts, device);
        assert_eq!(kind("98:0").as_deref(), Some("ext3"));
        assert_eq!(kind("0:52").as_deref(), Some("nfs4"));
        assert_eq!(kind("0:53").as_deref(), Some("fuse.sshfs"));
        assert_eq!(kind("0:5"), None);
        let remote = ["ext3", "nfs4", "fuse.sshfs"].map(is_remote_type);
        assert_eq!(remote, [false, true, true]);
    }

    #[test]
    fn memory_files_and_files_of_this_host_are_local() {
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(remote_file_system(&memory.into()).unwrap(), None);
        let here = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(remote_file_system(&OwnedFd::from(here).into()).unwrap(), None);
    }
}
