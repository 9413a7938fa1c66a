//! The background work of one larder: counted, awaited and, at the end, aborted.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What a task is for; it decides who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Loads, refreshes and releases of leases: they end by themselves.
    Work,
    /// Watching a tier that is down: ends when the tier is back, which may be never.
    Watch,
}

type Running = HashMap<u64, (TaskKind, Option<AbortHandle>)>;

/// The background tasks that are running. Bounded by what spawns them: one per flight, and one
/// per tier that is down.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: Mutex<Running>,
    next: AtomicU64,
    closed: AtomicBool,
    ended: Notify,
}

impl Tasks {
    /// Runs `work` on the runtime of the caller. After [`Tasks::close`] it is dropped instead.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        kind: TaskKind,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return; // Only a drop outside any runtime comes here; dropping the work is its undo.
        };
        let id = self.next.fetch_add(1, SeqCst);
        {
            let mut running = self.lock();
            if self.closed.load(SeqCst) {
                return;
            }
            running.insert(id, (kind, None));
        }
        let ticket = Ticket {
            tasks: Arc::clone(self),
            id,
        };
        let task = runtime.spawn(async move {
            let _ticket = ticket;
            work.await;
        });
        // The task may have ended already, and its ticket taken it out of the table.
        if let Some((_, handle)) = self.lock().get_mut(&id) {
            *handle = Some(task.abort_handle());
            if self.closed.load(SeqCst) {
                task.abort(); // The end came before the handle could be found.
            }
        }
        if self.closed.load(SeqCst) {
            task.abort(); // The end came between, and found no handle.
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tasks of `kind` are running.
    pub(crate) fn count(&self, kind: TaskKind) -> usize {
        self.lock().values().filter(|(of, _)| *of == kind).count()
    }

    /// Waits until no work is running. Work that begins meanwhile is waited for too.
    pub(crate) async fn settled(&self) {
        loop {
            let ended = self.ended.notified();
            if self.count(TaskKind::Work) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// From now on nothing is spawned.
    pub(crate) fn close(&self) {
        let _running = self.lock();
        self.closed.store(true, SeqCst);
    }

    /// Ends every task at its next await, and returns how many were still at work.
    pub(crate) fn abort(&self) -> usize {
        let tasks: Vec<_> = self.lock().values().cloned().collect();
        tasks
            .iter()
            .filter_map(|(_, task)| task.as_ref())
            .for_each(AbortHandle::abort);
        tasks
            .iter()
            .filter(|(kind, _)| *kind == TaskKind::Work)
            .count()
    }
}

/// Takes the task out of the table when it ends, in whatever way.
struct Ticket {
    tasks: Arc<Tasks>,
    id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tasks.lock().remove(&self.id);
        self.tasks.ended.notify_waiters();
    }
}
