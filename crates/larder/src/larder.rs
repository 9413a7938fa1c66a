//! `Larder`: what the caches of a service share, and how they are built.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backplane::Backplane;
use crate::bus::{BusStats, Census, Member};
use crate::cache::{self, Cache, Fallback, Groups, Inner, RemovalListener, Weigher};
use crate::classes::Classes;
use crate::clock::{Clock, SystemClock};
use crate::codec::{Codec, ValueCodec};
use crate::courier::{Courier, Errand, Receipt};
use crate::epoch::Epochs;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::fence::Fence;
use crate::flight::Flights;
use crate::frequency::Frequency;
use crate::invalidation::Invalidation;
use crate::key::{self, CacheKey};
use crate::loader::Turns;
use crate::loading::Watchers;
use crate::memory::{Bound, Memory};
use crate::minimum::Minimums;
use crate::options::{CacheOptions, Capacity, Isolation, LONGEST, Policy, RemovalCause, Span};
use crate::overlay::Overlay;
use crate::progress::Watcher;
use crate::registry::{AnyCache, Home, Registry};
use crate::stats::Counters;
use crate::store::Store;
use crate::tags::{Records, Tags, name};
use crate::tasks::{TaskKind, Tasks};
use crate::tier::{Sharing, Tier, TierStats, within};

/// What the tiers below memory may take from one read, unless told otherwise.
const TIER_BUDGET: Duration = Duration::from_millis(100);
/// The memory TTL of caches above a tier that other processes write to, in milliseconds.
const MEMORY_TTL_ABOVE_SHARED: u64 = 60_000;
/// How long one store may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What the caches of a service share: tiers, clock, background work. Cheap to clone.
///
/// ```
/// use larder::{Cache, Larder};
///
/// let larder = Larder::builder("shop").build()?;
/// let prices: Cache<u64, f64> = larder.cache("price").ttl("30s").build()?;
/// # Ok::<_, larder::Error>(())
/// ```
#[derive(Clone)]
pub struct Larder {
    shared: Arc<Shared>,
    /// Apart from what caches hold, so that they do not hold each other and themselves.
    registry: Arc<Registry>,
    pub(crate) events: Arc<Events>,
}

/// The inside of a [`Larder`].
#[derive(Debug)]
pub(crate) struct Shared {
    namespace: Arc<str>,
    pub(crate) tiers: Box<[Arc<Tier>]>,
    /// Names of counters, tag records and other keys that are no entries.
    pub(crate) records: Records,
    pub(crate) tags: Tags,
    pub(crate) bus: Option<Arc<Member>>,
    /// Whether the bus is that of the only tier, which may then do both at once.
    pub(crate) tier_is_bus: bool,
    pub(crate) courier: Courier,
    pub(crate) minimums: Minimums,
    census: Mutex<HashMap<Box<str>, Census>>,
    /// What names on the bus stand for. The caches hold this struct, so it must not hold them.
    registry: Weak<Registry>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) tier_budget: Duration,
    pub(crate) classes: Classes,
    /// How many tasks drop copies from tiers that others told of.
    pub(crate) forgetting: Arc<AtomicUsize>,
    closed: AtomicBool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Tasks that listen and keep the time have nobody left to do it for.
        self.tasks.close();
        self.tasks.abort();
    }
}

impl Shared {
    /// An error after shutdown.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(SeqCst) {
            Err(Error::closed())
        } else {
            Ok(())
        }
    }

    /// The epoch of every cache of the larder.
    pub(crate) fn epochs(&self) -> &Epochs {
        &self.tags.epochs
    }

    /// The cache of this name, if this process has one.
    pub(crate) fn find(&self, cache: &str) -> Option<Arc<dyn AnyCache>> {
        self.registry.upgrade()?.find(cache)
    }

    pub(crate) fn caches(&self) -> Vec<Arc<dyn AnyCache>> {
        let registry = self.registry.upgrade();
        registry.map_or_else(Vec::new, |registry| registry.all())
    }

    pub(crate) fn census(&self) -> MutexGuard<'_, HashMap<Box<str>, Census>> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error after shutdown, and outside a runtime: tiers and loaders need one.
    pub(crate) fn check_ready(&self) -> Result<()> {
        self.check_open()?;
        tokio::runtime::Handle::try_current()
            .map(drop)
            .map_err(|_| Error::no_runtime())
    }
}

impl fmt::Debug for Larder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Larder")
            .field("namespace", &self.shared.namespace)
            .field("tiers", &self.shared.tiers)
            .finish_non_exhaustive()
    }
}

impl Larder {
    /// Begins a larder. The namespace stands in front of every key in every tier, so that
    /// services can share a store: letters, digits, `_`, `-` and `.`, at most 64 of them.
    pub fn builder(namespace: impl Into<String>) -> LarderBuilder {
        LarderBuilder {
            namespace: namespace.into(),
            stores: Vec::new(),
            backplane: Hearing::Unsaid,
            clock: SystemClock::shared(),
            tier_budget: TIER_BUDGET,
            classes: Classes::default(),
            problem: None,
        }
    }

    /// A larder without tiers below memory, for caches of this process alone.
    ///
    /// ```
    /// use larder::{Cache, Larder};
    ///
    /// let rates: Cache<String, f64> = Larder::local().cache("rates").capacity(10_000).in_memory()?;
    /// rates.set_in_memory("EUR".to_owned(), 1.08)?;
    /// assert_eq!(rates.get_in_memory("EUR").as_deref(), Some(&1.08));
    /// # Ok::<_, larder::Error>(())
    /// ```
    pub fn local() -> Self {
        Self::builder("local").assemble(None)
    }

    /// Begins a cache. Its name stands in every key: letters, digits, `_`, `-` and `.`, at most
    /// 64 of them. A name belongs to one pair of types and one version.
    pub fn cache<K, V>(&self, name: impl Into<String>) -> CacheBuilder<K, V>
    where
        K: CacheKey,
        V: Send + Sync + 'static,
    {
        CacheBuilder {
            larder: self.clone(),
            name: name.into(),
            options: CacheOptions::default(),
            weigher: None,
            listener: None,
            fallback: None,
            groups: None,
            ttl_given: false,
            problem: None,
            types: PhantomData,
        }
    }

    /// The caches that were built, without their types, by name.
    pub fn caches(&self) -> Vec<Arc<dyn AnyCache>> {
        self.registry.all()
    }

    /// How the tiers below memory are, top to bottom.
    pub fn tiers(&self) -> Vec<TierStats> {
        self.shared
            .tiers
            .iter()
            .map(|tier| tier.snapshot())
            .collect()
    }

    /// How the bus to other processes is; `None` without one.
    pub fn bus(&self) -> Option<BusStats> {
        let shared = &self.shared;
        let bus = shared.bus.as_ref()?;
        Some(bus.stats(shared.clock.monotonic(), shared.courier.unsent_len()))
    }

    /// Invalidates every entry that carries `tag`, of whatever cache, in every tier and process, at
    /// the same cost whatever their number. No load that began before, whichever tags it will turn
    /// out to have, can be served or stored afterwards.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Loaded};
    ///
    /// let larder = Larder::builder("shop").build()?;
    /// let products: Cache<u64, String> = larder.cache("product").build()?;
    /// let espresso = Loaded::value("espresso".to_owned()).tags(["category:3"]);
    /// let _ = products.set(7, espresso).await?;
    ///
    /// let _ = larder.invalidate_tag("category:3").await?;
    /// assert!(products.get(&7).await?.is_none());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for what cannot be a tag, and
    /// [`Closed`](crate::ErrorKind::Closed). A tier or bus that cannot be reached is no error but a
    /// receipt that [is queued](Receipt::is_queued).
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Receipt> {
        name::check(tag).map_err(Error::config)?;
        self.shared.invalidate_tag(name::of_tag(tag)).await
    }

    /// Invalidates many things at once: one command for each tier, one message for all processes.
    ///
    /// The caches that are named need not be known in this process, so that a service without
    /// caches of its own, such as a change feed, can invalidate those of others.
    ///
    /// # Errors
    ///
    /// As for [`invalidate_tag`](Self::invalidate_tag), and for each of them as for the call that
    /// does it alone. Nothing is invalidated if one of them is wrong.
    pub async fn invalidate_each(
        &self,
        what: impl IntoIterator<Item = Invalidation>,
    ) -> Result<Receipt> {
        self.shared.check_open()?;
        let what: Vec<Invalidation> = what.into_iter().collect();
        let errands: Result<Vec<Errand>> =
            what.iter().map(|one| self.shared.errand_for(one)).collect();
        let errands = errands?;
        for errand in &errands {
            self.shared.apply_once_more(errand);
        }
        if self.shared.tiers.is_empty() && self.shared.bus.is_none() {
            return Ok(Receipt::ACKED);
        }
        let (apart, together): (Vec<_>, _) = errands
            .into_iter()
            .partition(|errand| matches!(errand, Errand::Pattern { .. }));
        let mut receipt = self.shared.send_all(together).await?;
        for errand in apart {
            receipt = receipt.with(self.shared.send_apart(errand, Watcher::default()).await?);
        }
        Ok(receipt)
    }

    /// Waits until no load, refresh or write runs in the background.
    ///
    /// For tests, and before a measurement. Under traffic it may never return.
    pub async fn settle(&self) {
        self.shared.tasks.settled().await;
    }

    /// Ends this larder: new calls fail as closed, work in the background gets `patience` to end,
    /// and stores are closed. What is in memory can still be read with `get_in_memory`.
    pub async fn shutdown(&self, patience: Duration) -> ShutdownReport {
        self.shared.closed.store(true, SeqCst);
        let tasks = &self.shared.tasks;
        let settled = within(&*self.shared.clock, patience, tasks.settled()).await;
        tasks.close();
        let abandoned = if settled.is_some() {
            0
        } else {
            tasks.count(TaskKind::Work)
        };
        tasks.abort();
        for tier in &self.shared.tiers {
            tier.shut(CLOSE_PATIENCE).await;
        }
        if let Some(bus) = &self.shared.bus {
            bus.shut(&self.shared, CLOSE_PATIENCE).await;
        }
        let owed: u64 = self.tiers().iter().map(|tier| tier.owed).sum();
        ShutdownReport {
            abandoned,
            owed: owed + self.shared.courier.unsent_len() as u64,
        }
    }
}

/// What was left undone at [`Larder::shutdown`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct ShutdownReport {
    /// Loads, refreshes and writes that did not end in time and were aborted.
    pub abandoned: usize,
    /// Invalidations that a tier or bus which is down never got. Other processes, and a restarted one, may
    /// read the old values from it until their TTL ends.
    pub owed: u64,
}

/// A [`Larder`] in the making.
#[derive(Debug)]
#[must_use]
pub struct LarderBuilder {
    namespace: String,
    stores: Vec<(Arc<dyn Store>, Sharing)>,
    backplane: Hearing,
    clock: Arc<dyn Clock>,
    tier_budget: Duration,
    classes: Classes,
    /// The first option that could not be understood.
    problem: Option<Error>,
}

/// How a larder hears of other processes.
#[derive(Debug)]
enum Hearing {
    /// By the bus that comes with the shared tier, if one does.
    Unsaid,
    By(Arc<dyn Backplane>),
    NotAtAll,
}

impl LarderBuilder {
    /// Adds a tier that this process alone writes to, such as a directory on disk.
    ///
    /// Tiers are asked in the order in which they were added, memory before all.
    pub fn tier(self, store: impl Store) -> Self {
        self.add(store, Sharing::Private)
    }

    /// Adds a tier that other processes write to as well, such as a Redis server.
    ///
    /// A store that comes with a bus, as Redis does, tells this process of what others change within
    /// milliseconds. Any other needs [`backplane`](Self::backplane) or
    /// [`without_backplane`](Self::without_backplane).
    pub fn shared(self, store: impl Store) -> Self {
        self.add(store, Sharing::Shared)
    }

    fn add(mut self, store: impl Store, sharing: Sharing) -> Self {
        self.stores.push((Arc::new(store), sharing));
        self
    }

    /// Hears of other processes by `backplane`, in place of the bus that comes with a shared tier.
    ///
    /// A larder without tiers below memory can have one, too: its caches are then dropped by what
    /// other processes invalidate and write.
    pub fn backplane(self, backplane: impl Backplane) -> Self {
        Self {
            backplane: Hearing::By(Arc::new(backplane)),
            ..self
        }
    }

    /// Does not hear of other processes: what they change is seen here when the memory TTL of the
    /// entry has passed, 60 s unless the cache says otherwise. Private tiers above a shared one keep
    /// their copies no longer than that.
    pub fn without_backplane(self) -> Self {
        Self {
            backplane: Hearing::NotAtAll,
            ..self
        }
    }

    /// Takes the time from `clock` instead of the machine.
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// How long all tiers together may delay one read or write. Default 100 ms.
    pub fn tier_budget(self, tier_budget: Duration) -> Self {
        Self {
            tier_budget,
            ..self
        }
    }

    /// Gives a name to a TTL, for [`CacheBuilder::class`] and [`Loaded::class`](crate::Loaded::class):
    /// how long data of one kind may be kept is then said in one place.
    ///
    /// There are `session` (1 d), `profile` (1 h), `catalogue` (5 min), `search` (1 min) and
    /// `realtime` (10 s), which can be given other TTLs. They are examples and no advice: how old an
    /// answer may be is for its users to say.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Loaded};
    ///
    /// let larder = Larder::builder("shop").ttl_class("search", "2m").ttl_class("offer", "30s").build()?;
    /// let sessions: Cache<u64, String> = larder.cache("session").class("session").build()?;
    /// let results: Cache<String, String> = larder.cache("result").class("search").build()?;
    /// let load = |_| async { Ok::<_, std::io::Error>(Loaded::value("tea".to_owned()).class("offer")) };
    /// results.get_or_load("te", load).await?; // for 30 s, the others for 2 min
    ///
    /// let unknown = larder.cache::<u64, String>("other").class("serach").build();
    /// assert!(unknown.unwrap_err().to_string().contains("search, session"));
    /// # Ok(()) }
    /// ```
    pub fn ttl_class(mut self, name: impl AsRef<str>, ttl: impl Span) -> Self {
        let name = name.as_ref();
        match ttl.into_duration() {
            Ok(ttl) => self.classes.define(name, ttl),
            Err(problem) => {
                let problem = Error::config(format!("TTL class `{name}`: {problem}"));
                self.problem.get_or_insert(problem);
            }
        }
        self
    }

    /// Builds the larder. Connects to nothing: a store that is down is no error.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a namespace that cannot stand in a key, for a budget
    /// of zero, and for a TTL that is none.
    pub fn build(mut self) -> Result<Larder> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        key::check_name("namespace", &self.namespace)?;
        if self.tier_budget.is_zero() {
            return Err(Error::config(
                "tier_budget is zero; no tier would ever be asked",
            ));
        }
        let bus = self.bus()?;
        Ok(self.assemble(bus))
    }

    /// The bus to use; an error if there is a shared tier and nothing was said about one.
    fn bus(&self) -> Result<Option<Arc<dyn Backplane>>> {
        let mut shared = self
            .stores
            .iter()
            .filter(|(_, sharing)| *sharing == Sharing::Shared)
            .map(|(store, _)| store);
        match &self.backplane {
            Hearing::By(bus) => return Ok(Some(Arc::clone(bus))),
            Hearing::NotAtAll => return Ok(None),
            Hearing::Unsaid => {}
        }
        let Some(first) = shared.next() else {
            return Ok(None);
        };
        let bus = std::iter::once(first)
            .chain(shared)
            .find_map(|store| store.backplane());
        bus.map(Some).ok_or_else(|| {
            let name = first.name();
            Error::config(format!(
                "the shared tier `{name}` comes without a bus, so this process would not hear of \
                 what others change; add .backplane(..), or say .without_backplane() and let the \
                 memory TTL bound how old an answer can be"
            ))
        })
    }

    fn assemble(self, bus: Option<Arc<dyn Backplane>>) -> Larder {
        let tasks = Arc::new(Tasks::default());
        let records = Records::new(&self.namespace);
        let is_shared = |(_, sharing): &(_, Sharing)| *sharing == Sharing::Shared;
        let epochs = match &bus {
            Some(_) => Epochs::on_a_bus(),
            None if self.stores.iter().any(is_shared) => Epochs::deaf(),
            None => Epochs::alone(),
        };
        let lowest = self.stores.len().saturating_sub(1);
        let tier = |(depth, (store, sharing))| {
            let counter = (depth == lowest).then(|| records.counter.clone());
            let namespace = records.namespace().clone();
            let (clock, tasks) = (Arc::clone(&self.clock), Arc::clone(&tasks));
            Arc::new(Tier::new(store, sharing, namespace, counter, clock, tasks))
        };
        let tier_is_bus = self.stores.len() == 1 && matches!(self.backplane, Hearing::Unsaid);
        let tiers = self.stores.into_iter().enumerate().map(tier).collect();
        let registry = Arc::<Registry>::default();
        let shared = Shared {
            tiers,
            records,
            tags: Tags::new(Arc::new(epochs)),
            bus: bus.map(|bus| Arc::new(Member::new(bus, &self.namespace))),
            tier_is_bus,
            namespace: self.namespace.into(),
            courier: Courier::default(),
            minimums: Minimums::default(),
            census: Mutex::default(),
            registry: Arc::downgrade(&registry),
            clock: self.clock,
            tasks,
            tier_budget: self.tier_budget,
            classes: self.classes,
            forgetting: Arc::default(),
            closed: AtomicBool::new(false),
        };
        Larder {
            shared: Arc::new(shared),
            registry,
            events: Arc::default(),
        }
    }
}

/// A [`Cache`] in the making. Options that are not set have the defaults of [`CacheOptions`].
#[must_use]
pub struct CacheBuilder<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    larder: Larder,
    name: String,
    options: CacheOptions,
    weigher: Option<Weigher<K, V>>,
    listener: Option<RemovalListener<K, V>>,
    fallback: Option<Fallback<K, V>>,
    groups: Option<Groups<K>>,
    /// Whether a TTL was named, be it the default one.
    ttl_given: bool,
    /// The first option that could not be understood.
    problem: Option<Error>,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("CacheBuilder");
        out.field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<K, V> CacheBuilder<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    /// Takes all options at once, for example from a configuration file.
    pub fn options(mut self, options: CacheOptions) -> Self {
        self.options = options;
        self.ttl_given = false;
        self
    }

    /// See [`CacheOptions::version`].
    pub fn version(mut self, version: u32) -> Self {
        self.options.version = version;
        self
    }

    /// See [`CacheOptions::ttl`].
    pub fn ttl(mut self, ttl: impl Span) -> Self {
        self.options.ttl = self.span("ttl", ttl);
        self.ttl_given = true;
        self
    }

    /// See [`CacheOptions::class`] and [`LarderBuilder::ttl_class`].
    pub fn class(mut self, name: impl Into<String>) -> Self {
        self.options.class = Some(name.into());
        self
    }

    /// Entries never expire. See [`CacheOptions::ttl`].
    pub fn no_ttl(mut self) -> Self {
        self.options.ttl = None;
        self.ttl_given = true;
        self
    }

    /// See [`CacheOptions::jitter`].
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// // Each entry lives 54 to 60 minutes.
    /// let menus: Cache<u64, String> =
    ///     Larder::local().cache("menu").ttl("1h").jitter(0.1).in_memory()?;
    /// # Ok(()) }
    /// ```
    pub fn jitter(mut self, share: f64) -> Self {
        self.options.jitter = share;
        self
    }

    /// See [`CacheOptions::jitter_up_to`].
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// // What is filled at once, at midnight say, is loaded again spread over half a minute.
    /// let menus: Cache<u64, String> =
    ///     Larder::local().cache("menu").ttl("1h").jitter_up_to("30s").in_memory()?;
    /// # Ok(()) }
    /// ```
    pub fn jitter_up_to(mut self, spread: impl Span) -> Self {
        self.options.jitter_up_to = self.span("jitter_up_to", spread).unwrap_or_default();
        self
    }

    /// Lets every read prolong an entry, up to a greatest age: the TTL is how long an entry lives
    /// without a read, `most` how old it may become however often it is read. Then it is loaded anew.
    ///
    /// A read prolongs an entry once a tenth of the TTL has passed since the last time. What a tier
    /// answers, or memory prolongs, is prolonged in the tiers as well, in the background, where they
    /// [can](crate::Store::touch); an entry that nobody reads is gone from memory and from the
    /// tiers when its TTL is over. Grace and stale-on-error begin behind the TTL in memory, and
    /// below it behind the greatest age. Jitter shortens the greatest age. Early refreshes go by it,
    /// too: whoever reads an entry keeps it from ending sooner. "There is no such value" does not slide.
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let carts: Cache<u64, String> =
    ///     Larder::builder("shop").build()?.cache("cart").ttl("30m").sliding("12h").build()?;
    ///
    /// let never = Larder::local().cache::<u64, String>("c").ttl("1h").sliding("10m").in_memory();
    /// assert!(never.unwrap_err().to_string().contains("make the ttl shorter"));
    /// # Ok(()) }
    /// ```
    pub fn sliding(mut self, most: impl Span) -> Self {
        self.options.sliding = self.span("sliding", most);
        self
    }

    /// Lets popular keys live longer: when an entry is filled, its TTL is between `least` and `most`, by
    /// how often its key was asked for of late. A key asked for the first time gets `least`; one that
    /// is asked for eight times or more within `most`, again and again, gets `most`.
    ///
    /// For sources where a change is rarer than a read, and where what is asked for once, by a crawler
    /// say, should not stay. A TTL that a load gives comes before it. Reads are counted in 64 KiB for
    /// each such cache, in each process by itself; the counts are halved whenever `most` has passed or
    /// more keys came than can be told apart.
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let pages: Cache<String, String> =
    ///     Larder::local().cache("page").ttl_by_frequency("1m", "1h").in_memory()?;
    ///
    /// let wrong = Larder::local().cache::<u64, u64>("c").ttl_by_frequency("1h", "1m").in_memory();
    /// assert!(wrong.unwrap_err().to_string().contains("give the shorter one first"));
    /// # Ok(()) }
    /// ```
    pub fn ttl_by_frequency(mut self, least: impl Span, most: impl Span) -> Self {
        let least = self.span("ttl_by_frequency", least);
        let most = self.span("ttl_by_frequency", most);
        self.options.ttl_by_frequency = least.zip(most).map(|(least, most)| least..=most);
        self
    }

    /// See [`CacheOptions::eager_refresh`].
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// // Whoever reads in the last two minutes of ten is served, and has the entry refreshed.
    /// let prices: Cache<u64, f64> =
    ///     Larder::local().cache("price").ttl("10m").eager_refresh(0.8).in_memory()?;
    /// assert!(Larder::local().cache::<u64, f64>("p").eager_refresh(1.5).in_memory().is_err());
    /// # Ok(()) }
    /// ```
    pub fn eager_refresh(mut self, share: f64) -> Self {
        self.options.eager_refresh = Some(share);
        self
    }

    /// See [`CacheOptions::xfetch`].
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let reports: Cache<u64, String> =
    ///     Larder::local().cache("report").ttl("10m").xfetch(1.0).in_memory()?;
    /// assert!(Larder::local().cache::<u64, String>("r").xfetch(-1.0).in_memory().is_err());
    /// # Ok(()) }
    /// ```
    pub fn xfetch(mut self, beta: f64) -> Self {
        self.options.xfetch = Some(beta);
        self
    }

    /// See [`CacheOptions::grace`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let larder = Larder::local();
    /// let menus: Cache<u64, u32> = larder.cache("menu").ttl("1h").grace("6h").in_memory()?;
    /// let _ = menus.set(7, 1).await?;
    /// let _ = menus.expire(&7).await?; // as if its hour were over
    /// let load = |_| async { Ok::<_, std::io::Error>(2) };
    /// assert_eq!(*menus.get_or_load(&7, load).await?, 1); // at once, and refreshed behind it
    /// larder.settle().await;
    /// assert_eq!(*menus.get_or_load(&7, load).await?, 2);
    /// # Ok(()) }
    /// ```
    pub fn grace(mut self, grace: impl Span) -> Self {
        self.options.grace = self.span("grace", grace).unwrap_or_default();
        self
    }

    /// See [`CacheOptions::stale_on_error`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder, Read, Reason};
    ///
    /// let rates: Cache<u64, f64> =
    ///     Larder::local().cache("rate").ttl("1m").stale_on_error("1d").in_memory()?;
    /// let _ = rates.set(7, 1.08).await?;
    /// let _ = rates.expire(&7).await?; // as if its minute were over
    /// let broken = |_| async { Err::<f64, _>(std::io::Error::other("no route")) };
    /// let answered = rates.with(Read::new()).get_or_load_explained(&7, broken).await?;
    /// assert_eq!((*answered.value, answered.outcome.reason), (1.08, Reason::LoadFailed));
    /// # Ok(()) }
    /// ```
    pub fn stale_on_error(mut self, at_most: impl Span) -> Self {
        self.options.stale_on_error = self.span("stale_on_error", at_most).unwrap_or_default();
        self
    }

    /// See [`CacheOptions::error_throttle`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let rates: Cache<u64, f64> = Larder::local()
    ///     .cache("rate")
    ///     .ttl("1m")
    ///     .stale_on_error("1d")
    ///     .error_throttle("30s")
    ///     .in_memory()?;
    /// let _ = rates.set(7, 1.08).await?;
    /// let _ = rates.expire(&7).await?; // as if its minute were over
    /// for _ in 0..1000 {
    ///     let broken = |_| async { Err::<f64, _>(std::io::Error::other("no route")) };
    ///     assert_eq!(*rates.get_or_load(&7, broken).await?, 1.08);
    /// }
    /// assert_eq!(rates.stats().loads, 1); // the source is left alone for half a minute
    /// # Ok(()) }
    /// ```
    pub fn error_throttle(mut self, pause: impl Span) -> Self {
        self.options.error_throttle = self.span("error_throttle", pause).unwrap_or_default();
        self
    }

    /// See [`CacheOptions::negative_ttl`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let users: Cache<u64, String> =
    ///     Larder::local().cache("user").ttl("1h").negative_ttl("30s").in_memory()?;
    /// for _ in 0..2 {
    ///     let nobody = |_| async { Ok::<_, std::io::Error>(None) };
    ///     assert_eq!(users.get_or_load(&7, nobody).await?, None);
    /// }
    /// assert_eq!(users.stats().loads, 1);
    /// let _ = users.set(7, "Ada".to_owned()).await?; // whoever inserts the row says so
    /// assert!(users.get(&7).await?.is_some());
    /// # Ok(()) }
    /// ```
    pub fn negative_ttl(mut self, ttl: impl Span) -> Self {
        self.options.negative_ttl = self.span("negative_ttl", ttl).unwrap_or_default();
        self
    }

    /// See [`CacheOptions::memory_ttl`].
    pub fn memory_ttl(mut self, ttl: impl Span) -> Self {
        self.options.memory_ttl = self.span("memory_ttl", ttl);
        self
    }

    /// See [`CacheOptions::capacity`].
    pub fn capacity(mut self, entries: u64) -> Self {
        self.options.capacity = Some(entries);
        self
    }

    /// See [`CacheOptions::capacity_bytes`].
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.options.capacity_bytes = Some(bytes);
        self
    }

    /// See [`CacheOptions::policy`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.options.policy = policy;
        self
    }

    /// Is told of every value that leaves memory, and why, after it has left, by whichever call made
    /// it leave. It should be quick; one that panics is as good as none.
    ///
    /// ```
    /// # fn main() -> larder::Result<()> {
    /// use std::sync::{Arc, Mutex};
    ///
    /// use larder::{Cache, Larder, RemovalCause};
    ///
    /// let left = Arc::new(Mutex::new(Vec::new()));
    /// let note = Arc::clone(&left);
    /// let rates: Cache<String, f64> = Larder::local()
    ///     .cache("rates")
    ///     .on_removal(move |key: &String, _rate, cause| note.lock().unwrap().push((key.clone(), cause)))
    ///     .in_memory()?;
    /// rates.set_in_memory("EUR".to_owned(), 1.08)?;
    /// rates.set_in_memory("EUR".to_owned(), 1.09)?;
    /// assert_eq!(*left.lock().unwrap(), [("EUR".to_owned(), RemovalCause::Replaced)]);
    /// # Ok(()) }
    /// ```
    pub fn on_removal(
        mut self,
        listener: impl Fn(&K, &Arc<V>, RemovalCause) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Says how many bytes of memory an entry takes. Default: the length of the encoded value and
    /// key, or, for caches that are not encoded, the size of the types without what they point to.
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// Says which groups a key belongs to. [`Cache::invalidate_group`] reaches all entries of a
    /// group at the same cost whatever their number. The groups of a key must not change.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let pages: Cache<(u64, u32), String> = Larder::builder("shop")
    ///     .build()?
    ///     .cache("page")
    ///     .groups(|(user, _page): &(u64, u32)| vec![format!("user:{user}")])
    ///     .build()?;
    /// let _ = pages.set((7, 1), "first".to_owned()).await?;
    /// let _ = pages.invalidate_group("user:7").await?;
    /// assert!(pages.get(&(7, 1)).await?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn groups(mut self, groups: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.groups = Some(Box::new(groups));
        self
    }

    /// See [`CacheOptions::isolation`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.options.isolation = isolation;
        self
    }

    /// See [`CacheOptions::load_deadline`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let cache: Cache<u64, u64> =
    ///     Larder::local().cache("slow").load_deadline("20ms").in_memory()?;
    /// let hangs = |_| std::future::pending::<std::io::Result<u64>>();
    /// assert!(cache.get_or_load(&7, hangs).await.unwrap_err().is_timeout());
    /// let load = |_| async { Ok::<_, std::io::Error>(49) };
    /// assert_eq!(*cache.get_or_load(&7, load).await?, 49); // the key is free
    /// # Ok(()) }
    /// ```
    pub fn load_deadline(mut self, deadline: impl Span) -> Self {
        self.options.load_deadline = self.span("load_deadline", deadline).unwrap_or_default();
        self
    }

    /// See [`CacheOptions::soft_deadline`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use std::time::Duration;
    ///
    /// use larder::{Cache, Larder, Loaded};
    ///
    /// let rates: Cache<String, f64> = Larder::local()
    ///     .cache("rate")
    ///     .stale_on_error("1h")
    ///     .soft_deadline("20ms")
    ///     .in_memory()?;
    /// let stale = Loaded::value(1.08).ttl("1ms");
    /// rates.set_in_memory("EUR".to_owned(), stale)?;
    /// tokio::time::sleep(Duration::from_millis(50)).await;
    /// let slow = |_| async {
    ///     tokio::time::sleep(Duration::from_secs(10)).await;
    ///     Ok::<_, std::io::Error>(1.09)
    /// };
    /// assert_eq!(*rates.get_or_load("EUR", slow).await?, 1.08); // the load goes on
    /// # Ok(()) }
    /// ```
    pub fn soft_deadline(mut self, patience: impl Span) -> Self {
        self.options.soft_deadline = self.span("soft_deadline", patience);
        self
    }

    /// What callers are given where a load fails and no stale entry may stand in: the first time a
    /// value is asked for, say. It is stored nowhere, and so is what is made from it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    ///
    /// let flags: Cache<String, bool> =
    ///     Larder::local().cache("flag").default_on_error(|_flag| false).in_memory()?;
    /// let load = |_| async { Err::<bool, _>(std::io::Error::other("no route")) };
    /// assert!(!*flags.get_or_load("beta", load).await?);
    /// # Ok(()) }
    /// ```
    pub fn default_on_error(mut self, default: impl Fn(&K) -> V + Send + Sync + 'static) -> Self {
        self.fallback = Some(Box::new(default));
        self
    }

    /// See [`CacheOptions::load_concurrency`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, ErrorKind, Larder};
    ///
    /// let cache: Cache<u64, u64> =
    ///     Larder::local().cache("report").load_concurrency(1).load_queue(0).in_memory()?;
    /// let slow = |_| async {
    ///     tokio::task::yield_now().await;
    ///     Ok::<_, std::io::Error>(7)
    /// };
    /// let (first, second) = tokio::join!(cache.get_or_load(&1, slow), cache.get_or_load(&2, slow));
    /// assert_eq!(*first?, 7);
    /// assert_eq!(second.unwrap_err().kind(), ErrorKind::Overloaded);
    /// # Ok(()) }
    /// ```
    pub fn load_concurrency(mut self, loads: usize) -> Self {
        self.options.load_concurrency = loads;
        self
    }

    /// See [`CacheOptions::load_queue`].
    pub fn load_queue(mut self, loads: usize) -> Self {
        self.options.load_queue = loads;
        self
    }

    /// See [`CacheOptions::lease`].
    pub fn lease(mut self, lease: impl Span) -> Self {
        self.options.lease = self.span("lease", lease);
        self
    }

    /// See [`CacheOptions::lease_wait`].
    pub fn lease_wait(mut self, wait: impl Span) -> Self {
        self.options.lease_wait = self.span("lease_wait", wait).unwrap_or_default();
        self
    }

    /// See [`CacheOptions::codec`].
    pub fn codec(mut self, codec: Codec) -> Self {
        self.options.codec = codec;
        self
    }

    /// See [`CacheOptions::compress_over`].
    pub fn compress_over(mut self, bytes: usize) -> Self {
        self.options.compress_over = bytes;
        self
    }

    /// Builds a cache over memory and every tier of its larder.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for an option that makes no sense, and for a name
    /// that is taken by a cache of other types, another version or other options.
    pub fn build(self) -> Result<Cache<K, V>>
    where
        V: Serialize + DeserializeOwned,
    {
        let codec = ValueCodec::new(self.options.codec);
        self.build_with(Some(codec))
    }

    /// Builds a cache in memory alone: values need not be serialisable, and tiers of its larder
    /// are not used. Without a bound it holds 10,000 entries.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    pub fn in_memory(mut self) -> Result<Cache<K, V>> {
        if self.options.capacity.is_none() && self.options.capacity_bytes.is_none() {
            self.options.capacity = Some(10_000);
        }
        self.build_with(None)
    }

    fn build_with(self, codec: Option<ValueCodec<V>>) -> Result<Cache<K, V>> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        key::check_name("cache name", &self.name)?;
        let classes = &self.larder.shared.classes;
        let options = classes.apply(self.options, self.ttl_given);
        let options = options.map_err(|problem| {
            Error::config(format!("cache `{name}`: {problem}", name = self.name))
        })?;
        let rules = options.check()?;
        let bound = match options.memory_capacity()? {
            Capacity::Entries(entries) => Bound::Entries(entries),
            Capacity::Bytes(bytes) => Bound::Bytes(bytes),
        };
        let shared = Arc::clone(&self.larder.shared);
        let cache = Arc::<str>::from(self.name);
        let (home, tiers) = match &codec {
            Some(_) => (Home::AboveTiers, shared.tiers.clone()),
            None => (Home::MemoryAlone, Box::default()),
        };
        let below_is_shared = tiers.iter().any(|tier| tier.sharing() == Sharing::Shared);
        let memory_ttl = if below_is_shared {
            MEMORY_TTL_ABOVE_SHARED
        } else {
            LONGEST
        };
        let make = || Inner {
            version: options.version,
            prefix: shared.entry_key(&cache, options.version, b""),
            name: Arc::clone(&cache),
            memory_ttl: rules.memory_ttl.unwrap_or(memory_ttl),
            memory: Memory::new(bound, options.policy)
                .with_listener(self.listener.map(cache::quietly)),
            fence: Fence::new(
                Arc::clone(&shared.tags.epochs),
                shared.tags.tag(&name::of_cache(&cache)),
            ),
            loads: std::array::from_fn(|_| Arc::new(Flights::new())),
            peeks: Arc::new(Flights::new()),
            unheard: std::array::from_fn(|_| Arc::new(Flights::new())),
            overlay: Overlay::empty(),
            tiers,
            codec,
            weigher: self.weigher,
            fallback: self.fallback,
            groups: self.groups,
            enlist_at: AtomicU64::new(0),
            watchers: Watchers::default(),
            touches: Arc::default(),
            frequency: rules
                .ttl_by_frequency
                .clone()
                .map(|ttls| Frequency::new(ttls, shared.clock.monotonic())),
            turns: Turns::new(options.load_concurrency, options.load_queue),
            counters: Counters::new(),
            shared: Arc::clone(&shared),
            rules,
        };
        self.larder.registry.register(&cache, home, &options, make)
    }

    fn span(&mut self, option: &str, span: impl Span) -> Option<Duration> {
        let parsed = span.into_duration();
        parsed
            .map_err(|problem| {
                let name = &self.name;
                self.problem.get_or_insert(Error::config(format!(
                    "cache `{name}`: {option}: {problem}"
                )));
            })
            .ok()
    }
}
