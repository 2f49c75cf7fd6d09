//! The spool: whatever dies, each admitted request comes out once, with what is known of it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    clippy::unnecessary_wraps,
    reason = "tests"
)]
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use forebay_core::keys::KeyId;
use forebay_core::metrics::Registry;
use forebay_core::record::UsageEvent;
use forebay_core::spool::row::{Reached, Served, put_usage};
use forebay_core::spool::{Config, Disk, Durability, OnFull, Opened, Spool, SpoolCounters, System};
use forebay_core::usage::Usage;
use proptest::prelude::*;
use serde_json::Value;

const SEGMENT: u64 = 64 * 1024;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("forebay-spool-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk that can be told to fail.
#[derive(Default)]
struct Fragile {
    full: AtomicBool,
    failing: AtomicBool,
}

impl Disk for Fragile {
    fn allocate(&self, path: &Path, bytes: u64) -> io::Result<File> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        System.allocate(path, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if self.failing.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk does not answer"));
        }
        System.sync(file)
    }
}

fn spool(root: &Path, disk: &Arc<dyn Disk>, max_bytes: u64, durability: Durability) -> Arc<Spool> {
    spool_of(root, disk, SEGMENT, max_bytes, durability)
}

fn spool_of(
    root: &Path,
    disk: &Arc<dyn Disk>,
    segment_bytes: u64,
    max_bytes: u64,
    durability: Durability,
) -> Arc<Spool> {
    let config = Config {
        root: root.to_owned(),
        node: "node-1".to_owned(),
        segment_bytes,
        max_bytes,
        durability,
        on_full: OnFull::Refuse,
    };
    let id = *uuid::Uuid::now_v7().as_bytes();
    Spool::create(
        config,
        id,
        disk,
        SpoolCounters::registered(&Registry::default()),
    )
    .unwrap()
}

fn plain(root: &Path) -> Arc<Spool> {
    let disk: Arc<dyn Disk> = Arc::new(System);
    spool(root, &disk, 64 << 20, Durability::Process)
}

/// Ends a spool as the end of its process does: nothing is written, and its locks come free.
fn kill(spool: Arc<Spool>, root: &Path, alive: Option<&Spool>) {
    drop(spool);
    let alive = alive.map(|spool| uuid::Uuid::from_bytes(spool.id()).simple().to_string());
    // Its keeper may be at work still.
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        if folder.file_name().and_then(|name| name.to_str()) == alive.as_deref() {
            continue;
        }
        if let Ok(lock) = File::open(folder.join("lock")) {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        }
    }
}

fn event(number: u64) -> UsageEvent {
    let mut event_id = *uuid::Uuid::now_v7().as_bytes();
    event_id[8..].copy_from_slice(&number.to_be_bytes());
    UsageEvent {
        event_id,
        request_id: format!("req-{number}"),
        account: "acme".into(),
        key_id: KeyId::parse("abcdefghijkl").unwrap(),
        admitted_us: 1_790_000_000_000_000 + number as i64,
        first_byte_us: None,
        ended_us: 0,
        model_asked: "alias".to_owned(),
        model_served: "model".into(),
        upstream: None,
        front: "http",
        endpoint: "chat",
        stream: true,
        outcome: "gateway_died",
        status: 499,
        finish_reason: None,
        error_kind: None,
        attempts: 0,
        attempt_log: None,
        usage: Usage::default(),
        source: "estimated",
        duration_ms: 0.0,
        ttft_ms: None,
        tokens_per_second: None,
        price_id: None,
        cost_pico: None,
        tags: Some(r#"{"team":"search"}"#.into()),
    }
}

fn row(event: &UsageEvent) -> Vec<u8> {
    let mut out = Vec::new();
    put_usage(event, &mut out);
    out
}

fn ended(number: u64, tokens: u64) -> UsageEvent {
    UsageEvent {
        outcome: "ok",
        status: 200,
        upstream: Some("gpu-a".into()),
        attempts: 1,
        usage: Usage {
            prompt: 10,
            completion: tokens,
            ..Usage::default()
        },
        source: "reported",
        price_id: Some(3),
        cost_pico: Some(77),
        ..event(number)
    }
}

/// A price of a pico-dollar a token.
fn rate(served: &Served<'_>) -> Option<(i64, u64)> {
    assert_eq!((served.account, served.model), ("acme", "model"));
    Some((9, served.usage.total()))
}

/// Takes everything out, in batches of `limit`; by request id, and how many rows there were.
fn drain(spool: &Spool, limit: usize, rows: &mut HashMap<String, Value>) -> usize {
    let mut count = 0;
    while let Some(batch) = spool.batch(limit) {
        assert!(batch.len() <= limit);
        for index in 0..batch.len() {
            let row: Value = serde_json::from_str(&batch.json(index).unwrap()).unwrap();
            let id = row["request_id"].as_str().unwrap().to_owned();
            if let Some(before) = rows.insert(id, row.clone()) {
                assert_eq!(before, row, "a row that came twice must say the same");
            }
            count += 1;
        }
        spool.done(&batch);
    }
    count
}

#[test]
fn what_ends_comes_out_in_order_with_what_the_spool_knows() {
    let folder = Folder::new();
    let spool = plain(&folder.0);
    let first = spool.begin(&row(&event(1))).unwrap();
    let second = spool.begin(&row(&event(2))).unwrap();
    assert!(spool.batch(10).is_none());
    spool.attempt(&second, "gpu-a");
    spool.end(&second, &row(&ended(2, 5)));
    spool.end(&first, &row(&ended(1, 4)));
    assert_eq!(spool.standing().waiting, 2);
    let batch = spool.batch(10).unwrap();
    assert_eq!(
        (batch.len(), batch.position, &*batch.node),
        (2, 2, "node-1")
    );
    let rows: Vec<Value> = (0..2)
        .map(|index| serde_json::from_str(&batch.json(index).unwrap()).unwrap())
        .collect();
    assert_eq!(rows[0]["request_id"], "req-2");
    assert_eq!(rows[0]["seq"], 1);
    assert_eq!(rows[1]["seq"], 0);
    assert_eq!(rows[1]["node"], "node-1");
    assert_eq!(
        rows[1]["boot"],
        uuid::Uuid::from_bytes(spool.id()).to_string()
    );
    assert_eq!(rows[1]["tags"]["team"], "search");
    assert_eq!(rows[1]["admitted_at"], 1_790_000_000_000_001_i64);
    assert_eq!(rows[1]["cost_pico"], 77);
    let copied = batch.copy(0, 2);
    assert!(copied.starts_with(b"PGCOPY\n\xff\r\n\0") && copied.ends_with(&[0xff, 0xff]));
    assert_eq!(copied[19..21], 34_u16.to_be_bytes());
    spool.done(&batch);
    assert_eq!(spool.standing().waiting, 0);
    assert!(spool.batch(10).is_none());
    spool.close();
    assert!(
        !folder.0.exists(),
        "an empty spool goes, and the folder with the last"
    );
}

/// A row as the first version of the format has it: the last column is not there.
fn old_row(event: &UsageEvent) -> Vec<u8> {
    let mut row = row(event);
    let columns = u16::from_be_bytes([row[0], row[1]]) - 1;
    row[..2].copy_from_slice(&columns.to_be_bytes());
    row.truncate(row.len() - 4);
    row
}

#[test]
fn a_spool_of_the_version_before_is_shipped_whole() {
    let folder = Folder::new();
    let dead = plain(&folder.0);
    let running = dead.begin(&old_row(&event(1))).unwrap();
    let reached = Reached {
        contacted: true,
        counted: true,
        attempts: 1,
        seen_us: 1_790_000_000_500_001,
        ..Reached::default()
    };
    reached.store(running.progress());
    let done = dead.begin(&old_row(&event(2))).unwrap();
    dead.end(&done, &old_row(&ended(2, 7)));
    let id = uuid::Uuid::from_bytes(dead.id()).simple().to_string();
    let alive = plain(&folder.0);
    kill(dead, &folder.0, Some(&alive));
    for file in std::fs::read_dir(folder.0.join(id).join("usage")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if bytes.starts_with(b"FBSPOOL\0") {
            bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
        }
    }
    assert_eq!(alive.adopt(&rate).unwrap(), 1);
    let batch = alive.batch(10).unwrap();
    assert_eq!(batch.len(), 2);
    let copy = batch.copy(0, 2);
    assert_eq!(u16::from_be_bytes([copy[19], copy[20]]), 34);
    assert!(copy.ends_with(&[0xff; 6]), "a null, and the end");
    let mut rows = HashMap::new();
    assert_eq!(drain(&alive, 10, &mut rows), 2);
    assert_eq!(rows["req-1"]["outcome"], "gateway_died");
    assert_eq!(rows["req-2"]["tags"]["team"], "search");
    assert_eq!(rows["req-2"]["attempt_log"], Value::Null);
}

#[test]
fn attempts_are_kept_in_the_row() {
    let folder = Folder::new();
    let spool = plain(&folder.0);
    let opened = spool.begin(&row(&event(1))).unwrap();
    let log = Some(r#"[{"number":1},{"number":2}]"#.into());
    spool.end(
        &opened,
        &row(&UsageEvent {
            attempt_log: log,
            ..ended(1, 3)
        }),
    );
    let mut rows = HashMap::new();
    drain(&spool, 10, &mut rows);
    assert_eq!(rows["req-1"]["attempt_log"][1]["number"], 2);
}

#[test]
fn the_next_process_ends_what_was_running() {
    let folder = Folder::new();
    let dead = plain(&folder.0);
    let streaming = dead.begin(&row(&event(1))).unwrap();
    dead.attempt(&streaming, "gpu-a");
    dead.attempt(&streaming, "gpu-b");
    let reached = Reached {
        contacted: true,
        counted: true,
        attempts: 2,
        status: 200,
        first_byte_us: 1_790_000_000_250_001,
        seen_us: 1_790_000_000_500_001,
        usage: Usage {
            prompt: 12,
            completion: 30,
            cached: 4,
            ..Usage::default()
        },
    };
    reached.store(streaming.progress());
    let _waiting = dead.begin(&row(&event(2))).unwrap();
    let done = dead.begin(&row(&event(3))).unwrap();
    dead.end(&done, &row(&ended(3, 7)));

    let alive = plain(&folder.0);
    assert_eq!(alive.adopt(&rate).unwrap(), 0, "its process lives");
    kill(dead, &folder.0, Some(&alive));
    assert_eq!(alive.adopt(&rate).unwrap(), 1);
    assert_eq!(alive.adopt(&rate).unwrap(), 0, "once");
    assert_eq!(alive.standing().waiting, 3);
    let mut rows = HashMap::new();
    assert_eq!(drain(&alive, 2, &mut rows), 3);
    let cut = &rows["req-1"];
    assert_eq!(cut["outcome"], "gateway_died");
    assert_eq!(
        (&cut["upstream"], &cut["attempts"]),
        (&"gpu-b".into(), &2.into())
    );
    assert_eq!(
        (&cut["prompt_tokens"], &cut["completion_tokens"]),
        (&12.into(), &30.into())
    );
    assert_eq!(
        (&cut["cached_tokens"], &cut["source"]),
        (&4.into(), &"counted".into())
    );
    assert_eq!(
        (&cut["status"], &cut["error_kind"]),
        (&200.into(), &"unavailable".into())
    );
    assert_eq!(
        (&cut["duration_ms"], &cut["ttft_ms"]),
        (&500.0.into(), &250.0.into())
    );
    assert_eq!(
        (&cut["price_id"], &cut["cost_pico"]),
        (&9.into(), &42.into())
    );
    assert_eq!(cut["seq"], 0);
    let unsent = &rows["req-2"];
    assert_eq!(
        (&unsent["outcome"], &unsent["status"]),
        (&"gateway_died".into(), &503.into())
    );
    assert_eq!(
        (&unsent["prompt_tokens"], &unsent["source"]),
        (&0.into(), &"counted".into())
    );
    assert_eq!(rows["req-3"]["outcome"], "ok");
    let left = std::fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(left, 1, "only the spool of the process that lives");
}

#[test]
fn what_a_dead_adopter_had_not_shipped_is_adopted_again() {
    let folder = Folder::new();
    let first = plain(&folder.0);
    let _running: Vec<Opened> = (0..5)
        .map(|n| first.begin(&row(&event(n))).unwrap())
        .collect();
    kill(first, &folder.0, None);
    let second = plain(&folder.0);
    second.adopt(&rate).unwrap();
    let batch = second.batch(2).unwrap();
    second.done(&batch);
    drop(batch);
    kill(second, &folder.0, None);
    let third = plain(&folder.0);
    assert_eq!(third.adopt(&rate).unwrap(), 2);
    let mut rows = HashMap::new();
    drain(&third, 100, &mut rows);
    assert_eq!(rows.len(), 5);
}

#[test]
fn what_was_being_removed_is_no_spool_and_is_removed() {
    let folder = Folder::new();
    let spool = plain(&folder.0);
    let half = folder.0.join(".gone-01a215e66a4e748c82ba576f2e8936ce");
    std::fs::create_dir_all(half.join("logs")).unwrap();
    std::fs::write(half.join("logs/0000000001.seg"), [0; 4096]).unwrap();
    assert_eq!(spool.adopt(&rate).unwrap(), 0);
    assert!(!half.exists());
}

#[test]
fn a_full_disk_refuses_what_begins_and_takes_what_ends() {
    let folder = Folder::new();
    let fragile = Arc::new(Fragile::default());
    let disk: Arc<dyn Disk> = fragile.clone();
    let spool = spool(&folder.0, &disk, 64 << 20, Durability::Process);
    fragile.full.store(true, Ordering::Relaxed);
    let mut running = Vec::new();
    let mut number = 0;
    // Requests go on, and others with them, until there is no space for one more.
    let refused = loop {
        match spool.begin(&row(&event(number))) {
            Ok(opened) => running.push((number, opened)),
            Err(_) => break number,
        }
        number += 1;
        assert!(number < 10_000, "an endless disk");
        if running.len() > 20 {
            let (number, opened) = running.remove(0);
            spool.end(&opened, &row(&ended(number, 1)));
        }
    };
    assert!(spool.standing().full);
    for (number, opened) in running {
        spool.end(&opened, &row(&ended(number, 1)));
    }
    assert_eq!(spool.counters.lost.get(), 0);
    assert_eq!(spool.standing().waiting, refused);
    let mut rows = HashMap::new();
    fragile.full.store(false, Ordering::Relaxed);
    assert_eq!(drain(&spool, 1000, &mut rows) as u64, refused);
    // The keeper makes space again.
    let since = std::time::Instant::now();
    while spool.begin(&row(&event(number))).is_err() {
        assert!(since.elapsed().as_secs() < 10, "no space came back");
        std::thread::yield_now();
    }
    while spool.trouble().is_some() {
        assert!(since.elapsed().as_secs() < 10, "the keeper found no space");
        std::thread::yield_now();
    }
}

#[test]
fn a_start_on_a_full_disk_ships_what_others_left_and_then_serves() {
    let folder = Folder::new();
    let dead = plain(&folder.0);
    let opened = dead.begin(&row(&event(1))).unwrap();
    dead.end(&opened, &row(&ended(1, 1)));
    kill(dead, &folder.0, None);
    let fragile = Arc::new(Fragile::default());
    fragile.full.store(true, Ordering::Relaxed);
    let disk: Arc<dyn Disk> = fragile.clone();
    let spool = spool(&folder.0, &disk, 64 << 20, Durability::Process);
    assert!(spool.standing().full && spool.begin(&row(&event(2))).is_err());
    assert_eq!(spool.adopt(&rate).unwrap(), 1);
    let mut rows = HashMap::new();
    assert_eq!(drain(&spool, 10, &mut rows), 1);
    fragile.full.store(false, Ordering::Relaxed);
    let since = std::time::Instant::now();
    while spool.standing().full {
        assert!(since.elapsed().as_secs() < 10, "no space came back");
        std::thread::yield_now();
    }
    assert!(spool.begin(&row(&event(2))).is_ok());
}

#[test]
fn a_spool_of_another_version_is_left_alone() {
    let folder = Folder::new();
    let dead = plain(&folder.0);
    let opened = dead.begin(&row(&event(1))).unwrap();
    dead.end(&opened, &row(&ended(1, 1)));
    kill(dead, &folder.0, None);
    let file = segments(&folder.0).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] += 1;
    std::fs::write(&file, &bytes).unwrap();
    let alive = plain(&folder.0);
    assert!(alive.adopt(&rate).is_err());
    assert!(alive.batch(10).is_none());
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn the_bound_of_a_spool_holds() {
    let folder = Folder::new();
    let disk: Arc<dyn Disk> = Arc::new(System);
    let spool = spool(&folder.0, &disk, 4 * SEGMENT, Durability::Process);
    let since = std::time::Instant::now();
    let mut refusals = 0;
    let mut number = 0;
    while refusals < 50 {
        if let Ok(opened) = spool.begin(&row(&event(number))) {
            spool.end(&opened, &row(&ended(number, 1)));
            number += 1;
        } else {
            refusals += 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert!(since.elapsed().as_secs() < 30);
    }
    let standing = spool.standing();
    assert!(standing.full && standing.bytes <= 4 * SEGMENT);
    let on_disk: u64 = walk(&folder.0)
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(
        on_disk <= 4 * SEGMENT + 4 * SEGMENT,
        "prompt logs have a part of their own"
    );
    // Full as it is, a prompt log is dropped.
    assert!(!spool.log(b"row"));
    let mut rows = HashMap::new();
    assert_eq!(drain(&spool, 333, &mut rows) as u64, number);
    let since = std::time::Instant::now();
    while spool.standing().full {
        assert!(since.elapsed().as_secs() < 10, "no space came back");
        std::thread::yield_now();
    }
    assert!(spool.begin(&row(&event(number))).is_ok());
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut files = walk(folder);
    files.retain(|file| file.parent().unwrap().ends_with("usage"));
    files.retain(|file| file.extension().is_some_and(|e| e == "seg"));
    files
}

#[test]
fn damage_costs_what_is_damaged_and_is_kept_to_be_looked_at() {
    let folder = Folder::new();
    let dead = plain(&folder.0);
    for number in 0..400 {
        let opened = loop {
            match dead.begin(&row(&event(number))) {
                Ok(opened) => break opened,
                Err(_) => std::thread::yield_now(),
            }
        };
        dead.end(&opened, &row(&ended(number, 1)));
    }
    kill(dead, &folder.0, None);
    let files = segments(&folder.0);
    assert!(files.len() > 3);
    let mut bytes = std::fs::read(&files[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 2000].fill(0xaa);
    std::fs::write(&files[1], bytes).unwrap();
    let alive = plain(&folder.0);
    alive.adopt(&rate).unwrap();
    assert_eq!(alive.counters.damaged.get(), 1);
    let mut rows = HashMap::new();
    drain(&alive, 1000, &mut rows);
    assert!((390..=400).contains(&rows.len()), "{}", rows.len());
    let kept: Vec<_> = std::fs::read_dir(folder.0.join("quarantine"))
        .unwrap()
        .collect();
    assert_eq!(kept.len(), 1);
}

#[test]
fn a_segment_that_cannot_be_synced_is_written_again_elsewhere() {
    // With a second segment made ahead, and without.
    for segment_bytes in [SEGMENT, 8 << 20] {
        one_that_cannot_be_synced(segment_bytes);
    }
}

fn one_that_cannot_be_synced(segment_bytes: u64) {
    let folder = Folder::new();
    let fragile = Arc::new(Fragile::default());
    let disk: Arc<dyn Disk> = fragile.clone();
    let spool = spool_of(
        &folder.0,
        &disk,
        segment_bytes,
        64 << 20,
        Durability::Machine,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let opened = spool.begin(&row(&event(1))).unwrap();
    fragile.failing.store(true, Ordering::Relaxed);
    let recorded = spool.end(&opened, &row(&ended(1, 1)));
    let wait = |limit_ms| {
        runtime.block_on(async {
            let limit = std::time::Duration::from_millis(limit_ms);
            tokio::time::timeout(limit, spool.durable(recorded))
                .await
                .is_ok()
        })
    };
    assert!(!wait(300), "what is not on the disk is not said to be");
    assert!(spool.trouble().is_some());
    assert!(
        spool.begin(&row(&event(9))).is_err(),
        "what could not be made safe is not begun"
    );
    fragile.failing.store(false, Ordering::Relaxed);
    assert!(wait(10_000));
    let mut rows = HashMap::new();
    assert!(
        drain(&spool, 100, &mut rows) >= 2,
        "the row is there twice, and says the same"
    );
    assert_eq!(rows.len(), 1);
    let opened = spool.begin(&row(&event(2))).unwrap();
    spool.end(&opened, &row(&ended(2, 1)));
    drain(&spool, 100, &mut rows);
    assert_eq!(rows.len(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Attempt(prop::sample::Index),
    Progress(prop::sample::Index, u64),
    End(prop::sample::Index, u64),
    Ship(usize, bool),
    Crash { torn: bool },
    Adopt,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_index = any::<prop::sample::Index>;
    prop::collection::vec(
        prop_oneof![
            6 => Just(Step::Begin),
            2 => any_index().prop_map(Step::Attempt),
            3 => (any_index(), 0_u64..1000).prop_map(|(at, tokens)| Step::Progress(at, tokens)),
            5 => (any_index(), 0_u64..1000).prop_map(|(at, tokens)| Step::End(at, tokens)),
            2 => (1_usize..40, any::<bool>()).prop_map(|(limit, done)| Step::Ship(limit, done)),
            1 => any::<bool>().prop_map(|torn| Step::Crash { torn }),
            1 => Just(Step::Adopt),
        ],
        1..400,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever happens in whatever order, each request that began is there once, with the tokens
    /// of its end or, if its process died before, those last heard of.
    #[test]
    fn each_request_that_began_comes_out_once(steps in steps()) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = Folder::new();
        let mut alive = plain(&folder.0);
        let mut running: Vec<(u64, Opened, u64)> = Vec::new();
        let mut expected: HashMap<String, (&str, u64)> = HashMap::new();
        let mut rows: HashMap<String, Value> = HashMap::new();
        let mut take = |batch: &forebay_core::spool::Batch| {
            for index in 0..batch.len() {
                let row: Value = serde_json::from_str(&batch.json(index).unwrap()).unwrap();
                let id = row["request_id"].as_str().unwrap().to_owned();
                // As in the ledger, the first stays. Where the end was shipped and its segment is
                // gone, the beginning may be there still, and is ended once more.
                let first = rows.entry(id).or_insert_with(|| row.clone());
                assert!(*first == row || row["outcome"] == "gateway_died");
            }
        };
        for step in steps {
            match step {
                Step::Begin => {
                    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                    if let Ok(opened) = alive.begin(&row(&event(number))) {
                        expected.insert(format!("req-{number}"), ("gateway_died", 0));
                        running.push((number, opened, 0));
                    }
                }
                Step::Attempt(at) if !running.is_empty() => {
                    let (_, opened, _) = &running[at.index(running.len())];
                    alive.attempt(opened, "gpu-a");
                }
                Step::Progress(at, tokens) if !running.is_empty() => {
                    let at = at.index(running.len());
                    let (number, opened, seen) = &mut running[at];
                    *seen += tokens;
                    let usage = Usage { completion: *seen, ..Usage::default() };
                    Reached { contacted: true, usage, ..Reached::default() }.store(opened.progress());
                    expected.insert(format!("req-{number}"), ("gateway_died", *seen));
                }
                Step::End(at, tokens) if !running.is_empty() => {
                    let at = at.index(running.len());
                    let (number, opened, _) = running.swap_remove(at);
                    alive.end(&opened, &row(&ended(number, tokens)));
                    expected.insert(format!("req-{number}"), ("ok", tokens));
                }
                Step::Ship(limit, done) => {
                    if let Some(batch) = alive.batch(limit) {
                        take(&batch);
                        if done {
                            alive.done(&batch);
                        }
                    }
                }
                Step::Crash { torn } => {
                    running.clear();
                    kill(alive, &folder.0, None);
                    if torn {
                        tear(&folder.0);
                    }
                    alive = plain(&folder.0);
                }
                Step::Adopt => {
                    alive.adopt(&rate).unwrap();
                }
                Step::Attempt(_) | Step::Progress(..) | Step::End(..) => {}
            }
        }
        running.clear();
        kill(alive, &folder.0, None);
        let last = plain(&folder.0);
        last.adopt(&rate).unwrap();
        while let Some(batch) = last.batch(64) {
            take(&batch);
            last.done(&batch);
        }
        prop_assert_eq!(last.counters.damaged.get(), 0);
        let missing: Vec<_> = expected.iter().filter(|(id, _)| !rows.contains_key(*id)).collect();
        prop_assert!(missing.is_empty(), "{missing:?} of {expected:?}");
        prop_assert_eq!(rows.len(), expected.len());
        for (id, (outcome, tokens)) in expected {
            let row = &rows[&id];
            prop_assert_eq!(&row["outcome"], outcome, "{}", id);
            prop_assert_eq!(&row["completion_tokens"], tokens, "{}", id);
        }
        last.close();
        prop_assert!(!folder.0.exists());
    }
}

/// Leaves half a record behind the newest record of each spool: what a process that is killed while
/// it writes may leave.
fn tear(folder: &Path) {
    let mut newest: HashMap<PathBuf, PathBuf> = HashMap::new();
    for file in segments(folder) {
        let used = std::fs::read(&file).unwrap().starts_with(b"FBSPOOL\0");
        if used {
            newest.insert(file.parent().unwrap().to_owned(), file);
        }
    }
    for file in newest.into_values() {
        let mut bytes = std::fs::read(&file).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        // Behind any zeros of the last record: its progress has 64 bytes.
        let at = (end + 1 + 64 + 8).next_multiple_of(8);
        if at + 40 < bytes.len() && at >= 192 {
            bytes[at..at + 40].fill(0x5a);
            std::fs::write(&file, bytes).unwrap();
        }
    }
}
