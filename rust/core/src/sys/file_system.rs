//! Whether a file's data come from this host, or from somebody who may stop to answer.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{fcntl_get_seals, fstatfs};

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

/// The name of the file system that a file lies on, if that may stop to answer; `None` for those of
/// this host alone. Memory files and those of tmpfs and hugetlbfs are known without asking; of
/// others the file system is asked, which one that has stopped to answer does not do either.
///
/// # Errors
/// The file system does not say what it is.
pub fn remote_file_system(file: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    // Nothing else has seals.
    if fcntl_get_seals(file).is_ok() {
        return Ok(None);
    }
    Ok(remote_name(fstatfs(file)?.f_type as u32))
}

fn remote_name(number: u32) -> Option<&'static str> {
    REMOTE.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

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
    fn memory_files_and_files_of_this_host_are_local() {
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(remote_file_system(memory.as_fd()).unwrap(), None);
        let here = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(remote_file_system(here.as_fd()).unwrap(), None);
    }
}
