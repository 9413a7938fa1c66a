//! The caches of one larder by name, without their types.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cache::{Cache, Inner};
use crate::error::{Error, Result};
use crate::fence::Standing;
use crate::invalidation::Why;
use crate::key::{self, CacheKey};
use crate::memory::Walk;
use crate::options::CacheOptions;
use crate::stats::{CacheStats, Count};
use crate::write;

/// A cache whose types are not known here: for tools, and for messages that name a key.
///
/// Keys are given in their encoded form, without namespace and cache name (`17`, `a%3Ab:7`).
pub trait AnyCache: Send + Sync + fmt::Debug + sealed::Sealed {
    /// The name of the cache.
    fn name(&self) -> &str;

    /// Its schema version.
    fn version(&self) -> u32;

    /// What it did so far.
    fn stats(&self) -> CacheStats;

    /// Removes a key from this process's memory. A key that does not decode removes everything,
    /// because it may stand for any entry; `false` says that this was so.
    fn forget(&self, encoded_key: &[u8]) -> bool;

    /// Removes everything from this process's memory.
    fn forget_all(&self);

    /// What an invalidation of a key does to this process's memory.
    #[doc(hidden)]
    fn hear(&self, encoded_key: &[u8], what: Heard) -> bool;

    /// Removes from this process's memory what `condemned` picks by its encoded key, and returns
    /// how many entries that were.
    fn forget_matching(&self, condemned: &dyn Fn(&[u8]) -> bool) -> u64;

    /// Where its values live.
    #[doc(hidden)]
    fn lives(&self) -> Lives;

    /// Counts an invalidation that another process told of.
    #[doc(hidden)]
    fn count_heard(&self);

    /// What memory holds under a key, without counting as a read; `None` if it holds nothing or
    /// the key does not decode.
    fn inspect(&self, encoded_key: &[u8]) -> Option<Inspected>;

    /// The encoded keys of up to `at_most` entries in memory, in no order.
    fn keys(&self, at_most: usize) -> Vec<Bytes>;
}

/// What memory holds under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspected {
    /// Whether the entry says "there is no such value".
    pub absent: bool,
    /// How long ago the value was filled.
    pub age: Duration,
    /// How long it stays fresh; zero if it is stale.
    pub remaining: Duration,
    /// How long the load took that filled it.
    pub load_time: Duration,
    /// The version that the loader gave.
    pub version: Option<u64>,
    /// The tags that the loader gave.
    pub tags: Vec<String>,
    /// Whether it has to be looked up in the tiers before it is served, because another process
    /// may have invalidated it unheard.
    pub suspect: bool,
}

/// What became of a key; for the engine alone.
#[derive(Clone, Copy, Debug)]
pub struct Heard(pub(crate) Why);

/// Where values live; for the engine alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives(pub(crate) Home);

mod sealed {
    pub trait Sealed {}
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> sealed::Sealed for Inner<K, V> {}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> fmt::Debug for Inner<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K, V> AnyCache for Inner<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn stats(&self) -> CacheStats {
        Inner::stats(self)
    }

    fn forget(&self, encoded_key: &[u8]) -> bool {
        self.hear(encoded_key, Heard(Why::Invalidated))
    }

    fn hear(&self, encoded_key: &[u8], Heard(why): Heard) -> bool {
        let key = K::decode(encoded_key);
        match &key {
            Some(key) => self.forget_key(key, encoded_key, why),
            None => write::clear_memory(self),
        }
        key.is_some()
    }

    fn forget_matching(&self, condemned: &dyn Fn(&[u8]) -> bool) -> u64 {
        Inner::forget_matching(self, condemned)
    }

    fn lives(&self) -> Lives {
        Lives(self.home())
    }

    fn count_heard(&self) {
        self.count(Count::Heard, 1);
    }

    fn forget_all(&self) {
        write::clear_memory(self);
    }

    fn inspect(&self, encoded_key: &[u8]) -> Option<Inspected> {
        let key = K::decode(encoded_key)?;
        let now = self.clock().monotonic();
        let inspected = self.memory.get(self.memory.hash(&key), &key, now, |held| {
            let standing = self.fence.standing(held, now);
            (standing != Standing::Gone).then(|| Inspected {
                absent: held.value.is_none(),
                age: held.lived().age(now),
                remaining: held.times.remaining(now),
                load_time: Duration::from_millis(held.load_ms.into()),
                version: held.details.as_ref().and_then(|details| details.version),
                tags: held
                    .tags()
                    .iter()
                    .filter_map(|tag| tag.given_name().map(str::to_owned))
                    .collect(),
                suspect: standing == Standing::Suspect,
            })
        });
        inspected.flatten()
    }

    fn keys(&self, at_most: usize) -> Vec<Bytes> {
        let (mut keys, mut walk) = (Vec::new(), Walk::default());
        let mut goes_on = true;
        while goes_on && keys.len() < at_most {
            goes_on = self
                .memory
                .walk(&mut walk, |seen| keys.extend(key::encode(b"", seen.key)));
        }
        keys.truncate(at_most);
        keys
    }
}

/// The caches of one larder.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    caches: Mutex<BTreeMap<Arc<str>, Registered>>,
}

/// Where the values of a cache live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Home {
    MemoryAlone,
    AboveTiers,
}

#[derive(Debug)]
struct Registered {
    home: Home,
    types: (TypeId, TypeId),
    type_names: (&'static str, &'static str),
    options: CacheOptions,
    cache: Arc<dyn AnyCache>,
    typed: Box<dyn Any + Send + Sync>,
}

impl Registry {
    /// Registers what `make` makes under `name`. A cache that was built before in the same way is
    /// returned again; one that was built in another way is an error.
    pub(crate) fn register<K, V>(
        self: &Arc<Self>,
        name: &Arc<str>,
        home: Home,
        options: &CacheOptions,
        make: impl FnOnce() -> Inner<K, V>,
    ) -> Result<Cache<K, V>>
    where
        K: CacheKey,
        V: Send + Sync + 'static,
    {
        let mut caches = self.lock();
        if let Some(known) = caches.get(name) {
            let inner = known.again(name, home, options)?;
            return Ok(Cache::from_parts(inner, Arc::clone(self)));
        }
        let inner = Arc::new(make());
        let registered = Registered {
            home,
            types: (TypeId::of::<K>(), TypeId::of::<V>()),
            type_names: (std::any::type_name::<K>(), std::any::type_name::<V>()),
            options: options.clone(),
            cache: Arc::<Inner<K, V>>::clone(&inner),
            typed: Box::new(Arc::clone(&inner)),
        };
        caches.insert(Arc::clone(name), registered);
        Ok(Cache::from_parts(inner, Arc::clone(self)))
    }

    /// The cache of this name.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<dyn AnyCache>> {
        self.lock()
            .get(name)
            .map(|registered| Arc::clone(&registered.cache))
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn AnyCache>> {
        self.lock()
            .values()
            .map(|registered| Arc::clone(&registered.cache))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, Registered>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    fn again<K, V>(
        &self,
        name: &str,
        home: Home,
        options: &CacheOptions,
    ) -> Result<Arc<Inner<K, V>>>
    where
        K: CacheKey,
        V: Send + Sync + 'static,
    {
        let (key, value) = self.type_names;
        if self.types != (TypeId::of::<K>(), TypeId::of::<V>()) {
            return Err(Error::config(format!(
                "cache `{name}` exists with keys of type {key} and values of type {value}; give \
                 the other one a name of its own"
            )));
        }
        if self.options.version != options.version {
            let (known, wanted) = (self.options.version, options.version);
            return Err(Error::config(format!(
                "cache `{name}` exists with version {known}; it cannot have version {wanted} too"
            )));
        }
        if self.home != home {
            return Err(Error::config(format!(
                "cache `{name}` exists; it cannot be in memory alone and above tiers at once"
            )));
        }
        let same = self
            .typed
            .downcast_ref::<Arc<Inner<K, V>>>()
            .filter(|_| self.options == *options);
        same.cloned().ok_or_else(|| {
            Error::config(format!(
                "cache `{name}` exists with other options; build it in one place"
            ))
        })
    }
}
