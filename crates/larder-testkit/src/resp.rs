//! The little of the Redis protocol (RESP2) that tests need to look past a store's own client.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer of a Redis server, as it stands in the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and its like.
    Status(String),
    /// `-ERR ...`, without the minus.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// A string of bytes.
    Bytes(Vec<u8>),
    /// A list of replies.
    List(Vec<Reply>),
    /// No such key.
    Nil,
}

/// A reply nested deeper than this is refused; no command that tests send nests more.
const MAX_DEPTH: usize = 8;

/// Sends one command on a connection of its own and reads the reply.
pub(crate) fn call(
    address: SocketAddr,
    password: Option<&str>,
    args: &[&[u8]],
    patience: Duration,
) -> io::Result<Reply> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut replies = BufReader::new(&stream);
    if let Some(password) = password {
        (&stream).write_all(&encode(&[b"AUTH", password.as_bytes()]))?;
        if let Reply::Error(message) = read(&mut replies, MAX_DEPTH)? {
            return Ok(Reply::Error(message));
        }
    }
    (&stream).write_all(&encode(args))?;
    read(&mut replies, MAX_DEPTH)
}

fn encode(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn read(from: &mut impl BufRead, depth: usize) -> io::Result<Reply> {
    if depth == 0 {
        return Err(invalid("a reply nested too deeply"));
    }
    let line = read_line(from)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| invalid(&line))?;
    match kind {
        "+" => Ok(Reply::Status(rest.into())),
        "-" => Ok(Reply::Error(rest.into())),
        ":" => Ok(Reply::Integer(number(rest)?)),
        "$" => match u64::try_from(number(rest)?) {
            Ok(length) => read_bytes(from, length),
            Err(_) => Ok(Reply::Nil),
        },
        "*" => match u64::try_from(number(rest)?) {
            Ok(length) => (0..length)
                .map(|_| read(from, depth - 1))
                .collect::<io::Result<_>>()
                .map(Reply::List),
            Err(_) => Ok(Reply::Nil),
        },
        _ => Err(invalid(&line)),
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(64 << 10).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The bytes and the line end behind them. Memory follows what arrives, not the claimed length.
fn read_bytes(from: &mut impl BufRead, length: u64) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    let mut end = [0; 2];
    from.read_exact(&mut end)?;
    if end != *b"\r\n" {
        return Err(invalid("a string without its end"));
    }
    Ok(Reply::Bytes(bytes))
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| invalid(text))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> io::Result<Reply> {
        read(&mut &bytes[..], MAX_DEPTH)
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        assert_eq!(parse(b"+OK\r\n").unwrap(), Reply::Status("OK".into()));
        assert_eq!(
            parse(b"-ERR no\r\n").unwrap(),
            Reply::Error("ERR no".into())
        );
        assert_eq!(parse(b":-2\r\n").unwrap(), Reply::Integer(-2));
        assert_eq!(
            parse(b"$4\r\na\r\nb\r\n").unwrap(),
            Reply::Bytes(b"a\r\nb".into())
        );
        assert_eq!(parse(b"$-1\r\n").unwrap(), Reply::Nil);
        assert_eq!(
            parse(b"*2\r\n:1\r\n*-1\r\n").unwrap(),
            Reply::List(vec![Reply::Integer(1), Reply::Nil])
        );
    }

    #[test]
    fn broken_replies_are_errors() {
        for broken in [
            &b""[..],
            b"\r\n",
            b"+OK",
            b":x\r\n",
            b"$4\r\nab\r\n",
            b"$999999999999\r\nab\r\n",
            b"*2\r\n:1\r\n",
            &b"*1\r\n".repeat(1000),
        ] {
            assert!(
                parse(broken).is_err(),
                "{:?}",
                String::from_utf8_lossy(broken)
            );
        }
    }
}
