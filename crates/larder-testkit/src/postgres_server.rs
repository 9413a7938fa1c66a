use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Error, ports, spawner};

/// A real PostgreSQL server of this test alone: its own port on 127.0.0.1, its own directory,
/// nothing flushed to disk (`fsync` is off). Dropping it ends the server and removes the directory.
///
/// PostgreSQL does not run as root. A test that does has it run as the user `postgres`, whom
/// Debian's package brings along.
///
/// Starting takes about a second and blocks, which a test may do on a runtime's thread. Tests that
/// neither stop nor kill the server share one and take a database each:
///
/// ```
/// use larder_testkit::PostgresServer;
///
/// let server = PostgresServer::shared()?;
/// let url = server.database()?;
/// server.exec(&url, "CREATE TABLE product (id int PRIMARY KEY)")?;
/// assert_eq!(server.exec(&url, "SELECT count(*) FROM product")?, "0\n");
/// # Ok::<(), larder_testkit::Error>(())
/// ```
#[derive(Debug)]
pub struct PostgresServer {
    programs: Programs,
    port: u16,
    args: Vec<String>,
    databases: AtomicU64,
    child: Mutex<Child>,
    dir: TempDir,
}

/// The superuser of every server. Connections from this machine need no password.
const USER: &str = "larder";
/// How often a start is tried again on another port, should somebody take ours first.
const PORT_ATTEMPTS: usize = 8;
/// How long a restart waits for the old socket to be gone, in attempts.
const RESTART_ATTEMPTS: usize = 3;
/// How often something that another process does is looked for, and the pause between: 60 s, long
/// enough for a crash recovery on a busy machine.
const LOOKS: usize = 12_000;
const PAUSE: Duration = Duration::from_millis(5);

/// The server that tests share while at least one of them holds it.
static SHARED: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

impl PostgresServer {
    /// Starts a server on a free port and waits until it answers.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(&[])
    }

    /// The same with further arguments, such as `["-c", "max_prepared_transactions=4"]`.
    pub fn start_with(args: &[&str]) -> Result<Self, Error> {
        let programs = Programs::find()?;
        let dir = programs.directory()?;
        programs.initialise(dir.path())?;
        let args = args.iter().map(|&arg| arg.into()).collect();
        Self::launch_in(programs, args, dir)
    }

    /// Copies the server and starts the copy as a standby that streams from it and answers reads,
    /// on a port of its own. Databases and users are those of this server.
    ///
    /// `SELECT pg_wal_replay_pause()` there makes it lag.
    pub fn start_standby(&self) -> Result<Self, Error> {
        let dir = self.programs.directory()?;
        self.programs.copy(self.port, dir.path())?;
        Self::launch_in(self.programs.clone(), self.args.clone(), dir)
    }

    fn launch_in(programs: Programs, args: Vec<String>, dir: TempDir) -> Result<Self, Error> {
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            let port = ports::free()?;
            match launch(&programs, port, &args, dir.path()) {
                Ok(child) => {
                    return Ok(Self {
                        programs,
                        port,
                        args,
                        databases: AtomicU64::new(0),
                        child: Mutex::new(child),
                        dir,
                    });
                }
                Err(Launch::PortTaken(error)) => last = Some(error),
                Err(Launch::Failed(error)) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new("no port for PostgreSQL")))
    }

    /// The server that the tests of this binary share. It ends when the last of them lets go.
    ///
    /// Take a [`PostgresServer::database`] for each test, and stop, kill or restart only servers of
    /// your own.
    pub fn shared() -> Result<Arc<Self>, Error> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Makes a new, empty database and returns its URL.
    pub fn database(&self) -> Result<String, Error> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        self.exec(&self.url(), &format!("CREATE DATABASE {name}"))?;
        Ok(self.url_of(&name))
    }

    /// The URL of the database `postgres`, for a superuser: `postgres://larder@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Where the server listens; what a [`ChaosProxy`](crate::ChaosProxy) takes as its upstream.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The port it listens on. It stays the same over [`PostgresServer::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server's first process. A restart changes it.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Runs `sql` in the database at `url` with psql and returns what it prints: a line for each
    /// row, columns divided by `|`. The first statement that fails ends it.
    pub fn exec(&self, url: &str, sql: &str) -> Result<String, Error> {
        let failed = |e| Error::io("cannot run psql", e);
        let mut psql = Command::new(&self.programs.psql)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .args(["-d", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = psql.stdin.take() {
            // One that ended early says why on its own error output.
            let _ = stdin.write_all(sql.as_bytes());
        }
        let output = psql.wait_with_output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("psql: {}", said.trim_end())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends the server as `pg_ctl stop -m immediate` does: no checkpoint, and the next start has to
    /// recover from the log. Returns once it is gone. A second call does nothing.
    pub fn kill_immediate(&self) {
        end(&mut self.child());
    }

    /// Starts it again on the same port and with the same data, ending it first if it runs.
    pub fn restart(&self) -> Result<(), Error> {
        let mut child = self.child();
        end(&mut child);
        let mut last = None;
        for _ in 0..RESTART_ATTEMPTS {
            match launch(&self.programs, self.port, &self.args, self.dir.path()) {
                Ok(started) => {
                    *child = started;
                    return Ok(());
                }
                Err(Launch::PortTaken(error)) => last = Some(error),
                Err(Launch::Failed(error)) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new("PostgreSQL does not start again")))
    }

    /// Stops all processes of the server with SIGSTOP and waits until they stand still:
    /// connections still open, and nothing answers any more. Needs `/proc`, so Linux.
    pub fn stop_signal(&self) -> Result<(), Error> {
        let first = self.signal(Signal::STOP)?;
        await_stopped(first)?;
        // The first process starts all others, so there are no more of them from here on.
        for backend in children_of(first) {
            // One that ended meanwhile stands still as well; its stopped parent does not collect it.
            if kill_process(backend, Signal::STOP).is_ok() {
                await_stopped(backend)?;
            }
        }
        Ok(())
    }

    /// Lets stopped processes go on, with SIGCONT.
    pub fn cont_signal(&self) -> Result<(), Error> {
        let first = self.signal(Signal::CONT)?;
        resume_children(first);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<Pid, Error> {
        let mut child = self.child();
        if !matches!(child.try_wait(), Ok(None)) {
            return Err(Error::new("PostgreSQL is not running"));
        }
        let pid = Pid::from_child(&child);
        kill_process(pid, signal)
            .map(|()| pid)
            .map_err(|e| Error::io(format!("cannot send {signal:?} to PostgreSQL"), e.into()))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // A test that panicked while it held the lock left a child that is still there to be ended.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        end(self.child.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The programs of one installation, and whom they run as.
#[derive(Clone, Debug)]
struct Programs {
    basebackup: PathBuf,
    initdb: PathBuf,
    postgres: PathBuf,
    psql: PathBuf,
    /// The user and group to become; `None` leaves them as they are.
    become_user: Option<(u32, u32)>,
}

impl Programs {
    fn find() -> Result<Self, Error> {
        let folder = folder().ok_or_else(|| {
            Error::new(
                "PostgreSQL is neither in /usr/lib/postgresql nor on PATH; `cargo xtask provision` \
                 installs it, or install your system's package (Debian and Ubuntu: postgresql)",
            )
        })?;
        Ok(Self {
            basebackup: folder.join("pg_basebackup"),
            initdb: folder.join("initdb"),
            postgres: folder.join("postgres"),
            psql: folder.join("psql"),
            become_user: if rustix::process::geteuid().is_root() {
                Some(user_postgres()?)
            } else {
                None
            },
        })
    }

    /// A new directory of whom the server runs as.
    fn directory(&self) -> Result<TempDir, Error> {
        let dir = tempfile::Builder::new()
            .prefix("larder-postgres-")
            .tempdir()
            .map_err(|e| Error::io("cannot make a directory for PostgreSQL", e))?;
        self.give(dir.path())?;
        Ok(dir)
    }

    /// Hands the directory to whom the server runs as.
    fn give(&self, dir: &Path) -> Result<(), Error> {
        let Some((user, group)) = self.become_user else {
            return Ok(());
        };
        std::os::unix::fs::chown(dir, Some(user), Some(group))
            .map_err(|e| Error::io("cannot give a directory to the user postgres", e))
    }

    fn command(&self, mut command: Command, dir: &Path) -> Command {
        use std::os::unix::process::CommandExt as _;

        if let Some((user, group)) = self.become_user {
            command.uid(user).gid(group);
        }
        command.current_dir(dir).stdin(Stdio::null());
        command
    }

    /// Makes the files of a new server in `data` below `dir`.
    fn initialise(&self, dir: &Path) -> Result<(), Error> {
        let mut initdb = self.command(Command::new(&self.initdb), dir);
        initdb
            .args(["--username", USER, "--auth", "trust", "--no-sync"])
            .args(["--encoding", "UTF8", "--locale", "C", "--pgdata"])
            .arg(dir.join("data"));
        run("initdb", initdb)
    }

    /// Makes the files of a standby of the server on `port` in `data` below `dir`.
    fn copy(&self, port: u16, dir: &Path) -> Result<(), Error> {
        let mut basebackup = self.command(Command::new(&self.basebackup), dir);
        basebackup
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--username", USER, "--write-recovery-conf"])
            .args(["--checkpoint", "fast", "--no-sync", "--pgdata"])
            .arg(dir.join("data"));
        run("pg_basebackup", basebackup)
    }

    fn spawn(&self, port: u16, args: &[String], dir: &Path) -> Result<Child, Error> {
        let in_dir = |e| Error::io("cannot write the log of PostgreSQL", e);
        let log = File::create(dir.join("log")).map_err(in_dir)?;
        let mut command = self.command(spawner::tied_to_us(&self.postgres), dir);
        command
            .arg("-D")
            .arg(dir.join("data"))
            .args(["-c", &format!("port={port}")])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", &format!("unix_socket_directories={}", dir.display())])
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            .args(["-c", "shared_buffers=16MB", "-c", "max_connections=60"])
            .args(args)
            .stdout(log.try_clone().map_err(in_dir)?)
            .stderr(log);
        spawner::spawn(command).map_err(|e| Error::io("cannot start PostgreSQL", e))
    }
}

/// Runs a program to its end; the error is what it complained about.
fn run(name: &str, mut command: Command) -> Result<(), Error> {
    let output = command
        .output()
        .map_err(|e| Error::io(format!("cannot start {name}"), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("{name}: {}", said.trim_end())))
}

/// Where the programs are: the newest version that Debian's packages installed, else on `PATH`.
fn folder() -> Option<PathBuf> {
    let whole = |folder: &PathBuf| {
        ["initdb", "postgres", "psql"]
            .iter()
            .all(|program| folder.join(program).is_file())
    };
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = versions
        .flatten()
        .filter_map(|entry| {
            let number: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((number, entry.path().join("bin")))
        })
        .filter(|(_, folder)| whole(folder))
        .max();
    let on_path = || {
        let initdb = std::fs::canonicalize(spawner::find("initdb")?).ok()?;
        Some(initdb.parent()?.to_path_buf()).filter(whole)
    };
    newest.map(|(_, folder)| folder).or_else(on_path)
}

/// The numbers of the user `postgres` and of its group.
fn user_postgres() -> Result<(u32, u32), Error> {
    let number = |flag| {
        let output = Command::new("id").args([flag, "postgres"]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    number("-u").zip(number("-g")).ok_or_else(|| {
        Error::new(
            "PostgreSQL does not run as root, and there is no user postgres to run it as; \
             run this test as another user",
        )
    })
}

/// Why a start failed: somebody else's port is worth another try, everything else is not.
enum Launch {
    PortTaken(Error),
    Failed(Error),
}

fn launch(programs: &Programs, port: u16, args: &[String], dir: &Path) -> Result<Child, Launch> {
    let mut child = programs.spawn(port, args, dir).map_err(Launch::Failed)?;
    match await_ready(&mut child, dir) {
        Ok(()) => Ok(child),
        Err(why) => {
            end(&mut child);
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            let error = Error::new(format!("PostgreSQL on port {port}: {why}; its log:\n{log}"));
            Err(if log.contains("Address already in use") {
                Launch::PortTaken(error)
            } else {
                Launch::Failed(error)
            })
        }
    }
}

/// Waits until the file that the server keeps about itself names this process and says `ready`, or
/// `standby`, which is what one that answers reads says.
fn await_ready(child: &mut Child, dir: &Path) -> Result<(), String> {
    let file = dir.join("data/postmaster.pid");
    let ours = child.id().to_string();
    for _ in 0..LOOKS {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("it ended with {status}"));
        }
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        if lines.next() == Some(&ours)
            && lines
                .next_back()
                .is_some_and(|state| ["ready", "standby"].contains(&state))
        {
            return Ok(());
        }
        pause();
    }
    Err("it does not become ready".into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "another process changes its state without any event that could be waited for"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Ends the server at once, stopped or not, and collects it. One that is already collected is left
/// alone: its id may belong to somebody else by now.
///
/// The signal is the one that makes the first process take all others along. A plain kill would
/// leave them behind for a moment, and with them the memory that keeps the next start from going on.
fn end(child: &mut Child) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let pid = Pid::from_child(child);
    // A signal fails only for a process that is gone, which is what is wanted.
    let _ = kill_process(pid, Signal::CONT);
    resume_children(pid);
    let _ = kill_process(pid, Signal::QUIT);
    for _ in 0..LOOKS {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        pause();
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn resume_children(first: Pid) {
    for backend in children_of(first) {
        let _ = kill_process(backend, Signal::CONT);
    }
}

fn await_stopped(pid: Pid) -> Result<(), Error> {
    for _ in 0..LOOKS {
        match stat_of(pid.as_raw_nonzero().get()) {
            Some((state, _)) if !"TZ".contains(state) => pause(),
            _ => return Ok(()),
        }
    }
    Err(Error::new("a process of PostgreSQL does not stop"))
}

/// The processes that `parent` started and that still run.
fn children_of(parent: Pid) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = parent.as_raw_nonzero().get();
    numbers
        .filter(|pid| stat_of(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .filter_map(Pid::from_raw)
        .collect()
}

/// The state letter that the kernel shows for a process, and the process that started it.
fn stat_of(pid: i32) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
