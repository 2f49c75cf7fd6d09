//! The simulator as CI runs it: no bound is exceeded, and a seed gives the same figures again.
#![expect(clippy::unwrap_used, reason = "a test that goes wrong may stop")]

use std::process::Command;

fn run(arguments: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_forebay-sim"))
        .args(arguments)
        .output()
        .unwrap();
    (
        out.status.success(),
        String::from_utf8_lossy(&out.stdout).into_owned(),
    )
}

#[test]
fn no_bound_is_exceeded() {
    let (kept, text) = run(&["--quick"]);
    assert!(kept, "{text}");
    for group in [
        "near", "far", "keys", "distance", "faults", "servers", "regions", "permits",
    ] {
        assert!(
            text.contains(&format!("## {group}\n")),
            "{group} is missing"
        );
    }
}

#[test]
fn a_seed_gives_the_same_figures_again() {
    let arguments = [
        "--quick", "--group", "faults", "--group", "permits", "--seed", "5",
    ];
    assert_eq!(run(&arguments), run(&arguments));
}
