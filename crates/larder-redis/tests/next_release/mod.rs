//! The next release, before there is one: a connection to Redis on which the formats have the next
//! version number.
//!
//! A process behind it is a process of this release whose bytes are changed on their way, so that on
//! the server everything is as if the next release had written it: envelopes and messages have
//! version 2, and if the test wants it the frames around messages; and its scripts are others, which
//! write version 2 and read versions 1 and 2. What has no version in it, such as the records of tags,
//! both releases share.
//!
//! Requests are read command by command, because scripts change their length and with it their hash.
//! Replies keep theirs.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use larder_testkit::{RedisServer, Reply};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// What the formats begin with: the four letters, and the version of this release behind them.
const MAGICS: [&[u8; 5]; 2] = [b"LRDR\x01", b"LRDB\x01"];
/// The version of the next release.
const NEXT: u8 = 2;
const MAGIC_BYTES: usize = 5;

/// What the scripts of the next release say in place of what those of this one say.
const REWRITTEN: [(&str, &str); 2] = [
    ("local MAGIC = 'LRDR\\1'", "local MAGIC = 'LRDR\\2'"),
    (
        "sub(bytes, 1, 5) == MAGIC",
        "string.find(bytes, '^LRDR[\\1\\2]')",
    ),
];

/// A listener through which a node is one of the next release.
pub(crate) struct NextRelease {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// In which format the next release puts messages on the channel, whose own format is another one in
/// any case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Frames {
    /// The one of this release: only the message is unreadable here.
    AsNow,
    /// A new one: not even its number can be read here.
    Anew,
}

struct Shared {
    server: Arc<RedisServer>,
    frames: Frames,
    /// By the hash of a script of this release, that of the same script of the next one.
    hashes: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    written: AtomicU64,
    read: AtomicU64,
}

impl NextRelease {
    pub(crate) async fn start(server: &Arc<RedisServer>, frames: Frames) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: Arc::clone(server),
            frames,
            hashes: Mutex::default(),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared))).abort_handle();
        Self {
            address,
            shared,
            task,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many envelopes, messages and frames went out as those of the next release.
    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(SeqCst)
    }

    /// How many of them came in.
    pub(crate) fn read(&self) -> u64 {
        self.shared.read.load(SeqCst)
    }
}

impl Drop for NextRelease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hash_of(server: &RedisServer, code: &[u8]) -> Vec<u8> {
    match server.command(&[&b"SCRIPT"[..], b"LOAD", code]).unwrap() {
        Reply::Bytes(hash) => hash,
        other => panic!("{other:?}"),
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(shared.server.address()).await else {
            continue;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        // Each ends with the connection that it reads from, and ends the other one by that.
        tokio::spawn(requests(from_client, to_server, Arc::clone(&shared)));
        tokio::spawn(replies(from_server, to_client, Arc::clone(&shared)));
    }
}

/// Passes commands on as the next release would send them.
async fn requests(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let count = length(&mut from, b'*').await?;
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let mut word = vec![0; length(&mut from, b'$').await? + 2];
            from.read_exact(&mut word).await?;
            word.truncate(word.len() - 2);
            words.push(word);
        }
        shared.translate(&mut words);
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in &words {
            command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            command.extend_from_slice(word);
            command.extend_from_slice(b"\r\n");
        }
        to.write_all(&command).await?;
    }
}

async fn length(from: &mut BufReader<OwnedReadHalf>, kind: u8) -> std::io::Result<usize> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).await?;
    let digits = line
        .strip_prefix(&[kind])
        .and_then(|line| line.strip_suffix(b"\r\n"));
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

impl Shared {
    fn translate(&self, words: &mut [Vec<u8>]) {
        let (code, arguments) = match words {
            [command, code, rest @ ..] if command.to_ascii_uppercase().starts_with(b"EVAL") => {
                (Some((command.len(), code)), rest)
            }
            all => (None, all),
        };
        match code {
            // EVALSHA is longer than EVAL.
            Some((7, hash)) => *hash = self.hash(hash),
            Some((_, code)) => *code = self.learn(code),
            None => {}
        }
        for word in arguments {
            let found = change_versions(word, MAGICS.map(|magic| magic[4]), NEXT);
            self.written.fetch_add(found, SeqCst);
        }
    }

    /// The hash of the script of the next release; of none, if it was not sent yet.
    fn hash(&self, hash: &[u8]) -> Vec<u8> {
        let hashes = self.hashes.lock().unwrap();
        let known = hashes.get(hash).cloned();
        known.unwrap_or_else(|| vec![b'0'; hash.len()])
    }

    fn learn(&self, code: &[u8]) -> Vec<u8> {
        let next = rewritten(std::str::from_utf8(code).unwrap(), self.frames).into_bytes();
        let (here, there) = (hash_of(&self.server, code), hash_of(&self.server, &next));
        self.hashes.lock().unwrap().insert(here, there);
        next
    }
}

/// A script as the next release has it.
fn rewritten(code: &str, frames: Frames) -> String {
    let mut next = code.to_owned();
    for (this, that) in REWRITTEN {
        assert!(next.contains(this), "scripts do not say {this} any more");
        next = next.replace(this, that);
    }
    match frames {
        Frames::AsNow => next,
        Frames::Anew => next.replace("'LRDB\\1", "'LRDB\\2"),
    }
}

/// Passes replies and pushes on as a process of this release can read them.
async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let ended = from.read_buf(&mut bytes).await? == 0;
        let found = change_versions(&mut bytes, [NEXT; 2], 1);
        shared.read.fetch_add(found, SeqCst);
        // The rest may be the begin of something whose end has not come yet.
        let whole = if ended {
            bytes.len()
        } else {
            bytes.len() - begun(&bytes)
        };
        to.write_all(&bytes[..whole]).await?;
        bytes.drain(..whole);
        if ended {
            return to.shutdown().await;
        }
    }
}

/// How many bytes at the end may be the begin of a format.
fn begun(bytes: &[u8]) -> usize {
    (1..MAGIC_BYTES)
        .rev()
        .find(|&length| MAGICS.iter().any(|magic| bytes.ends_with(&magic[..length])))
        .unwrap_or(0)
}

/// Gives whatever begins like one of the formats, in one of these versions, another version; how
/// often. Nothing that the tests write looks like that by chance.
fn change_versions(bytes: &mut [u8], from: [u8; 2], to: u8) -> u64 {
    let mut changed = 0;
    for at in 0..bytes.len().saturating_sub(MAGIC_BYTES - 1) {
        let here = &mut bytes[at..at + MAGIC_BYTES];
        let is_format = |(magic, from): (&[u8; 5], u8)| here[..4] == magic[..4] && here[4] == from;
        if MAGICS.into_iter().zip(from).any(is_format) {
            here[4] = to;
            changed += 1;
        }
    }
    changed
}
