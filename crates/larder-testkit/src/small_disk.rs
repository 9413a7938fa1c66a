use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::Error;

/// A file system of a given size, for tests of a full disk. Linux, and root, only.
///
/// It is a tmpfs, mounted in a directory of its own and unmounted when dropped. A test binary that
/// is killed leaves the mount behind, under `larder-disk-*` in the directory for temporary files.
#[derive(Debug)]
pub struct SmallDisk {
    // Unmounted before the directory that it is mounted on is removed.
    mounted: Mounted,
    _dir: TempDir,
}

#[derive(Debug)]
struct Mounted(PathBuf);

/// What is written at a time while the disk is filled: a page, the least that a tmpfs gives.
const BLOCK: [u8; 4096] = [0x5f; 4096];

impl SmallDisk {
    /// Mounts a file system of `bytes` bytes, in whole pages.
    pub fn mount(bytes: u64) -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("larder-disk-")
            .tempdir()
            .map_err(|e| Error::io("cannot make a directory for a small disk", e))?;
        let options = CString::new(format!("size={bytes},mode=0700"))
            .map_err(|_| Error::new("a size has no NUL"))?;
        mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .map_err(cannot_mount)?;
        let disk = Self {
            mounted: Mounted(dir.path().into()),
            _dir: dir,
        };
        std::fs::create_dir(disk.path())
            .map_err(|e| Error::io("cannot make a directory on the small disk", e))?;
        Ok(disk)
    }

    /// An empty directory on the disk, for the store under test.
    pub fn path(&self) -> PathBuf {
        self.mounted.0.join("data")
    }

    /// Takes all the room that is left, so that the next write fails; returns how many bytes.
    pub fn fill_up(&self) -> Result<u64, Error> {
        let failed = |e| Error::io("cannot fill the small disk", e);
        let mut filler = File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .map_err(failed)?;
        let mut written = 0;
        loop {
            match filler.write(&BLOCK) {
                Ok(more) => written += more as u64,
                Err(e) if e.kind() == ErrorKind::StorageFull => return Ok(written),
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// Gives back the room that [`SmallDisk::fill_up`] took.
    pub fn free(&self) -> Result<(), Error> {
        match std::fs::remove_file(self.filler()) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::io("cannot free the small disk", e))
            }
            _ => Ok(()),
        }
    }

    /// How many bytes can still be written.
    pub fn available(&self) -> Result<u64, Error> {
        let stat = rustix::fs::statvfs(&self.mounted.0)
            .map_err(|e| Error::io("cannot ask the small disk for its room", e.into()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn filler(&self) -> PathBuf {
        self.mounted.0.join("filler")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Detached at once and gone with the last open file, so an open file does not keep it.
        // If even that fails, nothing is left to be done about it here.
        let _ = unmount(&self.0 as &Path, UnmountFlags::DETACH);
    }
}

fn cannot_mount(error: Errno) -> Error {
    match error {
        Errno::PERM | Errno::ACCESS => Error::new(
            "a small disk is a tmpfs mount, which needs root (CAP_SYS_ADMIN): \
             run this test as root, or by sudo",
        ),
        other => Error::io("cannot mount a tmpfs", other.into()),
    }
}
