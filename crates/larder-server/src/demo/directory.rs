//! The data directory: where the database, the disk tier and the chart are kept.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::refusal::Refusal;

/// A directory that can be written to and that no other demo uses meanwhile.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes `path` if need be and takes it for this process until dropped.
    ///
    /// # Errors
    /// A [`Refusal`] if it cannot be written to, or is taken.
    pub(crate) fn open(path: &Path) -> Result<Self, Refusal> {
        let unusable = |error: std::io::Error| {
            let why = match error.kind() {
                ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                    "something that is not a directory is in the way".to_owned()
                }
                _ => error.to_string(),
            };
            let shown = path.display();
            Refusal::new(format!(
                "cannot write to the data directory {shown} ({why}); choose another with --data"
            ))
        };
        fs::create_dir_all(path).map_err(unusable)?;
        let lock = File::create(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(Refusal::new(format!(
                "another demo uses the data directory {}; choose another with --data",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    /// The path of `name` inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_by_one_demo_at_a_time() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("new").join("deep");
        let first = Directory::open(&path).expect("free");
        let refused = Directory::open(&path).err().expect("taken").to_string();
        assert!(
            refused.starts_with("another demo uses the data directory"),
            "{refused}"
        );
        drop(first);
        assert!(Directory::open(&path).is_ok());
    }

    #[test]
    fn a_file_in_the_way_is_refused() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("file");
        fs::write(&path, "x").expect("written");
        for path in [path.clone(), path.join("below")] {
            let refused = Directory::open(&path)
                .err()
                .expect("in the way")
                .to_string();
            assert!(
                refused.starts_with("cannot write to the data directory"),
                "{refused}"
            );
            assert!(refused.contains("not a directory"), "{refused}");
        }
    }
}
