//! Free ports on the loopback interface.

use std::net::{Ipv4Addr, TcpListener};

use crate::Error;

/// Below the ports that operating systems give to outgoing connections (32768 and up on Linux,
/// 49152 elsewhere), for two reasons. A server that was killed finds its port free when it comes
/// back. And a client that keeps dialling a dead port of that range is sooner or later given that
/// very port as its own, and finds itself connected to itself.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

const ATTEMPTS: usize = 200;

/// A port on which nothing listened a moment ago.
///
/// Another process may take it before the caller binds it, so callers retry with another one.
pub(crate) fn free() -> Result<u16, Error> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let port = fastrand::u16(RANGE);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    let message = format!("no free port on 127.0.0.1 after {ATTEMPTS} attempts");
    Err(match last {
        Some(error) => Error::io(message, error),
        None => Error::new(message),
    })
}
