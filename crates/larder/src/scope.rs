//! What reads bring with them: whoever makes something from cached values inherits their tags, and
//! the shortest of their times.
//!
//! A scope is a place in the task: every cached read inside it leaves a note there. Loads run in a
//! scope of their own by themselves; other code asks for one with [`collect`].

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::tags::{MAX_TAGS, Tag};

tokio::task_local! {
    static SCOPE: RefCell<Inherited>;
    static FOR_OTHERS: ();
    static LOADING: Loading;
}

/// What the loads that this task is in are loading, one inside the other.
#[derive(Clone, Debug)]
pub(crate) struct Loading(Arc<Load>);

#[derive(Debug)]
struct Load {
    /// The name of the cache, which is one place in memory for all its handles.
    cache: Arc<str>,
    keys: Vec<Bytes>,
    outer: Option<Loading>,
}

impl Loading {
    /// A load of these keys that somebody in this task waits for.
    pub(crate) fn here(cache: &Arc<str>, keys: Vec<Bytes>) -> Self {
        Self(Arc::new(Load {
            cache: Arc::clone(cache),
            keys,
            outer: Surroundings::here().0,
        }))
    }

    /// Runs the load.
    pub(crate) async fn run<F: Future>(self, load: F) -> F::Output {
        LOADING.scope(self, load).await
    }

    fn includes(&self, cache: &Arc<str>, key: &Bytes) -> bool {
        let mut load = Some(self);
        while let Some(Loading(inner)) = load {
            if Arc::ptr_eq(&inner.cache, cache) && inner.keys.contains(key) {
                return true;
            }
            load = inner.outer.as_ref();
        }
        false
    }
}

/// Whether this task is in a load at all.
pub(crate) fn is_in_load() -> bool {
    LOADING.try_with(|_| ()).is_ok()
}

/// Whether this task is in a load of the key, which would wait for itself if it asked for it.
pub(crate) fn is_loading(cache: &Arc<str>, key: &Bytes) -> bool {
    let within = LOADING.try_with(|loading| loading.includes(cache, key));
    within.unwrap_or(false)
}

/// What the loads that this task is in are loading, for a part of them in a task of its own.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings(Option<Loading>);

impl Surroundings {
    /// Those of what nobody waits for.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn here() -> Self {
        Self(LOADING.try_with(Clone::clone).ok())
    }

    /// Runs the part.
    pub(crate) async fn run<T>(self, part: impl Future<Output = T>) -> T {
        match self.0 {
            Some(loading) => loading.run(part).await,
            None => part.await,
        }
    }
}

/// What the reads of a scope have in common with what is made from them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    /// The tags of every entry read, and the tag that each of them is itself.
    pub(crate) tags: Vec<Arc<Tag>>,
    /// How long the first of them stays fresh.
    pub(crate) fresh_for: Option<Duration>,
    /// Whether there were more tags than an entry can carry.
    pub(crate) too_many: bool,
    /// Whether one of them was read in memory alone, where it may be what others have invalidated.
    pub(crate) unverified: bool,
    /// Whether one of them was refused: it was invalidated while it was loaded, or is older than it
    /// may be. What is made from it must not be kept either, whatever tags it has.
    pub(crate) refused: bool,
}

impl Inherited {
    fn note(&mut self, tags: impl IntoIterator<Item = Arc<Tag>>, fresh_for: Duration) {
        for tag in tags {
            if self.tags.iter().any(|known| Arc::ptr_eq(known, &tag)) {
                continue;
            }
            if self.tags.len() == MAX_TAGS {
                self.too_many = true;
                break;
            }
            self.tags.push(tag);
        }
        let shortest = self
            .fresh_for
            .map_or(fresh_for, |known| known.min(fresh_for));
        self.fresh_for = Some(shortest);
    }

    /// Takes over what another scope has collected.
    pub(crate) fn extend(&mut self, other: Self) {
        self.too_many |= other.too_many;
        self.unverified |= other.unverified;
        self.refused |= other.refused;
        if let Some(fresh_for) = other.fresh_for {
            self.note(other.tags, fresh_for);
        } else {
            let kept = self.fresh_for;
            self.note(other.tags, Duration::MAX);
            self.fresh_for = kept;
        }
    }
}

/// What [`collect`] found: the tags of everything that was read, and how long the first of it stays
/// fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// The tags that loaders gave to the entries read, sorted.
    pub tags: Vec<String>,
    /// How long the entry that goes stale first stays fresh; `None` if nothing was read.
    pub fresh_for: Option<Duration>,
    /// Whether there were more tags than were kept (1,000): what is made from so much is better not
    /// stored.
    pub too_many: bool,
}

/// Runs `work` and returns, with its output, the tags and the shortest time of every cached read
/// inside it. For what is made from cached values and kept elsewhere, as an HTTP response is.
///
/// Reads in tasks that `work` spawns are not seen. A scope inside another one adds to both.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> larder::Result<()> {
/// use larder::{Cache, Larder, Loaded};
///
/// let products: Cache<u64, String> = Larder::builder("shop").build()?.cache("product").build()?;
/// let load = |_| async {
///     Ok::<_, std::io::Error>(Loaded::value("espresso".to_owned()).tags(["category:3"]))
/// };
/// let (_page, collected) = larder::collect(async {
///     products.get_or_load(&7, load).await
/// })
/// .await;
/// assert_eq!(collected.tags, ["category:3"]);
/// # Ok(()) }
/// ```
pub async fn collect<F: Future>(work: F) -> (F::Output, Collected) {
    let (output, inherited) = inherit(work).await;
    let names = inherited.tags.iter().filter_map(|tag| tag.given_name());
    let mut tags: Vec<String> = names.map(str::to_owned).collect();
    tags.sort_unstable();
    let collected = Collected {
        tags,
        fresh_for: inherited.fresh_for,
        too_many: inherited.too_many,
    };
    extend(inherited);
    (output, collected)
}

/// Runs `work` in a scope of its own.
pub(crate) async fn inherit<F: Future>(work: F) -> (F::Output, Inherited) {
    SCOPE
        .scope(RefCell::default(), async {
            let output = work.await;
            let inherited = SCOPE.with(RefCell::take);
            (output, inherited)
        })
        .await
}

/// Runs `work` in a scope of its own, in this thread.
pub(crate) fn inherit_now<T>(work: impl FnOnce() -> T) -> (T, Inherited) {
    SCOPE.sync_scope(RefCell::default(), || {
        let output = work();
        (output, SCOPE.with(RefCell::take))
    })
}

/// Whether anybody collects what is read here.
#[inline]
pub(crate) fn is_open() -> bool {
    SCOPE.try_with(|_| ()).is_ok()
}

/// Runs a load whose result goes into a tier that other processes read.
///
/// What it reads is looked up there as well: an invalidation that has not been heard here yet has
/// gone past this load, and would not keep out what is made from the old value.
pub(crate) async fn for_others<F: Future>(load: F) -> F::Output {
    FOR_OTHERS.scope((), load).await
}

/// Whether what is made here goes to others.
#[inline]
pub(crate) fn is_for_others() -> bool {
    FOR_OTHERS.try_with(|()| ()).is_ok()
}

/// Leaves a note that memory alone was asked.
pub(crate) fn note_unverified() {
    let _nobody_collects = SCOPE.try_with(|scope| scope.borrow_mut().unverified = true);
}

/// Leaves a note that what was read was refused.
pub(crate) fn note_refused() {
    let _nobody_collects = SCOPE.try_with(|scope| scope.borrow_mut().refused = true);
}

/// Leaves a note of all that was read in a scope inside of this one.
pub(crate) fn extend(inherited: Inherited) {
    let _nobody_collects = SCOPE.try_with(|scope| scope.borrow_mut().extend(inherited));
}

/// Leaves a note of an entry that was read.
pub(crate) fn note(tags: impl IntoIterator<Item = Arc<Tag>>, fresh_for: Duration) {
    let _nobody_collects = SCOPE.try_with(|scope| scope.borrow_mut().note(tags, fresh_for));
}
