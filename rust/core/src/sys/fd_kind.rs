//! What an open file is, in words.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

/// Names, without asking its file system, the kind of an open file with its article, and the numbers of a device: `a regular file`,
/// `a character device (10:58)`.
pub fn fd_kind(fd: BorrowedFd<'_>) -> String {
    let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let Ok(stat) = statx(fd, c"", known, StatxFlags::TYPE) else {
        return "no open file".to_owned();
    };
    let device =
        |kind| format!("a {kind} device ({}:{})", stat.stx_rdev_major, stat.stx_rdev_minor);
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => "a regular file".to_owned(),
        FileType::Directory => "a directory".to_owned(),
        FileType::Symlink => "a symbolic link".to_owned(),
        FileType::Fifo => "a pipe".to_owned(),
        FileType::Socket => "a socket".to_owned(),
        FileType::CharacterDevice => device("character"),
        FileType::BlockDevice => device("block"),
        FileType::Unknown => "an anonymous file, such as an eventfd".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn files_are_named_by_their_kind() {
        let of = |path: &str| fd_kind(File::open(path).unwrap().as_fd());
        assert_eq!(of("/dev/null"), "a character device (1:3)");
        assert_eq!(of("/proc"), "a directory");
        assert_eq!(of("/proc/self/exe"), "a regular file");
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let eventfd = rustix::event::eventfd(0, flags).unwrap();
        assert_eq!(fd_kind(eventfd.as_fd()), "an anonymous file, such as an eventfd");
    }
}
