//! larder beside its rivals, in one run.
//!
//! Times differ from machine to machine and from minute to minute, so every figure is a ratio
//! against a rival measured in the same rounds, and the spread is printed with it.
//!
//! - [`hand_written`]: the rival that engineers write themselves
//! - [`workload`]: the keys and values that everybody reads
//! - [`rounds`]: interleaved rounds and their ratios
//! - [`report`]: the table, and the machine it was measured on

pub mod hand_written;
pub mod report;
pub mod rounds;
pub mod workload;

/// Whatever a benchmark could not go on after; it ends with the message.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
