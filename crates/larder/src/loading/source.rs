//! Loaders without their types, so that only a miss pays for a box.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::loader::{BatchLoader, Loader};
use crate::answer::{Answer, Content, Load, Loaded};
use crate::clock::BoxFuture;
use crate::error::{BoxError, Error};
use crate::key::CacheKey;
use crate::loader;
use crate::scope::{self, Surroundings};

/// How many loads of single keys one call for many has under way at once.
const FAN_OUT: usize = 16;

/// A load under way.
pub(super) type Loading<T> = BoxFuture<'static, Result<T, BoxError>>;

/// A loader of either kind.
pub(super) trait Source<K, V>: Send + Sync {
    fn load(self: Arc<Self>, load: Load<K, V>) -> Loading<Loaded<V>>;

    /// How many keys go together at best.
    fn batch(&self) -> usize;

    /// The keys that will probably be asked for behind one that was loaded.
    fn related(&self, key: &K, loaded: &Loaded<V>) -> Vec<K>;

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

    fn batch(&self) -> usize {
        1
    }

    fn load_many(self: Arc<Self>, keys: Vec<K>) -> Loading<Vec<(K, Loaded<V>)>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(keys.len());
            let mut under_way = Abreast::default();
            for key in keys {
                if under_way.len() == FAN_OUT {
                    answers.extend(under_way.next().await);
                }
                let load = Load {
                    key: key.clone(),
                    stale: None,
                };
                under_way.begin(key, Arc::clone(&self).load(load));
            }
            while let Some(answer) = under_way.next().await {
                answers.push(answer);
            }
            Ok(answers)
        })
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
            match answers.find(|(key, _)| *key == load.key) {
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

/// Loads of single keys that run at once, each in a task, which end when this is dropped.
struct Abreast<K, V>(JoinSet<(K, Loaded<V>)>);

impl<K, V> Default for Abreast<K, V> {
    fn default() -> Self {
        Self(JoinSet::new())
    }
}

impl<K, V> Abreast<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    fn len(&self) -> usize {
        self.0.len()
    }

    fn begin(&mut self, key: K, load: Loading<Loaded<V>>) {
        let surroundings = Surroundings::here();
        let load = async move {
            let (loaded, inherited) = surroundings.run(scope::inherit(load)).await;
            loaded.map(|mut loaded| {
                loaded.inherited.extend(inherited);
                loaded
            })
        };
        self.0.spawn(async move {
            // Where one load panics, the others go on.
            let loaded = loader::apart(load).await;
            (key, loaded.unwrap_or_else(Loaded::failed))
        });
    }

    /// What the next of them found; `None` if none is left.
    async fn next(&mut self) -> Option<(K, Loaded<V>)> {
        // Nobody aborts them but the drop of the set.
        self.0.join_next().await?.ok()
    }
}
