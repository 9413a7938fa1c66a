//! Hit ratios of larder's policies and of its rivals on recorded and made traces, beside the best
//! that any policy could do.
//!
//! `hitratio TRACES [--write FILE]` reads the traces in the folder TRACES (a key on each line,
//! compressed with zstd) and prints a table; with `--write` it also writes its section of FILE, and
//! the picture `hit-ratio.svg` beside it.

use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use larder::Policy;
use larder_bench::Result;
use larder_bench::report::{load, locked, machine, write};
use larder_bench::traces::{looped, scanned, shifting, zipf};
use larder_trace::{Bound, Chart, Format, Line, Ratio, Replay, Request, optimal, read};

/// Traces in the folder, and the capacities in entries that they are played to.
const RECORDED: [(&str, &[u64]); 8] = [
    ("arc-oltp", &[1_000, 10_000]),
    ("arc-p3", &[20_000, 100_000]),
    ("orm-busy", &[250, 2_000]),
    ("corda-vault", &[512]),
    ("lirs-loop", &[400]),
    ("lirs-2-pools", &[500]),
    ("lirs-sprite", &[500]),
    ("web07", &[500, 2_000]),
];

/// What plays a trace.
type Player = fn(&[Request], u64) -> Result<Ratio>;

/// Who takes part. The first one is the default.
const PLAYERS: [(&str, Player); 8] = [
    ("larder", |trace, size| ours(Policy::Adaptive, trace, size)),
    ("LRU", |trace, size| ours(Policy::Lru, trace, size)),
    ("LFU", |trace, size| ours(Policy::Lfu, trace, size)),
    ("FIFO", |trace, size| ours(Policy::Fifo, trace, size)),
    ("moka", |trace, size| moka(trace, size, Upkeep::EachCall)),
    ("moka, left alone", |trace, size| {
        moka(trace, size, Upkeep::WhenItLikes)
    }),
    ("quick_cache", quick_cache),
    ("foyer S3-FIFO", foyer),
];

/// The trace of the picture, and its sizes.
const DRAWN: (&str, [u64; 9]) = (
    "arc-oltp",
    [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000],
);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, report) = match arguments.as_slice() {
        [folder] => (PathBuf::from(folder), None),
        [folder, flag, file] if flag == "--write" => {
            (PathBuf::from(folder), Some(PathBuf::from(file)))
        }
        _ => return Err("usage: hitratio TRACES [--write FILE]".into()),
    };
    let load = load();
    let table = table(&folder)?;
    print!("{table}");
    let Some(report) = report else {
        return Ok(());
    };
    let picture = report.with_file_name("hit-ratio.svg");
    std::fs::write(picture, drawing(&folder)?.svg())?;
    write(&report, "Hit ratio", &section(&load, &table))
}

fn table(folder: &Path) -> Result<String> {
    let mut table = format!(
        "| trace @ entries | optimal |{}\n",
        columns(|name| name.into())
    );
    let rule = columns(|_| "---".into());
    writeln!(table, "|---|---|{rule}")?;
    let (mut distances, mut rows) = ([0.0; PLAYERS.len()], 0.0);
    let mut row = |name: &str, trace: &[Request], size: u64| -> Result<()> {
        let best = percent(optimal(trace, usize::try_from(size)?));
        write!(table, "| {name} @ {size} | {best:.1} |")?;
        for (distance, (_, play)) in distances.iter_mut().zip(PLAYERS) {
            let reached = percent(play(trace, size)?);
            *distance += best - reached;
            write!(table, " {reached:.1} |")?;
        }
        writeln!(table)?;
        rows += 1.0;
        Ok(())
    };
    for (name, sizes) in RECORDED {
        let trace = recorded(folder, name)?;
        for &size in sizes {
            row(name, &trace, size)?;
        }
    }
    row("zipf 0.9", &zipf(0.9), 1_000)?;
    row("zipf 0.9", &zipf(0.9), 10_000)?;
    row("zipf 0.7", &zipf(0.7), 10_000)?;
    row("zipf 0.9 and scans", &scanned(), 2_000)?;
    row("loop of 2,500", &looped(2_500), 2_000)?;
    row("zipf 0.9 that moves, and a loop", &shifting(), 1_000)?;
    write!(table, "| mean distance to the optimum | |")?;
    for distance in distances {
        write!(table, " {:.1} |", distance / rows)?;
    }
    writeln!(table)?;
    Ok(table)
}

fn columns(cell: impl Fn(&str) -> String) -> String {
    PLAYERS
        .iter()
        .map(|(name, _)| format!(" {} |", cell(name)))
        .collect()
}

fn recorded(folder: &Path, name: &str) -> Result<Vec<Request>> {
    let path = folder.join(format!("{name}.txt.zst"));
    let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = BufReader::new(zstd::Decoder::new(file)?);
    Ok(read(lines, &Format::Keys)?.requests)
}

fn percent(ratio: Ratio) -> f64 {
    ratio.percent().unwrap_or(0.0)
}

fn drawing(folder: &Path) -> Result<Chart> {
    let (name, sizes) = DRAWN;
    let trace = recorded(folder, name)?;
    let mut lines = Vec::new();
    let mut line = |name: &str, play: &dyn Fn(u64) -> Result<Ratio>| -> Result<()> {
        let mut points = Vec::new();
        for size in sizes {
            points.push((size, percent(play(size)?)));
        }
        let name = name.into();
        lines.push(Line { name, points });
        Ok(())
    };
    line("optimal", &|size| {
        Ok(optimal(&trace, usize::try_from(size)?))
    })?;
    for (name, play) in PLAYERS {
        line(name, &|size| play(&trace, size))?;
    }
    Ok(Chart {
        title: format!("Hit ratio on {name}"),
        lines,
    })
}

fn section(load: &str, table: &str) -> String {
    let rivals = ["moka", "quick_cache", "foyer-memory"].map(locked);
    let machine = machine(load, &rivals.each_ref().map(String::as_str));
    format!(
        "`cargo xtask bench hitratio --write`\n\n\
         ![Hit ratio against size](hit-ratio.svg)\n\n\
         Hits per hundred requests. Every miss is followed by a write; the first column is larder's\n\
         default policy, and LRU, LFU and FIFO are those of larder. moka keeps to its bound only where its\n\
         upkeep is called for after each request; left alone it holds more for a while, as it does for its\n\
         users.\n\n\
         {table}\n\
         The first traces are recorded ones: N. Megiddo and D. Modha (arc-*), cache2k (orm-busy, web07),\n\
         Corda (corda-vault) and the authors of LIRS (lirs-*). The others are made with fixed seeds.\n\n\
         {machine}"
    )
}

fn ours(policy: Policy, trace: &[Request], size: u64) -> Result<Ratio> {
    Ok(Replay::new(policy, Bound::Entries(size)).run(trace)?)
}

/// When moka does what it puts off: the reads it has yet to count, and the entries it has yet to evict.
#[derive(Clone, Copy, PartialEq)]
enum Upkeep {
    EachCall,
    WhenItLikes,
}

fn moka(trace: &[Request], size: u64, upkeep: Upkeep) -> Result<Ratio> {
    let cache = moka::sync::Cache::<u64, ()>::new(size);
    Ok(play(trace, |key| {
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.insert(key, ());
        }
        if upkeep == Upkeep::EachCall {
            cache.run_pending_tasks();
        }
        hit
    }))
}

fn quick_cache(trace: &[Request], size: u64) -> Result<Ratio> {
    let cache = quick_cache::sync::Cache::<u64, ()>::new(usize::try_from(size)?);
    Ok(play(trace, |key| {
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.insert(key, ());
        }
        hit
    }))
}

fn foyer(trace: &[Request], size: u64) -> Result<Ratio> {
    let cache: foyer_memory::Cache<u64, ()> =
        foyer_memory::CacheBuilder::new(usize::try_from(size)?)
            .with_eviction_config(foyer_memory::S3FifoConfig::default())
            .build();
    Ok(play(trace, |key| {
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.insert(key, ());
        }
        hit
    }))
}

fn play(trace: &[Request], mut ask: impl FnMut(u64) -> bool) -> Ratio {
    let hits = trace.iter().filter(|request| ask(request.key)).count();
    Ratio {
        hits: hits as u64,
        requests: trace.len() as u64,
    }
}
