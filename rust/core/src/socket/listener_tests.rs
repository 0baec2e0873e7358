use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::socket::Incoming;

/// A directory of its own for each test, removed at the end.
pub(in crate::socket) struct Directory(PathBuf);

impl Directory {
    pub(in crate::socket) fn new() -> Self {
        let path = std::env::temp_dir().join(unused_name());
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(in crate::socket) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bind_at(path: &Path) -> Result<Listener, SocketError> {
    Listener::bind(&ListenOptions::new(path))
}

fn never() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn a_socket_is_bound_under_its_own_name_with_its_mode_and_leaves_nothing_else() {
    let directory = Directory::new();
    let path = directory.join("s");
    for mode in [0o600, 0o660, 0o777] {
        let listener =
            Listener::bind(&ListenOptions { mode, ..ListenOptions::new(&path) }).unwrap();
        assert_eq!(directory.names(), ["s"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        drop(listener);
        assert!(directory.names().is_empty());
    }
}

#[test]
fn the_group_of_a_socket_can_be_set() {
    let directory = Directory::new();
    let path = directory.join("s");
    let group = rustix::process::getgid().as_raw();
    let options = ListenOptions { group: Some(group), ..ListenOptions::new(&path) };
    let _listener = Listener::bind(&options).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().gid(), group);
}

#[test]
fn a_front_end_that_connects_is_accepted_and_heard() {
    let directory = Directory::new();
    let mut listener = bind_at(&directory.join("s")).unwrap();
    let client = UnixStream::connect(directory.join("s")).unwrap();
    let Ok(Next::Stream(mut stream)) = listener.accept(never().as_fd()) else { panic!() };
    drop(client);
    assert!(matches!(stream.receive(never().as_fd()), Ok(Incoming::Closed)));
}

#[test]
fn a_wake_ends_accepting() {
    let directory = Directory::new();
    let mut listener = bind_at(&directory.join("s")).unwrap();
    let wake = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
    assert!(matches!(listener.accept(wake.as_fd()), Ok(Next::Woken)));
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = Directory::new();
    let path = directory.join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = bind_at(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(directory.names(), ["s"]);
}

#[test]
fn a_socket_where_somebody_answers_is_not_stolen() {
    let directory = Directory::new();
    let path = directory.join("s");
    let other = UnixListener::bind(&path).unwrap();
    let before = identity(CWD, &path).unwrap();
    let error = bind_at(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    assert_eq!(identity(CWD, &path).unwrap(), before);
    assert_eq!(directory.names(), ["s"]);
    drop(other);
}

#[test]
fn a_socket_whose_queue_is_full_counts_as_answered() {
    let directory = Directory::new();
    let path = directory.join("s");
    let fd = stream_socket(SocketFlags::empty()).unwrap();
    bind(&fd, &unix_address(&path).unwrap()).unwrap();
    listen(&fd, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert!(matches!(bind_at(&path), Err(SocketError::InUse { .. })));
}

#[test]
fn of_many_that_bind_over_a_stale_socket_at_once_one_wins_and_keeps_it() {
    for _ in 0..100 {
        let directory = Directory::new();
        let path = directory.join("s");
        drop(UnixListener::bind(&path).unwrap());
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || bind_at(&path))
            })
            .collect();
        let results: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        let mut winners: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
        assert_eq!(winners.len(), 1);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(matches!(winners[0].accept(never().as_fd()), Ok(Next::Stream(_))));
        assert_eq!(directory.names(), ["s"]);
    }
}

#[test]
fn a_directory_that_somebody_else_has_locked_is_used_all_the_same() {
    let directory = Directory::new();
    let path = directory.join("s");
    drop(UnixListener::bind(&path).unwrap());
    let locked = fs::File::open(path.parent().unwrap()).unwrap();
    locked.lock().unwrap();
    let listener = bind_at(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(directory.names().is_empty());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let directory = Directory::new();
    let file = directory.join("file");
    fs::write(&file, b"precious").unwrap();
    symlink(&file, directory.join("to-file")).unwrap();
    symlink(directory.join("nowhere"), directory.join("to-nothing")).unwrap();
    fs::create_dir(directory.join("directory")).unwrap();
    for name in ["file", "to-file", "to-nothing", "directory"] {
        let error = bind_at(&directory.join(name)).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{name}: {error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(directory.names().len(), 4);
}

#[test]
fn a_link_to_a_stale_socket_is_left_alone() {
    let directory = Directory::new();
    drop(UnixListener::bind(directory.join("stale")).unwrap());
    symlink(directory.join("stale"), directory.join("link")).unwrap();
    let error = bind_at(&directory.join("link")).unwrap_err();
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
}

#[test]
fn the_longest_path_works_and_one_byte_more_is_refused_with_the_numbers() {
    let directory = Directory::new();
    let room = MAX_PATH - directory.join("").as_os_str().len();
    let longest = directory.join(&"x".repeat(room));
    assert_eq!(longest.as_os_str().len(), 107);
    let _listener = bind_at(&longest).unwrap();
    UnixStream::connect(&longest).unwrap();

    let error = bind_at(&directory.join(&"x".repeat(room + 1))).unwrap_err();
    assert!(error.to_string().contains("is too long: 108 bytes, at most 107 fit"), "{error}");
}

#[test]
fn an_empty_path_and_one_with_a_zero_byte_are_refused() {
    for path in ["", "a\0b"] {
        assert!(matches!(bind_at(Path::new(path)), Err(SocketError::BadPath { .. })));
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let directory = Directory::new();
    let error = bind_at(&directory.join("missing/s")).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn dropping_leaves_a_file_that_somebody_else_put_there() {
    let directory = Directory::new();
    let path = directory.join("s");
    let ours = bind_at(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
}

#[test]
fn a_listener_that_was_handed_down_removes_nothing() {
    let directory = Directory::new();
    let path = directory.join("s");
    let mut listener = Listener::from_fd(UnixListener::bind(&path).unwrap().into()).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    assert!(matches!(listener.accept(never().as_fd()), Ok(Next::Stream(_))));
    drop(listener);
    assert!(path.exists());
}
