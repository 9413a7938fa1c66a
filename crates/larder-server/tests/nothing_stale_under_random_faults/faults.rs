//! What is broken at random: servers, processes, connections, messages, and what the server holds.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use larder::clock::Millis;
use larder_testkit::{Direction, LinkFault, Reply};
use tokio::task::{JoinHandle, block_in_place};

use crate::check::{ANSWERED_WITHIN, Check, NODES, start};

/// How long something is away, in milliseconds: mostly short, up to `most`.
fn mostly_short(rng: &mut Rng, most: Millis) -> Millis {
    20 + rng.u64(0..most) * rng.u64(0..1_000) / 1_000
}

impl Check {
    /// Begins to break things, each kind at its own pace, until that is over.
    pub(crate) fn break_everything(self: &Arc<Self>, rng: &mut Rng) -> Vec<JoinHandle<()>> {
        vec![
            tokio::spawn(Arc::clone(self).break_redis(rng.fork())),
            tokio::spawn(Arc::clone(self).break_postgres(rng.fork())),
            tokio::spawn(Arc::clone(self).break_nodes(rng.fork())),
            tokio::spawn(Arc::clone(self).break_links(rng.fork())),
            tokio::spawn(Arc::clone(self).break_buses(rng.fork())),
        ]
    }

    fn fault(&self, kind: &'static str, story: String) {
        self.facts().count_fault(kind);
        self.note(story);
    }

    async fn break_redis(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(50..700)).await;
            match rng.u8(0..24) {
                0..2 => self.stop_redis(mostly_short(&mut rng, 4_000)).await,
                2..4 => self.kill_redis(mostly_short(&mut rng, 3_000)).await,
                4 => self.fill_redis(mostly_short(&mut rng, 1_500)).await,
                5 => self.tell_redis("flushes of all keys", &["FLUSHALL"]),
                6..8 => self.tell_redis("flushes of scripts", &["SCRIPT", "FLUSH"]),
                8..11 => {
                    self.tell_redis("subscribers cut off", &["CLIENT", "KILL", "TYPE", "pubsub"])
                }
                _ => (0..rng.u8(1..6)).for_each(|_| self.evict()),
            }
        }
    }

    async fn stop_redis(&self, away: Millis) {
        self.fault("stops of redis", format!("redis stopped for {away} ms"));
        block_in_place(|| self.redis.stop_signal().unwrap());
        self.pause(away).await;
        self.redis.cont_signal().unwrap();
        self.note("redis goes on".to_owned());
    }

    async fn kill_redis(&self, away: Millis) {
        self.fault("kills of redis", format!("redis killed for {away} ms"));
        block_in_place(|| self.redis.kill9());
        self.pause(away).await;
        block_in_place(|| self.redis.restart().unwrap());
        self.note("redis is back".to_owned());
    }

    /// Out of memory, and not allowed to evict anything.
    async fn fill_redis(&self, away: Millis) {
        self.tell_redis("times out of memory", &["CONFIG", "SET", "maxmemory", "1"]);
        self.pause(away).await;
        block_in_place(|| self.redis.command(&["CONFIG", "SET", "maxmemory", "0"])).unwrap();
        self.note("redis has memory again".to_owned());
    }

    fn tell_redis(&self, kind: &'static str, command: &[&str]) {
        self.fault(kind, format!("redis: {}", command.join(" ")));
        let reply = block_in_place(|| self.redis.command(command));
        assert!(!matches!(reply, Err(_) | Ok(Reply::Error(_))), "{reply:?}");
    }

    /// Any key may go, as under memory pressure: entries, records, counter, journal.
    fn evict(&self) {
        let Ok(Reply::Bytes(key)) = block_in_place(|| self.redis.command(&["RANDOMKEY"])) else {
            return;
        };
        let story = format!("evicted {}", String::from_utf8_lossy(&key));
        self.fault("evictions", story);
        block_in_place(|| self.redis.command(&[b"DEL", &key[..]])).unwrap();
    }

    async fn break_postgres(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(300..2_500)).await;
            match rng.u8(0..6) {
                0 => {
                    self.fault("restarts of postgres", "postgres restarts".to_owned());
                    block_in_place(|| self.postgres.restart().unwrap());
                }
                1 | 2 => {
                    let away = mostly_short(&mut rng, 4_000);
                    self.fault(
                        "stops of postgres",
                        format!("postgres stopped for {away} ms"),
                    );
                    block_in_place(|| self.postgres.stop_signal().unwrap());
                    self.pause(away).await;
                    self.postgres.cont_signal().unwrap();
                }
                _ => {
                    self.fault(
                        "followers cut off",
                        "followers of the feed cut off".to_owned(),
                    );
                    // They may be between two connections.
                    let _ = self.rows.cut_followers().await;
                }
            }
            self.note("postgres goes on".to_owned());
        }
    }

    async fn break_nodes(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(100..1_500)).await;
            let post = rng.usize(0..NODES);
            if rng.u8(0..3) == 0 {
                self.replace(post, &mut rng).await;
                continue;
            }
            let away = mostly_short(&mut rng, 5_000);
            self.fault(
                "stops of nodes",
                format!("node {post} stopped for {away} ms"),
            );
            let node = self.node(post);
            block_in_place(|| node.twin().stop_signal().unwrap());
            self.pause(away).await;
            node.twin().cont_signal().unwrap();
            self.note(format!("node {post} goes on"));
        }
    }

    /// Kills a node and starts another one in its place. What it had queued is lost with it, so
    /// somebody else says it again.
    async fn replace(&self, post: usize, rng: &mut Rng) {
        self.fault("kills of nodes", format!("node {post} killed"));
        let old = self.node(post);
        block_in_place(|| old.twin().kill9());
        // With a machine goes what it has sent and nobody has received.
        self.posts[post].proxy.reset_connections();
        self.drain(post).await;
        let new = start(&self.rows, &self.posts[post].proxy, rng).await;
        let lost = {
            let mut facts = self.facts();
            *self.posts[post].node.lock().unwrap() = new;
            facts.is_replaced(post)
        };
        self.note(format!(
            "node {post} is another one; lost with it: {lost:?}"
        ));
        for row in lost {
            self.tell_again(row, rng).await;
        }
    }

    async fn break_links(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(20..1_000)).await;
            let post = rng.usize(0..NODES);
            let proxy = &self.posts[post].proxy;
            let direction = Direction::BOTH[rng.usize(0..2)];
            let (kind, fault) = match rng.u8(0..5) {
                0 => ("links reset and refused", LinkFault::None),
                1 | 2 => ("links that lose everything", LinkFault::Blackhole),
                3 => ("links cut short", LinkFault::Truncate(rng.u64(0..20_000))),
                _ => {
                    let delay = Duration::from_millis(rng.u64(1..150));
                    ("links delayed", LinkFault::Delay(delay))
                }
            };
            let away = mostly_short(&mut rng, 5_000);
            self.fault(
                kind,
                format!("link of {post}: {direction:?} {fault:?} for {away} ms"),
            );
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

    /// What the bus tells a node is dropped, doubled, held back, shuffled, and cut off.
    async fn break_buses(self: Arc<Self>, mut rng: Rng) {
        while self.goes_on(&self.breaking) {
            self.pause(rng.u64(20..500)).await;
            let post = rng.usize(0..NODES);
            match rng.u8(0..12) {
                0..3 => {
                    let (share, seed) = (rng.u64(5..80), rng.u32(..));
                    let line = format!("drop {share} {seed}");
                    self.tell_bus("buses that drop messages", post, &line).await;
                }
                3..5 => {
                    let line = format!("lose {}", rng.u8(1..5));
                    self.tell_bus("losses of messages", post, &line).await;
                }
                5..7 => {
                    let line = format!("double {}", rng.u8(1..5));
                    self.tell_bus("messages doubled", post, &line).await;
                }
                7..10 => {
                    self.tell_bus("messages held back and shuffled", post, "hold")
                        .await;
                    self.pause(mostly_short(&mut rng, 1_500)).await;
                    let line = format!("shuffle {}", rng.u32(..));
                    self.tell_bus("messages held back and shuffled", post, &line)
                        .await;
                }
                10 => {
                    self.tell_bus("buses silent", post, "silence").await;
                    self.pause(mostly_short(&mut rng, 5_000)).await;
                    self.tell_bus("buses silent", post, "speak").await;
                }
                _ => self.tell_bus("listeners cut", post, "cut").await,
            }
        }
    }

    async fn tell_bus(&self, kind: &'static str, post: usize, what: &str) {
        self.fault(kind, format!("bus of {post}: {what}"));
        let (line, began) = (format!("bus {what}"), self.now());
        if let Err(error) = self.node(post).ask(&line, ANSWERED_WITHIN).await {
            self.complain((post, began), &line, &error);
        }
    }
}
