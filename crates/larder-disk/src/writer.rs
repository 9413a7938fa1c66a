//! The thread that writes: every change of the store, one after the other.
//!
//! With one writer, comparing a lease and writing its value needs no lock, and nothing that was
//! deleted can be put back by a fill that was compared before. A change is written to the tree
//! first and entered in the index second, so that an operation that returned `Ok` is both.
//!
//! A write that fails makes the store read-only ([`crate::trouble`]). What the failed write may
//! have left behind is hidden at once and deleted before anything is written again.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fjall::PersistMode;
use larder::clock::{Clock, Millis, SystemClock};
use larder::envelope::Header;
use larder::store::{Fill, Filled, StoreError, StoreResult, Write};

use crate::directory::Directory;
use crate::error::DiskError;
use crate::evict::{Hand, Sweep};
use crate::index::Slot;
use crate::options::Durability;
use crate::queue::Popped;
use crate::reclaim::Reclaim;
use crate::record::{self, Order, Sequence};
use crate::shared::{Health, Reply, Shared};
use crate::tree::{Tree, TreeError};
use crate::trouble::{Doubt, Trouble};

/// How many keys are removed in one batch.
const CHUNK: usize = 512;

/// How many clears may be under way at once.
const MAX_CLEARS: usize = 64;

/// How long an entry may wait for a disk that is behind before it is not stored, and how long an
/// invalidation may, which is worth more.
const STORE_PATIENCE: Duration = Duration::from_millis(250);
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// How often an idle writer looks after the directory, and for entries that expired.
const IDLE: Duration = Duration::from_secs(1);

/// The pause between two such looks while some have expired: 10,000 entries a second.
const SWEEPING: Duration = Duration::from_millis(50);

/// How many jobs a busy writer does between two such looks.
const JOBS_PER_SWEEP: u32 = 256;

/// A change of the store.
#[derive(Debug)]
pub(crate) enum Job {
    Fill(Vec<Fill>, Reply<Vec<Filled>>),
    Set(Vec<Write>, Reply<()>),
    Expire(Vec<Bytes>, Millis, Reply<()>),
    Delete(Vec<Bytes>, Reply<()>),
    Clear(Bytes, Reply<u64>),
    Ping(Reply<()>),
    Close(Reply<()>),
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    /// Held until the tree is closed.
    pub(crate) directory: Option<Directory>,
    pub(crate) next: Sequence,
    pub(crate) hand: Hand,
    pub(crate) sweep: Sweep,
    pub(crate) reclaim: Reclaim,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) doubt: Doubt,
    /// Paces retries by the machine's time, so that they do not wait for a clock that a test
    /// holds still.
    pub(crate) pace: SystemClock,
    clears: VecDeque<Clearing>,
    jobs_since_sweep: u32,
}

/// A clear under way: other jobs are done between its batches.
struct Clearing {
    /// The next tree key to look at, and the first behind the prefix.
    from: Vec<u8>,
    to: Vec<u8>,
    removed: u64,
    reply: Reply<u64>,
}

/// Why a change was not made.
#[derive(Debug)]
pub(crate) enum Failure {
    Tree(TreeError),
    /// The disk is too far behind to begin it.
    Behind,
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl Writer {
    /// Opens the directory and what is stored in it.
    pub(crate) fn open(shared: Arc<Shared>) -> Result<Self, DiskError> {
        let directory = Directory::open(&shared.path)?;
        let mut writer = Self {
            shared,
            directory: None,
            next: 1,
            hand: Hand::default(),
            sweep: Sweep::default(),
            reclaim: Reclaim::default(),
            trouble: None,
            doubt: Doubt::default(),
            pace: SystemClock::new(),
            clears: VecDeque::new(),
            jobs_since_sweep: 0,
        };
        writer.open_tree(&directory)?;
        writer.directory = Some(directory);
        Ok(writer)
    }

    /// Works until the queue is closed.
    pub(crate) fn run(mut self) {
        loop {
            match self.shared.writes.pop(Some(self.patience())) {
                Popped::Item(Job::Close(reply)) => {
                    let closed = self.close();
                    let _ = reply.send(closed);
                    return;
                }
                Popped::Item(job) => self.guarded(|writer| writer.perform(job)),
                Popped::TimedOut => self.guarded(Self::between_jobs),
                Popped::Closed => break,
            }
            self.guarded(Self::heal_if_due);
            self.guarded(Self::continue_clear);
        }
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the disk cache was not closed cleanly");
        }
    }

    /// How long to wait for a job before there is something else to do.
    fn patience(&self) -> Duration {
        match &self.trouble {
            Some(trouble) => trouble.wait(self.pace.monotonic()),
            None if !self.clears.is_empty() => Duration::ZERO,
            None if self.sweep.due(self.shared.wall()) => SWEEPING,
            None => IDLE,
        }
    }

    /// A panic costs the job, whose reply is dropped, and has the tree opened again.
    fn guarded(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.doubt.everything();
            self.stumble(TreeError::Panicked);
        }
    }

    fn perform(&mut self, job: Job) {
        match job {
            Job::Fill(fills, reply) => answer(reply, self.fill_all(&fills)),
            Job::Set(writes, reply) => answer(reply, self.set_all(&writes)),
            Job::Expire(keys, wall, reply) => answer(reply, self.expire_all(&keys, wall)),
            Job::Delete(keys, reply) => answer(reply, self.delete_all(&keys)),
            Job::Clear(prefix, reply) => self.begin_clear(&prefix, reply),
            Job::Ping(reply) => answer(reply, self.shared.writable()),
            // Handled by the loop, which it ends.
            Job::Close(_) => {}
        }
        self.jobs_since_sweep += 1;
        if self.jobs_since_sweep >= JOBS_PER_SWEEP {
            self.between_jobs();
        }
    }

    fn between_jobs(&mut self) {
        let removed = self.directory.as_ref().is_some_and(|own| !own.stands());
        if removed && self.trouble.is_none() {
            self.stumble(TreeError::Gone);
        }
        self.jobs_since_sweep = 0;
        if self.trouble.is_some() {
            return;
        }
        // What fails here is told to whoever writes next.
        let _ = self.attempt(&[], |writer, tree| {
            writer.look_at_size(tree)?;
            if writer.sweep.due(writer.shared.wall()) {
                writer.sweep_chunk(tree)?;
            }
            Ok(())
        });
    }

    fn fill_all(&mut self, fills: &[Fill]) -> StoreResult<Vec<Filled>> {
        fills.iter().map(|fill| self.fill(fill)).collect()
    }

    fn fill(&mut self, fill: &Fill) -> StoreResult<Filled> {
        // Not in doubt: a fill that is not begun leaves what was there.
        self.shared.writable()?;
        let now = self.shared.monotonic();
        if !self.shared.index.leases().holds(&fill.key, fill.token, now) {
            return Ok(Filled::Refused);
        }
        self.attempt(std::slice::from_ref(&fill.key), |writer, tree| {
            writer.store(tree, &fill.key, &fill.value, fill.ttl)
        })?;
        Ok(Filled::Stored)
    }

    fn set_all(&mut self, writes: &[Write]) -> StoreResult<()> {
        let keys: Vec<Bytes> = writes.iter().map(|write| write.key.clone()).collect();
        self.attempt(&keys, |writer, tree| {
            for write in writes {
                writer.store(tree, &write.key, &write.value, write.ttl)?;
            }
            writer.synced(tree)
        })
    }

    /// Writes one entry and ends the lease on it.
    fn store(
        &mut self,
        tree: &Tree,
        key: &Bytes,
        value: &[u8],
        ttl: Duration,
    ) -> Result<(), Failure> {
        let charge = record::entry_bytes(key.len(), value.len());
        self.check_size(tree, charge)?;
        self.wait_for(tree, STORE_PATIENCE)?;
        self.make_room(tree, key, charge)?;
        let order = Order {
            sequence: self.next,
            deadline: record::deadline(self.shared.wall(), ttl),
            charge: u32::try_from(charge).unwrap_or(u32::MAX),
            key: key.clone(),
        };
        self.next += 1;
        let old = self.shared.index.lock(key).slot();
        let mut changes = tree.changes();
        let value = record::entry_value(order.deadline, value).map_err(TreeError::from)?;
        changes.put(&record::entry_key(key), value);
        changes.put(&record::order_key(order.sequence), order.to_value());
        if let Some(old) = old {
            changes.remove(&record::order_key(old.sequence()));
        }
        tree.commit(changes)?;
        self.sweep.expect(order.deadline);
        let mut locked = self.shared.index.lock(key);
        locked.put(Slot::new(&order));
        locked.leases().void(key);
        Ok(())
    }

    fn expire_all(&mut self, keys: &[Bytes], wall: Millis) -> StoreResult<()> {
        self.attempt(keys, |writer, tree| {
            for key in keys {
                writer.expire(tree, key, wall)?;
            }
            writer.synced(tree)
        })
    }

    /// Rewrites the header of one value. What is not an envelope is removed.
    fn expire(&mut self, tree: &Tree, key: &Bytes, wall: Millis) -> Result<(), Failure> {
        let held = self.shared.index.lock(key).live(self.shared.wall());
        let found = match held {
            Some(_) => tree.get(key)?,
            None => None,
        };
        let Some((deadline, value)) = found.as_deref().and_then(record::split_entry) else {
            self.shared.index.leases().void(key);
            return Ok(());
        };
        let Some(mut header) = Header::parse(value).filter(|_| value.len() > Header::LEN) else {
            return self.remove(tree, std::slice::from_ref(key), Presence::Indexed);
        };
        self.wait_for(tree, REMOVE_PATIENCE)?;
        header.fresh_until = header.fresh_until.min(wall);
        header.lease = None;
        header.lease_until = 0;
        let mut stale = value.to_vec();
        stale[..Header::LEN].copy_from_slice(&header.to_bytes());
        let mut changes = tree.changes();
        let stale = record::entry_value(deadline, &stale).map_err(TreeError::from)?;
        changes.put(&record::entry_key(key), stale);
        tree.commit(changes)?;
        self.shared.index.leases().void(key);
        Ok(())
    }

    fn delete_all(&mut self, keys: &[Bytes]) -> StoreResult<()> {
        self.attempt(keys, |writer, tree| {
            writer.remove(tree, keys, Presence::Indexed)?;
            writer.synced(tree)
        })
    }

    /// Removes entries and ends the leases on them.
    pub(crate) fn remove(
        &mut self,
        tree: &Tree,
        keys: &[Bytes],
        presence: Presence,
    ) -> Result<(), Failure> {
        for keys in keys.chunks(CHUNK) {
            let mut changes = tree.changes();
            // A record must not occur twice in one batch, and a caller may repeat a key.
            for key in keys.iter().collect::<BTreeSet<_>>() {
                let locked = self.shared.index.lock(key);
                let possible = presence == Presence::OnDisk || locked.may_exist();
                if possible && key.len() <= record::MAX_KEY_BYTES {
                    changes.remove(&record::entry_key(key));
                }
                if let Some(slot) = locked.slot() {
                    changes.remove(&record::order_key(slot.sequence()));
                }
            }
            if !changes.is_empty() {
                self.wait_for(tree, REMOVE_PATIENCE)?;
                tree.commit(changes)?;
            }
            for key in keys {
                let mut locked = self.shared.index.lock(key);
                locked.remove();
                locked.leases().void(key);
            }
        }
        Ok(())
    }

    fn begin_clear(&mut self, prefix: &[u8], reply: Reply<u64>) {
        self.shared.index.leases().void_prefix(prefix);
        if let Err(error) = self.shared.writable() {
            return answer(reply, Err(error));
        }
        if self.clears.len() >= MAX_CLEARS {
            return answer(reply, Err(self.shared.behind()));
        }
        let from = record::entry_key(prefix);
        self.clears.push_back(Clearing {
            to: record::end_of_prefix(&from),
            from,
            removed: 0,
            reply,
        });
    }

    /// Removes one batch of the oldest clear under way.
    fn continue_clear(&mut self) {
        let Some(mut clearing) = self.clears.pop_front() else {
            return;
        };
        match self.attempt(&[], |writer, tree| writer.clear_chunk(tree, &mut clearing)) {
            Ok(Progress::More) => self.clears.push_front(clearing),
            Ok(Progress::Done) => answer(clearing.reply, Ok(clearing.removed)),
            Err(error) => answer(clearing.reply, Err(error)),
        }
    }

    fn clear_chunk(&mut self, tree: &Tree, clearing: &mut Clearing) -> Result<Progress, Failure> {
        let found = tree.scan(&clearing.from, &clearing.to, CHUNK)?;
        let wall = self.shared.wall();
        let live = |value: &[u8]| record::split_entry(value).is_some_and(|(end, _)| wall < end);
        let keys: Vec<Bytes> = found
            .iter()
            .filter_map(|(tree_key, _)| record::key_of_entry(tree_key))
            .map(Bytes::copy_from_slice)
            .collect();
        let removed = found
            .iter()
            .zip(&keys)
            .filter(|((_, value), key)| live(value) && self.shared.index.lock(key).slot().is_some())
            .count();
        self.remove(tree, &keys, Presence::OnDisk)?;
        clearing.removed += removed as u64;
        match found.last() {
            Some((last, _)) if found.len() == CHUNK => {
                clearing.from = last.to_vec();
                clearing.from.push(0);
                Ok(Progress::More)
            }
            _ => {
                self.synced(tree)?;
                Ok(Progress::Done)
            }
        }
    }

    /// Syncs an invalidation, where that was asked for.
    fn synced(&self, tree: &Tree) -> Result<(), Failure> {
        match self.shared.options.durability {
            Durability::Process => Ok(()),
            Durability::SyncInvalidations => Ok(tree.sync(PersistMode::SyncData)?),
        }
    }

    /// Does a change, or says why not. What is in `keys` is hidden if it may be half done.
    pub(crate) fn attempt<T>(
        &mut self,
        keys: &[Bytes],
        change: impl FnOnce(&mut Self, &Tree) -> Result<T, Failure>,
    ) -> StoreResult<T> {
        let shared = self.shared.clone();
        let tree = shared.tree();
        let failure = match (shared.writable(), tree.as_ref()) {
            (Ok(()), Some(tree)) => match change(self, tree) {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            },
            (Err(error), _) => {
                self.hide(keys);
                self.doubt.add(keys);
                return Err(error);
            }
            (Ok(()), None) => Failure::Behind,
        };
        // A background thread that died shows as a disk that never catches up.
        let failure = match (failure, tree.as_ref()) {
            (Failure::Behind, Some(tree)) => match tree.sync(PersistMode::Buffer) {
                Ok(()) => Failure::Behind,
                Err(error) => Failure::Tree(error),
            },
            (failure, _) => failure,
        };
        drop(tree);
        self.hide(keys);
        Err(match failure {
            Failure::Tree(error) => {
                self.doubt.add(keys);
                self.stumble(error)
            }
            Failure::Behind => self.shared.behind(),
        })
    }

    /// Makes keys absent for every reader, because a change of them failed.
    fn hide(&self, keys: &[Bytes]) {
        for key in keys {
            let mut locked = self.shared.index.lock(key);
            locked.hide();
            locked.leases().void(key);
        }
    }

    /// Waits until a write would not block; gives up after `patience`.
    fn wait_for(&self, tree: &Tree, patience: Duration) -> Result<(), Failure> {
        const STEP: Duration = Duration::from_millis(1);
        let until = self.pace.monotonic() + patience.as_millis() as Millis;
        while tree.behind() {
            if self.pace.monotonic() >= until {
                return Err(Failure::Behind);
            }
            std::thread::park_timeout(STEP);
        }
        Ok(())
    }

    /// Syncs and closes the tree, and gives the directory free.
    fn close(&mut self) -> StoreResult<()> {
        for clearing in std::mem::take(&mut self.clears) {
            answer(clearing.reply, Err(self.shared.closed()));
        }
        self.shared.set_health(Health::Closed);
        let tree = self.shared.tree_alone().take();
        let synced = match &tree {
            Some(tree) if self.trouble.is_none() => tree
                .sync(PersistMode::SyncAll)
                .map_err(|error| self.shared.failure(error)),
            _ => Ok(()),
        };
        drop(tree);
        self.reclaim.finish();
        self.directory = None;
        synced
    }
}

/// How it is known that keys exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// The index knows: what it cannot have costs no write.
    Indexed,
    /// They may be on the disk, whatever the index says.
    OnDisk,
}

enum Progress {
    More,
    Done,
}

/// Sends an answer. Whoever asked may have gone; the change was made all the same.
fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    let _ = reply.send(result);
}

/// Counts in a statistic that nothing else depends on.
pub(crate) fn count(counter: &std::sync::atomic::AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
