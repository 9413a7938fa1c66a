//! Loaders without their types, so that only a miss pays for a box.

use std::sync::Arc;

use super::loader::{BatchLoader, Loader};
use crate::answer::{Answer, Content, Load, Loaded};
use crate::clock::BoxFuture;
use crate::error::{BoxError, Error};
use crate::key::CacheKey;

/// A load under way.
pub(super) type Loading<T> = BoxFuture<'static, Result<T, BoxError>>;

/// A loader of either kind.
pub(super) trait Source<K, V>: Send + Sync {
    fn load(self: Arc<Self>, load: Load<K, V>) -> Loading<Loaded<V>>;

    /// The keys that will probably be asked for behind one that was loaded.
    fn related(&self, key: &K, loaded: &Loaded<V>) -> Vec<K>;
}

/// A loader that is better asked for many keys at once.
pub(super) trait Batches<K, V>: Send + Sync {
    /// How many keys go together at best.
    fn batch(&self) -> usize;

    /// Loads many keys; those that it does not mention are absent.
    fn load_many(self: Arc<Self>, keys: Vec<K>) -> Loading<Vec<(K, Loaded<V>)>>;
}

/// One key at a time.
pub(super) struct Singly<L>(pub(super) L);

impl<K, V, L> Source<K, V> for Singly<L>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    L: Loader<K, V>,
{
    fn load(self: Arc<Self>, load: Load<K, V>) -> Loading<Loaded<V>> {
        Box::pin(async move {
            let answer = self.0.load(load).await;
            answer.map(Answer::into_loaded).map_err(Into::into)
        })
    }

    fn related(&self, key: &K, loaded: &Loaded<V>) -> Vec<K> {
        match &loaded.content {
            Content::Value(value) => self.0.related(key, value),
            Content::Absent | Content::NotModified => Vec::new(),
        }
    }
}

/// Many keys at a time.
pub(super) struct InBatches<L>(pub(super) L);

impl<K, V, L> Source<K, V> for InBatches<L>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    L: BatchLoader<K, V>,
{
    fn load(self: Arc<Self>, load: Load<K, V>) -> Loading<Loaded<V>> {
        Box::pin(async move {
            let answers = self.0.load_many(vec![load.key.clone()]).await;
            let mut answers = answers.map_err(Into::into)?.into_iter();
            match answers.rfind(|(key, _)| *key == load.key) {
                Some((_, answer)) => answer.map(Answer::into_loaded).map_err(Into::into),
                None => Ok(Loaded::absent()),
            }
        })
    }

    fn related(&self, key: &K, loaded: &Loaded<V>) -> Vec<K> {
        match &loaded.content {
            Content::Value(value) => self.0.related(key, value),
            Content::Absent | Content::NotModified => Vec::new(),
        }
    }
}

impl<K, V, L> Batches<K, V> for InBatches<L>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    L: BatchLoader<K, V>,
{
    fn batch(&self) -> usize {
        self.0.largest_batch()
    }

    fn load_many(self: Arc<Self>, keys: Vec<K>) -> Loading<Vec<(K, Loaded<V>)>> {
        Box::pin(async move {
            let mut all = Vec::with_capacity(keys.len());
            for batch in keys.chunks(self.0.largest_batch().max(1)) {
                match self.0.load_many(batch.to_vec()).await {
                    Ok(answers) => all.extend(answers.into_iter().map(|(key, answer)| {
                        let loaded = answer.map(Answer::into_loaded);
                        (key, loaded.unwrap_or_else(|error| failed(error.into())))
                    })),
                    Err(error) => {
                        let error = Error::load(error.into());
                        let failed = |key: &K| (key.clone(), Loaded::failed(error.clone()));
                        all.extend(batch.iter().map(failed));
                    }
                }
            }
            Ok(all)
        })
    }
}

fn failed<V>(error: BoxError) -> Loaded<V> {
    Loaded::failed(Error::load(error))
}
