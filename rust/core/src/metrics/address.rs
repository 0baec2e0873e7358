//! Where metrics are given away.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where metrics are given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// By HTTP, at a Unix socket of this path.
    Unix(PathBuf),
    /// By HTTP, at a port of this host that other hosts cannot reach.
    Tcp(SocketAddr),
    /// In this file, which is replaced again and again.
    File(PathBuf),
}

impl Address {
    /// Reads `unix:PATH`, `file:PATH`, `127.0.0.1:PORT` or `[::1]:PORT`.
    ///
    /// # Errors
    /// It is none of these; says what would be one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = |path: &str, kind: &str| match path {
            "" => Err(format!("{kind}: is to be followed by a path")),
            path => Ok(PathBuf::from(path)),
        };
        if let Some(rest) = text.strip_prefix("unix:") {
            return path(rest, "unix").map(Self::Unix);
        }
        if let Some(rest) = text.strip_prefix("file:") {
            return path(rest, "file").map(Self::File);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(address) => Err(format!(
                "{} can be reached from other hosts, and whoever reaches the metrics may read \
                 them: use 127.0.0.1:{} and a proxy that asks who it is",
                address.ip(),
                address.port()
            )),
            Err(_) => Err(format!(
                "{text:?} is none of unix:PATH, 127.0.0.1:PORT, [::1]:PORT and file:PATH"
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told_alike() {
        for text in ["unix:/run/m.sock", "unix:m.sock", "127.0.0.1:9100", "[::1]:0", "file:m.prom"]
        {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_would_be_one() {
        let refused = |text: &str| Address::parse(text).unwrap_err();
        assert!(refused("0.0.0.0:9100").contains("use 127.0.0.1:9100"));
        assert!(refused("[::]:9100").contains("other hosts"));
        assert_eq!(refused("unix:"), "unix: is to be followed by a path");
        for text in ["", "9100", "localhost:9100", "127.0.0.1:65536", "/run/m.sock", "http://x"] {
            assert!(refused(text).contains("none of unix:PATH"), "{text}");
        }
    }
}
