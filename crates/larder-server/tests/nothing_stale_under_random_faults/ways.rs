//! The ways in which a process reads what it keeps.

use std::fmt::Write as _;
use std::sync::Arc;

use larder::{
    Answered, BatchLoader, BoxError, Cache, CacheKey, Feed, Loaded, Loader, LoadingCache, Read,
    WarmProgress,
};

/// How keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One at a time, by callers that bring their loader.
    Call,
    /// One at a time, by the loader of the cache.
    Bound,
    /// All at once, by callers that bring their loader.
    Many,
    /// All at once, by the loader of the cache, which is asked for one at a time.
    Each,
    /// The same with a loader of many.
    Batch,
    /// Loaded anew one at a time, whatever is there.
    Refresh,
}

impl Way {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Call, "call"),
        (Self::Bound, "bound"),
        (Self::Many, "many"),
        (Self::Each, "each"),
        (Self::Batch, "batch"),
        (Self::Refresh, "refresh"),
    ];

    /// Those that are reads, and leave a note for whoever makes something from them.
    pub(crate) const READS: [Self; 5] =
        [Self::Call, Self::Bound, Self::Many, Self::Each, Self::Batch];

    pub(crate) fn name(self) -> &'static str {
        let of_way = |(way, _): &&(Self, _)| *way == self;
        Self::ALL.iter().find(of_way).unwrap().1
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let named = |(_, its): &&(_, &str)| *its == name;
        Self::ALL.iter().find(named).map(|(way, _)| *way)
    }

    /// Whether it asks for several keys at once, and is given nothing but their values.
    pub(crate) fn takes_many(self) -> bool {
        matches!(self, Self::Many | Self::Each | Self::Batch)
    }
}

/// What a read can show on a line.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

/// What is made of items: the number and the version of each, 0 where it is absent.
pub(crate) type Made = Vec<(i32, u64)>;

impl Shown for Made {
    fn shown(&self) -> String {
        let each = self.iter().map(|(_, version)| match version {
            0 => "-".to_owned(),
            version => version.to_string(),
        });
        each.collect::<Vec<_>>().join(",")
    }
}

/// A loader of either kind.
pub(crate) trait Loads<K, V>:
    Loader<K, V, Answer = Loaded<V>, Error = BoxError>
    + BatchLoader<K, V, Answer = Loaded<V>, Error = BoxError>
    + Clone
{
}

impl<K, V, L> Loads<K, V> for L where
    L: Loader<K, V, Answer = Loaded<V>, Error = BoxError>
        + BatchLoader<K, V, Answer = Loaded<V>, Error = BoxError>
        + Clone
{
}

/// A cache, and its loader in every form.
#[derive(Clone)]
pub(crate) struct Kept<K: Send + Sync + 'static, V: Send + Sync + 'static, L> {
    pub(crate) cache: Cache<K, V>,
    pub(crate) loader: L,
    pub(crate) singly: LoadingCache<K, V>,
    in_batches: LoadingCache<K, V>,
}

/// What a read gives: the value, if there is one.
type Value<V> = larder::Result<Option<Arc<V>>>;

impl<K, V, L> Kept<K, V, L>
where
    K: CacheKey,
    V: Shown + Send + Sync + 'static,
    L: Loads<K, V>,
{
    pub(crate) fn new(cache: Cache<K, V>, loader: L) -> Self {
        Self {
            singly: cache.loading(loader.clone()),
            in_batches: cache.loading_in_batches(loader.clone()),
            cache,
            loader,
        }
    }

    /// Reads keys, and shows them: `VERSION`, `-` or `!KIND OF ERROR`, with `,` within what is made of
    /// several rows and `;` between keys; then the story of the read, if it tells one, or `but ERROR`.
    pub(crate) async fn show(&self, read: Read, way: Way, keys: &[K]) -> String {
        if let ([key], Way::Call | Way::Bound) = (keys, way) {
            return match self.explained(read, way, key).await {
                Ok(Answered { value, outcome }) => format!("{} {outcome}", shown(&Ok(value))),
                Err(error) => format!("!{:?} but {error:?}", error.kind()),
            };
        }
        let values = self.values(read, way, keys).await;
        let mut line = values.iter().map(shown).collect::<Vec<_>>().join(";");
        for error in values.iter().filter_map(|value| value.as_ref().err()) {
            let _ = write!(line, " but {error:?}");
        }
        line
    }

    /// Reads keys.
    pub(crate) async fn values(&self, read: Read, way: Way, keys: &[K]) -> Vec<Value<V>> {
        match way {
            Way::Many => match self.many(read, keys).await {
                Ok(values) => values.into_iter().map(Ok).collect(),
                Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
            },
            Way::Each => self.singly.with(read).get_many(keys).await,
            Way::Batch => self.in_batches.with(read).get_many(keys).await,
            Way::Call | Way::Bound | Way::Refresh => {
                let mut values = Vec::new();
                for key in keys {
                    values.push(match way {
                        Way::Refresh => self.singly.refresh(key).await,
                        _ => {
                            let answered = self.explained(read, way, key).await;
                            answered.map(|answered| answered.value)
                        }
                    });
                }
                values
            }
        }
    }

    async fn explained(
        &self,
        read: Read,
        way: Way,
        key: &K,
    ) -> larder::Result<Answered<Option<Arc<V>>>> {
        if way == Way::Bound {
            return self.singly.with(read).get_explained(key).await;
        }
        let load = |load| {
            let loader = self.loader.clone();
            async move { Loader::load(&loader, load).await }
        };
        self.cache.with(read).get_or_load_explained(key, load).await
    }

    async fn many(&self, read: Read, keys: &[K]) -> larder::Result<Vec<Option<Arc<V>>>> {
        let load = |keys| {
            let loader = self.loader.clone();
            async move {
                let found = loader.load_many(keys).await?;
                let each = found.into_iter().map(|(key, loaded)| Ok((key, loaded?)));
                each.collect::<Result<Vec<_>, BoxError>>()
            }
        };
        self.cache.with(read).get_or_load_many(keys, load).await
    }

    /// Has keys loaded that are not there, by the loader that this way of reading asks.
    pub(crate) async fn warm(&self, keys: Vec<K>, way: Way) -> WarmProgress {
        let loading = if way == Way::Batch {
            &self.in_batches
        } else {
            &self.singly
        };
        loading.warm(Feed::list(keys)).start().done().await
    }
}

fn shown<V: Shown>(value: &Value<V>) -> String {
    match value {
        Ok(Some(value)) => value.shown(),
        Ok(None) => "-".to_owned(),
        Err(error) => format!("!{:?}", error.kind()),
    }
}
