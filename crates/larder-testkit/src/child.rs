//! What is done to a child process, whatever it runs.

use std::io;
use std::process::Child;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::Error;

/// Kills the process, stopped or not, and collects it. One that is already collected is left alone:
/// its id may belong to somebody else by now.
pub(crate) fn end(child: &mut Child) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    // The signal fails only for a process that is gone, which is what is wanted.
    let _ = signal_to(child, Signal::CONT);
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends SIGSTOP and waits until the process stands still. `name` is what errors call it.
pub(crate) fn stop(child: &mut Child, name: &str) -> Result<(), Error> {
    let pid = signal(child, Signal::STOP, name)?;
    let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), stopped)
        .map(drop)
        .map_err(|e| Error::io(format!("cannot wait for {name} to stop"), e.into()))
}

/// Lets a stopped process go on, with SIGCONT.
pub(crate) fn cont(child: &mut Child, name: &str) -> Result<(), Error> {
    signal(child, Signal::CONT, name).map(drop)
}

fn signal(child: &mut Child, signal: Signal, name: &str) -> Result<Pid, Error> {
    if !matches!(child.try_wait(), Ok(None)) {
        return Err(Error::new(format!("{name} is not running")));
    }
    signal_to(child, signal)
        .map(|()| Pid::from_child(child))
        .map_err(|e| Error::io(format!("cannot send {signal:?} to {name}"), e))
}

fn signal_to(child: &Child, signal: Signal) -> io::Result<()> {
    kill_process(Pid::from_child(child), signal).map_err(io::Error::from)
}
