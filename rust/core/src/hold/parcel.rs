//! What a keeper knows of its front-end, as one descriptor that outlives the keeper.
//!
//! A service manager keeps descriptors, and no bytes. So all that is to be kept stands in the queue of
//! a socket, and the manager has the end at which it comes out:
//!
//! | message | bytes | descriptors |
//! |---|---|---|
//! | the first | one | a file in memory with the account, and as many of the others as find room |
//! | each other | one | the rest, in order |
//!
//! The others are the front-end's connection, the back-end's process if it is known, and those of the
//! messages that were taken. The account begins with [`MAGIC`], the number of descriptors behind it,
//! [`Bits`], the entries that the record was made for and the number of messages. Each message has its
//! number, flags, bytes, descriptors and the bytes of its answer in 32 bits each, then the bytes.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use bitflags::bitflags;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::sys::private_fd::making;
use crate::wire::{Flags, Frame, MAX_PAYLOAD, ReceivedFd};

/// The account's first bytes; the last is the number of its form, which another version of this
/// package may not know.
const MAGIC: u64 = u64::from_be_bytes(*b"vu-hold\x01");

/// Descriptors that Linux passes with one message: unix(7), SCM_RIGHTS.
const MOST_FDS: usize = 253;

/// An account longer than this is none: the messages of 256 vrings and 1024 regions have less.
const MAX_ACCOUNT: u64 = 16 << 20;

/// What stands for the length of an answer that there is not.
const NO_ANSWER: u32 = u32::MAX;

bitflags! {
    /// What else there is to say.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Bits: u64 {
        /// The second descriptor is the back-end's process.
        const PROCESS = 1 << 0;
        /// The last message is not answered yet.
        const PENDING = 1 << 1;
        /// Its front-end wants to be answered.
        const ASKED = 1 << 2;
        /// A transfer of the device's state ended with its back-end.
        const TRANSFER_LOST = 1 << 3;
        /// The record of requests in flight is the keeper's.
        const RECORD_MADE = 1 << 4;
        /// It was made for packed rings.
        const RECORD_PACKED = 1 << 5;
    }
}

/// A message that was taken, and the bytes that answered it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) frame: Frame,
    pub(super) answer: Option<Vec<u8>>,
}

impl Kept {
    /// A copy of a message.
    pub(super) fn of(frame: &Frame, answer: Option<&[u8]>) -> io::Result<Self> {
        let fds = frame.fds.iter().map(ReceivedFd::try_clone).collect::<Result<_, _>>()?;
        let frame = Frame { header: frame.header, payload: frame.payload.clone(), fds };
        Ok(Self { frame, answer: answer.map(<[u8]>::to_vec) })
    }
}

/// What a keeper knows of its front-end.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) front: ReceivedFd,
    /// The back-end's process: present if [`Bits::PROCESS`] says so.
    pub(super) process: Option<ReceivedFd>,
    pub(super) bits: Bits,
    /// Entries that the record was made for.
    pub(super) entries: u32,
    pub(super) messages: Vec<Kept>,
}

impl Parcel {
    /// Puts it into a socket's queue.
    ///
    /// # Errors
    /// There are no descriptors, or no memory.
    pub(super) fn pack(&self) -> io::Result<OwnedFd> {
        let fds: Vec<BorrowedFd<'_>> = self.descriptors().collect();
        let account = File::from(memfd_create("vhost-user hold", MemfdFlags::CLOEXEC)?);
        (&account).write_all(&self.account(fds.len()))?;
        let fds: Vec<_> = std::iter::once(account.as_fd()).chain(fds).collect();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (from, to) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        fds.chunks(MOST_FDS).try_for_each(|some| send(&from, some))?;
        Ok(to)
    }

    /// Takes it out of the queue.
    ///
    /// # Errors
    /// It is not whole, or no parcel.
    pub(super) fn unpack(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut fds = receive_all(socket)?.into_iter();
        let account = fds.next().ok_or_else(|| wrong("it is empty"))?;
        let bytes = read_all(&account)?;
        Account(&bytes).read(fds).ok_or_else(|| wrong("another version has packed it"))
    }

    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let of_messages = self.messages.iter().flat_map(|kept| &kept.frame.fds);
        let own = std::iter::once(&self.front).chain(&self.process);
        own.chain(of_messages).map(AsFd::as_fd)
    }

    fn account(&self, descriptors: usize) -> Vec<u8> {
        let counts = (descriptors as u64, self.messages.len() as u64);
        let head = [MAGIC, counts.0, self.bits.bits(), u64::from(self.entries), counts.1];
        let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        for Kept { frame: Frame { header, payload, fds }, answer } in &self.messages {
            let length = answer.as_ref().map_or(NO_ANSWER, |answer| answer.len() as u32);
            let sizes = [payload.len() as u32, fds.len() as u32, length];
            let words = [header.request, header.flags.bits()].into_iter().chain(sizes);
            bytes.extend(words.flat_map(u32::to_ne_bytes));
            bytes.extend_from_slice(payload);
            bytes.extend_from_slice(answer.as_deref().unwrap_or_default());
        }
        bytes
    }
}

/// What is left to read of an account.
struct Account<'a>(&'a [u8]);

impl Account<'_> {
    /// `None`: it is none, or is not that of these descriptors.
    fn read(mut self, mut fds: std::vec::IntoIter<ReceivedFd>) -> Option<Parcel> {
        let (magic, count) = (self.u64()?, self.u64()?);
        if magic != MAGIC || count != fds.len() as u64 {
            return None;
        }
        let bits = Bits::from_bits(self.u64()?)?;
        let (entries, messages) = (self.u64()?.try_into().ok()?, self.u64()?);
        let front = fds.next()?;
        let process = if bits.contains(Bits::PROCESS) { Some(fds.next()?) } else { None };
        let messages = (0..messages).map(|_| self.message(&mut fds)).collect::<Option<_>>()?;
        let is_over = self.0.is_empty() && fds.next().is_none();
        is_over.then_some(Parcel { front, process, bits, entries, messages })
    }

    fn message(&mut self, fds: &mut std::vec::IntoIter<ReceivedFd>) -> Option<Kept> {
        let (request, flags) = (self.u32()?, Flags::from_bits_retain(self.u32()?));
        let (size, count, answer) = (self.u32()? as usize, self.u32()? as usize, self.u32()?);
        if size > MAX_PAYLOAD || count > fds.len() {
            return None;
        }
        let mut frame = Frame::new(request, flags, self.bytes(size)?, Vec::new());
        frame.fds = fds.take(count).collect();
        let answer = if answer == NO_ANSWER { None } else { Some(self.bytes(answer as usize)?) };
        Some(Kept { frame, answer })
    }

    fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }
}

/// One message of the queue.
fn send(socket: &OwnedFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let bytes = [IoSlice::new(&[0])];
    retry_on_intr(|| sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// All descriptors of the queue.
fn receive_all(socket: BorrowedFd<'_>) -> io::Result<Vec<ReceivedFd>> {
    let mut found: Vec<ReceivedFd> = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = making(|| {
            let bytes = &mut [IoSliceMut::new(&mut byte)];
            let received = retry_on_intr(|| recvmsg(socket, bytes, &mut control, flags));
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    found.extend(rights.map(ReceivedFd::from));
                }
            }
            received
        });
        match received {
            Ok(received) if received.bytes > 0 => {}
            Ok(_) | Err(Errno::AGAIN) => return Ok(found),
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_all(account: &ReceivedFd) -> io::Result<Vec<u8>> {
    let file = File::from(account.as_fd().try_clone_to_owned()?);
    let len = file.metadata()?.len();
    if len > MAX_ACCOUNT {
        return Err(wrong("its account is too long"));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    fn parcel(messages: u32) -> Parcel {
        let message = |n: u32| {
            let frame = Frame::new(n, Flags::VERSION, n.to_ne_bytes().to_vec(), vec![event()]);
            Kept { frame, answer: n.is_multiple_of(2).then(|| vec![7; n as usize]) }
        };
        Parcel {
            front: event().into(),
            process: Some(event().into()),
            bits: Bits::PROCESS | Bits::ASKED,
            entries: 1024,
            messages: (0..messages).map(message).collect(),
        }
    }

    /// More descriptors than one message, or two, can have.
    #[test]
    fn what_was_packed_comes_out_whole() {
        for count in [0, 3, 600] {
            let packed = parcel(count).pack().unwrap();
            let out = Parcel::unpack(packed.as_fd()).unwrap();
            assert_eq!((out.bits, out.entries), (Bits::PROCESS | Bits::ASKED, 1024));
            assert!(out.process.is_some());
            assert_eq!(out.messages.len(), count as usize);
            for (n, Kept { frame, answer }) in (0..).zip(&out.messages) {
                assert_eq!((frame.header.request, frame.fds.len()), (n, 1));
                assert_eq!(frame.payload, n.to_ne_bytes());
                assert_eq!(
                    answer.as_ref().map(Vec::len),
                    n.is_multiple_of(2).then_some(n as usize)
                );
            }
        }
    }

    #[test]
    fn what_is_taken_out_twice_or_is_another_thing_is_refused() {
        let packed = parcel(3).pack().unwrap();
        Parcel::unpack(packed.as_fd()).unwrap();
        assert!(Parcel::unpack(packed.as_fd()).is_err());
        assert!(Parcel::unpack(event().as_fd()).is_err());
    }

    #[test]
    fn an_account_that_is_cut_or_has_too_much_is_refused() {
        let parcel = parcel(3);
        let fds = || {
            let copies = parcel.descriptors().map(|fd| fd.try_clone_to_owned().unwrap().into());
            copies.collect::<Vec<ReceivedFd>>().into_iter()
        };
        let whole = parcel.account(fds().len());
        assert!(Account(&whole).read(fds()).is_some());
        for length in 0..whole.len() {
            assert!(Account(&whole[..length]).read(fds()).is_none(), "{length}");
        }
        assert!(Account(&[&whole[..], &[0]].concat()).read(fds()).is_none());
        let few = fds().skip(1).collect::<Vec<_>>().into_iter();
        assert!(Account(&whole).read(few).is_none());
    }
}
