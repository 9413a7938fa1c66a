//! What functions that are [`#[cached]`](macro@crate::cached) are made of: their keys, the caches
//! that some of them own, and how their results and errors travel.
//!
//! The macro writes calls of this module and as little else as it can. Where the compiler has to
//! choose by what a type can do, two traits have a method of one name, and method lookup takes the
//! first whose bounds hold; the last one always holds, and its own bound has a message for people.

#![allow(missing_docs, reason = "only the macro sees them, but for `CallKey`")]

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::answer::Loaded;
use crate::cache::Cache;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::invalidation::Why;
use crate::key::{self, CacheKey, Key, KeySink};
use crate::larder::Larder;
use crate::read;
use crate::tags::{MAX_TAG_BYTES, MAX_TAGS, name};

/// The key under which a call of a [`#[cached]`](macro@crate::cached) function is kept: parts in
/// their encoded form, divided by colons.
///
/// The macro makes these by itself. By hand they are for reading or writing the same entries:
///
/// ```
/// use larder::{Cache, CallKey, Larder};
///
/// let users: Cache<CallKey, String> = Larder::builder("shop").build()?.cache("users").build()?;
/// // What a function with `key = "user:{id}"` keeps for `id = 7`.
/// let key = CallKey::new(["user", "7"]);
/// assert_eq!(key.to_string(), "user:7");
/// assert_eq!(users.get_in_memory(&key), None);
/// # Ok::<_, larder::Error>(())
/// ```
///
/// How many parts it has depends on the function, so it cannot be a part of a tuple.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CallKey(Vec<u8>);

impl CallKey {
    /// The key of these parts, each of which may hold any bytes.
    pub fn new<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> Self {
        let mut sink = KeySink::behind(b"");
        for part in parts {
            sink.part(part.as_ref());
        }
        Self(sink.into_vec())
    }
}

impl Key for CallKey {
    fn encode(&self, sink: &mut KeySink) {
        sink.raw(&self.0);
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        key::check(encoded).ok()?;
        Some(Self(encoded.to_vec()))
    }
}

impl fmt::Display for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Encoded keys are ASCII.
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallKey({self})")
    }
}

/// A [`CallKey`] in the making.
#[derive(Debug)]
pub struct KeyMaker {
    sink: KeySink,
    has_parts: bool,
}

impl Default for KeyMaker {
    fn default() -> Self {
        Self {
            sink: KeySink::behind(b""),
            has_parts: false,
        }
    }
}

impl KeyMaker {
    /// A key that begins with the path of a function, the types that it is generic over included:
    /// also those of the `impl` block, which a macro on a method cannot see. `inside` is a closure in
    /// a function `hidden` that stands beside the function `shown`.
    pub fn of_function<T>(_inside: &T, hidden: &str, shown: &str) -> Self {
        let path = std::any::type_name::<T>();
        let path = path.strip_suffix("::{{closure}}").unwrap_or(path);
        let (front, rest) = path.rsplit_once(hidden).unwrap_or((path, ""));
        let mut maker = Self::default().part();
        for text in [front, shown, rest] {
            // No name has a dot, so this is as unambiguous as the path, and needs no escapes.
            for (at, step) in text.split("::").enumerate() {
                maker = maker.text(if at == 0 { "" } else { "." }).text(step);
            }
        }
        maker
    }

    /// Begins a part.
    pub fn part(mut self) -> Self {
        if self.has_parts {
            self.sink.raw(b":");
        }
        self.has_parts = true;
        self
    }

    /// Adds text to the part.
    pub fn text(mut self, text: &str) -> Self {
        self.sink.escaped(text.as_bytes());
        self
    }

    /// Adds a value to the part. If its encoding has parts of its own, the last one goes on.
    pub fn field<K: Key + ?Sized>(mut self, value: &K) -> Self {
        self.sink.go_on_with(value);
        self
    }

    /// Adds the name of a type to the part.
    pub fn type_name<T: ?Sized>(self) -> Self {
        self.text(std::any::type_name::<T>())
    }

    /// The key.
    pub fn done(self) -> CallKey {
        CallKey(self.sink.into_vec())
    }
}

/// What `cache = ..` may name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cache",
    label = "a function that is `#[cached]` cannot keep anything here",
    note = "`cache = ..` takes a `larder::Cache`, or a reference, an `Arc` or a `LazyLock` of one"
)]
pub trait CacheOf {
    type Key: Send + Sync + 'static;
    type Value: Send + Sync + 'static;

    fn cache(&self) -> &Cache<Self::Key, Self::Value>;
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> CacheOf for Cache<K, V> {
    type Key = K;
    type Value = V;

    fn cache(&self) -> &Cache<K, V> {
        self
    }
}

macro_rules! caches_behind {
    ($($pointer:ty),+) => {$(
        impl<C: CacheOf> CacheOf for $pointer {
            type Key = C::Key;
            type Value = C::Value;

            fn cache(&self) -> &Cache<C::Key, C::Value> {
                C::cache(self)
            }
        }
    )+};
}

caches_behind!(&C, Arc<C>, LazyLock<C>);

/// The caches in memory that a function owns which names none: one, or one for each type of value
/// if it is generic.
#[derive(Debug)]
pub struct Own {
    plan: Plan,
    first: OnceLock<Owned>,
    more: Mutex<Option<HashMap<TypeId, &'static Owned>>>,
}

/// How the caches of an [`Own`] are built.
#[derive(Debug)]
pub struct Plan {
    pub name: &'static str,
    pub version: u32,
    pub max_entries: Option<u64>,
}

/// A cache of any type, which holds its larder.
struct Owned {
    values: TypeId,
    cache: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").finish_non_exhaustive()
    }
}

impl Own {
    pub const fn new(plan: Plan) -> Self {
        Self {
            plan,
            first: OnceLock::new(),
            more: Mutex::new(None),
        }
    }

    /// The cache for values of type `V`.
    pub fn cache<V: Send + Sync + 'static>(&'static self) -> &'static Cache<CallKey, V> {
        let first = self.first.get_or_init(|| self.plan.owned::<V>());
        let owned = if first.values == TypeId::of::<V>() {
            first
        } else {
            self.another::<V>()
        };
        match owned.cache.downcast_ref() {
            Some(cache) => cache,
            None => unreachable!("a cache is kept under the type of its values"),
        }
    }

    fn another<V: Send + Sync + 'static>(&'static self) -> &'static Owned {
        let mut more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        let more = more.get_or_insert_default();
        // As many as the program has types for this function, for as long as it runs.
        let kept = || -> &'static Owned { Box::leak(Box::new(self.plan.owned::<V>())) };
        more.entry(TypeId::of::<V>()).or_insert_with(kept)
    }
}

impl Plan {
    fn owned<V: Send + Sync + 'static>(&self) -> Owned {
        let builder = Larder::local().cache::<CallKey, V>(self.name);
        let builder = builder.version(self.version);
        let built = match self.max_entries {
            Some(entries) => builder.capacity(entries).in_memory(),
            None => builder.in_memory(),
        };
        let cache = match built {
            Ok(cache) => cache,
            Err(error) => unreachable!("the macro lets no such plan through: {error}"),
        };
        Owned {
            values: TypeId::of::<V>(),
            cache: Box::new(cache),
        }
    }
}

/// How what a call returned is kept; what is not said here is up to the cache.
#[derive(Debug, Default)]
pub struct Keeping {
    pub ttl: Option<Duration>,
    pub grace: Option<Duration>,
    pub negative: Option<Duration>,
    pub tags: Vec<String>,
}

impl Keeping {
    fn loaded<V>(self, value: Option<Arc<V>>) -> Loaded<V> {
        let fits = |tag: &String| (1..=MAX_TAG_BYTES).contains(&tag.len());
        if self.tags.len() > MAX_TAGS || !self.tags.iter().all(fits) {
            // What cannot be labelled could not be invalidated by its label either.
            return value.map_or_else(
                || Loaded::absent().ttl(Duration::ZERO),
                |value| Loaded::no_store(value),
            );
        }
        let ttl = if value.is_some() {
            self.ttl
        } else {
            self.negative
        };
        let mut loaded = value.map_or_else(Loaded::absent, |value| Loaded::value(value));
        if let Some(ttl) = ttl {
            loaded = loaded.ttl(ttl);
        }
        if let Some(grace) = self.grace {
            loaded = loaded.grace(grace);
        }
        loaded.tags(self.tags)
    }
}

/// How what a function returns becomes an entry with a value of type `V`, and back.
pub trait Shape<V> {
    type Given: Send + 'static;

    /// What to keep.
    fn keep(given: Self::Given) -> Option<Arc<V>>;

    /// What to keep, and what the caller gets.
    fn split(given: Self::Given) -> (Option<Arc<V>>, Self::Given);

    /// What the caller gets for an entry; `None` if this function has no word for it.
    fn give(value: Option<Arc<V>>) -> Option<Self::Given>;
}

/// The value itself.
#[derive(Debug)]
pub struct ByValue;

/// A pointer to the value.
#[derive(Debug)]
pub struct ByArc;

/// Either of them, or nothing.
#[derive(Debug)]
pub struct Optional<S>(PhantomData<S>);

impl<V: Clone + Send + Sync + 'static> Shape<V> for ByValue {
    type Given = V;

    fn keep(given: V) -> Option<Arc<V>> {
        Some(Arc::new(given))
    }

    fn split(given: V) -> (Option<Arc<V>>, V) {
        (Some(Arc::new(given.clone())), given)
    }

    fn give(value: Option<Arc<V>>) -> Option<V> {
        value.map(Arc::unwrap_or_clone)
    }
}

impl<V: Send + Sync + 'static> Shape<V> for ByArc {
    type Given = Arc<V>;

    fn keep(given: Arc<V>) -> Option<Arc<V>> {
        Some(given)
    }

    fn split(given: Arc<V>) -> (Option<Arc<V>>, Arc<V>) {
        (Some(Arc::clone(&given)), given)
    }

    fn give(value: Option<Arc<V>>) -> Option<Arc<V>> {
        value
    }
}

impl<V, S: Shape<V>> Shape<V> for Optional<S> {
    type Given = Option<S::Given>;

    fn keep(given: Option<S::Given>) -> Option<Arc<V>> {
        given.and_then(S::keep)
    }

    fn split(given: Option<S::Given>) -> (Option<Arc<V>>, Option<S::Given>) {
        match given.map(S::split) {
            Some((value, given)) => (value, Some(given)),
            None => (None, None),
        }
    }

    fn give(value: Option<Arc<V>>) -> Option<Option<S::Given>> {
        match value {
            Some(value) => S::give(Some(value)).map(Some),
            None => Some(None),
        }
    }
}

/// The work of a load in a box. Functions that call one another would otherwise have loads within loads,
/// each a multiple of the one inside of it, until no stack has room for the outermost.
fn boxed<Fut>((keeping, work): (Keeping, Fut)) -> (Keeping, Pin<Box<Fut>>) {
    (keeping, Box::pin(work))
}

/// A call of an async function that cannot fail. `None` if the cache has no answer, and the function
/// is to be run without it.
pub async fn call<S, K, V, F, Fut>(cache: &Cache<K, V>, key: K, load: F) -> Option<S::Given>
where
    S: Shape<V>,
    K: CacheKey,
    V: Send + Sync + 'static,
    F: FnOnce() -> (Keeping, Fut),
    Fut: Future<Output = S::Given> + Send + 'static,
{
    let load = |_| {
        let (keeping, work) = boxed(load());
        async move { Ok::<_, BoxError>(keeping.loaded(S::keep(work.await))) }
    };
    S::give(cache.get_or_load(&key, load).await.ok()?)
}

/// A call of an async function that can fail, in the way of its error.
pub async fn try_call<S, W, K, V, E, F, Fut>(
    cache: &Cache<K, V>,
    key: K,
    _way: W,
    load: F,
) -> Option<Result<S::Given, E>>
where
    S: Shape<V>,
    W: Way<E>,
    K: CacheKey,
    V: Send + Sync + 'static,
    F: FnOnce() -> (Keeping, Fut),
    Fut: Future<Output = Result<S::Given, E>> + Send + 'static,
{
    let load = |_| {
        let (keeping, work) = boxed(load());
        async move {
            let given = work.await.map_err(W::raise)?;
            Ok::<_, BoxError>(keeping.loaded(S::keep(given)))
        }
    };
    match cache.get_or_load(&key, load).await {
        Ok(value) => S::give(value).map(Ok),
        Err(error) => W::settle(error).map(Err),
    }
}

/// A call of a function that is not async.
pub fn call_now<S, K, V, E>(
    cache: &Cache<K, V>,
    key: &K,
    load: impl FnOnce() -> (Keeping, Result<S::Given, E>),
) -> Result<S::Given, E>
where
    S: Shape<V>,
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let load = || {
        let (keeping, given) = load();
        let (value, given) = S::split(given?);
        Ok((keeping.loaded(value), given))
    };
    read::load_in_memory(cache.inner(), key, S::give, load)
}

/// A key as the cache wants it.
pub fn key_for<K, V>(_cache: &Cache<K, V>, key: impl Into<K>) -> K
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    key.into()
}

/// Removes an entry from memory, with what was made from it.
pub fn forget<K: CacheKey, V: Send + Sync + 'static>(cache: &Cache<K, V>, key: &K) {
    if let Ok(logical) = key::encode(b"", key) {
        cache.inner().forget_key(key, &logical, Why::Invalidated);
    }
}

/// Invalidates a tag in the larder of a cache.
pub async fn invalidate_tag<K, V>(cache: &Cache<K, V>, tag: &str) -> Result<crate::Receipt>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    name::check(tag).map_err(Error::config)?;
    let shared = &cache.inner().shared;
    shared.invalidate_tag(name::of_tag(tag)).await
}

/// Invalidates a tag in this process's memory alone.
pub fn forget_tag<K, V>(cache: &Cache<K, V>, tag: &str)
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    cache.inner().shared.tags.invalidate(&name::of_tag(tag));
}

/// What a [`Result`] is made of, under whatever name it is returned.
pub trait Fallible {
    type Value;
    type Error;
}

impl<T, E> Fallible for Result<T, E> {
    type Value = T;
    type Error = E;
}

/// Something that a load takes along: it may outlive the call that began it.
#[derive(Debug)]
pub struct Carry<'a, T: ?Sized>(pub &'a T);

pub trait CarryByClone {
    type Owned;
    fn carry(&self) -> Self::Owned;
}

impl<T: ToOwned + ?Sized> CarryByClone for Carry<'_, T> {
    type Owned = T::Owned;

    fn carry(&self) -> T::Owned {
        self.0.to_owned()
    }
}

pub trait CannotCarry<T> {
    fn carry(&self) -> T
    where
        T: CarriedIntoLoad;
}

impl<T> CannotCarry<T> for &Carry<'_, T> {
    fn carry(&self) -> T
    where
        T: CarriedIntoLoad,
    {
        unreachable!("nothing is `CarriedIntoLoad`")
    }
}

/// Nothing is this; its message is for what is not `Clone`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be carried into a load: it is not `Clone`",
    label = "the load may outlive the call that began it, so it takes a clone along",
    note = "derive `Clone` for `{Self}` if its clones are cheap handles, or take it as an `Arc`"
)]
pub trait CarriedIntoLoad {}

/// A value that is returned to every caller.
#[derive(Debug)]
pub struct Return<T>(pub PhantomData<fn() -> T>);

pub trait ReturnByClone {
    fn check(&self) {}
}

impl<T: Clone> ReturnByClone for Return<T> {}

pub trait CannotReturn<T> {
    fn check(&self)
    where
        T: ReturnedToEveryCaller,
    {
    }
}

impl<T> CannotReturn<T> for &Return<T> {}

/// Nothing is this; its message is for what is not `Clone`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be returned from a cache: it is not `Clone`",
    label = "every caller gets a clone of the value",
    note = "derive `Clone` for `{Self}`, or return `Arc<{Self}>`, of which clones are free"
)]
pub trait ReturnedToEveryCaller {}

/// What a function returns that seems not to be a [`Result`].
#[derive(Debug)]
pub struct Plain<T>(pub PhantomData<fn() -> T>);

pub trait IsPlain {
    fn check(&self) {}
}

impl<T> IsPlain for &Plain<T> {}

pub trait HidesErrors<R> {
    fn check(&self)
    where
        R: SaysThatItCanFail,
    {
    }
}

impl<T, E> HidesErrors<Result<T, E>> for Plain<Result<T, E>> {}

/// Nothing is this; its message is for a [`Result`] of another name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is returned under another name, and its errors would be cached",
    label = "`#[cached]` sees names alone, and does not know that this is a `Result`",
    note = "write it as a path that ends in `Result`: `Result<T, E>`, or an alias of that name"
)]
pub trait SaysThatItCanFail {}

/// How the error of a function reaches all callers that waited for one load.
pub trait Way<E> {
    /// The error as a load returns it.
    fn raise(error: E) -> BoxError;

    /// What the caller gets; `None` if the function is to be run without the cache.
    fn settle(error: Error) -> Option<E>;
}

/// An error on its way through the cache.
struct Carried<E>(E);

impl<E> fmt::Debug for Carried<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<E> fmt::Display for Carried<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the function returned a {}", std::any::type_name::<E>())
    }
}

impl<E> StdError for Carried<E> {}

/// The error that the function itself returned, cloned.
fn own_error<E: Clone + Send + Sync + 'static>(error: &Error) -> Option<E> {
    let source = StdError::source(error)?;
    source.downcast_ref::<Carried<E>>().map(|own| own.0.clone())
}

/// Whether a failure is the cache's own, and says nothing about the function.
fn is_of_the_cache(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Key | ErrorKind::Config | ErrorKind::Closed
    )
}

/// Everybody gets a clone; what the load comes to otherwise is converted.
#[derive(Debug)]
pub struct CloneOrConvert;

impl<E> Way<E> for CloneOrConvert
where
    E: Clone + From<Error> + Send + Sync + 'static,
{
    fn raise(error: E) -> BoxError {
        Box::new(Carried(error))
    }

    fn settle(error: Error) -> Option<E> {
        own_error(&error).or_else(|| Convert::converted(error))
    }
}

/// Everybody gets a clone.
#[derive(Debug)]
pub struct CloneAlone;

impl<E: Clone + Send + Sync + 'static> Way<E> for CloneAlone {
    fn raise(error: E) -> BoxError {
        Box::new(Carried(error))
    }

    fn settle(error: Error) -> Option<E> {
        own_error(&error)
    }
}

/// Everybody gets the error of the cache, converted; what the function returned is its source.
#[derive(Debug)]
pub struct Convert;

impl Convert {
    fn converted<E: From<Error>>(error: Error) -> Option<E> {
        (!is_of_the_cache(&error)).then(|| E::from(error))
    }
}

impl<E: From<Error> + Into<BoxError>> Way<E> for Convert {
    fn raise(error: E) -> BoxError {
        error.into()
    }

    fn settle(error: Error) -> Option<E> {
        Self::converted(error)
    }
}

/// The error type of a function, which has a way or not.
#[derive(Debug)]
pub struct Failure<E>(pub PhantomData<fn() -> E>);

pub trait FailsByBoth {
    fn way(&self) -> CloneOrConvert {
        CloneOrConvert
    }
}

impl<E: Clone + From<Error> + Send + Sync + 'static> FailsByBoth for &&Failure<E> {}

pub trait FailsByClone {
    fn way(&self) -> CloneAlone {
        CloneAlone
    }
}

impl<E: Clone + Send + Sync + 'static> FailsByClone for &&&Failure<E> {}

pub trait FailsByConversion {
    fn way(&self) -> Convert {
        Convert
    }
}

impl<E: From<Error> + Into<BoxError>> FailsByConversion for &Failure<E> {}

pub trait CannotFail<E> {
    fn way(&self) -> NoWay<E>
    where
        E: GivenToEveryWaiter;
}

impl<E> CannotFail<E> for Failure<E> {
    fn way(&self) -> NoWay<E>
    where
        E: GivenToEveryWaiter,
    {
        unreachable!("nothing is `GivenToEveryWaiter`")
    }
}

/// The way of an error that has none.
#[derive(Debug)]
pub struct NoWay<E>(PhantomData<fn() -> E>);

impl<E> Way<E> for NoWay<E> {
    fn raise(_error: E) -> BoxError {
        unreachable!("no `NoWay` is ever made")
    }

    fn settle(_error: Error) -> Option<E> {
        None
    }
}

/// Nothing is this; its message is for errors that can be given to one caller alone.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be given to all callers that wait for one load",
    label = "this error is neither `Clone` nor `From<larder::Error>`",
    note = "return a type that is `Clone`, such as `Arc<{Self}>`, or one that is `From<larder::Error>`, such as an enum of your own; the original is then its source"
)]
pub trait GivenToEveryWaiter {}
