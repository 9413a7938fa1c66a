//! What can be bound to a cache: a loader of single keys, or one of many.

use std::future::Future;

use crate::answer::{Answer, Load};
use crate::error::BoxError;

/// Loads one key at a time. Bound to a cache by [`Cache::loading`](crate::Cache::loading).
///
/// The loader is shared by all callers; what it needs, such as a pool, it owns. Each load runs in a
/// task of its own, in its turn and within the load deadline of the cache.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> larder::Result<()> {
/// use std::collections::HashMap;
///
/// use larder::{Cache, Larder, Load, Loader};
///
/// /// Stands for a pool of database connections.
/// struct Products(HashMap<u64, String>);
///
/// impl Loader<u64, String> for Products {
///     type Answer = Option<String>;
///     type Error = std::io::Error;
///
///     async fn load(&self, load: Load<u64, String>) -> Result<Option<String>, std::io::Error> {
///         Ok(self.0.get(load.key()).cloned())
///     }
/// }
///
/// let cache: Cache<u64, String> = Larder::local().cache("product").in_memory()?;
/// let products = cache.loading(Products(HashMap::from([(7, "espresso machine".to_owned())])));
/// assert_eq!(products.get(&7).await?.as_deref().map(String::as_str), Some("espresso machine"));
/// assert_eq!(products.get(&8).await?, None);
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no loader of keys `{K}` and values `{V}`",
    note = "implement `larder::Loader` for it; a closure is bound with `loading_with`, and a loader of many keys at once with `loading_in_batches`"
)]
pub trait Loader<K, V>: Send + Sync + 'static {
    /// What a load finds: `V`, `Option<V>` or [`Loaded<V>`](crate::Loaded).
    type Answer: Answer<V>;

    /// How a load fails.
    type Error: Into<BoxError> + Send + 'static;

    /// Loads what stands under the key of `load`. An `async fn` will do.
    ///
    /// A loader must not load its own key through the cache.
    fn load(
        &self,
        load: Load<K, V>,
    ) -> impl Future<Output = Result<Self::Answer, Self::Error>> + Send;

    /// The keys that will probably be asked for behind this one, such as the customer of an order.
    /// They are loaded ahead where [`LoadingCache::prefetch`](crate::LoadingCache::prefetch) is on.
    /// Default: none.
    ///
    /// ```
    /// use larder::{Load, Loader};
    ///
    /// /// Pages of a list, which are read one after the other.
    /// struct Pages;
    ///
    /// impl Loader<u32, Vec<String>> for Pages {
    ///     type Answer = Vec<String>;
    ///     type Error = std::io::Error;
    ///
    ///     async fn load(&self, load: Load<u32, Vec<String>>) -> Result<Vec<String>, std::io::Error> {
    ///         Ok(vec![format!("a line of page {}", load.key())])
    ///     }
    ///
    ///     fn related(&self, page: &u32, _lines: &Vec<String>) -> Vec<u32> {
    ///         vec![page + 1]
    ///     }
    /// }
    /// assert_eq!(Pages.related(&1, &Vec::new()), [2]);
    /// ```
    fn related(&self, _key: &K, _value: &V) -> Vec<K> {
        Vec::new()
    }
}

/// Loads many keys with one call. Bound to a cache by
/// [`Cache::loading_in_batches`](crate::Cache::loading_in_batches).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> larder::Result<()> {
/// use std::io;
///
/// use larder::{BatchLoader, Cache, Larder};
///
/// struct Squares;
///
/// impl BatchLoader<u64, u64> for Squares {
///     type Answer = u64;
///     type Error = io::Error;
///
///     async fn load_many(
///         &self,
///         keys: Vec<u64>,
///     ) -> Result<Vec<(u64, Result<u64, io::Error>)>, io::Error> {
///         Ok(keys
///             .into_iter()
///             .filter(|key| *key > 0)
///             .map(|key| (key, key.checked_mul(key).ok_or(io::Error::other("too large"))))
///             .collect())
///     }
/// }
///
/// let cache: Cache<u64, u64> = Larder::local().cache("squares").in_memory()?;
/// let squares = cache.loading_in_batches(Squares);
/// let found = squares.get_many(&[3, 0, u64::MAX]).await;
/// assert_eq!(found[0].as_ref().unwrap().as_deref(), Some(&9));
/// assert_eq!(found[1].as_ref().unwrap(), &None, "what is not mentioned is absent");
/// assert!(found[2].is_err(), "and the error of one key is no other's");
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no loader of many keys `{K}` and values `{V}`",
    note = "implement `larder::BatchLoader` for it; a loader of one key at a time is bound with `loading`"
)]
pub trait BatchLoader<K, V>: Send + Sync + 'static {
    /// What is found under a key: `V`, `Option<V>` or [`Loaded<V>`](crate::Loaded).
    type Answer: Answer<V>;

    /// How a key, or the whole call, fails.
    type Error: Into<BoxError> + Send + 'static;

    /// Loads what stands under each of `keys`, which are never empty, and each there once. Keys that
    /// the answer does not mention are absent; keys that nobody asked for are ignored, and of a key
    /// that is there twice the last answer counts.
    #[expect(
        clippy::type_complexity,
        reason = "an alias would hide what an implementation has to write"
    )]
    fn load_many(
        &self,
        keys: Vec<K>,
    ) -> impl Future<Output = Result<Vec<(K, Result<Self::Answer, Self::Error>)>, Self::Error>> + Send;

    /// As [`Loader::related`].
    fn related(&self, _key: &K, _value: &V) -> Vec<K> {
        Vec::new()
    }

    /// How many keys one call may name, 1 or more; others go in further calls, one after the other.
    /// Default 1,000.
    fn largest_batch(&self) -> usize {
        1_000
    }
}

/// A closure as a loader.
pub(super) struct Called<F>(pub(super) F);

impl<K, V, F, Fut, A, E> Loader<K, V> for Called<F>
where
    F: Fn(Load<K, V>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
    A: Answer<V>,
    E: Into<BoxError> + Send + 'static,
{
    type Answer = A;
    type Error = E;

    fn load(&self, load: Load<K, V>) -> impl Future<Output = Result<A, E>> + Send {
        self.0(load)
    }
}
