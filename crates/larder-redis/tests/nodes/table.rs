//! Readers and writers of several nodes, and what each of them must not read any more.

#![allow(dead_code, reason = "not every scenario has readers and writers")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use fastrand::Rng;

use super::{Database, Node, Told, version};

/// How many readers there are.
const READERS: usize = 4;

/// Rows that are written and read through nodes.
pub(crate) struct Table {
    pub(crate) nodes: Vec<Node>,
    pub(crate) database: Database,
    /// By node and row, what was invalidated through that node.
    own: Vec<Vec<AtomicU64>>,
    over: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Table {
    /// So many rows, each with one of two tags.
    pub(crate) fn new(database: &Database, nodes: Vec<Node>, rows: usize) -> Arc<Self> {
        for row in 0..rows {
            database.tag(&name(row), &[&format!("g{}", row % 2)]);
        }
        let own = nodes.iter().map(|_| (0..rows).map(|_| AtomicU64::new(0)));
        Arc::new(Self {
            own: own.map(Iterator::collect).collect(),
            nodes,
            database: database.clone(),
            over: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    /// Has rows written and read, and everything old that is read be a panic, until `enough`.
    pub(crate) async fn use_until(self: &Arc<Self>, mut rng: Rng, enough: impl Future) {
        let mut tasks = Vec::new();
        // A row has one writer: of two, the one that sets last need not be the one that wrote last.
        for row in 0..self.own[0].len() {
            let (table, mut rng) = (Arc::clone(self), rng.fork());
            tasks.push(tokio::spawn(async move {
                let mut last = String::new();
                while !table.over.load(SeqCst) {
                    last = table.write(row, &mut rng, &last).await;
                }
            }));
        }
        for _ in 0..READERS {
            let (table, mut rng) = (Arc::clone(self), rng.fork());
            tasks.push(tokio::spawn(async move { table.read(&mut rng).await }));
        }
        enough.await;
        self.over.store(true, SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
    }

    /// Waits until so many writes were made and read through every node.
    pub(crate) async fn has_written(&self, count: u64) {
        while self.writes.load(SeqCst) < count && !self.over.load(SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    /// Reads and writes so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.reads.load(SeqCst), self.writes.load(SeqCst))
    }

    /// Writes a row, says so in one of the ways there are, and reads it through all nodes.
    async fn write(&self, row: usize, rng: &mut Rng, last: &str) -> String {
        let name = name(row);
        let newest = self.database.write(&name);
        let at = rng.usize(..self.nodes.len());
        let what = match rng.u8(0..8) {
            // What was set has no tags.
            0 if !last.starts_with("set") => format!("tag g{}", row % 2),
            1 => format!("expire {name}"),
            2 => format!("pattern {name}"),
            3 => "clear".to_owned(),
            4 => format!("set {name} {newest}"),
            _ => format!("invalidate {name}"),
        };
        // A machine that is too busy for the budget makes it Queued, which promises nothing yet.
        let Told::Acked(Some(token)) = self.nodes[at].tell(&what).await else {
            return what;
        };
        self.own[at][row].fetch_max(newest, SeqCst);
        for (reader, node) in self.nodes.iter().enumerate() {
            let story = node.ask(&format!("after {token} {name}")).await;
            let here = format!("{what} by {at}, read by {reader}");
            assert!(
                version(&story) >= newest,
                "{here}: {story}; {newest} is known"
            );
            self.reads.fetch_add(1, SeqCst);
        }
        self.writes.fetch_add(1, SeqCst);
        what
    }

    async fn read(&self, rng: &mut Rng) {
        while !self.over.load(SeqCst) {
            let at = rng.usize(..self.nodes.len());
            let row = rng.usize(..self.own[at].len());
            let floor = self.own[at][row].load(SeqCst);
            let seen = self.nodes[at].load(&name(row)).await;
            assert!(
                seen >= floor,
                "{seen} after {floor} was invalidated at {at}"
            );
            self.reads.fetch_add(1, SeqCst);
        }
    }
}

/// What a row is called.
pub(crate) fn name(row: usize) -> String {
    format!("k{row}")
}
