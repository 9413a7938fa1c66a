//! The database that the nodes cache: versions by key, in the process of the test.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use larder_testkit::Gate;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Rows whose versions only rise. Each answer is `VERSION TAG TAG ...`.
#[derive(Clone)]
pub(crate) struct Database {
    address: SocketAddr,
    tables: Arc<Tables>,
}

#[derive(Default)]
struct Tables {
    rows: Mutex<HashMap<String, Row>>,
    /// Answers of these keys are held back behind the read.
    gates: Mutex<HashMap<String, Gate>>,
    reads: AtomicU64,
}

#[derive(Clone, Default)]
struct Row {
    version: u64,
    tags: Vec<String>,
}

impl Database {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tables = Arc::<Tables>::default();
        tokio::spawn(serve(listener, Arc::clone(&tables)));
        Self { address, tables }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes a row and returns its new version. A row that nobody wrote has version 0.
    pub(crate) fn write(&self, key: &str) -> u64 {
        let mut rows = self.tables.rows.lock().unwrap();
        let row = rows.entry(key.to_owned()).or_default();
        row.version += 1;
        row.version
    }

    /// Gives a row other tags, without a new version.
    pub(crate) fn tag(&self, key: &str, tags: &[&str]) {
        let mut rows = self.tables.rows.lock().unwrap();
        let row = rows.entry(key.to_owned()).or_default();
        row.tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    }

    pub(crate) fn version(&self, key: &str) -> u64 {
        let rows = self.tables.rows.lock().unwrap();
        rows.get(key).map_or(0, |row| row.version)
    }

    /// How many reads there were.
    pub(crate) fn reads(&self) -> u64 {
        self.tables.reads.load(SeqCst)
    }

    /// From now on, reads of this row see it as it is when they come, and are answered when the
    /// gate opens.
    pub(crate) fn hold(&self, key: &str) -> Gate {
        let gate = Gate::new();
        let mut gates = self.tables.gates.lock().unwrap();
        gates.insert(key.to_owned(), gate.clone());
        gate
    }

    /// Ends what `hold` began, for reads that come from now on.
    pub(crate) fn let_go(&self, key: &str) {
        self.tables.gates.lock().unwrap().remove(key);
    }
}

async fn serve(listener: TcpListener, tables: Arc<Tables>) {
    while let Ok((socket, _)) = listener.accept().await {
        let tables = Arc::clone(&tables);
        tokio::spawn(async move { answer(socket, &tables).await });
    }
}

async fn answer(mut socket: TcpStream, tables: &Tables) -> Option<()> {
    let (read, mut write) = socket.split();
    let key = BufReader::new(read).lines().next_line().await.ok()??;
    tables.reads.fetch_add(1, SeqCst);
    let row = tables.rows.lock().unwrap().get(&key).cloned();
    let row = row.unwrap_or_default();
    let gate = tables.gates.lock().unwrap().get(&key).cloned();
    if let Some(gate) = gate {
        gate.wait().await;
    }
    let answer = format!("{} {}\n", row.version, row.tags.join(" "));
    write.write_all(answer.as_bytes()).await.ok()
}
