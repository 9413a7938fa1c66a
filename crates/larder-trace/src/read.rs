use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, Read};

use crate::request::{Request, Trace};

/// The longest line that is read; a longer one is an error.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// How a trace is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A key on each line.
    Keys,
    /// The access log of a web server, in the common or the combined format. The key is the path
    /// with its query; requests other than GET and HEAD, and answers other than 200 and 304, are
    /// passed over.
    AccessLog,
    /// Comma-separated values with a header line.
    Csv {
        /// The name of the column that has the key.
        key: String,
        /// The name of the column that has the size of the value in bytes, if there is one.
        bytes: Option<String>,
    },
}

/// Why a trace cannot be read.
#[derive(Debug)]
pub struct TraceError {
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TraceError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    fn because(
        message: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..Self::new(message)
        }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TraceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Reads a whole trace. What is no request is counted and passed over.
///
/// # Errors
///
/// If `source` cannot be read, a line is longer than 1 MiB, a column is missing, or there is not a
/// single request in it, as with the wrong format.
pub fn read(source: impl BufRead, format: &Format) -> Result<Trace, TraceError> {
    let trace = match format {
        Format::Keys => by_line(source, key_line)?,
        Format::AccessLog => by_line(source, log_line)?,
        Format::Csv { key, bytes } => by_column(source, key, bytes.as_deref())?,
    };
    if trace.requests.is_empty() {
        let lines = trace.passed_over;
        return Err(TraceError::new(format!(
            "none of the {lines} lines is a request; is this the right format?"
        )));
    }
    Ok(trace)
}

/// One request per line.
fn by_line(
    mut source: impl BufRead,
    parse: fn(&Keys, &[u8]) -> Option<Request>,
) -> Result<Trace, TraceError> {
    let (mut trace, keys, mut line, mut number) = (Trace::default(), Keys::new(), Vec::new(), 0u64);
    loop {
        line.clear();
        number += 1;
        let read = source
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| unreadable(number, error))?;
        if read == 0 {
            return Ok(trace);
        }
        if read as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
            return Err(TraceError::new(format!(
                "line {number} is longer than {MAX_LINE_BYTES} bytes"
            )));
        }
        match parse(&keys, line.trim_ascii()) {
            Some(request) => trace.requests.push(request),
            None => trace.passed_over += 1,
        }
    }
}

fn unreadable(line: u64, error: io::Error) -> TraceError {
    TraceError::because(format!("the trace cannot be read at line {line}"), error)
}

/// Turns keys into numbers: those that are numbers stay what they are, so that a trace of numbers
/// is the same in every run.
struct Keys(RandomState);

impl Keys {
    fn new() -> Self {
        Self(RandomState::new())
    }

    fn number(&self, key: &[u8]) -> u64 {
        let decimal = std::str::from_utf8(key).ok();
        let number = decimal.and_then(|key| key.parse().ok());
        number.unwrap_or_else(|| {
            let mut hasher = self.0.build_hasher();
            hasher.write(key);
            hasher.finish()
        })
    }
}

fn key_line(keys: &Keys, line: &[u8]) -> Option<Request> {
    (!line.is_empty()).then(|| Request {
        key: keys.number(line),
        bytes: 0,
    })
}

/// `HOST IDENT USER [TIME] "METHOD TARGET PROTOCOL" STATUS BYTES ...`.
fn log_line(keys: &Keys, line: &[u8]) -> Option<Request> {
    let open = line.iter().position(|&byte| byte == b'"')?;
    let (request, rest) = quoted(&line[open + 1..])?;
    let mut words = request.split(|&byte| byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut rest = rest
        .split(|&byte| byte == b' ')
        .filter(|word| !word.is_empty());
    let (status, bytes) = (rest.next()?, rest.next());
    let is_read = matches!(method, b"GET" | b"HEAD") && matches!(status, b"200" | b"304");
    (is_read && !target.is_empty()).then(|| Request {
        key: keys.number(target),
        bytes: bytes.and_then(whole).unwrap_or(0),
    })
}

/// What stands before the quotation mark that ends it, and what follows; `\"` is none.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' if !escaped => return Some((&text[..at], &text[at + 1..])),
            _ => escaped = *byte == b'\\' && !escaped,
        }
    }
    None
}

/// A whole number; too large a one is the largest.
fn whole(digits: &[u8]) -> Option<u32> {
    let number: u64 = std::str::from_utf8(digits).ok()?.trim().parse().ok()?;
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}

fn by_column(source: impl BufRead, key: &str, bytes: Option<&str>) -> Result<Trace, TraceError> {
    let mut table = csv::ReaderBuilder::new().flexible(true).from_reader(source);
    let header = table
        .byte_headers()
        .map_err(|error| TraceError::because("the header line cannot be read", error))?;
    let column = |name: &str| {
        let found = header
            .iter()
            .position(|column| column.trim_ascii() == name.as_bytes());
        found.ok_or_else(|| {
            let columns: Vec<_> = header.iter().map(String::from_utf8_lossy).collect();
            let columns = columns.join(", ");
            TraceError::new(format!("there is no column `{name}`; there are: {columns}"))
        })
    };
    let (key, bytes) = (column(key)?, bytes.map(column).transpose()?);
    let (mut trace, keys, mut row) = (Trace::default(), Keys::new(), csv::ByteRecord::new());
    loop {
        match table.read_byte_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Ok(trace),
            Err(error) => {
                let row = trace.requests.len() as u64 + trace.passed_over + 1;
                return Err(TraceError::because(
                    format!("row {row} cannot be read"),
                    error,
                ));
            }
        }
        let size = |at| row.get(at).and_then(whole);
        match row.get(key).filter(|key| !key.is_empty()) {
            Some(key) => trace.requests.push(Request {
                key: keys.number(key),
                bytes: bytes.and_then(size).unwrap_or(0),
            }),
            None => trace.passed_over += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn keys(trace: &Trace) -> Vec<u64> {
        trace.requests.iter().map(|request| request.key).collect()
    }

    fn csv(key: &str, bytes: Option<&str>) -> Format {
        Format::Csv {
            key: key.into(),
            bytes: bytes.map(Into::into),
        }
    }

    #[test]
    fn numbers_are_keys_as_they_are_and_words_are_told_apart() {
        let trace = read(
            "7\n18446744073709551615\r\n\nabc\nabd\nabc".as_bytes(),
            &Format::Keys,
        );
        let trace = trace.unwrap();
        let read = keys(&trace);
        assert_eq!(read[..2], [7, u64::MAX]);
        assert_eq!(read[2], read[4]);
        assert_ne!(read[2], read[3]);
        assert_eq!(trace.passed_over, 1);
    }

    #[test]
    fn access_logs_in_both_formats_give_targets_and_sizes() {
        let log = r#"
::1 - frank [10/Oct/2000:13:55:36 -0700] "GET /a?x=1 HTTP/1.0" 200 2326
::1 - - [10/Oct/2000:13:55:37 -0700] "HEAD /a?x=1 HTTP/1.0" 304 - "http://b/\"c" "Mozilla"
::1 - - [10/Oct/2000:13:55:38 -0700] "GET /b HTTP/2" 200 99999999999
::1 - - [10/Oct/2000:13:55:39 -0700] "GET /a\"b HTTP/1.1" 200 1
::1 - - [10/Oct/2000:13:55:40 -0700] "POST /b HTTP/2" 200 1
::1 - - [10/Oct/2000:13:55:41 -0700] "GET /b HTTP/2" 404 1
::1 - - [10/Oct/2000:13:55:42 -0700] "\x16\x03" 400 0
::1 - - [10/Oct/2000:13:55:43 -0700] "GET /b
nonsense"#;
        let trace = read(log.trim_start().as_bytes(), &Format::AccessLog).unwrap();
        let keys = keys(&trace);
        assert_eq!(keys.len(), 4);
        assert_eq!(keys[0], keys[1]);
        let sizes: Vec<_> = trace.requests.iter().map(|request| request.bytes).collect();
        assert_eq!(sizes, [2326, 0, u32::MAX, 1]);
        assert_eq!(trace.passed_over, 5);
    }

    #[test]
    fn columns_are_found_by_name() {
        let table = "time,\"object id\",size\n1,7,100\n2,\"8\",x\n3\n4,,1\n";
        let trace = read(table.as_bytes(), &csv("object id", Some("size"))).unwrap();
        assert_eq!(keys(&trace), [7, 8]);
        assert_eq!((trace.requests[0].bytes, trace.requests[1].bytes), (100, 0));
        assert_eq!(trace.passed_over, 2);
        let missing = read(table.as_bytes(), &csv("id", None)).unwrap_err();
        let message = "there is no column `id`; there are: time, object id, size";
        assert_eq!(missing.to_string(), message);
    }

    #[test]
    fn what_is_no_trace_is_an_error_that_says_so() {
        let wrong = read("7\n8\n".as_bytes(), &Format::AccessLog).unwrap_err();
        let message = "none of the 2 lines is a request; is this the right format?";
        assert_eq!(wrong.to_string(), message);
        let endless = BufReader::new(io::repeat(b'x'));
        let endless = read(endless, &Format::Keys).unwrap_err();
        assert_eq!(endless.to_string(), "line 1 is longer than 1048576 bytes");
        assert!(
            read(&b"\xff\xfe"[..], &Format::Keys).is_ok(),
            "any bytes are a key"
        );
    }
}
