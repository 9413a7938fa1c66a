//! larder beside amalgam-cache, its closest rival: speed, and what becomes of removals and reads
//! when clocks, connections and servers fail.
//!
//! `beside-amalgam [--write FILE]` prints a table; with `--write` it also writes its section of
//! FILE.

mod faults;
mod speed;

use larder_bench::Result;
use larder_bench::freshness;
use larder_bench::report::{Row, destination, load, locked, machine, table, write};
use larder_testkit::RedisServer;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    if larder_bench::other::serve().await? {
        return Ok(());
    }
    let report = destination(std::env::args().skip(1))?;
    let load = load();
    let mut rows = speed::memory_hits().await?;
    rows.extend(speed::redis_hits().await?);
    rows.extend(speed::inserts().await?);
    rows.extend(removals().await?);
    rows.extend(faults::clocks_apart().await?);
    rows.extend(faults::connections_fail().await?);
    rows.extend(faults::server_fails().await?);
    let table = table(&rows);
    print!("{table}");
    println!("load of the machine before the run: {load}");
    report.map_or(Ok(()), |path| {
        write(&path, "Beside amalgam-cache", &section(&load, &table))
    })
}

async fn removals() -> Result<Vec<Row>> {
    let server = RedisServer::start()?;
    let names = &["bare", "larder", "amalgam", "amalgam-strict"];
    let [bare, rest @ ..] = &freshness::measure(server.url(), names).await?[..] else {
        return Err("nothing was measured".into());
    };
    let mut rows = vec![Row::times(
        "DEL + PUBLISH → GET in another process",
        &bare.fresh,
    )?];
    for (name, removals) in names[1..].iter().zip(rest) {
        let work = format!("remove → fresh in another process, to DEL + PUBLISH → GET, {name}");
        let limit = (*name == "larder").then_some(1.5);
        rows.push(Row::ratio(work, &removals.fresh, &bare.fresh, limit)?);
    }
    Ok(rows)
}

fn section(load: &str, table: &str) -> String {
    format!(
        "`cargo xtask bench coherence --write`\n\n\
         {table}\n\
         Both with a shared store and a bus on one Redis, values in an `Arc`, entries that live for an\n\
         hour. `amalgam` is {} as `Cache::builder()` makes it with store, serializer and backplane;\n\
         `amalgam-strict` the same with `strict()` and the distributed locker. larder has its defaults.\n\
         {}\n\n\
         {}",
        locked("amalgam-cache"),
        faults::NOTE,
        machine(
            load,
            &[&locked("amalgam-cache"), &locked("moka"), &locked("redis")]
        ),
    )
}
