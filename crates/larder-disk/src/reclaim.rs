//! Keeping the directory in proportion: rewriting the tables when too much in them is dead.
//!
//! Leveled compaction drops what was removed or overwritten when a table meets the level below.
//! Where keys ascend, new tables pass by old ones without meeting them, and nothing is ever
//! dropped. So the size of the tables is watched: beyond one limit they are rewritten as a whole,
//! beyond the next nothing is stored until that is done.

use std::thread::JoinHandle;

use crate::tree::{Tree, TreeError};
use crate::writer::{Failure, Writer};

/// The least that is written between two looks at the size.
const MIN_LOOK: u64 = 1 << 20;

/// What small stores may exceed the proportion by.
const SLACK: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    /// Bytes stored since the last look.
    written: u64,
    /// What the last look found.
    proportion: Proportion,
    rewriting: Option<JoinHandle<Result<(), TreeError>>>,
}

/// How the tables compare with what may be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Proportion {
    #[default]
    Fine,
    /// They are to be rewritten.
    Loose,
    /// Nothing more is stored until they are.
    Over,
}

fn proportion(tables: u64, max_bytes: u64) -> Proportion {
    if tables > max_bytes.saturating_mul(2).saturating_add(SLACK) {
        Proportion::Over
    } else if tables > (max_bytes.saturating_add(max_bytes / 2)).saturating_add(SLACK) {
        Proportion::Loose
    } else {
        Proportion::Fine
    }
}

impl Reclaim {
    /// Waits for a rewriting under way.
    pub(crate) fn finish(&mut self) {
        if let Some(rewriting) = self.rewriting.take() {
            // What it failed of shows at the next write.
            let _ = rewriting.join();
        }
    }
}

impl Writer {
    /// Refuses to store while the tables are far too large.
    pub(crate) fn check_size(&mut self, tree: &Tree, charge: u64) -> Result<(), Failure> {
        self.reclaim.written += charge;
        let look = (self.shared.options.max_bytes / 128).max(MIN_LOOK);
        if self.reclaim.proportion == Proportion::Over || self.reclaim.written >= look {
            self.look_at_size(tree)?;
        }
        if self.reclaim.proportion == Proportion::Over {
            return Err(Failure::Behind);
        }
        Ok(())
    }

    /// Compares the tables with the limits, and begins to rewrite them where needed.
    pub(crate) fn look_at_size(&mut self, tree: &Tree) -> Result<(), Failure> {
        self.reclaim.written = 0;
        let tables = tree.table_bytes();
        self.reclaim.proportion = proportion(tables, self.shared.options.max_bytes);
        let ended = self
            .reclaim
            .rewriting
            .take_if(|rewriting| rewriting.is_finished());
        if let Some(ended) = ended {
            ended.join().unwrap_or(Err(TreeError::Panicked))?;
        }
        let loose = self.reclaim.proportion != Proportion::Fine;
        if loose && self.reclaim.rewriting.is_none() {
            tracing::debug!(tables, "rewriting the tables of the disk cache");
            let started = std::thread::Builder::new()
                .name("larder-disk-tidy".to_owned())
                .spawn(tree.rewriter());
            self.reclaim.rewriting = started.ok();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_rewritten_before_storing_stops() {
        const MIB: u64 = 1 << 20;
        let found = |tables| proportion(tables * MIB, 100 * MIB);
        assert_eq!(found(166), Proportion::Fine);
        assert_eq!(found(167), Proportion::Loose);
        assert_eq!(found(216), Proportion::Loose);
        assert_eq!(found(217), Proportion::Over);
        assert_eq!(proportion(u64::MAX, u64::MAX), Proportion::Fine);
    }
}
