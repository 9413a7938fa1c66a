//! Recorded requests, and what a cache of larder would have made of them.
//!
//! ```
//! use larder::Policy;
//! use larder_trace::{Bound, Format, Replay, optimal, read};
//!
//! let log = "\
//! 10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET /shoes HTTP/1.1\" 200 5120
//! 10.0.0.2 - - [30/Nov/2026:10:00:01 +0000] \"GET /shoes HTTP/1.1\" 200 5120
//! 10.0.0.1 - - [30/Nov/2026:10:00:02 +0000] \"POST /cart HTTP/1.1\" 201 17
//! ";
//! let trace = read(log.as_bytes(), &Format::AccessLog)?;
//! assert_eq!((trace.requests.len(), trace.passed_over), (2, 1));
//!
//! let ratio = Replay::new(Policy::Adaptive, Bound::Entries(100)).run(&trace.requests)?;
//! assert_eq!(ratio.hits, 1);
//! assert_eq!(optimal(&trace.requests, 100).hits, 1);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! A replay runs the engine itself, not a model of it. In reading order:
//!
//! - `request`: one request, and the trace that it is part of;
//! - `read`: traces in the formats that there are;
//! - `replay`: requests through a cache;
//! - `optimal`: what the best of all policies could have kept;
//! - `chart`: hit ratio against size, as a picture.

#![forbid(unsafe_code)]

mod chart;
mod optimal;
mod read;
mod replay;
mod request;

pub use chart::{Chart, Line};
pub use optimal::optimal;
pub use read::{Format, TraceError, read};
pub use replay::{Bound, Replay};
pub use request::{Ratio, Request, Trace};
