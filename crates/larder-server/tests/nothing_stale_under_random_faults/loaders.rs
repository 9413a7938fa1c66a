//! What the loaders of a process do, and how badly they behave.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use larder::clock::{BoxFuture, Clock, SystemClock};
use larder::{BatchLoader, BoxError, Cache, Load, Loaded, Loader, Read};
use sqlx::postgres::PgPool;

use crate::rows::{self, Found, SHELVES, Table};
use crate::ways::{Kept, Made, Way};

/// Loads are this seldom slow, and very slow: one of so many.
const SLOW: u64 = 3;
const VERY_SLOW: u64 = 60;
/// One load of so many fails, where loads panic and something may stand in, and takes so long.
const FAILS: u64 = 2;
const FAILS_AFTER: Duration = Duration::from_millis(100);

/// What a load of many keys finds under each.
type Batch<K, V> = Vec<(K, Result<Loaded<V>, BoxError>)>;

/// What loaders read from, and their mischief. Clones are the same.
#[derive(Clone)]
pub(crate) struct Source {
    pool: PgPool,
    pub(crate) clock: Arc<dyn Clock>,
    mischief: Arc<Mischief>,
}

struct Mischief {
    rng: Mutex<Rng>,
    /// One load of so many panics; 0 for none.
    panics: AtomicU64,
    /// How far behind the replica is, in milliseconds.
    lag: AtomicU64,
}

impl Source {
    pub(crate) async fn open(database: &str, seed: u64) -> Self {
        Self {
            pool: rows::connect(database).await,
            clock: SystemClock::shared(),
            mischief: Arc::new(Mischief {
                rng: Mutex::new(Rng::with_seed(seed)),
                panics: AtomicU64::new(0),
                lag: AtomicU64::new(0),
            }),
        }
    }

    pub(crate) fn panic_in_one_of(&self, loads: u64) {
        self.mischief.panics.store(loads, SeqCst);
    }

    pub(crate) fn lag_by(&self, millis: u64) {
        self.mischief.lag.store(millis, SeqCst);
    }

    /// How far behind the replica is, in milliseconds.
    pub(crate) fn lag(&self) -> u64 {
        self.mischief.lag.load(SeqCst)
    }

    /// Any way of reading.
    pub(crate) fn any_way(&self) -> Way {
        let mut rng = self.mischief.rng.lock().unwrap();
        Way::READS[rng.usize(0..Way::READS.len())]
    }

    /// Whether a load is to fail for which something may stand in.
    fn fails(&self) -> bool {
        let things_break = self.mischief.panics.load(SeqCst) > 0;
        things_break && self.mischief.rng.lock().unwrap().u64(0..FAILS) == 0
    }

    /// Either of two things.
    pub(crate) fn tosses_a_coin(&self) -> bool {
        self.mischief.rng.lock().unwrap().bool()
    }

    /// What changes between the read and the fill is what fences are for.
    async fn dawdle(&self) {
        let (slow, very_slow, panics, millis) = {
            let mut rng = self.mischief.rng.lock().unwrap();
            let mut one_of = |of: u64| of > 0 && rng.u64(0..of) == 0;
            let panics = one_of(self.mischief.panics.load(SeqCst));
            (one_of(SLOW), one_of(VERY_SLOW), panics, rng.u64(1..30))
        };
        if slow || very_slow {
            let millis = if very_slow { 20 * millis } else { millis };
            self.clock.sleep(Duration::from_millis(millis)).await;
        }
        assert!(!panics, "a loader panics, as it was told to");
    }
}

/// Loads the rows of a table.
#[derive(Clone)]
pub(crate) struct OfRows {
    source: Source,
    table: Table,
}

impl OfRows {
    pub(crate) fn new(source: &Source, table: Table) -> Self {
        let source = source.clone();
        Self { source, table }
    }

    /// Reads rows, and takes its time with what it found.
    pub(crate) async fn find(&self, ids: &[i32]) -> sqlx::Result<Vec<(i32, Loaded<u64>)>> {
        let found = self.fetch(ids).await?;
        let loaded = |found: Found| (found.id, self.loaded(found));
        Ok(found.into_iter().map(loaded).collect())
    }

    async fn fetch(&self, ids: &[i32]) -> sqlx::Result<Vec<Found>> {
        let lag = self.source.lag();
        let found = rows::fetch(&self.source.pool, self.table, ids, lag).await?;
        self.source.dawdle().await;
        if self.table == Table::Sturdy && self.source.fails() {
            self.source.clock.sleep(FAILS_AFTER).await;
            let error = io::Error::other("a load fails, as it was told to");
            return Err(sqlx::Error::Io(error));
        }
        Ok(found)
    }

    fn loaded(&self, found: Found) -> Loaded<u64> {
        Loaded::value(found.version)
            .version(found.version)
            .tags([rows::tag_of(self.table, found.category)])
    }

    /// Rows that are read one after the other.
    fn next(&self, id: i32) -> Vec<i32> {
        vec![(id + 1) % self.table.ids().end]
    }
}

impl Loader<i32, u64> for OfRows {
    type Answer = Loaded<u64>;
    type Error = BoxError;

    async fn load(&self, load: Load<i32, u64>) -> Result<Loaded<u64>, BoxError> {
        let Some(found) = self.fetch(&[*load.key()]).await?.pop() else {
            return Ok(Loaded::absent());
        };
        let known = load.stale().and_then(|stale| stale.value());
        let is_known = known.is_some_and(|known| **known == found.version);
        Ok(if is_known && self.source.tosses_a_coin() {
            Loaded::not_modified()
        } else {
            self.loaded(found)
        })
    }

    fn related(&self, id: &i32, _version: &u64) -> Vec<i32> {
        self.next(*id)
    }
}

impl BatchLoader<i32, u64> for OfRows {
    type Answer = Loaded<u64>;
    type Error = BoxError;

    async fn load_many(&self, ids: Vec<i32>) -> Result<Batch<i32, u64>, BoxError> {
        let found = self.find(&ids).await?;
        Ok(found
            .into_iter()
            .map(|(id, loaded)| (id, Ok(loaded)))
            .collect())
    }

    fn related(&self, id: &i32, _version: &u64) -> Vec<i32> {
        self.next(*id)
    }
}

/// Makes shelves from items, and the hall from shelves.
#[derive(Clone)]
pub(crate) struct OfMade {
    pub(crate) source: Source,
    pub(crate) items: Kept<i32, u64, OfRows>,
    pub(crate) made: Cache<String, Made>,
}

impl OfMade {
    /// In a box, because the load of the hall has those of shelves in it.
    fn make(&self, key: &str) -> BoxFuture<'static, larder::Result<Made>> {
        let (maker, key) = (self.clone(), key.to_owned());
        Box::pin(async move {
            match key.strip_prefix("shelf ") {
                Some(shelf) => maker.shelf(shelf.parse().unwrap()).await,
                None => maker.hall().await,
            }
        })
    }

    async fn shelf(&self, shelf: i32) -> larder::Result<Made> {
        let ids: Vec<i32> = rows::items_of(shelf).collect();
        let way = self.source.any_way();
        let items = self.items.values(Read::new(), way, &ids).await;
        let mut made = Vec::new();
        for (id, item) in ids.into_iter().zip(items) {
            made.push((id, item?.map_or(0, |version| *version)));
        }
        self.source.dawdle().await;
        Ok(made)
    }

    async fn hall(&self) -> larder::Result<Made> {
        let keys: Vec<String> = (0..SHELVES).map(|shelf| format!("shelf {shelf}")).collect();
        let shelves = Kept::new(self.made.clone(), self.clone());
        let way = self.source.any_way();
        let mut all = Vec::new();
        for shelf in shelves.values(Read::new(), way, &keys).await {
            all.extend(shelf?.into_iter().flat_map(|shelf| shelf.to_vec()));
        }
        Ok(all)
    }
}

impl Loader<String, Made> for OfMade {
    type Answer = Loaded<Made>;
    type Error = BoxError;

    async fn load(&self, load: Load<String, Made>) -> Result<Loaded<Made>, BoxError> {
        Ok(self.make(load.key()).await?.into())
    }
}

impl BatchLoader<String, Made> for OfMade {
    type Answer = Loaded<Made>;
    type Error = BoxError;

    async fn load_many(&self, keys: Vec<String>) -> Result<Batch<String, Made>, BoxError> {
        let mut made = Vec::new();
        for key in keys {
            let one = self.make(&key).await;
            made.push((key, one.map(Loaded::from).map_err(BoxError::from)));
        }
        Ok(made)
    }
}
