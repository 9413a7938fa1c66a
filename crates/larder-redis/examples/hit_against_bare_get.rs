//! What a hit and a miss in Redis cost beside a bare GET of the client library, in one run on one
//! server.
//!
//! ```text
//! cargo run --release -p larder-redis --example hit_against_bare_get
//! ```
//!
//! Rounds of each way follow each other in turn, so that what the machine does besides falls on all
//! of them. Everything runs in a worker task, as a service's requests do.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for people"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use larder::clock::{Clock, SystemClock};
use larder::envelope::Header;
use larder::store::{LeaseRequest, LeaseToken, Leased, Store, Write};
use larder_redis::Redis;
use larder_testkit::RedisServer;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, FromRedisValue, Script};

const ROUNDS: usize = 300;
const READS: usize = 100;
const WARM_UP: usize = 20;
const HOUR: Duration = Duration::from_secs(3_600);
const LIMIT: usize = 16 << 20;
const ABSENT: &[u8] = b"bench:absent";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::spawn(measure()).await.unwrap() });
}

struct Bench {
    store: Redis,
    bare: MultiplexedConnection,
    script: Script,
    keys: [Bytes; 1],
    request: LeaseRequest,
}

#[derive(Clone, Copy)]
enum Way {
    BareGet,
    StoreGet,
    LeaseOnHit,
    ScriptOnHit,
    ReadAndScriptOnMiss,
    ScriptOnMiss,
}

const WAYS: [(Way, &str); 6] = [
    (Way::BareGet, "bare GET"),
    (Way::StoreGet, "Store::get"),
    (Way::LeaseOnHit, "Store::lease, hit"),
    (Way::ScriptOnHit, "lease by EVALSHA alone, hit"),
    (Way::ReadAndScriptOnMiss, "GETRANGE, then EVALSHA, miss"),
    (Way::ScriptOnMiss, "lease by EVALSHA alone, miss"),
];

async fn measure() {
    let server = RedisServer::start().unwrap();
    for bytes in [100, 1_000, 10_000] {
        let mut bench = prepare(&server, bytes).await;
        let mut times: [Vec<u64>; WAYS.len()] = Default::default();
        for round in 0..WARM_UP + ROUNDS {
            for turn in 0..WAYS.len() {
                // Another way begins each round.
                let way = (turn + round) % WAYS.len();
                for _ in 0..READS {
                    let took = bench.time(WAYS[way].0).await;
                    if round >= WARM_UP {
                        times[way].push(took);
                    }
                }
            }
        }
        report(bytes, times);
    }
}

async fn prepare(server: &RedisServer, payload: usize) -> Bench {
    let key = Bytes::from(format!("bench:{payload}"));
    let now = SystemClock::new().wall();
    let header = Header {
        fill_id: [7; 16],
        fresh_until: now + 3_600_000,
        stale_until: now + 7_200_000,
        ..Header::minimum(0)
    };
    let value: Bytes = [header.to_bytes().as_slice(), &vec![7; payload]]
        .concat()
        .into();
    let store = Redis::new(&server.url()).unwrap();
    let write = Write {
        key: key.clone(),
        value,
        ttl: HOUR,
        tags: None,
    };
    store.set(&[write]).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    Bench {
        store,
        bare: client.get_multiplexed_async_connection().await.unwrap(),
        script: Script::new(concat!(
            include_str!("../src/scripts/common.lua"),
            include_str!("../src/scripts/counter.lua"),
            include_str!("../src/scripts/lease.lua"),
        )),
        keys: [key],
        request: LeaseRequest {
            token: LeaseToken::random(),
            stale_at: now,
            lease_for: HOUR,
            limit: LIMIT,
            counter: None,
        },
    }
}

impl Bench {
    /// Nanoseconds of one read.
    async fn time(&mut self, way: Way) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "it measures the real time")]
        let began = Instant::now();
        let length = self.read(way).await;
        let took = began.elapsed();
        if matches!(way, Way::ReadAndScriptOnMiss | Way::ScriptOnMiss) {
            let _: u64 = self.bare.del(ABSENT).await.unwrap();
        } else {
            assert!(length > Header::LEN);
        }
        u64::try_from(took.as_nanos()).unwrap()
    }

    async fn read(&mut self, way: Way) -> usize {
        match way {
            Way::BareGet => {
                let value: Vec<u8> = self.bare.get(&*self.keys[0]).await.unwrap();
                value.len()
            }
            Way::StoreGet => {
                let values = self.store.get(&self.keys, LIMIT).await.unwrap();
                values[0].as_ref().unwrap().len()
            }
            Way::LeaseOnHit => {
                let leased = self.store.lease(&self.keys, &self.request).await.unwrap();
                let [Leased::Value(value)] = &leased[..] else {
                    panic!("{leased:?}");
                };
                value.len()
            }
            Way::ScriptOnHit => {
                let key = self.keys[0].clone();
                let (state, value): (u8, Vec<u8>) = self.run_script(&key).await;
                assert_eq!(state, 1);
                value.len()
            }
            Way::ReadAndScriptOnMiss => {
                let nothing: Vec<u8> = self.bare.getrange(ABSENT, 0, LIMIT as isize).await.unwrap();
                let (state, _): (u8, Option<Vec<u8>>) = self.run_script(ABSENT).await;
                assert_eq!(state, 2);
                nothing.len()
            }
            Way::ScriptOnMiss => {
                let (state, _): (u8, Option<Vec<u8>>) = self.run_script(ABSENT).await;
                assert_eq!(state, 2);
                0
            }
        }
    }

    async fn run_script<T: FromRedisValue>(&mut self, key: &[u8]) -> T {
        self.script
            .key(key)
            .arg(&self.request.token.bits().to_be_bytes())
            .arg(&self.request.stale_at.to_be_bytes())
            .arg(3_600_000)
            .arg(LIMIT)
            .arg(&[7; 8])
            .invoke_async(&mut self.bare)
            .await
            .unwrap()
    }
}

fn report(payload: usize, mut times: [Vec<u64>; WAYS.len()]) {
    println!("value of {payload} bytes, {ROUNDS} rounds of {READS} reads each");
    times.iter_mut().for_each(|times| times.sort_unstable());
    let at = |way: usize, percent: usize| times[way][times[way].len() * percent / 100];
    for (way, (_, name)) in WAYS.iter().enumerate() {
        let (p50, p99) = (at(way, 50) as f64 / 1e3, at(way, 99) as f64 / 1e3);
        let ratio = at(way, 50) as f64 / at(0, 50) as f64;
        println!("  {name:<28} p50 {p50:>6.1} µs  ×{ratio:.2}   p99 {p99:>7.1} µs");
    }
}
