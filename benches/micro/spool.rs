//! What recording a request costs on its path: beginning, attempt, progress and end in the spool.
#![expect(clippy::unwrap_used, reason = "a bench")]
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_core::keys::KeyId;
use forebay_core::metrics::Registry;
use forebay_core::record::UsageEvent;
use forebay_core::spool::row::{Reached, put_usage};
use forebay_core::spool::{Config, Disk, Durability, OnFull, Spool, SpoolCounters, System};
use forebay_core::usage::Usage;

fn event() -> UsageEvent {
    UsageEvent {
        event_id: *uuid::Uuid::now_v7().as_bytes(),
        request_id: "01a215d088657368a6d401427875a2b4".to_owned(),
        account: "default".into(),
        key_id: KeyId::parse("abcdefghijkl").unwrap(),
        admitted_us: 1_790_000_000_000_000,
        first_byte_us: Some(1_790_000_000_100_000),
        ended_us: 1_790_000_000_200_000,
        model_asked: "llama-3-8b".to_owned(),
        model_served: "llama-3-8b".into(),
        upstream: Some("gpu-a".into()),
        front: "http",
        endpoint: "chat",
        stream: true,
        outcome: "ok",
        status: 200,
        finish_reason: Some("stop".to_owned()),
        error_kind: None,
        attempts: 1,
        attempt_log: None,
        usage: Usage::default(),
        source: "reported",
        duration_ms: 200.0,
        ttft_ms: Some(100.0),
        tokens_per_second: Some(10.0),
        tags: None,
        cost_pico: Some(1),
        price_id: Some(1),
    }
}

fn spool(root: &Path) -> Arc<Spool> {
    let config = Config {
        root: root.to_owned(),
        node: "node".to_owned(),
        segment_bytes: 8 << 20,
        max_bytes: 1 << 30,
        durability: Durability::Process,
        on_full: OnFull::Refuse,
    };
    let disk: Arc<dyn Disk> = Arc::new(System);
    let counters = SpoolCounters::registered(&Registry::default());
    Spool::create(config, *uuid::Uuid::now_v7().as_bytes(), &disk, counters).unwrap()
}

fn record(criterion: &mut Criterion) {
    let event = event();
    let mut row = Vec::new();
    criterion.bench_function("spool/row", |bench| {
        bench.iter(|| {
            row.clear();
            put_usage(black_box(&event), &mut row);
        });
    });
    let reached = Reached {
        contacted: true,
        ..Reached::default()
    };
    for (name, root) in [
        ("disk", std::env::temp_dir()),
        ("memory", "/dev/shm".into()),
    ] {
        let root = root.join(format!("forebay-bench-{}", std::process::id()));
        let spool = spool(&root);
        let over = Arc::new(AtomicBool::new(false));
        // Elsewhere rows are shipped, so that files come and go as they do.
        let shipper = std::thread::spawn({
            let (spool, over) = (Arc::clone(&spool), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    match spool.batch(5000) {
                        Some(batch) => spool.done(&batch),
                        None => std::thread::sleep(std::time::Duration::from_millis(1)),
                    }
                }
            }
        });
        let mut refused = 0_u64;
        criterion.bench_function(&format!("spool/request/{name}"), |bench| {
            bench.iter(|| {
                row.clear();
                put_usage(&event, &mut row);
                let Ok(opened) = spool.begin(&row) else {
                    refused += 1;
                    std::thread::yield_now();
                    return;
                };
                spool.attempt(&opened, "gpu-a");
                reached.store(opened.progress());
                reached.store(opened.progress());
                row.clear();
                put_usage(&event, &mut row);
                spool.end(&opened, &row);
            });
        });
        over.store(true, Ordering::Relaxed);
        shipper.join().unwrap();
        println!("refused while the disk made space: {refused}");
        spool.close();
        let _ = std::fs::remove_dir_all(&root);
    }
}

criterion_group!(benches, record);
criterion_main!(benches);
