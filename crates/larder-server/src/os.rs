//! What the standard library does not ask of the operating system.

use std::future::Future;

/// Resolves at Ctrl-C, or when the process is asked to end. The listening starts at once.
#[cfg(unix)]
pub(crate) fn end_requested() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
pub(crate) fn end_requested() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

/// Raises the limit on open files as far as allowed, and says how many may be open now.
#[cfg(unix)]
pub(crate) fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // More than this is never needed, and some systems refuse "as many as you like".
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(65_536);
    let raised = Rlimit {
        current: Some(wanted.max(limit.current.unwrap_or(u64::MAX))),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

#[cfg(not(unix))]
pub(crate) fn raise_open_files() -> u64 {
    u64::MAX
}

/// What can be asked of a process by its id.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// End in good order.
    End,
    /// Stand still, sockets open, answering nothing.
    Freeze,
    /// Go on after [`Ask::Freeze`].
    Thaw,
}

/// Sends a signal to the process `pid`.
#[cfg(unix)]
pub(crate) fn ask(pid: u32, ask: Ask) -> std::io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let signal = match ask {
        Ask::End => Signal::TERM,
        Ask::Freeze => Signal::STOP,
        Ask::Thaw => Signal::CONT,
    };
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

#[cfg(not(unix))]
pub(crate) fn ask(_pid: u32, _ask: Ask) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
