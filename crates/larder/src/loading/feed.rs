//! Where warming takes from: a list, a channel, or any stream.

use std::fmt;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

/// What is taken from a [`Feed`], one after the other.
type Next<T> = dyn FnMut(&mut Context<'_>) -> Poll<Option<T>> + Send;

/// Keys, or pairs of key and value, that come one after the other: from a list, from a channel, or
/// from any stream by its `poll_next`.
///
/// ```
/// use larder::Feed;
/// use tokio::sync::mpsc;
///
/// let list: Feed<u64> = Feed::list(1..=1_000);
/// let (send, receive) = mpsc::channel::<u64>(16);
/// let channel: Feed<u64> = Feed::channel(receive);
///
/// // A stream of the `futures` crates, here an iterator dressed up as one:
/// let mut keys = 1..=3;
/// let stream: Feed<u64> = Feed::polled(move |_context| std::task::Poll::Ready(keys.next())).of(3);
/// ```
pub struct Feed<T> {
    next: Box<Next<T>>,
    total: Option<u64>,
}

impl<T> Feed<T> {
    /// What is in a list. Taken one by one, so that a lazy iterator need not be held whole.
    pub fn list<I>(items: I) -> Self
    where
        I: IntoIterator<Item = T>,
        I::IntoIter: Send + 'static,
    {
        let mut items = items.into_iter();
        let (least, most) = items.size_hint();
        let total = most.filter(|most| *most == least).map(|len| len as u64);
        Self {
            next: Box::new(move |_| Poll::Ready(items.next())),
            total,
        }
    }

    /// What comes over a channel, until all of its senders are gone.
    pub fn channel(mut receiver: mpsc::Receiver<T>) -> Self
    where
        T: Send + 'static,
    {
        Self::polled(move |context| receiver.poll_recv(context))
    }

    /// What `poll` gives, until it gives `None`. For a stream:
    /// `Feed::polled(move |context| stream.as_mut().poll_next(context))`.
    pub fn polled(poll: impl FnMut(&mut Context<'_>) -> Poll<Option<T>> + Send + 'static) -> Self {
        Self {
            next: Box::new(poll),
            total: None,
        }
    }

    /// Says how many come, for whoever watches; a list knows by itself.
    #[must_use]
    pub fn of(self, total: u64) -> Self {
        Self {
            total: Some(total),
            ..self
        }
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Takes up to `at_most` that are there already; empty at the end.
    pub(super) fn poll_some(&mut self, context: &mut Context<'_>, at_most: usize) -> Poll<Vec<T>> {
        let mut some = Vec::new();
        while some.len() < at_most {
            match (self.next)(context) {
                Poll::Ready(Some(item)) => some.push(item),
                Poll::Ready(None) => {
                    // Whatever it was made from must not be polled behind its end.
                    self.next = Box::new(|_| Poll::Ready(None));
                    return Poll::Ready(some);
                }
                Poll::Pending if some.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(some)
    }
}

impl<T> fmt::Debug for Feed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}
