//! Fault 3: the DEL of an invalidation takes 50 ms to reach Redis, while readers of the same process
//! and of another one get the old value from there. After the invalidation has returned, no memory
//! is filled with it again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod nodes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::backplane::Backplane;
use larder::clock::{BoxFuture, Clock, Millis, SystemClock};
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Store, StoreResult, Swept, Write,
};
use larder::{Cache, Larder, Read};
use larder_redis::Redis;
use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer};
use nodes::{Database, Node, Place};

/// How long what changes something is on its way.
const LATE: Duration = Duration::from_millis(50);
const ROUNDS: u64 = 10;
const READERS: usize = 8;

type Rows = Cache<String, u64>;

/// Redis by several connections, each slow in its way.
#[derive(Debug)]
struct Lines {
    /// What reads and fills.
    reads: Redis,
    /// What deletes.
    deletes: Redis,
    /// The bus, and the rest.
    others: Redis,
}

impl Store for Lines {
    fn name(&self) -> &str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        self.reads.capabilities()
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        self.reads.get(keys, limit)
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        self.reads.lease(keys, request)
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        self.reads.fill(fills)
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.reads.release(keys, token)
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        self.reads.set(writes)
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        self.deletes.expire(keys, wall)
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.deletes.delete(keys, counter)
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        self.deletes.sweep(prefix, condemned, progress)
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        self.others.enlist(record, member, keep)
    }

    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        self.others.backplane()
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        self.others.ping()
    }
}

/// A loader of the process of the test: the same rows as those of the node.
async fn load(rows: &Rows, database: &Database, read: Read) -> u64 {
    let database = database.clone();
    let load = |_| async move { Ok::<_, std::io::Error>(database.version("k")) };
    *rows.with(read).get_or_load("k", load).await.unwrap()
}

/// Which requests are late.
#[derive(Clone, Copy, Debug)]
enum Slow {
    /// Those that delete: what else the process asks overtakes them.
    Deletes,
    /// All of the process.
    Everything,
    /// Deletes, and the answers to all others even more: a read that was answered before the delete
    /// comes back after it.
    DeletesAndAnswers,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_never_filled_with_what_a_slow_delete_is_about_to_remove() {
    for slow in [Slow::Deletes, Slow::Everything, Slow::DeletesAndAnswers] {
        let server = RedisServer::start().unwrap();
        let proxy = ChaosProxy::start(server.address()).await.unwrap();
        let answers = ChaosProxy::start(server.address()).await.unwrap();
        let by = |proxy: &ChaosProxy| Redis::new(&format!("redis://{}", proxy.address())).unwrap();
        let prompt = || Redis::new(&server.url()).unwrap();
        let (reads, others) = match slow {
            Slow::Deletes => (prompt(), prompt()),
            Slow::Everything => (by(&proxy), by(&proxy)),
            Slow::DeletesAndAnswers => (by(&answers), prompt()),
        };
        let store = Lines {
            reads,
            deletes: by(&proxy),
            others,
        };
        let builder = Larder::builder("t").tier_budget(Duration::from_secs(5));
        let larder = builder.shared(store).build().unwrap();
        let rows: Rows = larder.cache("rows").build().unwrap();
        let database = Database::open().await;
        let node = Arc::new(Node::start(&database, &Place::of(&server)).await);
        load(&rows, &database, Read::new()).await;
        node.load("k").await;
        node.until_well().await;
        proxy.inject([Direction::ToUpstream], LinkFault::Delay(LATE));
        answers.inject([Direction::ToClient], LinkFault::Delay(2 * LATE));
        for round in 0..ROUNDS {
            let newest = database.write("k");
            invalidate_among_readers(&rows, &node, &database, newest, round).await;
        }
    }
}

/// Invalidates while everybody reads; nobody may be served anything old from then on.
async fn invalidate_among_readers(
    rows: &Rows,
    node: &Arc<Node>,
    database: &Database,
    newest: u64,
    round: u64,
) {
    let mut readers = Vec::new();
    for at in 0..READERS {
        let (rows, node, database) = (rows.clone(), Arc::clone(node), database.clone());
        readers.push(tokio::spawn(async move {
            // Memory was emptied, and Redis has the old value still.
            for _ in 0..5 {
                rows.get("k").await.unwrap();
                if at % 2 == 0 {
                    load(&rows, &database, Read::new()).await;
                    node.load("k").await;
                } else {
                    node.ask("get k").await;
                }
            }
        }));
    }
    let receipt = match round % 4 {
        0 => rows.clear().await,
        1 => rows.expire("k").await,
        _ => rows.invalidate("k").await,
    };
    let receipt = receipt.unwrap();
    assert!(receipt.is_acked());
    // Reads that were answered before the delete come back.
    let clock = SystemClock::new();
    while clock.monotonic() < 3 * LATE.as_millis() as u64 {
        let in_memory = rows.get_in_memory("k");
        assert!(
            in_memory.is_none_or(|version| *version >= newest),
            "round {round}"
        );
        clock.sleep(Duration::from_millis(1)).await;
    }
    let token = receipt.token().unwrap();
    for _ in 0..5 {
        assert!(load(rows, database, Read::new()).await >= newest, "here");
        assert!(node.load_after(&token.to_string(), "k").await >= newest);
        assert!(node.load("k").await >= newest, "there, without a token");
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let left = rows.get("k").await.unwrap();
    assert_eq!(left.as_deref(), Some(&newest), "here, at the end");
    let there = nodes::version(&node.ask("get k").await);
    assert_eq!(there, newest, "there, at the end");
}
