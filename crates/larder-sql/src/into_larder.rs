//! Changes applied to a larder, and what becomes of those that it refuses.

use std::sync::Arc;

use larder::{BoxError, Error, ErrorKind, Invalidation, Larder};
use tokio::sync::Notify;

use crate::feed::Feed;

impl Feed {
    /// Applies changes to `larder` until it is shut down, or the returned future dropped.
    ///
    /// As for [`Feed::follow`], any number of processes may do so and one of them works. The others
    /// hear of the changes by the larder's bus; without one they hear nothing.
    ///
    /// A change stays in the outbox until every tier and the bus took it. What the larder refuses
    /// for good is logged and left out, since no entry can have such a key or tag; a pattern that a
    /// tier cannot do invalidates its whole cache instead.
    pub async fn follow_into(&self, larder: Larder) {
        if larder.bus().is_none() {
            tracing::warn!(
                "larder feed: the larder has no bus; other processes will not hear of changes"
            );
        }
        let closed = Arc::new(Notify::new());
        let tell = Arc::clone(&closed);
        let following = self.follow(move |batch| {
            let (larder, tell) = (larder.clone(), Arc::clone(&tell));
            async move {
                let applied = apply(&larder, &batch).await;
                if let Err(Failure::Closed) = &applied {
                    tell.notify_one();
                }
                applied.map_err(BoxError::from)
            }
        });
        tokio::select! {
            never = following => match never {},
            () = closed.notified() => {}
        }
    }
}

/// Why a batch has to come again.
enum Failure {
    /// The larder was shut down: it has to come to somebody else.
    Closed,
    /// A tier or the bus did not take it yet.
    Queued,
    Refused(Error),
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Closed => "the larder was shut down".into(),
            Failure::Queued => "a tier or the bus of the larder cannot be reached".into(),
            Failure::Refused(error) => error.into(),
        }
    }
}

async fn apply(larder: &Larder, batch: &[Invalidation]) -> Result<(), Failure> {
    match invalidate(larder, batch.iter().cloned()).await {
        // One of them is wrong, and none was done. The others are not to suffer for it.
        Err(Failure::Refused(error)) if is_for_good(&error) => {
            for one in batch {
                apply_alone(larder, one).await?;
            }
            Ok(())
        }
        done => done,
    }
}

async fn apply_alone(larder: &Larder, one: &Invalidation) -> Result<(), Failure> {
    let error = match invalidate(larder, [one.clone()]).await {
        Err(Failure::Refused(error)) if is_for_good(&error) => error,
        done => return done,
    };
    if let Invalidation::Pattern { cache, .. } = one {
        tracing::warn!("larder feed: {error}; invalidates all of cache {cache} instead");
        return invalidate(larder, [Invalidation::cache(cache.clone())]).await;
    }
    // The text of a key or tag may be anything, and long.
    let what: String = one.to_string().chars().take(200).collect();
    tracing::error!("larder feed: {error}; leaves out {what:?}");
    Ok(())
}

async fn invalidate(
    larder: &Larder,
    what: impl IntoIterator<Item = Invalidation>,
) -> Result<(), Failure> {
    match larder.invalidate_each(what).await {
        Ok(receipt) if receipt.is_acked() => Ok(()),
        Ok(_) => Err(Failure::Queued),
        Err(error) if error.kind() == ErrorKind::Closed => Err(Failure::Closed),
        Err(error) => Err(Failure::Refused(error)),
    }
}

/// Whether trying again cannot help.
fn is_for_good(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Key | ErrorKind::Config)
}
