//! A fast upstream, a fast load client and a bare relay, to measure what a gateway between them costs.

mod client;
mod clock;
mod relay;
mod shapes;
mod stats;
mod upstream;
mod wire;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::{Args, Parser, Subcommand};

use crate::client::{Target, Workload};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve SGLang-shaped answers, in the shape that a request's `user` or prompt names.
    Upstream(UpstreamArgs),
    /// Copy bytes between clients and an upstream, and nothing else.
    Relay(RelayArgs),
    /// Put load on a gateway and report what came back.
    Client(ClientArgs),
}

#[derive(Args)]
struct UpstreamArgs {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Threads, each with its own listener.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Pause between bursts, microseconds.
    #[arg(long, default_value_t = 1000)]
    burst_gap_us: u64,
    /// Send paced events only at multiples of this many microseconds; 0 sends each at its own time.
    #[arg(long, default_value_t = 0)]
    quantum_us: u64,
}

#[derive(Args)]
struct RelayArgs {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Where the bytes go.
    #[arg(long, value_name = "HOST:PORT")]
    upstream: SocketAddr,
}

#[derive(Args)]
struct ClientArgs {
    /// Base address of the gateway, such as http://127.0.0.1:8080
    #[arg(long)]
    url: String,
    /// API key, sent as a bearer token.
    #[arg(
        long,
        env = "FOREBAY_LOAD_KEY",
        hide_env_values = true,
        default_value = ""
    )]
    key: String,
    /// Model to ask for.
    #[arg(long, default_value = shapes::MODEL)]
    model: String,
    /// What each request is.
    #[arg(long, value_enum)]
    workload: Workload,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Stop starting requests after this many seconds.
    #[arg(long, required_unless_present = "requests")]
    duration: Option<f64>,
    /// Stop after this many requests.
    #[arg(long)]
    requests: Option<u64>,
    /// Start this many requests a second whatever the answers do; latency then counts from the
    /// intended start.
    #[arg(long)]
    rate: Option<f64>,
    /// Spread the first request of each connection over this many seconds.
    #[arg(long, default_value_t = 0.0)]
    ramp: f64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Longest time for one request, seconds.
    #[arg(long, default_value_t = 120.0)]
    timeout: f64,
    /// Size of a unary answer's body, bytes.
    #[arg(long, default_value_t = 500)]
    answer_bytes: usize,
    /// Prompt size, bytes; 200,000 for prompt200k and 30 otherwise unless given.
    #[arg(long)]
    prompt_bytes: Option<usize>,
    /// Content events of a burst stream.
    #[arg(long, default_value_t = 100)]
    chunks: u64,
    /// Bursts of a burst stream.
    #[arg(long, default_value_t = 10)]
    bursts: u64,
    /// Events a second of a paced stream.
    #[arg(long, default_value_t = 20)]
    pace: u64,
    /// Content events of a paced stream.
    #[arg(long, default_value_t = 200)]
    events: u64,
    /// Ask streams for a usage event.
    #[arg(long)]
    include_usage: bool,
    /// Write the report here; standard output otherwise.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match start(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> io::Result<()> {
    raise_file_limit();
    match command {
        Command::Upstream(args) => upstream::run(upstream::Options {
            listen: args.listen,
            threads: args.threads.max(1),
            burst_gap_ns: args.burst_gap_us * 1000,
            quantum_ns: args.quantum_us * 1000,
        }),
        Command::Relay(args) => relay::run(args.listen, args.upstream),
        Command::Client(args) => {
            let json = args.json.clone();
            let report = client::run(client::Options {
                target: Target::parse(&args.url, &args.key)?,
                model: args.model,
                workload: args.workload,
                concurrency: args.concurrency.max(1),
                duration_s: args.duration,
                requests: args.requests,
                rate: args.rate.filter(|rate| *rate > 0.0),
                ramp_s: args.ramp.max(0.0),
                threads: args.threads.clamp(1, args.concurrency.max(1)),
                timeout_s: args.timeout,
                answer_bytes: args.answer_bytes,
                prompt_bytes: args.prompt_bytes,
                chunks: args.chunks,
                bursts: args.bursts.clamp(1, args.chunks.max(1)),
                pace: args.pace.max(1),
                events: args.events,
                include_usage: args.include_usage,
            })?;
            let text = serde_json::to_string_pretty(&report)?;
            if let Some(path) = json {
                std::fs::write(path, text + "\n")?;
            } else {
                println!("{text}");
            }
            Ok(())
        }
    }
}

/// Runs one single-threaded runtime per thread: no work is stolen, so nothing is woken for it.
///
/// Returns what each thread returned; the first error ends the wait.
pub(crate) fn on_threads<T, F, W>(threads: usize, work: W) -> io::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>>,
    W: Fn(usize) -> F + Clone + Send + 'static,
{
    let (done, results) = std::sync::mpsc::channel();
    for index in 0..threads {
        let (work, done) = (work.clone(), done.clone());
        thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(move || {
                let outcome = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .and_then(|runtime| {
                        tokio::task::LocalSet::new().block_on(&runtime, work(index))
                    });
                // The receiver is gone only when another thread has failed already.
                let _ = done.send(outcome);
            })?;
    }
    drop(done);
    results.iter().collect()
}

/// Lets this process open as many files as it may: 1,000 streams need more than the usual 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without the raise a run with many connections reports them as errors: nothing to do here.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}
