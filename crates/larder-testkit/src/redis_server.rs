use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::moved_clock::{MovedClock, Offset};
use crate::{Error, Reply, child, ports, resp, spawner};

/// A real `redis-server` of this test alone: its own port on 127.0.0.1, its own directory, nothing
/// persisted. Dropping it ends the server and removes the directory.
///
/// Starting takes some tens of milliseconds and blocks, which a test may do on a runtime's thread.
///
/// On Linux the server also dies with the test binary, however that ends, where `setpriv` is
/// installed; it belongs to util-linux, which every Debian has.
///
/// ```
/// use larder_testkit::{RedisServer, Reply};
///
/// let server = RedisServer::start()?;
/// server.command(&["SET", "greeting", "hello"])?;
/// assert_eq!(server.command(&["GET", "greeting"])?, Reply::Bytes(b"hello".into()));
/// # Ok::<(), larder_testkit::Error>(())
/// ```
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    password: Option<String>,
    args: Vec<String>,
    clock: Option<MovedClock>,
    child: Mutex<Child>,
    dir: TempDir,
}

/// How often a start is tried again on another port, should somebody take ours first.
const PORT_ATTEMPTS: usize = 8;
/// How long a restart waits for the old socket to be gone, in attempts of up to 20 s each.
const RESTART_ATTEMPTS: usize = 3;
/// How often a starting server is asked whether it is ready, and the pause between.
const READY_ATTEMPTS: usize = 4_000;
const READY_PAUSE: Duration = Duration::from_millis(5);
/// How long [`RedisServer::command`] waits: long for a busy machine, short enough for a test of a
/// stopped server to fail with a sentence.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// How far the clock of a server may be from where it was moved to, in milliseconds.
const CLOCK_TOLERANCE_MILLIS: i64 = 20_000;

impl RedisServer {
    /// Starts a server on a free port and waits until it answers.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(&[])
    }

    /// The same with further arguments, such as `["--maxmemory", "4mb"]`.
    ///
    /// A password given as `["--requirepass", "secret"]` is used by [`RedisServer::url`] and
    /// [`RedisServer::command`].
    pub fn start_with(args: &[&str]) -> Result<Self, Error> {
        Self::begin(args, Clockwork::Machine)
    }

    /// Starts a server whose clock [`RedisServer::move_clock`] moves, with further arguments as for
    /// [`RedisServer::start_with`]. Until then it goes like the machine's.
    ///
    /// A small library is built with `cc` and loaded in front of the server's C library, so this
    /// needs a C compiler and a `redis-server` that is linked dynamically, as Debian's is. It is an
    /// error if the clock turns out not to move.
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder_testkit::{Offset, RedisServer, Reply};
    ///
    /// let server = RedisServer::start_with_clock(&[])?;
    /// server.command(&["SET", "soon gone", "x", "EX", "60"])?;
    /// server.move_clock(Offset::Ahead(Duration::from_secs(3_600)))?;
    /// assert_eq!(server.command(&["GET", "soon gone"])?, Reply::Nil);
    /// # Ok::<(), larder_testkit::Error>(())
    /// ```
    pub fn start_with_clock(args: &[&str]) -> Result<Self, Error> {
        let server = Self::begin(args, Clockwork::Moved)?;
        // A server on which the library has no effect fails here and not in the middle of a test.
        let hour = Duration::from_secs(3_600);
        for offset in [Offset::Ahead(hour), Offset::Behind(hour)] {
            server.move_clock(offset)?;
        }
        server.move_clock(Offset::Ahead(Duration::ZERO))?;
        Ok(server)
    }

    fn begin(args: &[&str], clockwork: Clockwork) -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("larder-redis-")
            .tempdir()
            .map_err(|e| Error::io("cannot make a directory for redis-server", e))?;
        let clock = match clockwork {
            Clockwork::Machine => None,
            Clockwork::Moved => Some(MovedClock::build(dir.path())?),
        };
        let args: Vec<String> = args.iter().map(|&arg| arg.into()).collect();
        let password = password_in(&args);
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            let port = ports::free()?;
            match launch(port, password.as_deref(), &args, clock.as_ref(), &dir) {
                Ok(child) => {
                    return Ok(Self {
                        port,
                        password,
                        args,
                        clock,
                        child: Mutex::new(child),
                        dir,
                    });
                }
                Err(Launch::PortTaken(error)) => last = Some(error),
                Err(Launch::Failed(error)) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new("no port for redis-server")))
    }

    /// Moves the clock of a server that was started with one, so that it differs from the machine's
    /// by `offset` from now on, and checks that it does. A restart keeps the offset.
    pub fn move_clock(&self, offset: Offset) -> Result<(), Error> {
        let clock = self.clock.as_ref().ok_or_else(|| {
            Error::new("this redis-server goes by the machine's clock; see start_with_clock")
        })?;
        clock.set(offset)?;
        let (here, there) = (wall_millis(), self.clock_millis()?);
        let off = there - here - offset.millis();
        if off.abs() > CLOCK_TOLERANCE_MILLIS {
            return Err(Error::new(format!(
                "the clock of redis-server does not move as it is told: {off} ms off {offset:?}"
            )));
        }
        Ok(())
    }

    /// The time of day by the server's clock, in milliseconds since the epoch.
    pub fn clock_millis(&self) -> Result<i64, Error> {
        let reply = self.command(&["TIME"])?;
        let Reply::List(parts) = &reply else {
            return Err(Error::new(format!("TIME answers {reply:?}")));
        };
        let number = |part: Option<&Reply>| match part {
            Some(Reply::Bytes(text)) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
            _ => None,
        };
        match (number(parts.first()), number(parts.get(1))) {
            (Some(seconds), Some(micros)) => Ok(seconds * 1_000 + micros / 1_000),
            _ => Err(Error::new(format!("TIME answers {reply:?}"))),
        }
    }

    /// The URL for clients: `redis://127.0.0.1:PORT`, with the password where there is one.
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// Where the server listens; what a [`ChaosProxy`](crate::ChaosProxy) takes as its upstream.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The port it listens on. It stays the same over [`RedisServer::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id. A restart changes it.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Sends one command on a connection of its own and returns the reply.
    ///
    /// Errors that the server answers are [`Reply::Error`]; `Err` means no answer within 10 s.
    pub fn command<A: AsRef<[u8]>>(&self, args: &[A]) -> Result<Reply, Error> {
        let args: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        resp::call(
            self.address(),
            self.password.as_deref(),
            &args,
            COMMAND_PATIENCE,
        )
        .map_err(|e| {
            Error::io(
                format!("redis-server on port {} gave no answer", self.port),
                e,
            )
        })
    }

    /// Kills the server as `kill -9` does and waits until it is gone. A second call does nothing.
    pub fn kill9(&self) {
        child::end(&mut self.child());
    }

    /// Starts it again on the same port and in the same directory, killing it first if it runs.
    pub fn restart(&self) -> Result<(), Error> {
        let mut child = self.child();
        child::end(&mut child);
        let mut last = None;
        for _ in 0..RESTART_ATTEMPTS {
            let (password, clock) = (self.password.as_deref(), self.clock.as_ref());
            match launch(self.port, password, &self.args, clock, &self.dir) {
                Ok(started) => {
                    *child = started;
                    return Ok(());
                }
                Err(Launch::PortTaken(error)) => last = Some(error),
                Err(Launch::Failed(error)) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new("redis-server does not start again")))
    }

    /// Stops the process with SIGSTOP and waits until it stands still: connections still open, and
    /// nothing answers any more.
    pub fn stop_signal(&self) -> Result<(), Error> {
        child::stop(&mut self.child(), "redis-server")
    }

    /// Lets a stopped process go on, with SIGCONT.
    pub fn cont_signal(&self) -> Result<(), Error> {
        child::cont(&mut self.child(), "redis-server")
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // A test that panicked while it held the lock left a child that is still there to be ended.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        child::end(self.child.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Whose time a server goes by.
#[derive(Clone, Copy)]
enum Clockwork {
    Machine,
    Moved,
}

/// Why a start failed: somebody else's port is worth another try, everything else is not.
enum Launch {
    PortTaken(Error),
    Failed(Error),
}

fn launch(
    port: u16,
    password: Option<&str>,
    args: &[String],
    clock: Option<&MovedClock>,
    dir: &TempDir,
) -> Result<Child, Launch> {
    let mut child = spawn(port, args, clock, dir).map_err(Launch::Failed)?;
    match await_ready(&mut child, port, password) {
        Ok(()) => Ok(child),
        Err(why) => {
            child::end(&mut child);
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            let error = Error::new(format!(
                "redis-server on port {port}: {why}; its log:\n{log}"
            ));
            Err(if log.contains("already in use") {
                Launch::PortTaken(error)
            } else {
                Launch::Failed(error)
            })
        }
    }
}

fn spawn(
    port: u16,
    args: &[String],
    clock: Option<&MovedClock>,
    dir: &TempDir,
) -> Result<Child, Error> {
    let program = spawner::find("redis-server").ok_or_else(|| {
        Error::new(
            "redis-server is not on PATH; `cargo xtask provision` installs it, \
             or install your system's package (Debian and Ubuntu: redis-server)",
        )
    })?;
    let in_dir = |e| Error::io("cannot write the log of redis-server", e);
    let log = File::create(dir.path().join("log")).map_err(in_dir)?;
    let mut command: Command = spawner::tied_to_us(&program);
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(dir.path())
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(in_dir)?)
        .stderr(log);
    if let Some(clock) = clock {
        clock.govern(&mut command);
    }
    spawner::spawn(command).map_err(|e| Error::io("cannot start redis-server", e))
}

/// Waits until the server answers and says that it is this very process.
///
/// The process id is compared because another server may have taken the port in between, and
/// would answer just as well while ours is about to give up.
fn await_ready(child: &mut Child, port: u16, password: Option<&str>) -> Result<(), String> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let ours = format!("process_id:{}\r", child.id());
    let patience = Duration::from_secs(1);
    for _ in 0..READY_ATTEMPTS {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("it ended with {status}"));
        }
        match resp::call(address, password, &[b"INFO", b"server"], patience) {
            Ok(Reply::Bytes(info)) if String::from_utf8_lossy(&info).contains(&ours) => {
                return Ok(());
            }
            // LOADING passes; anything else that a server answers stays as it is.
            Ok(Reply::Error(message)) if !message.starts_with("LOADING") => return Err(message),
            _ => pause(),
        }
    }
    Err("it does not become ready".into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "another process becomes ready without any event that could be waited for"
)]
fn pause() {
    std::thread::sleep(READY_PAUSE);
}

fn password_in(args: &[String]) -> Option<String> {
    let at = args.iter().position(|arg| arg == "--requirepass")?;
    args.get(at + 1).cloned()
}

fn wall_millis() -> i64 {
    use larder::clock::{Clock as _, SystemClock};

    i64::try_from(SystemClock::new().wall()).unwrap_or(i64::MAX)
}
