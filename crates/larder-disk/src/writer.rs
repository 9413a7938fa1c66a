//! The thread that writes: every change of the store, one after the other.
//!
//! With one writer, comparing a lease and writing its value needs no lock, and nothing that was
//! deleted can be put back by a fill that was compared before. The same goes for the versions of
//! values, and for their tags ([`crate::tagging`]). A change is written to the tree first and
//! entered in the index second, so that an operation that returned `Ok` is both.
//!
//! A write that fails makes the store read-only ([`crate::trouble`]). What the failed write may
//! have left behind is hidden at once and deleted before anything is written again.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fjall::PersistMode;
use larder::clock::{Clock, Millis, SystemClock};
use larder::envelope::Header;
use larder::store::{Fill, Filled, Position, StoreError, StoreResult, Tagged, Write};

use crate::directory::Directory;
use crate::error::DiskError;
use crate::evict::{Hand, Need, Reaper};
use crate::index::Slot;
use crate::options::Durability;
use crate::queue::Popped;
use crate::reclaim::Reclaim;
use crate::record::{self, Order, Sequence};
use crate::shared::{Health, Reply, Shared};
use crate::tree::{Changes, Tree, TreeError};
use crate::trouble::{Doubt, Trouble};
use crate::versions::Standing;

/// How many keys are removed in one batch.
pub(crate) const CHUNK: usize = 512;

const HEADER: u64 = Header::LEN as u64;

/// How long an entry may wait for a disk that is behind before it is not stored, and how long an
/// invalidation may, which is worth more.
const STORE_PATIENCE: Duration = Duration::from_millis(250);
pub(crate) const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// How often an idle writer looks after the directory, and for entries that expired.
const IDLE: Duration = Duration::from_secs(1);

/// The pause between two such looks while some have expired: 10,000 entries a second.
const REAPING: Duration = Duration::from_millis(50);

/// How many jobs a busy writer does between two such looks.
const JOBS_PER_PAUSE: u32 = 256;

/// A change of the store.
#[derive(Debug)]
pub(crate) enum Job {
    Fill(Vec<Fill>, Reply<Vec<Filled>>),
    Set(Vec<Write>, Reply<Vec<Filled>>),
    Touch(Vec<Bytes>, Duration, Reply<()>),
    Expire(Vec<Bytes>, Millis, Reply<()>),
    Delete(Vec<Bytes>, Option<Bytes>, Reply<()>),
    /// Removes keys that a sweep condemned, and says how many there were.
    Sweep(Vec<Bytes>, Presence, Reply<u64>),
    SweepEnd(Reply<()>),
    /// Tells where a counter stands, and begins one that does not exist.
    Position(Bytes, Reply<Position>),
    Enlist(Bytes, u32, Duration, Reply<Vec<u32>>),
    Ping(Reply<()>),
    Close(Reply<()>),
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    /// Held until the tree is closed.
    pub(crate) directory: Option<Directory>,
    pub(crate) next: Sequence,
    pub(crate) hand: Hand,
    pub(crate) reaper: Reaper,
    pub(crate) reclaim: Reclaim,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) doubt: Doubt,
    /// Paces retries by the machine's time, so that they do not wait for a clock that a test
    /// holds still.
    pub(crate) pace: SystemClock,
    jobs_since_pause: u32,
}

/// A value on its way into the tree.
pub(crate) struct Incoming<'a> {
    pub(crate) key: &'a Bytes,
    pub(crate) value: &'a [u8],
    pub(crate) ttl: Duration,
    pub(crate) tags: Option<&'a Tagged>,
    /// Where the counter stood before the load began.
    pub(crate) since: Option<Position>,
}

impl<'a> From<&'a Fill> for Incoming<'a> {
    fn from(fill: &'a Fill) -> Self {
        Self {
            key: &fill.key,
            value: &fill.value,
            ttl: fill.ttl,
            tags: fill.tags.as_ref(),
            since: fill.tags.as_ref().and_then(|tags| tags.since),
        }
    }
}

impl<'a> From<&'a Write> for Incoming<'a> {
    fn from(write: &'a Write) -> Self {
        Self {
            key: &write.key,
            value: &write.value,
            ttl: write.ttl,
            tags: write.tags.as_ref(),
            since: None,
        }
    }
}

/// Entries that are written together, all or none.
pub(crate) struct Batch<'a> {
    changes: Changes<'a>,
    orders: Vec<Order>,
    leases: LeasesAfter,
}

/// What becomes of the leases on the keys of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeasesAfter {
    Void,
    Kept,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(tree: &'a Tree) -> Self {
        Self {
            changes: tree.changes(),
            orders: Vec::new(),
            leases: LeasesAfter::Void,
        }
    }

    /// A batch of values that are there already.
    fn of_the_same(tree: &'a Tree) -> Self {
        Self {
            leases: LeasesAfter::Kept,
            ..Self::new(tree)
        }
    }
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
            reaper: Reaper::default(),
            reclaim: Reclaim::default(),
            trouble: None,
            doubt: Doubt::default(),
            pace: SystemClock::new(),
            jobs_since_pause: 0,
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
        }
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the disk cache was not closed cleanly");
        }
    }

    /// How long to wait for a job before there is something else to do.
    fn patience(&self) -> Duration {
        match &self.trouble {
            Some(trouble) => trouble.wait(self.pace.monotonic()),
            None if self.reaper.due(self.shared.wall()) => REAPING,
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
            Job::Touch(keys, ttl, reply) => answer(reply, self.touch_all(&keys, ttl)),
            Job::Expire(keys, wall, reply) => answer(reply, self.expire_all(&keys, wall)),
            Job::Delete(keys, counter, reply) => {
                answer(reply, self.delete_all(&keys, counter.as_ref()));
            }
            Job::Sweep(keys, presence, reply) => answer(reply, self.sweep(&keys, presence)),
            Job::SweepEnd(reply) => answer(reply, self.attempt(&[], |w, tree| w.synced(tree))),
            Job::Position(counter, reply) => answer(reply, self.position(&counter)),
            Job::Enlist(record, member, keep, reply) => {
                answer(reply, self.enlist(&record, member, keep));
            }
            Job::Ping(reply) => answer(reply, self.shared.writable()),
            // Handled by the loop, which it ends.
            Job::Close(_) => {}
        }
        self.jobs_since_pause += 1;
        if self.jobs_since_pause >= JOBS_PER_PAUSE {
            self.between_jobs();
        }
    }

    fn between_jobs(&mut self) {
        let removed = self.directory.as_ref().is_some_and(|own| !own.stands());
        if removed && self.trouble.is_none() {
            self.stumble(TreeError::Gone);
        }
        self.jobs_since_pause = 0;
        if self.trouble.is_some() {
            return;
        }
        // What fails here is told to whoever writes next.
        let _ = self.attempt(&[], |writer, tree| {
            writer.look_at_size(tree)?;
            if writer.reaper.due(writer.shared.wall()) {
                writer.reap_chunk(tree)?;
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
            let incoming = Standing::of(&fill.value);
            if incoming.may_fill(writer.standing(tree, &fill.key, incoming)?) {
                writer.store(tree, &Incoming::from(fill))
            } else {
                Ok(Filled::Refused)
            }
        })
    }

    fn set_all(&mut self, writes: &[Write]) -> StoreResult<Vec<Filled>> {
        let keys: Vec<Bytes> = writes.iter().map(|write| write.key.clone()).collect();
        self.attempt(&keys, |writer, tree| {
            let mut done = Vec::with_capacity(writes.len());
            for write in writes {
                done.push(writer.set(tree, write)?);
            }
            writer.synced(tree)?;
            Ok(done)
        })
    }

    fn set(&mut self, tree: &Tree, write: &Write) -> Result<Filled, Failure> {
        let incoming = Standing::of(&write.value);
        if incoming.may_replace(self.standing(tree, &write.key, incoming)?) {
            self.store(tree, &Incoming::from(write))
        } else {
            Ok(Filled::Refused)
        }
    }

    /// What stands under a key, as far as it matters to what is coming.
    fn standing(&self, tree: &Tree, key: &Bytes, incoming: Standing) -> Result<Standing, Failure> {
        let slot = self.shared.index.lock(key).live(self.shared.wall());
        match slot {
            Some(slot) if incoming.is_versioned() || slot.value_len(key.len()) == HEADER => {
                let held = self.held(tree, key)?;
                Ok(held.map_or(Standing::Nothing, |held| Standing::of(held.value())))
            }
            _ => Ok(Standing::Nothing),
        }
    }

    /// The entry under a key, unless it expired.
    pub(crate) fn held(&self, tree: &Tree, key: &Bytes) -> Result<Option<Held>, Failure> {
        let wall = self.shared.wall();
        if self.shared.index.lock(key).live(wall).is_none() {
            return Ok(None);
        }
        let found = self.shared.find(tree, key)?.and_then(Held::new);
        Ok(found.filter(|held| wall < held.deadline))
    }

    /// Writes one value and ends the lease on its key.
    fn store(&mut self, tree: &Tree, incoming: &Incoming<'_>) -> Result<Filled, Failure> {
        if let Some(tags) = incoming.tags {
            return self.store_tagged(tree, incoming, tags);
        }
        let deadline = record::deadline(self.shared.wall(), incoming.ttl);
        self.store_one(tree, incoming.key, incoming.value, deadline)?;
        Ok(Filled::Stored {
            versions: Vec::new(),
        })
    }

    /// Writes one entry by itself.
    pub(crate) fn store_one(
        &mut self,
        tree: &Tree,
        key: &Bytes,
        value: &[u8],
        deadline: Millis,
    ) -> Result<(), Failure> {
        self.prepare(tree, key, Need::entry(key.len(), value.len()))?;
        let mut batch = Batch::new(tree);
        self.enter(&mut batch, key, &[], value, deadline)?;
        self.commit(tree, batch)
    }

    /// Makes sure that the disk keeps up and that there is room.
    pub(crate) fn prepare(&mut self, tree: &Tree, key: &Bytes, need: Need) -> Result<(), Failure> {
        self.check_size(tree, need.bytes)?;
        self.wait_for(tree, STORE_PATIENCE)?;
        self.make_room(tree, key, need)
    }

    /// Adds an entry to a batch, for which there is room. A key must not occur twice in it.
    pub(crate) fn enter(
        &mut self,
        batch: &mut Batch<'_>,
        key: &Bytes,
        front: &[u8],
        rest: &[u8],
        deadline: Millis,
    ) -> Result<Sequence, Failure> {
        let charge = record::entry_bytes(key.len(), front.len() + rest.len());
        let order = Order {
            sequence: self.next,
            deadline,
            charge: u32::try_from(charge).unwrap_or(u32::MAX),
            key: key.clone(),
        };
        self.next += 1;
        let value = record::entry_value(deadline, front, rest).map_err(TreeError::from)?;
        let changes = &mut batch.changes;
        changes.put(&record::entry_key(key), value);
        changes.put(&record::order_key(order.sequence), order.to_value());
        if let Some(old) = self.shared.index.lock(key).slot() {
            changes.remove(&record::order_key(old.sequence()));
        }
        let sequence = order.sequence;
        batch.orders.push(order);
        Ok(sequence)
    }

    /// Writes a batch and ends the leases on its keys, unless the values are the same.
    pub(crate) fn commit(&mut self, tree: &Tree, batch: Batch<'_>) -> Result<(), Failure> {
        if batch.orders.is_empty() {
            return Ok(());
        }
        tree.commit(batch.changes)?;
        for order in &batch.orders {
            self.reaper.expect(order.deadline);
            let mut locked = self.shared.index.lock(&order.key);
            locked.put(Slot::new(order));
            if batch.leases == LeasesAfter::Void {
                locked.leases().void(&order.key);
            }
        }
        Ok(())
    }

    fn touch_all(&mut self, keys: &[Bytes], ttl: Duration) -> StoreResult<()> {
        // Nothing is in doubt: with the old time or the new one, the value is right.
        self.attempt(&[], |writer, tree| {
            for key in keys {
                writer.touch(tree, key, ttl)?;
            }
            Ok(())
        })
    }

    /// Writes one value, or record of a tag, with a later end. A minimum version keeps its own.
    fn touch(&mut self, tree: &Tree, key: &Bytes, ttl: Duration) -> Result<(), Failure> {
        let deadline = record::deadline(self.shared.wall(), ttl);
        let Some(held) = self.held(tree, key)? else {
            return Ok(());
        };
        let value = held.value();
        if held.deadline >= deadline || value.len() as u64 == HEADER {
            return Ok(());
        }
        self.prepare(tree, key, Need::entry(key.len(), value.len()))?;
        let mut batch = Batch::of_the_same(tree);
        self.enter(&mut batch, key, &[], value, deadline)?;
        self.commit(tree, batch)
    }

    fn expire_all(&mut self, keys: &[Bytes], wall: Millis) -> StoreResult<()> {
        self.attempt(keys, |writer, tree| {
            for key in keys {
                writer.expire(tree, key, wall)?;
            }
            writer.synced(tree)
        })
    }

    /// Rewrites the header of one value. What is not an envelope is removed; a minimum version has
    /// nothing to lose but its lease.
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
        let alone = value.len() == Header::LEN;
        let header = match Header::parse(value) {
            Some(header) if alone && header.version != 0 => {
                self.shared.index.leases().void(key);
                return Ok(());
            }
            Some(header) if !alone => header,
            _ => return self.remove(tree, std::slice::from_ref(key), Presence::Indexed),
        };
        self.wait_for(tree, REMOVE_PATIENCE)?;
        let front = header.expired_at(wall).to_bytes();
        let stale = record::entry_value(deadline, &front, &value[Header::LEN..])
            .map_err(TreeError::from)?;
        let mut changes = tree.changes();
        changes.put(&record::entry_key(key), stale);
        tree.commit(changes)?;
        self.shared.index.leases().void(key);
        Ok(())
    }

    /// Moves the counter on before the first key goes, so that wherever a crash leaves a tag without
    /// its record, the counter says that something happened.
    fn delete_all(&mut self, keys: &[Bytes], counter: Option<&Bytes>) -> StoreResult<()> {
        let doubtful: Vec<Bytes> = counter.into_iter().chain(keys).cloned().collect();
        self.attempt(&doubtful, |writer, tree| {
            if let Some(counter) = counter {
                writer.move_on(tree, counter)?;
            }
            writer.remove(tree, keys, Presence::Indexed)?;
            writer.synced(tree)
        })
    }

    fn sweep(&mut self, keys: &[Bytes], presence: Presence) -> StoreResult<u64> {
        self.attempt(keys, |writer, tree| {
            let mut removed = 0;
            for key in keys {
                removed += u64::from(writer.stands(tree, key)?);
            }
            writer.remove(tree, keys, presence)?;
            Ok(removed)
        })
    }

    /// Whether there is an entry under a key that has not expired, or a lease.
    fn stands(&self, tree: &Tree, key: &Bytes) -> Result<bool, Failure> {
        let wall = self.shared.wall();
        let slot = self.shared.index.lock(key).live(wall);
        let lives = match slot {
            Some(slot) if slot.about_to_expire(wall) => self.held(tree, key)?.is_some(),
            slot => slot.is_some(),
        };
        let now = self.shared.monotonic();
        Ok(lives || self.shared.index.leases().standing(key, now).is_some())
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

    /// Syncs an invalidation, where that was asked for.
    pub(crate) fn synced(&self, tree: &Tree) -> Result<(), Failure> {
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
    pub(crate) fn wait_for(&self, tree: &Tree, patience: Duration) -> Result<(), Failure> {
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

/// What stands under a key: its deadline and its value.
pub(crate) struct Held {
    pub(crate) deadline: Millis,
    record: fjall::Slice,
}

impl Held {
    fn new(record: fjall::Slice) -> Option<Self> {
        let (deadline, _) = record::split_entry(&record)?;
        Some(Self { deadline, record })
    }

    pub(crate) fn value(&self) -> &[u8] {
        record::split_entry(&self.record).map_or(&[], |(_, value)| value)
    }
}

/// Sends an answer. Whoever asked may have gone; the change was made all the same.
fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    let _ = reply.send(result);
}

/// Counts in a statistic that nothing else depends on.
pub(crate) fn count(counter: &std::sync::atomic::AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
