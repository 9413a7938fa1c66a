/// One request for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The key, or a hash of it: keys are compared and never shown.
    pub key: u64,
    /// How many bytes the value takes; zero where the trace does not say.
    pub bytes: u32,
}

/// Requests in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What was asked for.
    pub requests: Vec<Request>,
    /// Lines that are no request for a cache: other methods than GET and HEAD, answers that are no
    /// success, and lines that cannot be read.
    pub passed_over: u64,
}

/// How many requests were hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ratio {
    /// Requests that found their value.
    pub hits: u64,
    /// All of them.
    pub requests: u64,
}

impl Ratio {
    /// The hits per hundred requests; `None` without requests.
    pub fn percent(self) -> Option<f64> {
        (self.requests > 0).then(|| self.hits as f64 * 100.0 / self.requests as f64)
    }
}
