//! Random readers and writers on several processes, while processes, their connections and the
//! server are killed, stopped and cut off at random.
//!
//! What is checked of every read, by the version it was served:
//!
//! - it is no older than what was invalidated through the same process before the read began;
//! - given a token, it is no older than the invalidation that gave it;
//! - it is no older than what was acknowledged anywhere a bounded time ago: a short one while
//!   nothing is broken, and the silence after which a bus is not trusted, with slack, otherwise;
//! - it does not fail.
//!
//! And whenever all has healed: every process gets well by itself and reads the newest version of
//! every row. `LARDER_CHECK_SECONDS` says how long it runs; `LARDER_SEED` repeats the plan of a run,
//! though not its timing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it stands, and says how long things took"
)]

mod nodes;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use larder::clock::{Clock, Millis, SystemClock};
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer, seeds};
use nodes::*;

const NODES: usize = 3;
const KEYS: usize = 12;
const TAGS: usize = 3;
const WRITERS: usize = 2;
const READERS: usize = 12;

/// How long faults go on, and how long nothing is broken after it, in milliseconds.
const ROUGH_FOR: Millis = 6_000;
const CALM_FOR: Millis = 3_000;
/// How old an acknowledged change may be that a read does not see: 50 ms by the promise while
/// nothing is broken, and 3 s of silence otherwise, with slack for a busy machine.
const CALM_BOUND: Millis = 1_500;
const ROUGH_BOUND: Millis = 10_000;
/// How long all may take to get well.
const HEALED_WITHIN: Duration = Duration::from_secs(20);
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);
/// How many events are kept to be shown.
const HISTORY: usize = 4_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stale_is_read_whatever_breaks() {
    let seconds = std::env::var("LARDER_CHECK_SECONDS").ok();
    let seconds: u64 = seconds.map_or(25, |seconds| seconds.parse().unwrap());
    for seed in seeds(1) {
        println!("seed {}", seed.number());
        let check = Check::begin().await;
        let end = seconds * 1_000;
        let mut rng = seed.rng();
        while check.now() < end && !check.has_failed() {
            Arc::clone(&check).cycle(rng.fork()).await;
        }
        check.report();
    }
}

/// A run of the checker.
struct Check {
    clock: SystemClock,
    server: RedisServer,
    database: Database,
    posts: Vec<Post>,
    facts: Mutex<Facts>,
    /// Whether readers, writers and faults go on.
    working: AtomicBool,
    writing: AtomicBool,
    breaking: AtomicBool,
}

/// The place of a node: the node itself is another one after a kill.
struct Post {
    proxy: ChaosProxy,
    node: Mutex<Arc<Node>>,
}

#[derive(Default)]
struct Facts {
    /// What was acknowledged of each key, and when.
    acked: HashMap<usize, Vec<(Millis, u64)>>,
    /// The last token of each key, with its version.
    tokens: HashMap<usize, (String, u64)>,
    /// What was invalidated through the node of each post.
    own: HashMap<(usize, usize), u64>,
    /// What the node of each post has promised to tell.
    queued: HashMap<usize, BTreeSet<usize>>,
    /// Since when nothing is broken.
    calm_since: Option<Millis>,
    history: VecDeque<(Millis, String)>,
    violations: Vec<String>,
    reads: u64,
    writes: u64,
    faults: u64,
}

impl Facts {
    /// The version that a read of `key` at `post` must reach if it begins at `now`.
    fn floor(&self, post: usize, key: usize, now: Millis) -> u64 {
        let own = self.own.get(&(post, key)).copied().unwrap_or(0);
        let in_time = |(at, _): &&(Millis, u64)| {
            let calm = self.calm_since.is_some_and(|since| since <= *at);
            at + if calm { CALM_BOUND } else { ROUGH_BOUND } <= now
        };
        let acked = self.acked.get(&key).into_iter().flatten();
        let acked = acked.filter(in_time).map(|(_, version)| *version).max();
        own.max(acked.unwrap_or(0))
    }
}

fn name(key: usize) -> String {
    format!("k{key}")
}

/// How long a fault lasts, in milliseconds.
fn mostly_short(rng: &mut Rng, most: Millis) -> Millis {
    20 + rng.u64(0..most) * rng.u64(0..1_000) / 1_000
}

impl Check {
    async fn begin() -> Arc<Self> {
        let server = RedisServer::start().unwrap();
        let database = Database::open().await;
        for key in 0..KEYS {
            database.tag(&name(key), &[&format!("g{}", key % TAGS)]);
        }
        let mut posts = Vec::new();
        for _ in 0..NODES {
            let proxy = ChaosProxy::start(server.address()).await.unwrap();
            let node = start(&database, &proxy).await;
            posts.push(Post {
                proxy,
                node: Mutex::new(node),
            });
        }
        Arc::new(Self {
            clock: SystemClock::new(),
            server,
            database,
            posts,
            facts: Mutex::default(),
            working: AtomicBool::new(true),
            writing: AtomicBool::new(true),
            breaking: AtomicBool::new(true),
        })
    }

    fn now(&self) -> Millis {
        self.clock.monotonic()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }

    fn node(&self, post: usize) -> Arc<Node> {
        Arc::clone(&self.posts[post].node.lock().unwrap())
    }

    async fn pause(&self, millis: Millis) {
        self.clock.sleep(Duration::from_millis(millis)).await;
    }

    fn note(&self, event: String) {
        let mut facts = self.facts();
        if facts.history.len() == HISTORY {
            facts.history.pop_front();
        }
        facts.history.push_back((self.now(), event));
    }

    fn violated(&self, what: String) {
        self.note(format!("VIOLATION {what}"));
        self.facts().violations.push(what);
    }

    fn has_failed(&self) -> bool {
        !self.facts().violations.is_empty()
    }

    /// Faults under load, then load alone, then nothing: all must agree.
    async fn cycle(self: Arc<Self>, mut rng: Rng) {
        let switch = |flag: &AtomicBool, on| flag.store(on, SeqCst);
        for flag in [&self.working, &self.writing, &self.breaking] {
            switch(flag, true);
        }
        let mut writers = Vec::new();
        for at in 0..WRITERS {
            writers.push(tokio::spawn(Arc::clone(&self).write(at, rng.fork())));
        }
        let mut readers = Vec::new();
        for _ in 0..READERS {
            readers.push(tokio::spawn(Arc::clone(&self).read(rng.fork())));
        }
        let faults = [
            tokio::spawn(Arc::clone(&self).break_server(rng.fork())),
            tokio::spawn(Arc::clone(&self).break_nodes(rng.fork())),
            tokio::spawn(Arc::clone(&self).break_links(rng.fork())),
        ];
        self.pause(ROUGH_FOR).await;
        switch(&self.breaking, false);
        for fault in faults {
            fault.await.unwrap();
        }
        self.note("healed".to_owned());
        self.get_well().await;
        self.facts().calm_since = Some(self.now());
        self.note("calm".to_owned());
        self.pause(CALM_FOR).await;
        switch(&self.writing, false);
        for writer in writers {
            writer.await.unwrap();
        }
        self.get_well().await;
        self.agree().await;
        self.facts().calm_since = None;
        switch(&self.working, false);
        for reader in readers {
            reader.await.unwrap();
        }
    }

    fn goes_on(&self, flag: &AtomicBool) -> bool {
        flag.load(SeqCst) && !self.has_failed()
    }

    async fn write(self: Arc<Self>, writer: usize, mut rng: Rng) {
        while self.goes_on(&self.writing) {
            // Each row has one writer.
            let key = rng.usize(0..KEYS / WRITERS) * WRITERS + writer;
            let version = self.database.write(&name(key));
            self.facts().writes += 1;
            while !self.invalidate(key, version, &mut rng).await && !self.has_failed() {}
            self.pause(rng.u64(0..20)).await;
        }
    }

    /// Says at some node that a row has changed; whether the node answered.
    async fn invalidate(&self, key: usize, version: u64, rng: &mut Rng) -> bool {
        let post = rng.usize(0..NODES);
        let node = self.node(post);
        let line = match rng.u8(0..20) {
            0 => "clear".to_owned(),
            1 => format!("pattern {}", name(key)),
            2..5 => format!("tag g{}", key % TAGS),
            5..8 => format!("expire {}", name(key)),
            _ => format!("invalidate {}", name(key)),
        };
        let answer = node.try_ask(&line, ANSWERED_WITHIN).await;
        self.note(format!(
            "{} v{version}: {line} at {post}: {answer:?}",
            name(key)
        ));
        let told = match answer {
            Ok(answer) => told(&answer),
            Err(error) if error.starts_with("no answer") => return false,
            Err(error) => {
                self.violated(format!("{line} at {post} fails: {error}"));
                return false;
            }
        };
        let now = self.now();
        let is_same = Arc::ptr_eq(&node, &self.node(post));
        let mut facts = self.facts();
        match told {
            Told::Acked(token) => {
                facts.acked.entry(key).or_default().push((now, version));
                if let Some(token) = token {
                    facts.tokens.insert(key, (token, version));
                }
            }
            // Killed since it answered: what it promised is lost with it.
            Told::Queued if !is_same => return false,
            Told::Queued => drop(facts.queued.entry(post).or_default().insert(key)),
        }
        if is_same {
            facts.own.insert((post, key), version);
        }
        true
    }

    async fn read(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.working) {
            let (post, key) = (rng.usize(0..NODES), rng.usize(0..KEYS));
            self.read_once(post, key, rng.u8(0..4) == 0).await;
            self.pause(rng.u64(0..8)).await;
        }
    }

    async fn read_once(&self, post: usize, key: usize, with_token: bool) {
        let (node, began) = (self.node(post), self.now());
        let (floor, line) = {
            let facts = self.facts();
            // The floor of a node counts only for that node.
            if !Arc::ptr_eq(&node, &self.node(post)) {
                return;
            }
            let floor = facts.floor(post, key, began);
            match facts.tokens.get(&key).filter(|_| with_token) {
                Some((token, version)) => {
                    let line = format!("after {token} {}", name(key));
                    (floor.max(*version), line)
                }
                None => (floor, format!("load {}", name(key))),
            }
        };
        match node.try_ask(&line, ANSWERED_WITHIN).await {
            Ok(answer) => {
                self.facts().reads += 1;
                if version(&answer) < floor {
                    self.note(format!(
                        "figures at {post}: {:?}",
                        node.try_ask("figures", ANSWERED_WITHIN).await
                    ));
                    self.violated(format!(
                        "{line} at {post}, begun at {began}, gave {answer:?}, not {floor}"
                    ));
                }
            }
            // Killed, or stopped for long.
            Err(error) if error.starts_with("no answer") => {}
            Err(error) => self.violated(format!("{line} at {post} fails: {error}")),
        }
    }

    async fn break_server(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(200..2_000)).await;
            let away = mostly_short(&mut rng, 4_000);
            self.facts().faults += 1;
            if rng.bool() {
                self.note(format!("server stopped for {away} ms"));
                tokio::task::block_in_place(|| self.server.stop_signal().unwrap());
                self.pause(away).await;
                self.server.cont_signal().unwrap();
            } else {
                self.note(format!("server killed for {away} ms"));
                tokio::task::block_in_place(|| self.server.kill9());
                self.pause(away).await;
                tokio::task::block_in_place(|| self.server.restart().unwrap());
            }
            self.note("server back".to_owned());
        }
    }

    async fn break_nodes(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(100..1_500)).await;
            let post = rng.usize(0..NODES);
            self.facts().faults += 1;
            if rng.u8(0..3) > 0 {
                let away = mostly_short(&mut rng, 5_000);
                self.note(format!("node {post} stopped for {away} ms"));
                let node = self.node(post);
                tokio::task::block_in_place(|| node.process().stop_signal().unwrap());
                self.pause(away).await;
                node.process().cont_signal().unwrap();
                self.note(format!("node {post} goes on"));
            } else {
                self.replace(post, &mut rng).await;
            }
        }
    }

    /// Kills a node and starts another one in its place. What it had queued is lost with it, so
    /// somebody else says it again.
    async fn replace(&self, post: usize, rng: &mut Rng) {
        self.note(format!("node {post} killed"));
        let old = self.node(post);
        tokio::task::block_in_place(|| old.process().kill9());
        let new = start(&self.database, &self.posts[post].proxy).await;
        let lost = {
            let mut facts = self.facts();
            *self.posts[post].node.lock().unwrap() = new;
            facts.own.retain(|(at, _), _| *at != post);
            facts.queued.remove(&post).unwrap_or_default()
        };
        self.note(format!(
            "node {post} is another one; lost with it: {lost:?}"
        ));
        for key in lost {
            let version = self.database.version(&name(key));
            while !self.invalidate(key, version, rng).await && !self.has_failed() {}
        }
    }

    async fn break_links(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(20..800)).await;
            let post = rng.usize(0..NODES);
            let proxy = &self.posts[post].proxy;
            let direction = Direction::BOTH[rng.usize(0..2)];
            let fault = match rng.u8(0..5) {
                0 => LinkFault::None,
                1 | 2 => LinkFault::Blackhole,
                3 => LinkFault::Truncate(rng.u64(0..20_000)),
                _ => LinkFault::Delay(Duration::from_millis(rng.u64(1..150))),
            };
            let away = mostly_short(&mut rng, 5_000);
            self.facts().faults += 1;
            self.note(format!(
                "link of {post}: {direction:?} {fault:?} for {away} ms"
            ));
            if fault == LinkFault::None {
                proxy.refuse().await;
                proxy.reset_connections();
                self.pause(away).await;
                proxy.accept().await;
            } else {
                proxy.inject([direction], fault);
                self.pause(away).await;
                proxy.heal();
                if rng.bool() || fault == LinkFault::Blackhole {
                    // Bytes are gone from the middle of its connections.
                    proxy.reset_connections();
                }
            }
            self.note(format!("link of {post} healed"));
        }
    }

    /// Waits until every node is well by itself.
    async fn get_well(&self) {
        for post in 0..NODES {
            let node = self.node(post);
            let well = async {
                loop {
                    let figures = node.try_ask("figures", ANSWERED_WITHIN).await;
                    match figures {
                        Ok(figures) if figures.starts_with("ill=0 ") => return,
                        _ => self.pause(10).await,
                    }
                    if self.has_failed() {
                        return;
                    }
                }
            };
            if tokio::time::timeout(HEALED_WITHIN, well).await.is_err() {
                let figures = node.try_ask("figures", ANSWERED_WITHIN).await;
                self.violated(format!("node {post} does not get well: {figures:?}"));
            }
        }
        // What they had queued has been told.
        self.facts().queued.clear();
    }

    /// Every node reads the newest version of every row.
    async fn agree(&self) {
        // What the last of them told on getting well is on its way to the others.
        self.pause(CALM_BOUND).await;
        for post in 0..NODES {
            for key in 0..KEYS {
                let newest = self.database.version(&name(key));
                let answer = self.node(post).ask(&format!("load {}", name(key))).await;
                if version(&answer) != newest {
                    self.violated(format!(
                        "all has healed, and node {post} reads {answer:?} for {}, not {newest}",
                        name(key)
                    ));
                }
            }
        }
    }

    /// Says what was done, and fails with the history if anything was violated.
    fn report(&self) {
        let facts = self.facts();
        println!(
            "{} reads, {} writes, {} faults in {} ms",
            facts.reads,
            facts.writes,
            facts.faults,
            self.now()
        );
        if facts.violations.is_empty() {
            return;
        }
        for (at, event) in &facts.history {
            println!("{at:>7} {event}");
        }
        panic!("{}", facts.violations.join("\n"));
    }
}

async fn start(database: &Database, proxy: &ChaosProxy) -> Arc<Node> {
    let place = Place {
        doubts_alone: true,
        ..Place::at(proxy.address())
    };
    Arc::new(Node::start(database, &place).await)
}
