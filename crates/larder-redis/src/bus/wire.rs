use std::io::{self, ErrorKind};

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream,
};

/// The little of the Redis protocol (RESP2) that a listener needs, with a bound on everything that
/// is kept: what is longer is read past and thrown away as it arrives. The client library would
/// collect a message of any length, and any number of them, before it shows the first.
pub(super) struct Wire {
    stream: BufStream<Box<dyn Socket>>,
    max_bytes: usize,
}

/// What a connection can be made of.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A value that the server sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Status(String),
    /// The code and what follows, as in `NOPERM this user has no permissions`.
    Error(String),
    Integer(i64),
    Bytes(Vec<u8>),
    /// A string of bytes over the bound.
    TooLong,
    Nil,
    /// So many items follow.
    List(usize),
}

/// A line that holds a status, an error or a number. Longer ones are nobody's whom we know.
const MAX_LINE_BYTES: u64 = 8 << 10;
/// A push has three parts, or four for a pattern.
const MAX_PARTS: usize = 8;

impl Wire {
    /// Keeps strings of up to `max_bytes`.
    pub(super) fn new(stream: Box<dyn Socket>, max_bytes: usize) -> Self {
        Self {
            stream: BufStream::new(stream),
            max_bytes,
        }
    }

    pub(super) async fn send(&mut self, command: &[&[u8]]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for part in command {
            bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    /// Sends a command and reads its answer, which is no list.
    pub(super) async fn ask(&mut self, command: &[&[u8]]) -> io::Result<Item> {
        self.send(command).await?;
        match self.item().await? {
            Item::List(_) => Err(senseless("a list")),
            item => Ok(item),
        }
    }

    /// Reads what the server pushes: a list of items that are no lists themselves. An error comes
    /// as a list of it alone.
    pub(super) async fn push(&mut self) -> io::Result<Vec<Item>> {
        let count = match self.item().await? {
            Item::List(count) if count <= MAX_PARTS => count,
            error @ Item::Error(_) => return Ok(vec![error]),
            _ => return Err(senseless("no push")),
        };
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            match self.item().await? {
                Item::List(_) => return Err(senseless("a list in a list")),
                part => parts.push(part),
            }
        }
        Ok(parts)
    }

    async fn item(&mut self) -> io::Result<Item> {
        let line = self.line().await?;
        let (kind, rest) = line
            .split_at_checked(1)
            .ok_or_else(|| senseless("a line"))?;
        match kind {
            "+" => Ok(Item::Status(rest.into())),
            "-" => Ok(Item::Error(rest.into())),
            ":" => Ok(Item::Integer(number(rest)?)),
            "*" => Ok(usize::try_from(number(rest)?).map_or(Item::Nil, Item::List)),
            "$" => match u64::try_from(number(rest)?) {
                Ok(length) => self.bytes(length).await,
                Err(_negative) => Ok(Item::Nil),
            },
            _ => Err(senseless("an unknown kind of value")),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(MAX_LINE_BYTES);
        bounded.read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None if line.len() as u64 == MAX_LINE_BYTES => Err(senseless("a line without end")),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn bytes(&mut self, length: u64) -> io::Result<Item> {
        let item = match usize::try_from(length) {
            Ok(length) if length <= self.max_bytes => {
                let mut bytes = vec![0; length];
                self.stream.read_exact(&mut bytes).await?;
                Item::Bytes(bytes)
            }
            _ => {
                skip(&mut self.stream, length).await?;
                Item::TooLong
            }
        };
        let mut end = [0; 2];
        self.stream.read_exact(&mut end).await?;
        match &end {
            b"\r\n" => Ok(item),
            _ => Err(senseless("a string without its end")),
        }
    }
}

/// Throws bytes away as they come.
async fn skip(stream: &mut (impl AsyncBufRead + Unpin), mut length: u64) -> io::Result<()> {
    while length > 0 {
        let there = stream.fill_buf().await?.len();
        if there == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let taken = usize::try_from(length).map_or(there, |left| left.min(there));
        stream.consume(taken);
        length -= taken as u64;
    }
    Ok(())
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| senseless("a number"))
}

fn senseless(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("not the Redis protocol: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: usize = 100;

    /// What a listener makes of these bytes and the end of the connection behind them.
    async fn pushes(bytes: &[u8]) -> (Vec<Vec<Item>>, ErrorKind) {
        let (near, mut far) = tokio::io::duplex(64);
        let mut wire = Wire::new(Box::new(near), MAX_BYTES);
        let writing = async {
            let _ = far.write_all(bytes).await;
            drop(far);
        };
        let reading = async {
            let mut pushes = Vec::new();
            loop {
                match wire.push().await {
                    Ok(push) => pushes.push(push),
                    Err(error) => {
                        drop(wire);
                        return (pushes, error.kind());
                    }
                }
            }
        };
        tokio::join!(writing, reading).1
    }

    #[tokio::test]
    async fn pushes_are_read_until_the_connection_ends() {
        let stream = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\n\r\n\r\n\r\n*1\r\n$-1\r\n-ERR no\r\n";
        let text = |text: &str| Item::Bytes(text.into());
        let expected = vec![
            vec![text("subscribe"), text("c"), Item::Integer(1)],
            vec![text("message"), text("c"), text("\r\n\r\n")],
            vec![Item::Nil],
            vec![Item::Error("ERR no".into())],
        ];
        assert_eq!(pushes(stream).await, (expected, ErrorKind::UnexpectedEof));
    }

    #[tokio::test]
    async fn a_long_string_is_skipped_and_what_follows_is_read() {
        for (length, expected) in [
            (MAX_BYTES, Item::Bytes(vec![7; MAX_BYTES])),
            (MAX_BYTES + 1, Item::TooLong),
            (1_000_000, Item::TooLong),
        ] {
            let mut stream = format!("*2\r\n${length}\r\n").into_bytes();
            stream.resize(stream.len() + length, 7);
            stream.extend_from_slice(b"\r\n:5\r\n");
            let (pushes, _) = pushes(&stream).await;
            assert_eq!(pushes, [vec![expected, Item::Integer(5)]]);
        }
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_ends_it() {
        let line = vec![b'+'; 2 * MAX_LINE_BYTES as usize];
        let senseless: [&[u8]; 8] = [
            b"\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"+OK\r\n",
            b"*9\r\n",
            b"*x\r\n",
            b"*1\r\n*1\r\n:1\r\n",
            b"*1\r\n$1\r\nab\r\n",
            &line,
        ];
        for stream in senseless {
            let (pushes, kind) = pushes(stream).await;
            let shown = String::from_utf8_lossy(&stream[..stream.len().min(40)]);
            assert_eq!((pushes, kind), (vec![], ErrorKind::InvalidData), "{shown}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_in_a_value_is_an_end() {
        let whole = b"*2\r\n$3\r\nabc\r\n$200\r\n";
        for length in 0..whole.len() {
            let (pushes, kind) = pushes(&whole[..length]).await;
            assert_eq!(
                (pushes, kind),
                (vec![], ErrorKind::UnexpectedEof),
                "{length}"
            );
        }
    }

    #[tokio::test]
    async fn a_claimed_length_is_not_allocated() {
        let (pushes, kind) = pushes(b"*1\r\n$9223372036854775807\r\nabc").await;
        assert_eq!((pushes, kind), (vec![], ErrorKind::UnexpectedEof));
    }
}
