//! Starting servers that cannot outlive the test binary.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};

struct Job {
    command: Command,
    reply: SyncSender<io::Result<Child>>,
}

/// The thread that starts every server of this process.
///
/// A child that asked for a signal at its parent's death gets it when the *thread* that started it
/// ends, and the thread of a test ends with the test. This one lives as long as the process.
static SPAWNER: LazyLock<Option<SyncSender<Job>>> = LazyLock::new(|| {
    let (jobs, inbox) = sync_channel::<Job>(0);
    std::thread::Builder::new()
        .name("larder-testkit-spawner".into())
        .spawn(move || {
            for mut job in inbox {
                // A caller that gave up has dropped its end, and needs no answer.
                let _ = job.reply.send(job.command.spawn());
            }
        })
        .ok()
        .map(|_| jobs)
});

/// Runs `command` from the long-lived thread.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let lost = || io::Error::other("the test kit's spawning thread is gone");
    let (reply, answer) = sync_channel(1);
    let job = Job { command, reply };
    let spawner = SPAWNER.as_ref().ok_or_else(lost)?;
    spawner.send(job).map_err(|_| lost())?;
    answer.recv().map_err(|_| lost())?
}

/// A command that runs `program` and, where `setpriv` is installed (util-linux, Linux), has the
/// kernel kill it when this process ends in whatever way.
///
/// `setpriv` executes the program in its own place, so the process id is the program's.
pub(crate) fn tied_to_us(program: &PathBuf) -> Command {
    match find("setpriv") {
        Some(setpriv) if cfg!(target_os = "linux") => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// Where `program` lies on `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
