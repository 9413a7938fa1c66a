use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{BoxFuture, Millis};
use larder::store::{
    Capabilities, Fill, Filled, LeaseRequest, LeaseToken, Leased, Position, Store, StoreResult,
    Swept, Tagged, Write,
};
use tokio::sync::oneshot;

use crate::error::{DiskError, DiskErrorKind};
use crate::index::Index;
use crate::leases::Leases;
use crate::options::DiskOptions;
use crate::reader::{self, Read};
use crate::shared::{DiskStats, Reply, Shared};
use crate::sweep::Sweep;
use crate::tags::{MEMBER_BYTES, POSITION_BYTES};
use crate::writer::{Job, Writer};

/// What the keys of leases may take in memory.
const LEASE_KEY_BYTES: usize = 16 << 20;

/// A tier on disk that survives restarts, bounded in bytes.
///
/// One `Disk` owns its directory; a second one, of this or another process, is refused. It runs
/// threads of its own and works in any async runtime. Dropping it, or [`Store::close`], finishes
/// what was begun and gives the directory free: it can be opened again at once. Dropping blocks
/// until then, so prefer `close` in async code.
pub struct Disk {
    pub(crate) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Disk {
    /// Opens the store in the directory `path`, and creates both where they do not exist.
    ///
    /// Blocks while it reads what is stored: keys and sizes, not values. 250,000 entries took
    /// between 0.2 and 0.9 seconds.
    ///
    /// # Errors
    ///
    /// One sentence that names the directory: an option that cannot work, a file in the way, a
    /// directory that cannot be written or holds something else, one that is in use, a full
    /// device, or damaged files (which are left as they are; remove the directory to start anew).
    pub fn open(path: impl AsRef<Path>, options: DiskOptions) -> Result<Self, DiskError> {
        options.check()?;
        let path =
            std::path::absolute(path.as_ref()).unwrap_or_else(|_| PathBuf::from(path.as_ref()));
        let leases = Leases::new(options.max_leases, LEASE_KEY_BYTES);
        let shared = Arc::new(Shared::new(path, options, Index::new(leases)));
        let writer = Writer::open(shared.clone())?;
        let disk = Self {
            shared,
            threads: Mutex::default(),
        };
        disk.start("larder-disk-write", move || writer.run())?;
        for _ in 0..disk.shared.options.readers {
            let shared = disk.shared.clone();
            disk.start("larder-disk-read", move || reader::run(&shared))?;
        }
        Ok(disk)
    }

    /// Figures of this moment.
    pub fn stats(&self) -> DiskStats {
        self.shared.stats()
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), DiskError> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|error| {
                DiskError::new(
                    DiskErrorKind::NotWritable,
                    format!("cannot start a thread for the disk cache: {error}"),
                )
                .with_source(error)
            })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }

    /// Has the writer do it, and waits.
    pub(crate) async fn write<T>(
        &self,
        weight: usize,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.shared
            .writes
            .push(job(reply), weight)
            .map_err(|refusal| self.shared.refusal(refusal))?;
        answer.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }

    /// Has a reader do it, and waits.
    pub(crate) async fn read<T>(&self, read: impl FnOnce(Reply<T>) -> Read) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.shared
            .reads
            .push(read(reply), 0)
            .map_err(|refusal| self.shared.refusal(refusal))?;
        answer.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }

    /// Where a counter stands: from memory, but for the first time.
    async fn position(&self, counter: &Bytes) -> StoreResult<Position> {
        if let Some(position) = self.shared.position(counter) {
            return Ok(position);
        }
        self.shared.check_size(counter, POSITION_BYTES)?;
        let counter = counter.clone();
        self.write(counter.len(), |reply| Job::Position(counter, reply))
            .await
    }
}

impl Store for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.shared.max_value_bytes())
    }

    fn get<'a>(
        &'a self,
        keys: &'a [Bytes],
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        Box::pin(async move {
            self.shared.readable()?;
            let wall = self.shared.wall();
            let absent = |key: &Bytes| self.shared.index.lock(key).live(wall).is_none();
            if keys.iter().all(absent) {
                return Ok(vec![None; keys.len()]);
            }
            let keys = keys.to_vec();
            self.read(|reply| Read::Get { keys, limit, reply }).await
        })
    }

    fn lease<'a>(
        &'a self,
        keys: &'a [Bytes],
        request: &'a LeaseRequest,
    ) -> BoxFuture<'a, StoreResult<Vec<Leased>>> {
        Box::pin(async move {
            self.shared.readable()?;
            let since = match &request.counter {
                Some(counter) => Some(self.position(counter).await?),
                None => None,
            };
            // Of one absent key, the most frequent case, memory knows everything.
            if let [key] = keys
                && let Some(leased) = reader::lease_absent(&self.shared, key, request, since)
            {
                return Ok(vec![leased]);
            }
            let (reply, answer) = oneshot::channel();
            let read = Read::Lease {
                keys: keys.to_vec(),
                request: request.clone(),
                since,
                reply,
            };
            self.shared
                .reads
                .push(read, 0)
                .map_err(|refusal| self.shared.refusal(refusal))?;
            let mut awaited = Awaited {
                shared: &self.shared,
                keys,
                request,
                answer,
            };
            let leased = (&mut awaited.answer).await;
            leased.unwrap_or_else(|_| Err(self.shared.closed()))
        })
    }

    fn fill<'a>(&'a self, fills: &'a [Fill]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            for fill in fills {
                self.shared
                    .check_value(&fill.key, &fill.value, fill.tags.as_ref())?;
            }
            let weight = fills
                .iter()
                .map(|fill| weight(&fill.key, &fill.value, fill.tags.as_ref()))
                .sum();
            let fills = fills.to_vec();
            self.write(weight, |reply| Job::Fill(fills, reply)).await
        })
    }

    fn release<'a>(
        &'a self,
        keys: &'a [Bytes],
        token: LeaseToken,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let mut leases = self.shared.index.leases();
            for key in keys {
                leases.release(key, token);
            }
            Ok(())
        })
    }

    fn set<'a>(&'a self, writes: &'a [Write]) -> BoxFuture<'a, StoreResult<Vec<Filled>>> {
        Box::pin(async move {
            for write in writes {
                self.shared
                    .check_value(&write.key, &write.value, write.tags.as_ref())?;
            }
            let weight = writes
                .iter()
                .map(|write| weight(&write.key, &write.value, write.tags.as_ref()))
                .sum();
            let writes = writes.to_vec();
            self.write(weight, |reply| Job::Set(writes, reply)).await
        })
    }

    /// Writes the value once more: its time stands beside it.
    fn touch<'a>(&'a self, keys: &'a [Bytes], ttl: Duration) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let keys = keys.to_vec();
            let weight = keys.iter().map(Bytes::len).sum();
            self.write(weight, |reply| Job::Touch(keys, ttl, reply))
                .await
        })
    }

    fn expire<'a>(&'a self, keys: &'a [Bytes], wall: Millis) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let keys = keys.to_vec();
            let weight = keys.iter().map(Bytes::len).sum();
            self.write(weight, |reply| Job::Expire(keys, wall, reply))
                .await
        })
    }

    fn delete<'a>(
        &'a self,
        keys: &'a [Bytes],
        counter: Option<&'a Bytes>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            if let Some(counter) = counter {
                self.shared.check_size(counter, POSITION_BYTES)?;
            }
            let counter = counter.cloned();
            let keys = keys.to_vec();
            let weight = keys.iter().chain(&counter).map(Bytes::len).sum();
            self.write(weight, |reply| Job::Delete(keys, counter, reply))
                .await
        })
    }

    fn sweep<'a>(
        &'a self,
        prefix: &'a [u8],
        condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
        progress: &'a (dyn Fn(Swept) + Send + Sync),
    ) -> BoxFuture<'a, StoreResult<Swept>> {
        let sweep = Sweep {
            condemned,
            progress,
        };
        Box::pin(self.sweep_under(prefix, sweep))
    }

    fn enlist<'a>(
        &'a self,
        record: &'a Bytes,
        member: u32,
        keep: Duration,
    ) -> BoxFuture<'a, StoreResult<Vec<u32>>> {
        Box::pin(async move {
            self.shared.check_size(record, MEMBER_BYTES)?;
            let record = record.clone();
            self.write(record.len(), |reply| {
                Job::Enlist(record, member, keep, reply)
            })
            .await
        })
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            self.shared.writable()?;
            self.write(0, Job::Ping).await
        })
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if self.shared.writes.push_last(Job::Close(reply)).is_err() {
                return Ok(());
            }
            answer.await.unwrap_or_else(|_| Err(self.shared.closed()))
        })
    }
}

/// Bytes that a value takes while it waits for the writer.
fn weight(key: &Bytes, value: &Bytes, tags: Option<&Tagged>) -> usize {
    let records = tags.into_iter().flat_map(|tags| &tags.records);
    key.len() + value.len() + records.map(Bytes::len).sum::<usize>()
}

/// Leases on their way. Dropped with an answer that nobody took, it gives the leases back: they
/// would keep everybody else from loading until they end.
struct Awaited<'a> {
    shared: &'a Shared,
    keys: &'a [Bytes],
    request: &'a LeaseRequest,
    answer: oneshot::Receiver<StoreResult<Vec<Leased>>>,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.answer.close();
        if let Ok(Ok(leased)) = self.answer.try_recv() {
            reader::give_back(self.shared, self.keys, &leased, self.request);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.writes.close();
        self.shared.reads.close();
        let threads = self
            .threads
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A thread that panicked has nothing more to give free.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.shared.path)
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    /// How many records of each sort the tree holds: entries and orders.
    fn records(disk: &Disk) -> (usize, usize) {
        let tree = disk.shared.tree();
        let tree = tree.as_ref().unwrap();
        let count = |from: &[u8]| {
            let to = record::end_of_prefix(from);
            tree.scan(from, &to, usize::MAX).unwrap().len()
        };
        (count(b"e"), count(b"o"))
    }

    /// The index hides what it does not know, so only the tree itself tells what was left in it.
    #[tokio::test]
    async fn nothing_is_left_on_disk_of_what_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let options = DiskOptions {
            max_entries: 50,
            ..DiskOptions::default()
        };
        let disk = Disk::open(directory.path(), options).unwrap();
        let write = |n: u32, ttl: u64| Write {
            key: Bytes::from(format!("k{n}")),
            value: Bytes::from_static(b"value"),
            ttl: Duration::from_millis(ttl),
            tags: None,
        };
        for n in 0..300 {
            disk.set(&[write(n % 100, 3_600_000)]).await.unwrap();
        }
        for _ in 0..10 {
            disk.set(&[write(99, 3_600_000)]).await.unwrap();
        }
        assert_eq!(records(&disk), (50, 50));
        let doomed: Vec<Bytes> = (0..100).step_by(2).map(|n| write(n, 1).key).collect();
        disk.delete(&doomed, None).await.unwrap();
        let left = usize::try_from(disk.stats().entries).unwrap();
        assert!((1..50).contains(&left));
        assert_eq!(records(&disk), (left, left));
        disk.sweep(b"", &|_| true, &|_| ()).await.unwrap();
        assert_eq!(records(&disk), (0, 0));
    }

    /// A delete that failed hides its keys, and whoever gave it may make up for it with a sweep.
    #[tokio::test]
    async fn a_sweep_finds_what_only_the_disk_has_left() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path(), DiskOptions::default()).unwrap();
        let write = |name: &'static str| Write {
            key: Bytes::from_static(name.as_bytes()),
            value: Bytes::from_static(b"value"),
            ttl: Duration::from_secs(3_600),
            tags: None,
        };
        let writes = ["hidden", "kept", "shown"].map(write);
        disk.set(&writes).await.unwrap();
        disk.shared.index.lock(b"hidden").hide();
        let doomed = |key: &[u8]| key != b"kept";
        let swept = disk.sweep(b"", &doomed, &|_| ()).await.unwrap();
        assert_eq!((swept.seen, swept.removed), (2, 1));
        disk.close().await.unwrap();
        drop(disk);
        let disk = Disk::open(directory.path(), DiskOptions::default()).unwrap();
        let keys = writes.map(|write| write.key);
        let found = disk.get(&keys, 100).await.unwrap();
        assert_eq!(found, [None, Some(Bytes::from_static(b"value")), None]);
    }
}
