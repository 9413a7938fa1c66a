use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A queue between async callers and threads that may block, bounded in items and in weight.
///
/// Pushing never waits: what does not fit is refused, so that a slow disk is felt at once instead
/// of at the end of a long line.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    max_items: usize,
    max_weight: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(usize, T)>,
    weight: usize,
    closed: bool,
}

/// Why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
}

/// What waiting for an item came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Popped<T> {
    Item(T),
    TimedOut,
    /// Closed, and every item that was taken has been handed out.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new(max_items: usize, max_weight: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                weight: 0,
                closed: false,
            }),
            arrived: Condvar::new(),
            max_items,
            max_weight,
        }
    }

    /// Takes the item, or refuses it. One item of any weight fits into an empty queue.
    pub(crate) fn push(&self, item: T, weight: usize) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        let too_heavy = !state.items.is_empty() && state.weight + weight > self.max_weight;
        if too_heavy || state.items.len() >= self.max_items {
            return Err(Refusal::Full);
        }
        state.weight += weight;
        state.items.push_back((weight, item));
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes the item whatever waits already, and nothing after it.
    pub(crate) fn push_last(&self, item: T) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        state.items.push_back((0, item));
        state.closed = true;
        drop(state);
        self.arrived.notify_all();
        Ok(())
    }

    /// Takes nothing from now on; what was taken is still handed out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Waits for the next item, at most for `timeout` where there is one.
    pub(crate) fn pop(&self, timeout: Option<Duration>) -> Popped<T> {
        let idle = |state: &mut State<T>| state.items.is_empty() && !state.closed;
        let state = self.lock();
        let mut state = match timeout {
            None => self
                .arrived
                .wait_while(state, idle)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.arrived
                    .wait_timeout_while(state, timeout, idle)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        match state.items.pop_front() {
            Some((weight, item)) => {
                state.weight -= weight;
                Popped::Item(item)
            }
            None if state.closed => Popped::Closed,
            None => Popped::TimedOut,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_beyond_either_limit_and_takes_one_giant() {
        let queue = Queue::new(2, 10);
        assert_eq!(queue.push('a', 50), Ok(()));
        assert_eq!(queue.push('b', 1), Err(Refusal::Full));
        assert_eq!(queue.pop(None), Popped::Item('a'));
        assert_eq!(queue.push('c', 1), Ok(()));
        assert_eq!(queue.push('d', 1), Ok(()));
        assert_eq!(queue.push('e', 1), Err(Refusal::Full));
    }

    #[test]
    fn hands_out_what_it_took_before_it_ends() {
        let queue = Queue::new(1, 10);
        assert_eq!(queue.push('a', 1), Ok(()));
        assert_eq!(queue.push_last('z'), Ok(()));
        assert_eq!(queue.push('b', 1), Err(Refusal::Closed));
        assert_eq!(queue.pop(None), Popped::Item('a'));
        assert_eq!(queue.pop(None), Popped::Item('z'));
        assert_eq!(queue.pop(None), Popped::Closed);
    }

    #[test]
    fn an_empty_queue_times_out() {
        let queue = Queue::<()>::new(1, 1);
        assert_eq!(queue.pop(Some(Duration::ZERO)), Popped::TimedOut);
    }
}
