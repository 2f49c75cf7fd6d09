//! Shared limits at scale: the real leases, thousands of participants and a million keys, over a
//! simulated store and network. The same seed gives the same figures.
//!
//! `forebay-sim --docs docs` writes the tables and plots of `docs/limits-at-scale.md`;
//! `--quick` takes some seconds. The exit status is 1 if a bound was exceeded.

mod alone;
mod demand;
#[path = "../../../rust/core/tests/support/fleet.rs"]
mod fleet;
mod judge;
mod memory;
mod play;
mod report;
mod setting;
#[path = "../../../rust/core/tests/support/store.rs"]
mod store;
mod svg;
mod sweep;

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use report::Done;
use setting::Setting;

/// Simulates limits that many gateways share.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer participants and keys, shorter spans.
    #[arg(long)]
    quick: bool,
    /// Of everything that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the groups of these names.
    #[arg(long)]
    group: Vec<String>,
    /// Puts plots into `images` of this folder, and tables into its `limits-at-scale.md`.
    #[arg(long)]
    docs: Option<PathBuf>,
}

fn main() -> io::Result<ExitCode> {
    let args = Args::parse();
    let chosen = |name: &str| args.group.is_empty() || args.group.iter().any(|one| one == name);
    let mut texts = Vec::new();
    if chosen("memory") {
        // First, while no other run has left memory behind.
        let text = format!("| what | takes |\n|---|---|\n{}", memory::measure()?);
        println!("\n## memory\n\n{text}");
        texts.push(("memory", text));
    }
    if chosen("alone") {
        let text = alone_table(args.seed);
        println!("\n## alone\n\n{text}");
        texts.push(("alone", text));
    }
    let mut kept = true;
    let mut all = Vec::new();
    for group in sweep::groups(args.quick) {
        if !chosen(group.name) {
            continue;
        }
        let begun = Instant::now();
        let outcomes: Vec<_> = group
            .settings
            .iter()
            .map(|setting| play::play(setting, args.seed))
            .collect();
        for one in outcomes.iter().filter(|one| !one.kept) {
            kept = false;
            println!("EXCEEDED: {}, {}", group.name, one.setting.name);
        }
        let done = Done {
            name: group.name,
            outcomes,
        };
        let text = report::table(&done);
        println!("\n## {}\n\n{text}", done.name);
        eprintln!("{}: {:.1} s", done.name, begun.elapsed().as_secs_f64());
        texts.push((done.name, text));
        all.push(done);
    }
    if let Some(docs) = &args.docs {
        publish(docs, &texts, &all)?;
    }
    Ok(if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What machines admit that share nothing.
fn alone_table(seed: u64) -> String {
    let mut text =
        "| machines without a store | admitted, of what the limit allows |\n|---|---|\n".to_owned();
    for nodes in [1, 3, 10, 100] {
        let rpm = 6_000;
        let load = 2.0 * nodes as f64;
        let setting = Setting::one_key("", nodes, rpm, load);
        let (admitted, _) = alone::play(&setting, rpm, seed);
        let most = setting.size() as f64 + setting.per_nano() * setting.span as f64;
        let _ = writeln!(text, "| {nodes} | {:.2}× |", admitted as f64 / most);
    }
    text
}

/// Writes plots and tables; a table's place is between `<!-- sim:NAME -->` and `<!-- sim:end -->`.
fn publish(docs: &Path, texts: &[(&str, String)], all: &[Done]) -> io::Result<()> {
    let images = docs.join("images");
    std::fs::create_dir_all(&images)?;
    for (name, plot) in report::plots(all) {
        std::fs::write(images.join(name), plot)?;
    }
    let path = docs.join("limits-at-scale.md");
    let mut paper = std::fs::read_to_string(&path)?;
    for (name, text) in texts {
        let begin = format!("<!-- sim:{name} -->\n");
        let Some((before, rest)) = paper.split_once(&begin) else {
            continue;
        };
        let Some((_, after)) = rest.split_once("<!-- sim:end -->") else {
            continue;
        };
        paper = format!("{before}{begin}{text}<!-- sim:end -->{after}");
    }
    std::fs::write(path, paper)
}
