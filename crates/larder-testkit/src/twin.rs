use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, child, spawner};

/// The test binary once more, as a process of its own: for tests of what several processes do to
/// each other, and of what becomes of one that is killed or stopped.
///
/// The twin runs one test of the binary, which finds out by a variable that it is the twin:
///
/// ```no_run
/// use larder_testkit::Twin;
///
/// # let address = "127.0.0.1:1";
/// let twin = Twin::start("be_a_node", &[("NODE_OF", address)])?; // runs `#[test] fn be_a_node()`
/// twin.stop_signal()?;
/// twin.cont_signal()?;
/// twin.kill9();
/// # Ok::<(), larder_testkit::Error>(())
/// ```
///
/// Its standard input is empty and its output is thrown away; what it complains about comes out
/// among what the test binary does. Dropping it kills the process. On Linux it also dies with the
/// test binary, stopped or not, where `setpriv` is installed.
#[derive(Debug)]
pub struct Twin {
    child: Mutex<Child>,
}

/// What errors call it.
const NAME: &str = "the twin of the test binary";

impl Twin {
    /// Runs the test of this name, with these variables besides those of this process.
    pub fn start(test: &str, variables: &[(&str, &str)]) -> Result<Self, Error> {
        let program =
            std::env::current_exe().map_err(|e| Error::io("cannot find the test binary", e))?;
        let mut command: Command = spawner::tied_to_us(&program);
        command
            .args(["--exact", test, "--nocapture", "--quiet"])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = spawner::spawn(command)
            .map_err(|e| Error::io("cannot start the test binary again", e))?;
        Ok(Self {
            child: Mutex::new(child),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Kills it as `kill -9` does and waits until it is gone. A second call does nothing.
    pub fn kill9(&self) {
        child::end(&mut self.child());
    }

    /// Stops it with SIGSTOP and waits until it stands still.
    pub fn stop_signal(&self) -> Result<(), Error> {
        child::stop(&mut self.child(), NAME)
    }

    /// Lets it go on after a stop, with SIGCONT.
    pub fn cont_signal(&self) -> Result<(), Error> {
        child::cont(&mut self.child(), NAME)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // A test that panicked while it held the lock left a child that is still there to be ended.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.kill9();
    }
}
