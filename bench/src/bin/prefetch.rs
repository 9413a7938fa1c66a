//! What prefetching by learned successors makes of traces: hit ratio with and without it, and what it
//! costs in loads.
//!
//! `prefetch TRACES` reads the traces in the folder TRACES. Requests come from one user, who thinks
//! between them for long enough that a prefetch ends: the best case. All of it is counted, and nothing
//! is timed.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use larder::{Cache, Larder, Prefetch};
use larder_bench::Result;
use larder_trace::{Format, Request, read};

/// Traces in the folder, and the capacities in entries that they are played to.
const RECORDED: [(&str, &[u64]); 3] = [
    ("orm-busy", &[250, 2_000]),
    ("web07", &[500, 2_000]),
    ("arc-oltp", &[1_000]),
];

/// Requests of each trace that are played.
const REQUESTS: usize = 500_000;

/// Turns of the runtime between two requests: more than a prefetch takes.
const TURNS: usize = 12;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        return Err("usage: prefetch TRACES".into());
    };
    println!(
        "| trace @ capacity | model, confidence | hit ratio without | with | loads without | with | precision |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, capacities) in RECORDED {
        let trace = recorded(&PathBuf::from(folder), name)?;
        for capacity in capacities {
            compare(name, &trace, *capacity).await?;
        }
    }
    Ok(())
}

fn recorded(folder: &Path, name: &str) -> Result<Vec<Request>> {
    let file = File::open(folder.join(format!("{name}.txt.zst")))?;
    let text = BufReader::new(zstd::Decoder::new(file)?);
    Ok(read(text, &Format::Keys)?.requests)
}

async fn compare(name: &str, trace: &[Request], capacity: u64) -> Result<()> {
    let trace = &trace[..trace.len().min(REQUESTS)];
    let without = play(trace, capacity, None).await?;
    for (model, confidence) in [(4_096, 0.5), (65_536, 0.5), (65_536, 0.25)] {
        let options = Prefetch {
            model,
            confidence,
            per_second: u32::MAX,
            ..Prefetch::default()
        };
        let with = play(trace, capacity, Some(options)).await?;
        let precision = with
            .precision
            .map_or("–".to_owned(), |share| format!("{:.0} %", share * 100.0));
        println!(
            "| {name} @ {capacity} | {model}, {confidence} | {:.1} % | {:.1} % | {:.3} | {:.3} | {precision} |",
            without.hits * 100.0,
            with.hits * 100.0,
            without.loads,
            with.loads,
        );
    }
    Ok(())
}

/// What a trace came to, per request.
struct Played {
    hits: f64,
    loads: f64,
    precision: Option<f64>,
}

async fn play(trace: &[Request], capacity: u64, options: Option<Prefetch>) -> Result<Played> {
    let cache: Cache<u64, ()> = Larder::local()
        .cache("played")
        .no_ttl()
        .capacity(capacity)
        .in_memory()?;
    let loading = cache.loading_with(|_| std::future::ready(std::io::Result::Ok(())));
    let prefetching = options
        .map(|options| loading.prefetch(options))
        .transpose()?;
    for request in trace {
        loading.get(&request.key).await?;
        if prefetching.is_some() {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        }
    }
    let stats = cache.stats();
    let requests = trace.len() as f64;
    Ok(Played {
        hits: stats.hits_memory as f64 / requests,
        loads: stats.loads as f64 / requests,
        precision: prefetching.and_then(|prefetching| prefetching.stats().precision()),
    })
}
