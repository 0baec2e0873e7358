//! By which number the kernel knows each of Xen's devices.
//!
//! They are two of Linux's miscellaneous devices, whose minor numbers are given out as drivers
//! come. The kernel tells them in `/proc/misc` and in `/sys/class/misc`, of which a service that
//! is shut in may see only one, or neither. What is left then is the node in `/dev` itself, which
//! is as right as whoever made it.

use std::fs::read_to_string;
use std::path::Path;

use rustix::fs::{FileType, Stat, major, minor, stat};

use super::XenDevice;

/// The major number of all miscellaneous devices.
const MISC_MAJOR: u32 = 10;

/// Major and minor number.
pub(super) type Number = (u32, u32);

impl XenDevice {
    /// The number that the system under `root` says the device has; `None` if it does not say.
    pub(super) fn number(self, root: &Path) -> Option<Number> {
        let list = read_to_string(root.join("proc/misc")).ok();
        let entry = root.join("sys/class/misc").join(self.name().replace('/', "!")).join("dev");
        let node = root.join("dev").join(self.name());
        list.and_then(|list| listed(&list, self.name()))
            .or_else(|| told(&read_to_string(entry).ok()?))
            .or_else(|| of_node(&stat(node).ok()?))
    }

    /// Its name in the kernel's list.
    fn name(self) -> &'static str {
        match self {
            Self::Privcmd => "xen/privcmd",
            Self::Gntdev => "xen/gntdev",
        }
    }
}

/// A line of `/proc/misc` is a minor number and a name.
fn listed(list: &str, name: &str) -> Option<Number> {
    let mut lines = list.lines().filter_map(|line| line.trim().split_once(' '));
    let (minor, _) = lines.find(|(_, found)| found.trim() == name)?;
    Some((MISC_MAJOR, minor.parse().ok()?))
}

/// A file `dev` in `/sys` is `10:58` and a line's end.
fn told(text: &str) -> Option<Number> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The number of a miscellaneous device: no other node can be right.
fn of_node(stat: &Stat) -> Option<Number> {
    device_number(stat).filter(|&(major, _)| major == MISC_MAJOR)
}

/// The number of a character device; `None` for anything else.
pub(super) fn device_number(stat: &Stat) -> Option<Number> {
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    is_device.then(|| (major(stat.st_rdev), minor(stat.st_rdev)))
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, remove_dir_all, write};
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use rustix::fs::makedev;

    use super::*;

    /// A system's files, below a directory that goes with the test.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let name = format!("xen-node-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn with(self, path: &str, text: &str) -> Self {
            create_dir_all(self.0.join(path).parent().unwrap()).unwrap();
            write(self.0.join(path), text).unwrap();
            self
        }

        fn numbers(&self) -> [Option<Number>; 2] {
            [XenDevice::Privcmd, XenDevice::Gntdev].map(|device| device.number(&self.0))
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = remove_dir_all(&self.0);
        }
    }

    /// As dom0 of Debian 12 shows it.
    const MISC: &str = "232 kvm\n 58 xen/xenbus\n 59 xen/privcmd\n 61 xen/gntdev\n  1 psaux\n";

    #[test]
    fn the_kernels_list_tells_the_numbers() {
        let root = Root::new("list").with("proc/misc", MISC);
        assert_eq!(root.numbers(), [Some((10, 59)), Some((10, 61))]);
    }

    #[test]
    fn without_the_list_the_devices_own_entries_do() {
        let root = Root::new("entries")
            .with("sys/class/misc/xen!privcmd/dev", "10:59\n")
            .with("sys/class/misc/xen!gntdev/dev", "10:61\n");
        assert_eq!(root.numbers(), [Some((10, 59)), Some((10, 61))]);
        let empty = Root::new("empty-list")
            .with("proc/misc", "")
            .with("sys/class/misc/xen!gntdev/dev", "10:61\n");
        assert_eq!(empty.numbers(), [None, Some((10, 61))]);
    }

    #[test]
    fn without_either_the_node_does_if_it_is_a_miscellaneous_device() {
        let mut found = stat("/dev/null").unwrap();
        assert_eq!((device_number(&found), of_node(&found)), (Some((1, 3)), None));
        found.st_rdev = makedev(10, 61);
        assert_eq!(of_node(&found), Some((10, 61)));
        found.st_mode = stat("/proc/self/exe").unwrap().st_mode;
        assert_eq!((device_number(&found), of_node(&found)), (None, None));

        let root = Root::new("nodes").with("dev/xen/privcmd", "no device");
        symlink("/dev/null", root.0.join("dev/xen/gntdev")).unwrap();
        assert_eq!(root.numbers(), [None, None]);
    }

    #[test]
    fn a_system_without_xen_tells_nothing() {
        let root = Root::new("other").with("proc/misc", "232 kvm\n59 xen/privcmd2\nxen/gntdev\n");
        assert_eq!(root.numbers(), [None, None]);
        assert_eq!(told("10"), None);
        assert_eq!(told("10:-1"), None);
    }
}
