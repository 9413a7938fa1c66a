//! larder beside its rivals, in one run.
//!
//! Times differ from machine to machine and from minute to minute, so every figure is a ratio
//! against a rival measured in the same rounds, and the spread is printed with it.
//!
//! - [`hand_written`]: the rival that engineers write themselves
//! - [`several_tiers`]: caches with several tiers, by others
//! - [`node`]: processes whose caches are to agree, with larder and with the least there is to do
//! - [`amalgam_node`]: the same with amalgam-cache
//! - [`other`]: another process, and what it is told to do
//! - [`freshness`]: how long a removal takes until another process reads fresh
//! - [`workload`]: the keys and values that everybody reads
//! - [`traces`]: traces that are made rather than recorded
//! - [`tables`]: tables in memory, larder's and those of its rivals
//! - [`rounds`]: interleaved rounds and their ratios
//! - [`server`]: what a server and the kernel have counted
//! - [`report`]: the tables, the machine they were measured on, and where they are written

pub mod amalgam_node;
pub mod freshness;
pub mod hand_written;
pub mod node;
pub mod other;
pub mod report;
pub mod rounds;
pub mod server;
pub mod several_tiers;
pub mod tables;
pub mod traces;
pub mod workload;

/// Whatever a benchmark could not go on after; it ends with the message.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
