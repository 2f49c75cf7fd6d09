//! The settings, in groups; a group is a table of the paper.

use forebay_core::limit::Nanos;

use crate::fleet::{MS, SECOND};
use crate::setting::{Bound, Fault, Of, Setting};

/// What `benches/sim/store_cost.py` measured of a real Valkey: one call, and each key of it.
const PER_CALL: Nanos = 65_000;
const PER_KEY: Nanos = 26_000;

/// Of this the burst has a part for each of 100 participants.
const RPM_OF_SERVERS: u64 = 600;

/// Settings that belong together.
pub(crate) struct Group {
    /// Its name in the paper's markers and on the command line.
    pub(crate) name: &'static str,
    pub(crate) settings: Vec<Setting>,
}

/// All groups; `quick` ones are smaller and shorter.
pub(crate) fn groups(quick: bool) -> Vec<Group> {
    let group = |name, settings| Group { name, settings };
    let mut all = vec![
        group("near", one_limit(5.0)),
        group("far", one_limit(0.2)),
        group("keys", many_keys()),
        group("distance", distance()),
        group("faults", faults()),
        group("servers", servers()),
        group("regions", regions()),
        group("permits", permits()),
    ];
    if quick {
        for group in &mut all {
            group
                .settings
                .retain(|one| one.nodes <= 100 && one.keys <= 10_000);
            for one in &mut group.settings {
                if one.faults.is_empty() {
                    one.span = one.span.min(5 * SECOND);
                }
                one.offered = one.offered.min(2_000.0);
            }
        }
    }
    all
}

/// The outage of which a plot is made.
pub(crate) const OUTAGE: &str = "store away for 20 s";

fn one_limit(load: f64) -> Vec<Setting> {
    let mut all = Vec::new();
    for rpm in [60, 600, 6_000, 60_000] {
        for nodes in [1, 3, 10, 100, 1_000] {
            let name = format!("{} rpm, {nodes}", crate::svg::number(rpm as f64));
            all.push(Setting::one_key(name, nodes, rpm, load));
        }
    }
    all
}

/// Limits of four times the mean demand, which a Zipf law makes scarce for the busiest.
fn many_keys() -> Vec<Setting> {
    let offered = 20_000.0;
    let mut all = Vec::new();
    let mut add = |keys: usize, nodes: usize, spread: usize, keys_per_tag: usize| {
        let rpm = ((240.0 * offered / keys as f64) as u64).max(60);
        let way = match (spread, keys_per_tag) {
            (1, _) => ", each at 1",
            (2, _) => ", each at 2",
            (_, 1) => "",
            _ => ", 20 keys an account",
        };
        let name = format!("{} keys, {nodes}{way}", crate::svg::number(keys as f64));
        all.push(Setting {
            keys,
            spread,
            keys_per_tag,
            offered,
            zipf: 1.0,
            span: 10 * SECOND,
            ..Setting::one_key(name, nodes, rpm, 1.0)
        });
    };
    for keys in [1_000, 100_000, 1_000_000] {
        for nodes in [10, 100, 1_000] {
            add(keys, nodes, nodes, 1);
        }
    }
    for keys in [1_000, 100_000, 1_000_000] {
        add(keys, 100, 2, 1);
    }
    add(100_000, 1_000, 1, 1);
    add(100_000, 10, 10, 20);
    add(100_000, 100, 100, 20);
    all
}

fn distance() -> Vec<Setting> {
    let trips = [0.5, 2.0, 5.0, 10.0, 20.0, 25.0, 30.0, 40.0, 45.0, 60.0];
    let setting = |ms: f64| Setting {
        round_trip: (ms * MS as f64) as Nanos,
        // Calls that come too late are carried out, so that the store has debited what no one got.
        bound: if ms < 40.0 {
            Some(Bound::STORE_ANSWERS)
        } else {
            Some(Bound {
                rate: 2.0,
                bursts: 1.0,
                requests: 10.0,
            })
        },
        ..Setting::one_key(format!("{ms} ms"), 10, 600, 5.0)
    };
    trips.into_iter().map(setting).collect()
}

fn faults() -> Vec<Setting> {
    let base = |name: &str, faults: Vec<(Nanos, Fault)>, bound| Setting {
        faults,
        bound,
        ..Setting::one_key(name, 10, 6_000, 5.0)
    };
    let kept = Some(Bound::STORE_ANSWERS);
    // A share is at least one request, and a share's burst a part of the burst.
    let shares = |rate, times| {
        Some(Bound {
            rate,
            bursts: times,
            requests: 10.0 * times,
        })
    };
    let at = |s: u64, fault| (s * SECOND, fault);
    vec![
        base("nothing", vec![], kept),
        base(
            "1 % of messages lost",
            vec![at(0, Fault::Loss(0.01))],
            shares(2.0, 1.0),
        ),
        base(
            "10 % of messages lost",
            vec![at(0, Fault::Loss(0.1))],
            shares(2.0, 1.0),
        ),
        base(
            OUTAGE,
            vec![at(20, Fault::Down(true)), at(40, Fault::Down(false))],
            shares(1.0, 1.0),
        ),
        base(
            "away for 20 s, then empty",
            vec![
                at(20, Fault::Down(true)),
                at(39, Fault::Flush),
                at(40, Fault::Down(false)),
            ],
            shares(1.0, 1.0),
        ),
        base(
            "forgets all at once",
            vec![at(20, Fault::Flush), at(30, Fault::Flush)],
            kept,
        ),
        base(
            "100 ms slower for 20 s",
            vec![at(20, Fault::Slow(50 * MS)), at(40, Fault::Slow(0))],
            shares(1.0, 1.0),
        ),
        base(
            "3 of 10 cut off for 20 s",
            vec![at(20, Fault::Cut(3)), at(40, Fault::Cut(0))],
            shares(1.3, 1.0),
        ),
        base(
            "its clock 10 s back",
            vec![at(20, Fault::Step(-10_000_000))],
            kept,
        ),
        base(
            "its clock 1 s ahead",
            vec![at(20, Fault::Step(1_000_000))],
            Some(Bound {
                rate: 1.0,
                bursts: 0.0,
                requests: 100.0,
            }),
        ),
        base(
            "5 restarts each 5 s",
            (1..12).map(|i| at(5 * i, Fault::Restart(5))).collect(),
            // What the dead owed is not told.
            Some(Bound {
                rate: 1.0,
                bursts: 0.0,
                requests: 11.0 * 5.0 * 50.0,
            }),
        ),
        base(
            "demand 0.2× and 10× by turns",
            (1..6)
                .map(|i| at(10 * i, Fault::Demand(if i % 2 == 1 { 0.04 } else { 50.0 })))
                .collect(),
            kept,
        ),
        Setting {
            drift: 0.01,
            ..base("clocks 1 % fast or slow", vec![], kept)
        },
        Setting {
            expected: 1,
            ..base("all begin, each alone as far as it knows", vec![], kept)
        },
    ]
}

fn servers() -> Vec<Setting> {
    let setting = |offered: f64, servers: usize| Setting {
        keys: 10_000,
        spread: 100,
        offered,
        zipf: 0.0,
        span: 10 * SECOND,
        servers,
        per_call: PER_CALL,
        per_key: PER_KEY,
        bound: None,
        ..Setting::one_key(
            format!("{}/s, {servers}", crate::svg::number(offered)),
            100,
            RPM_OF_SERVERS,
            1.0,
        )
    };
    let loads = [(5_000.0, 1), (9_000.0, 1), (12_000.0, 1), (20_000.0, 1)];
    let more = [(20_000.0, 2), (20_000.0, 3), (20_000.0, 6), (40_000.0, 6)];
    loads
        .into_iter()
        .chain(more)
        .map(|(a, b)| setting(a, b))
        .collect()
}

fn regions() -> Vec<Setting> {
    let setting = |name: &str, far: Nanos, own_store, lean, bound| Setting {
        regions: 3,
        far,
        own_store,
        lean,
        bound,
        ..Setting::one_key(name, 12, 6_000, 2.0)
    };
    // Eight of twelve are as good as cut off.
    let cut = Some(Bound {
        rate: 1.0 + 8.0 / 12.0,
        bursts: 1.0,
        requests: 12.0,
    });
    let kept = Some(Bound::STORE_ANSWERS);
    vec![
        setting("one store, others 10 ms away", 10 * MS, false, 0.0, kept),
        setting("one store, others 40 ms away", 40 * MS, false, 0.0, cut),
        setting("a store each", 0, true, 0.0, kept),
        setting("a store each, all demand in one", 0, true, 1.0, kept),
    ]
}

fn permits() -> Vec<Setting> {
    let setting = |capacity: u64, nodes: usize, load: f64| {
        let hold = 5 * SECOND;
        Setting {
            of: Of::Permits { capacity, hold },
            offered: load * capacity as f64 / 5.0,
            ..Setting::one_key(
                format!("{capacity} at once, {nodes}, {load}×"),
                nodes,
                60,
                1.0,
            )
        }
    };
    let mut all = Vec::new();
    for load in [0.5, 2.0] {
        for (capacity, nodes) in [(32, 3), (32, 100), (1_000, 3), (1_000, 100), (1_000, 1_000)] {
            all.push(setting(capacity, nodes, load));
        }
    }
    all
}
