//! One connection of a scraper: a request is read, an answer is sent, and that is all.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::sys::private_fd::PrivateFd;

/// How long a scraper has from its connection to the last byte of its answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Most bytes of a request.
const MOST_REQUEST: usize = 8192;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// A scraper that is connected.
#[derive(Debug)]
pub(super) struct Client {
    fd: PrivateFd,
    until: Instant,
    request: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It waits for the scraper.
    Waits,
    /// It is over.
    Over,
}

impl Client {
    /// `fd`: a socket that does not block.
    pub(super) fn new(fd: PrivateFd, now: Instant) -> Self {
        Self { fd, until: now + LIMIT, request: Vec::new(), answer: Vec::new(), sent: 0 }
    }

    /// When its time is over.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// What it waits for.
    pub(super) fn waits_for(&self) -> PollFlags {
        if self.answer.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Goes on as far as that is possible without waiting. `text`: makes the metrics.
    pub(super) fn go_on(&mut self, text: impl FnOnce() -> String) -> Then {
        if self.answer.is_empty() {
            match self.read() {
                Ok(true) => self.answer = answer(&self.request, text),
                Ok(false) => return Then::Waits,
                Err(()) => return Then::Over,
            }
        }
        self.send()
    }

    /// Reads on; `true`: the request is whole, or will never be one.
    fn read(&mut self) -> Result<bool, ()> {
        let mut piece = [0; 2048];
        loop {
            match recv(&self.fd, &mut piece, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(()),
                Ok((_, count)) => self.request.extend_from_slice(&piece[..count]),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(false),
                Err(_) => return Err(()),
            }
            if has_end(&self.request) || self.request.len() >= MOST_REQUEST {
                return Ok(true);
            }
        }
    }

    fn send(&mut self) -> Then {
        while self.sent < self.answer.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.fd, &self.answer[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Then::Waits,
                Err(_) => return Then::Over,
            }
        }
        let _ = shutdown(&self.fd, Shutdown::Write);
        Then::Over
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the empty line is there that ends the headers.
fn has_end(request: &[u8]) -> bool {
    request.windows(4).any(|four| four == b"\r\n\r\n")
        || request.windows(2).any(|two| two == b"\n\n")
}

/// The answer to a request.
fn answer(request: &[u8], text: impl FnOnce() -> String) -> Vec<u8> {
    let line = request.split(|&byte| byte == b'\r' || byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    let is_http = version.is_some_and(|version| version.starts_with(b"HTTP/1."));
    if !is_http || !has_end(request) {
        return response("400 Bad Request", PLAIN, "this is no request of HTTP/1.1\n", true);
    }
    let with_body = match method {
        Some(b"GET") => true,
        Some(b"HEAD") => false,
        _ => return response("405 Method Not Allowed", PLAIN, "only GET and HEAD\n", true),
    };
    match path.map(without_query) {
        Some(b"/metrics" | b"/") => response("200 OK", TEXT, &text(), with_body),
        _ => response("404 Not Found", PLAIN, "the metrics are at /metrics\n", with_body),
    }
}

fn without_query(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'?').next().unwrap_or_default()
}

fn response(status: &str, kind: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}\
         Connection: close\r\n\r\n"
    );
    if with_body {
        response.push_str(body);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(request: &[u8]) -> String {
        String::from_utf8(answer(request, || "a 1\n".to_owned())).unwrap()
    }

    #[test]
    fn the_metrics_are_at_their_path_and_at_the_root() {
        for path in ["/metrics", "/", "/metrics?format=text"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(
                answered(request.as_bytes()),
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
                 Content-Length: 4\r\nConnection: close\r\n\r\na 1\n"
            );
        }
    }

    #[test]
    fn a_request_for_the_head_has_no_body_and_its_length() {
        let head = answered(b"HEAD /metrics HTTP/1.0\n\n");
        assert!(head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn what_is_no_request_for_metrics_is_refused() {
        let status = |request: &[u8]| answered(request)[9..12].to_owned();
        assert_eq!(status(b"GET /other HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status(b"POST /metrics HTTP/1.1\r\n\r\n"), "405");
        for bad in [&b"\0\xff\r\n\r\n"[..], b"GET /metrics\r\n\r\n", b"\n\n", &[b'x'; 9000]] {
            assert_eq!(status(bad), "400");
        }
    }
}
