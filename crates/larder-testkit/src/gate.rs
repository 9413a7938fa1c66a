use std::sync::Arc;
use tokio::sync::watch;

/// A point that nobody passes until the test says so.
///
/// Clone it into loaders. The test waits for them with [`Gate::arrived`], does what it wants to
/// happen meanwhile, and lets them go on with [`Gate::open`].
///
/// ```
/// use larder_testkit::Gate;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let gate = Gate::new();
/// let load = tokio::spawn({
///     let gate = gate.clone();
///     async move {
///         gate.wait().await;
///         "loaded"
///     }
/// });
/// gate.arrived(1).await; // the load is under way and goes no further
/// gate.open();
/// assert_eq!(load.await.unwrap(), "loaded");
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct Gate {
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    pass: Pass,
    arrivals: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Open,
    Closed,
}

impl Gate {
    /// A closed gate.
    #[expect(
        clippy::new_without_default,
        reason = "`default` would not say that it is closed"
    )]
    pub fn new() -> Self {
        let state = State {
            pass: Pass::Closed,
            arrivals: 0,
        };
        Self {
            state: Arc::new(watch::Sender::new(state)),
        }
    }

    /// Counts an arrival, and waits until the gate is open. An open gate lets through at once.
    pub async fn wait(&self) {
        let mut state = self.state.subscribe();
        self.state.send_modify(|state| state.arrivals += 1);
        // The sender lives in `self`, so the wait cannot end for want of one.
        let _ = state.wait_for(|state| state.pass == Pass::Open).await;
    }

    /// Lets everybody through, now and from now on.
    pub fn open(&self) {
        self.state.send_modify(|state| state.pass = Pass::Open);
    }

    /// Closes it for those who arrive from now on.
    pub fn close(&self) {
        self.state.send_modify(|state| state.pass = Pass::Closed);
    }

    /// Waits until at least `count` have arrived since the gate was made.
    pub async fn arrived(&self, count: usize) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.arrivals >= count).await;
    }

    /// How many have arrived since the gate was made.
    pub fn arrivals(&self) -> usize {
        self.state.borrow().arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_passes_a_closed_gate() {
        let gate = Gate::new();
        let mut waiting = Box::pin(gate.wait());
        tokio::select! {
            biased;
            () = &mut waiting => panic!("passed a closed gate"),
            () = gate.arrived(1) => {}
        }
        gate.open();
        waiting.await;
        gate.wait().await;
        assert_eq!(gate.arrivals(), 2);
        gate.close();
        let closed = tokio::time::timeout(std::time::Duration::from_millis(1), gate.wait());
        assert!(closed.await.is_err());
    }
}
