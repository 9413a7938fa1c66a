//! A run: readers and writers, phases, and how all get well and agree.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use larder::clock::{Clock, Millis, SystemClock};
use larder_testkit::{ChaosProxy, Peer, PostgresServer, RedisServer, Reply};
use tokio::task::JoinHandle;

use crate::facts::Facts;
use crate::node;
use crate::promise::{Bounds, Promise};
use crate::rows::{LAG, Rows};
use crate::writers::Rush;

pub(crate) const NODES: usize = 3;
const WRITERS: usize = 3;
const READERS: usize = 10;

/// How long faults go on, and how long nothing is broken after it, in milliseconds.
const ROUGH_FOR: std::ops::Range<Millis> = 4_000..8_000;
const CALM_FOR: Millis = 2_500;
/// What the promises say is 50 ms, and 3 s of silence; the rest is for a busy machine.
pub(crate) const BOUNDS: Bounds = Bounds {
    calm: 1_500,
    rough: 10_000,
    feed: 3_000,
};
/// How long all may take to get well.
const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// Nothing takes so long, even at a process that is stopped for a while.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// How often it is asked whether the outbox is empty, in milliseconds.
const WITNESS_EVERY: Millis = 100;
/// One load of so many panics while things break.
const PANICS: u64 = 100;

pub(crate) struct Check {
    pub(crate) clock: SystemClock,
    pub(crate) redis: RedisServer,
    pub(crate) postgres: PostgresServer,
    pub(crate) rows: Rows,
    pub(crate) posts: Vec<Post>,
    facts: Mutex<Facts>,
    /// Whether readers, writers and faults go on.
    pub(crate) working: AtomicBool,
    pub(crate) writing: AtomicBool,
    pub(crate) breaking: AtomicBool,
}

/// The place of a node: the node itself is another one after a kill.
pub(crate) struct Post {
    pub(crate) proxy: ChaosProxy,
    pub(crate) node: Mutex<Arc<Peer>>,
}

impl Check {
    pub(crate) async fn begin(rng: &mut Rng) -> Arc<Self> {
        let (redis, postgres) = (
            RedisServer::start().unwrap(),
            PostgresServer::start().unwrap(),
        );
        let rows = Rows::open(&postgres).await;
        let mut posts = Vec::new();
        for _ in 0..NODES {
            let proxy = ChaosProxy::start(redis.address()).await.unwrap();
            let node = Mutex::new(start(&rows, &proxy, rng).await);
            posts.push(Post { proxy, node });
        }
        Arc::new(Self {
            clock: SystemClock::new(),
            redis,
            postgres,
            rows,
            posts,
            facts: Mutex::new(Facts::new()),
            working: AtomicBool::new(true),
            writing: AtomicBool::new(true),
            breaking: AtomicBool::new(true),
        })
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.monotonic()
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }

    pub(crate) fn node(&self, post: usize) -> Arc<Peer> {
        Arc::clone(&self.posts[post].node.lock().unwrap())
    }

    pub(crate) async fn pause(&self, millis: Millis) {
        self.clock.sleep(Duration::from_millis(millis)).await;
    }

    pub(crate) fn note(&self, event: String) {
        let now = self.now();
        self.facts().note(now, event);
    }

    pub(crate) fn violated(&self, what: String) {
        self.note(format!("VIOLATION {what}"));
        self.facts().violations.push(what);
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.facts().violations.is_empty()
    }

    pub(crate) fn goes_on(&self, flag: &AtomicBool) -> bool {
        flag.load(SeqCst) && !self.has_failed()
    }

    /// Faults under load, then load alone, and all must agree after either.
    pub(crate) async fn cycle(self: Arc<Self>, mut rng: Rng) {
        self.working.store(true, SeqCst);
        let mut others = vec![tokio::spawn(Arc::clone(&self).witness())];
        for _ in 0..READERS {
            others.push(tokio::spawn(Arc::clone(&self).read(rng.fork())));
        }
        self.rough(&mut rng).await;
        self.calm(&mut rng).await;
        self.working.store(false, SeqCst);
        for other in others {
            other.await.unwrap();
        }
        self.count_what_was_ahead().await;
        self.facts().count("cycles");
    }

    /// Writers and faults, and what is left of it when all has healed and nobody writes any more.
    async fn rough(self: &Arc<Self>, rng: &mut Rng) {
        self.everywhere(&format!("panics {PANICS}")).await;
        self.breaking.store(true, SeqCst);
        let faults = self.break_everything(rng);
        let writers = self.begin_to_write(Rush::Narrow, rng);
        self.pause(rng.u64(ROUGH_FOR)).await;
        self.breaking.store(false, SeqCst);
        for fault in faults {
            fault.await.unwrap();
        }
        self.end_writing(writers).await;
        self.note("healed".to_owned());
        self.everywhere("bus heal").await;
        self.everywhere("panics 0").await;
        self.agree().await;
    }

    /// Writers alone. Only here do replicas lag: what keeps out the values of one that does would be
    /// among what is evicted.
    async fn calm(self: &Arc<Self>, rng: &mut Rng) {
        self.everywhere(&format!("lag {LAG}")).await;
        let now = self.now();
        self.facts().calm_since = Some(now);
        self.note("calm".to_owned());
        let writers = self.begin_to_write(Rush::Wide, rng);
        self.pause(CALM_FOR).await;
        self.end_writing(writers).await;
        self.agree().await;
        self.facts().calm_since = None;
        self.everywhere("lag 0").await;
    }

    fn begin_to_write(self: &Arc<Self>, rush: Rush, rng: &mut Rng) -> Vec<JoinHandle<()>> {
        self.writing.store(true, SeqCst);
        let start = |writer| {
            let check = Arc::clone(self);
            tokio::spawn(check.write_all(writer, WRITERS, rush, rng.fork()))
        };
        (0..WRITERS).map(start).collect()
    }

    async fn end_writing(&self, writers: Vec<JoinHandle<()>>) {
        self.writing.store(false, SeqCst);
        for writer in writers {
            writer.await.unwrap();
        }
    }

    /// Tells all nodes something that each of them does.
    async fn everywhere(&self, line: &str) {
        for post in 0..NODES {
            let answer = self.node(post).ask(line, ANSWERED_WITHIN).await;
            if let Err(error) = answer {
                self.violated(format!("{line} at {post}: {error}"));
            }
        }
    }

    /// Looks whether the feed has told what it was given.
    async fn witness(self: Arc<Self>) {
        while self.goes_on(&self.working) {
            self.see_whether_all_is_told().await;
            self.pause(WITNESS_EVERY).await;
        }
    }

    async fn see_whether_all_is_told(&self) {
        let fed = self.facts().all_fed();
        if let Ok(true) = self.rows.is_all_told().await {
            let now = self.now();
            self.facts().outbox_was_empty(fed, now);
        }
    }

    /// Waits until every node is well by itself, and the feed has told everything.
    async fn get_well(&self) {
        for post in 0..NODES {
            let well = self.until_well(post);
            if tokio::time::timeout(HEALED_WITHIN, well).await.is_err() {
                let figures = self.node(post).ask("figures", ANSWERED_WITHIN).await;
                self.violated(format!("node {post} does not get well: {figures:?}"));
            }
        }
        let all_told = async {
            while !self.facts().all_fed().is_empty() && !self.has_failed() {
                self.see_whether_all_is_told().await;
                self.pause(20).await;
            }
        };
        if tokio::time::timeout(HEALED_WITHIN, all_told).await.is_err() {
            self.violated(format!("the outbox is not emptied ({})", Promise::NotLost));
        }
    }

    async fn until_well(&self, post: usize) {
        while !self.has_failed() {
            let queued = self.facts().queued_len(post);
            let figures = self.node(post).ask("figures", ANSWERED_WITHIN).await;
            if figures.is_ok_and(|figures| figures.starts_with("ill=0 ")) {
                let now = self.now();
                return self.facts().is_well(post, queued, now);
            }
            self.pause(10).await;
        }
    }

    /// Nobody writes: every node gets well, and reads the newest version of every row.
    async fn agree(&self) {
        self.get_well().await;
        // Once anything is wrong, nobody goes on with what was begun.
        if self.has_failed() {
            return;
        }
        // What the last of them told on getting well is on its way to the others.
        self.pause(BOUNDS.calm).await;
        self.read_all_at_rest().await;
    }

    /// Counts what the nodes did ahead of need.
    async fn count_what_was_ahead(&self) {
        for post in 0..NODES {
            let Ok(told) = self.node(post).ask("ahead", ANSWERED_WITHIN).await else {
                continue;
            };
            let (refreshed, prefetched) = told.split_once(' ').unwrap();
            let mut facts = self.facts();
            facts.count_many("refreshed ahead", refreshed.parse().unwrap());
            facts.count_many("prefetched", prefetched.parse().unwrap());
        }
    }

    /// Waits until the server has done whatever dead connections had sent it.
    pub(crate) async fn drain(&self, post: usize) {
        while self.posts[post].proxy.open_connections() > 0 {
            self.pause(1).await;
        }
        // A new connection is heard in a later round than what had arrived before; two make sure.
        let mut answered = 0;
        while answered < 2 {
            let ping = tokio::task::block_in_place(|| self.redis.command(&["PING"]));
            if matches!(ping, Ok(Reply::Status(_))) {
                answered += 1;
            } else {
                self.pause(10).await;
            }
        }
    }

    /// Says what was done, and fails with the history if anything was violated.
    pub(crate) fn report(&self, seed: u64) {
        let facts = self.facts();
        println!("seed {seed}, {} ms: {}", self.now(), facts.figures());
        if facts.violations.is_empty() {
            return;
        }
        for (at, event) in facts.history() {
            println!("{at:>7} {event}");
        }
        panic!("{}", facts.violations.join("\n"));
    }
}

pub(crate) async fn start(rows: &Rows, proxy: &ChaosProxy, rng: &mut Rng) -> Arc<Peer> {
    let words = format!("redis://{} {} {}", proxy.address(), rows.url, rng.u32(..));
    let peer = Peer::start(node::TEST, &[(node::VARIABLE, &words)]).await;
    Arc::new(peer.unwrap())
}
