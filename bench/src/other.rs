//! Another process, and what it is told to do.
//!
//! It is the same program once more. It connects to the first one, is told one thing per line, and
//! answers with one line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use larder::{Cache, Larder, Loaded};
use larder_testkit::Twin;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;
use crate::amalgam_node::{AmalgamNode, Profile, Setup};
use crate::node::{BareNode, LarderNode, Node, Place};
use crate::server::{cpu_time, resident_bytes};

/// Where the first process listens. Its presence makes a process the other one.
const FIRST: &str = "LARDER_BENCH_FIRST";
/// How long a line may take: a fill of many entries does.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process of ours. Dropping it ends it.
#[derive(Debug)]
pub struct Other {
    lines: Lines,
    _twin: Twin,
}

impl Other {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or does not call.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let twin = Twin::start("none", &[(FIRST, &address)])?;
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await??;
        Ok(Self {
            lines: Lines::over(stream)?,
            _twin: twin,
        })
    }

    /// Has it do something, and waits for its answer.
    ///
    /// # Errors
    ///
    /// When it fails or goes away; the message is its own.
    pub async fn ask(&mut self, order: &str) -> Result<String> {
        self.lines.send(order).await?;
        self.answer().await
    }

    /// Waits for what it says next.
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn answer(&mut self) -> Result<String> {
        let answer = tokio::time::timeout(PATIENCE, self.lines.next()).await??;
        let answer = answer.ok_or("the other process has ended")?;
        match answer.strip_prefix("failed: ") {
            Some(why) => Err(format!("in the other process: {why}").into()),
            None => Ok(answer),
        }
    }

    /// The same, as numbers.
    ///
    /// # Errors
    ///
    /// When it says something else.
    pub async fn numbers(&mut self, order: &str) -> Result<Vec<f64>> {
        let answer = self.ask(order).await?;
        Ok(answer
            .split_whitespace()
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()?)
    }
}

/// A connection that carries lines.
#[derive(Debug)]
struct Lines(BufReader<TcpStream>);

impl Lines {
    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    async fn send(&mut self, line: &str) -> Result<()> {
        Ok(self.0.write_all(format!("{line}\n").as_bytes()).await?)
    }

    async fn next(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }
}

/// Does what it is told, if this process is the other one: `false` if it is the first.
///
/// # Errors
///
/// When the first process cannot be reached.
pub async fn serve() -> Result<bool> {
    let Ok(first) = std::env::var(FIRST) else {
        return Ok(false);
    };
    let first: SocketAddr = first.parse()?;
    let mut lines = Lines::over(TcpStream::connect(first).await?)?;
    // In a task of the runtime, where services do their work.
    tokio::spawn(async move {
        let mut nodes = Nodes::default();
        while let Some(order) = lines.next().await? {
            if let Err(error) = nodes.obey(&order, &mut lines).await {
                lines.send(&format!("failed: {error}")).await?;
            }
        }
        Result::Ok(())
    })
    .await??;
    Ok(true)
}

/// What the other process holds open.
#[derive(Default)]
struct Nodes(HashMap<String, Box<dyn Node>>);

impl Nodes {
    async fn obey(&mut self, order: &str, lines: &mut Lines) -> Result<()> {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["open", name, url] => {
                self.0.insert(name.to_owned(), open(name, url).await?);
                lines.send("open").await
            }
            ["watch", name, key] => {
                let node = self.0.get(name).ok_or("there is no such node")?;
                watch(&**node, key, lines).await
            }
            ["hammer", url, per_second, seconds] => {
                let found = hammer(url, per_second.parse()?, seconds.parse()?).await?;
                lines.send(&found).await
            }
            ["pass", millions] => {
                let found = pass(millions.parse()?)?;
                lines.send(&found).await
            }
            _ => Err(format!("this is no order: {order}").into()),
        }
    }
}

/// The node of this name.
///
/// # Errors
///
/// When there is none, or it cannot connect.
pub async fn open(name: &str, url: &str) -> Result<Box<dyn Node>> {
    let place = Place::at(url);
    let amalgam = |profile| AmalgamNode::new(&place, Setup::of(profile));
    let node: Box<dyn Node> = match name {
        "bare" => Box::new(BareNode::new(&place).await?),
        "larder" => Box::new(LarderNode::new(&place)?),
        "amalgam" => Box::new(amalgam(Profile::Default).await?),
        "amalgam-strict" => Box::new(amalgam(Profile::Strict).await?),
        _ => return Err(format!("there is no {name}").into()),
    };
    node.until_ready().await?;
    Ok(node)
}

/// Holds a key, says so, and then when it was first seen to be gone, in nanoseconds of the wall
/// clock, which all processes of a machine share.
async fn watch(node: &dyn Node, key: &str, lines: &mut Lines) -> Result<()> {
    node.hold(key).await?;
    lines.send("held").await?;
    let began = Instant::now();
    while node.finds(key).await? {
        if began.elapsed() > PATIENCE {
            return Err(format!("{key} is still there").into());
        }
        tokio::task::yield_now().await;
    }
    lines.send(&wall_nanoseconds().to_string()).await
}

/// Nanoseconds since the Unix epoch.
pub fn wall_nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// One tick of the pace.
const TICK: Duration = Duration::from_millis(1);
const TICKS_PER_SECOND: u32 = 1_000;

/// Invalidates one key so often per second. The share of a core that this process took for it, the
/// share that it took for the pace alone, messages per second on the bus, and invalidations done.
async fn hammer(url: &str, per_second: u32, seconds: u32) -> Result<String> {
    let node = LarderNode::new(&Place::at(url))?;
    node.until_ready().await?;
    let published = || node.larder.bus().map_or(0, |bus| bus.published);
    let pages = &node.pages;
    let mut shares = Vec::new();
    let (mut messages, mut done) = (0, 0);
    for for_nothing in [true, false] {
        let (began, cpu_before, published_before) = (Instant::now(), cpu_time()?, published());
        let mut tasks = tokio::task::JoinSet::new();
        let ticks = seconds * TICKS_PER_SECOND;
        let mut pace = tokio::time::interval(TICK);
        for _ in 0..ticks {
            pace.tick().await;
            for _ in 0..per_second / TICKS_PER_SECOND {
                let pages = pages.clone();
                tasks.spawn(async move {
                    match for_nothing {
                        true => Ok(()),
                        false => pages.invalidate("hot").await.map(drop),
                    }
                });
            }
            while let Some(finished) = tasks.try_join_next() {
                finished??;
                done += u64::from(!for_nothing);
            }
        }
        while let Some(finished) = tasks.join_next().await {
            finished??;
            done += u64::from(!for_nothing);
        }
        let took = began.elapsed();
        shares.push((cpu_time()? - cpu_before).as_secs_f64() / took.as_secs_f64());
        messages = published() - published_before;
    }
    let [pace, whole] = shares[..] else {
        return Err("both were measured".into());
    };
    let messages = messages as f64 / f64::from(seconds);
    Ok(format!("{whole} {pace} {messages} {done}"))
}

/// How many entries the cache that others pass through holds.
pub const PASSED_THROUGH: u64 = 100_000;

/// Passes so many million entries through a bounded cache, each with a tag of its own and one that
/// all have. The bytes of memory that the process has before, and after each million.
fn pass(millions: u64) -> Result<String> {
    let cache: Cache<u64, u64> = Larder::local()
        .cache("passing")
        .capacity(PASSED_THROUGH)
        .in_memory()?;
    let mut found = resident_bytes()?.to_string();
    for million in 0..millions {
        for number in million * 1_000_000..(million + 1) * 1_000_000 {
            let tags = [format!("tag:{number}"), "shared".to_owned()];
            cache.set_in_memory(number, Loaded::value(number).tags(tags))?;
        }
        found += &format!(" {}", resident_bytes()?);
    }
    Ok(found)
}
