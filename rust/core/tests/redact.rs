//! What must not be written down is not, whatever stands around it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::sync::LazyLock;

use forebay_core::prompt_log::{Redacted, Redactor, without_secrets};
use proptest::prelude::*;

/// Without own patterns. Made once: that takes a while.
static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| Redactor::new(&[]).unwrap());

fn redact(text: &str) -> String {
    REDACTOR.redact(text, usize::MAX).text
}

/// The digits, and the one that makes them a card number.
fn with_check(digits: &str) -> String {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let value = u32::from(digit - b'0') * if place % 2 == 0 { 2 } else { 1 };
            value / 10 + value % 10
        })
        .sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}

#[test]
fn what_is_found() {
    for (text, left) in [
        (
            "write to a.b+c@mail.example.co.uk.",
            "write to [redacted:email].",
        ),
        ("<jürgen@münchen.de>", "<[redacted:email]>"),
        (r"to\nno@one.example", r"to\n[redacted:email]"),
        ("4111 1111 1111 1111", "[redacted:card]"),
        ("card:4111-1111-1111-1111,", "card:[redacted:card],"),
        ("378282246310005", "[redacted:card]"),
        ("3782 822463 10005 12/29", "[redacted:card] 12/29"),
        (
            "on 2024-01-05 4111111111111111 12",
            "on 2024-01-05 [redacted:card] 12",
        ),
        (r"号\n4111111111111111", r"号\n[redacted:card]"),
        ("fb-iABCDEFGH0123456789abcdefghijk", "[redacted:key]"),
        (
            "key=sk-proj-abcdefghijklmnop_QRST, ok",
            "key=[redacted:key], ok",
        ),
        (r#""a\nsk-abcdefghijklmnopqrst""#, r#""a\n[redacted:key]""#),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted:key]"),
        (
            "Authorization: bearer abcdefghijklmnop.qrs~/+=",
            "Authorization: [redacted:key]",
        ),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-x",
            "[redacted:key]",
        ),
        (
            r#"{"a":"\u0022sk-proj-abcdefghijklmnop\u0022"}"#,
            r#"{"a":"\u0022[redacted:key]\u0022"}"#,
        ),
        (
            r"\u0022Bearer abcdefghijklmnop\u0022",
            r"\u0022[redacted:key]\u0022",
        ),
        (
            r"\u001b[31msk-abcdefghijklmnop\u001b[0m",
            r"\u001b[31m[redacted:key]\u001b[0m",
        ),
        ("\x1b[msk-abcdefghijklmnop", "\x1b[m[redacted:key]"),
        ("%22sk-abcdefghijklmnop%22", "%22[redacted:key]%22"),
        (r"\u0022a@b.example", r"\u0022[redacted:email]"),
        (
            r"\u00225500 0000 0000 0004\u0022",
            r"\u0022[redacted:card]\u0022",
        ),
        ("%225500 0000 0000 0004", "%22[redacted:card]"),
        ("4111%201111%201111%201111", "[redacted:card]"),
        (
            "4111\u{a0}1111\u{a0}1111\u{a0}1111 4111.1111.1111.1111.",
            "[redacted:card] [redacted:card].",
        ),
        ("3782\u{2011}822463\u{2011}10005", "[redacted:card]"),
        ("github_pat_11ABCDEFG0abcdefghijkl_mnop", "[redacted:key]"),
        (
            "sk_live_abcdefghijklmnop rk_test_abcdefghijklmnop",
            "[redacted:key] [redacted:key]",
        ),
        ("xoxb-1234567890-abcdefghij", "[redacted:key]"),
        ("glpat-abcdefghij0123456789", "[redacted:key]"),
        ("gsk_abcdefghij0123456789abcdef", "[redacted:key]"),
        (
            "a\n-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4\n\nab+/c=\n-----END RSA PRIVATE KEY-----\nb",
            "a\n[redacted:key]\nb",
        ),
        (
            r"-----BEGIN PRIVATE KEY-----\nabc+/=\n, cut",
            "[redacted:key]",
        ),
    ] {
        assert_eq!(redact(text), left);
    }
}

#[test]
fn what_is_left_alone() {
    for text in [
        "the risk-assessment-of-the-whole-quarter",
        "a bearer of bad news",
        "4111 1111 1111 1112",
        "1700000000000 1732579200000",
        "12 15 18 21 24 27 30 33 36",
        "3.14159265358979",
        "user@localhost and @handle",
        "1732579200.123459 at 192.168.100.200",
        "[ask-me-anything-about-the-weather]",
        "-----BEGIN CERTIFICATE-----",
        "",
    ] {
        assert_eq!(redact(text), text);
    }
}

#[test]
fn own_patterns() {
    let own = [
        r"\d{3}-\d{2}-\d{4}".to_owned(),
        "(?i)project \\w+".to_owned(),
    ];
    let redactor = Redactor::new(&own).unwrap();
    let found = redactor.redact("5 123-45-6789 0000 of Project Manhattan", 1000);
    assert_eq!(
        found.text,
        "5 [redacted:pattern] 0000 of [redacted:pattern]"
    );
    assert_eq!((found.count, found.truncated), (2, false));
    for (pattern, why) in [
        ("(", "unclosed group"),
        ("(?<=a)b", "look-around"),
        ("a*", "nothing at all"),
        (r"\b", "nothing"),
        (r"(?:\pL{1000}){1000}", "too large"),
    ] {
        let own = ["fine".to_owned(), pattern.to_owned()];
        let error = Redactor::new(&own).err().unwrap();
        assert_eq!(error.at, Some(1));
        assert!(error.reason.contains(why), "{error}");
        assert!(!error.reason.contains('\n'), "{error}");
        assert!(error.to_string().starts_with("patterns[1]: "), "{error}");
    }
}

#[test]
fn a_secret_across_the_limit_is_seen_whole() {
    for (text, limit, left) in [
        ("abc 4111 1111 1111 1111", 10, "abc [redac"),
        ("abc 4111 1111 1111 1111 and more", 18, "abc [redacted:card"),
        ("a@b.de c@d.de e@f.de", 17, "[redacted:email] "),
        ("éé", 3, "é"),
        ("short", 5, "short"),
    ] {
        let found = REDACTOR.redact(text, limit);
        assert_eq!(found.text, left, "{text}");
        assert_eq!(found.truncated, text != left);
    }
    // What comes after the limit is not moved before it by what was taken out.
    let keys = "sk-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ".repeat(3);
    let found = REDACTOR.redact(&(keys.clone() + "tail"), keys.len());
    assert!(!found.text.contains("tail"), "{found:?}");
}

#[test]
fn long_runs_take_no_longer() {
    for piece in [
        "task-",
        "4",
        "1234 ",
        "1234.",
        "4%20",
        "a.",
        "sk-",
        "a@",
        "eyJ",
        "\\u0022",
        "[1;",
        "-----BEGIN PRIVATE KEY-----,",
    ] {
        let text = piece.repeat(400_000 / piece.len());
        let began = std::time::Instant::now();
        REDACTOR.redact(&text, text.len());
        assert!(began.elapsed().as_secs() < 20, "{piece}");
    }
}

/// Text of words that hide nothing themselves.
fn around() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zé ,.:;\"\\\\n(){}\\[\\]]{0,40}",
        Just("\u{5361}\u{53f7}".to_owned()),
        Just("{\"content\":\"\\n".to_owned()),
        Just("2024-01-05 ".to_owned()),
    ]
}

fn grouped(digits: &str, separator: &str, sizes: &[usize]) -> String {
    let mut rest = digits;
    let mut groups = Vec::new();
    for size in sizes {
        let (group, left) = rest.split_at((*size).min(rest.len()));
        groups.push(group);
        rest = left;
    }
    groups.push(rest);
    groups.retain(|group| !group.is_empty());
    groups.join(separator)
}

/// What stands between a card's groups.
fn between() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![" ", "-", ".", "\u{a0}", "\u{202f}", "%20"])
}

fn card() -> impl Strategy<Value = String> {
    let plain = "[2-6][0-9]{11,17}".prop_map(|digits| with_check(&digits));
    let sixteen = ("[2-6][0-9]{14}", between())
        .prop_map(|(digits, by)| grouped(&with_check(&digits), by, &[4, 4, 4]));
    let fifteen = ("3[0-9]{13}", between())
        .prop_map(|(digits, by)| grouped(&with_check(&digits), by, &[4, 6]));
    prop_oneof![plain, sixteen, fifteen]
}

fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        card(),
        "[a-z0-9][a-z0-9._%+-]{0,30}@[a-z0-9-]{1,20}\\.[a-z]{2,10}",
        "fb-[ia][A-Za-z0-9]{50}",
        "sk-(proj-|ant-)?[A-Za-z0-9_-]{20,60}",
        "AKIA[A-Z0-9]{16}",
        "[Bb]earer [A-Za-z0-9._~+/-]{20,60}",
        "github_pat_[A-Za-z0-9_]{30,80}",
        "gh[opsur]_[A-Za-z0-9]{36}",
        "[rs]k_(live|test)_[A-Za-z0-9]{20,60}",
        "xox[abprs]-[A-Za-z0-9-]{20,60}",
        "glpat-[A-Za-z0-9_-]{20,40}",
        "(gsk|hf)_[A-Za-z0-9]{34,52}",
        "-----BEGIN (RSA |OPENSSH )?PRIVATE KEY-----(\n|\\\\n)[A-Za-z0-9+/]{60,200}(\n|\\\\n)-----END (RSA )?PRIVATE KEY-----",
    ]
}

/// What stands around a secret without a space: escapes of JSON and of addresses, and colours.
fn glued() -> impl Strategy<Value = (&'static str, &'static str)> {
    proptest::sample::select(vec![
        ("\"", "\""),
        (r"\u0022", r"\u0022"),
        (r"\u005c", r"\u005c"),
        (r"\\u0022", r"\\u0022"),
        (r"\u000a", r"\u000a"),
        (r"\u0009", r"\n"),
        (r"\n", r"\n"),
        ("%22", "%22"),
        ("%3D", "%26"),
        (r"\x22", r"\x22"),
        (r"\u001b[31m", r"\u001b[0m"),
        (r"\u001b[m", r"\u001b[m"),
        ("\x1b[1;38;5;196m", "\x1b[0m"),
        ("\x1b[m", "\x1b[K"),
    ])
}

/// The first three quarters of a secret, and its second half.
fn parts(secret: &str) -> (String, String) {
    let length = secret.chars().count();
    (
        secret.chars().take(length * 3 / 4).collect(),
        secret.chars().skip(length / 2).collect(),
    )
}

proptest! {
    #[test]
    fn no_secret_is_left(before in around(), secret in secret(), after in around()) {
        // A secret is a word of its own.
        let text = format!("{before} {secret}\n{after}");
        let Redacted { text: left, count, .. } =
            REDACTOR.redact(&text, usize::MAX);
        prop_assert!(!left.contains(&secret), "{left}");
        prop_assert!(left.contains("[redacted:"), "{left}");
        prop_assert!(count >= 1);
        // Nor the greater part of it.
        let (most, _) = parts(&secret);
        prop_assert!(!left.contains(&most), "{left}");
    }

    #[test]
    fn no_secret_hides_behind_an_escape(
        before in "[a-z ]{0,10}", around in glued(), secret in secret()
    ) {
        let left = redact(&format!("{before}{}{secret}{}", around.0, around.1));
        let (most, tail) = parts(&secret);
        prop_assert!(left.contains("[redacted:"), "{left}");
        prop_assert!(!left.contains(&most), "{left}");
        prop_assert!(!left.contains(&tail), "{left}");
    }

    #[test]
    fn a_cut_leaves_no_secret_either(
        before in "[a-z ]{0,60}", secret in secret(), after in "[a-z ]{0,60}", limit in 0_usize..200
    ) {
        let text = format!("{before} {secret} {after}");
        let found = REDACTOR.redact(&text, limit);
        prop_assert!(found.text.len() <= limit);
        let (most, tail) = parts(&secret);
        prop_assert!(!found.text.contains(&tail), "{}", found.text);
        prop_assert!(!found.text.contains(&most), "{}", found.text);
    }

    #[test]
    fn no_text_is_a_panic(text in any::<String>(), limit in 0_usize..100) {
        let found = REDACTOR.redact(&text, limit);
        prop_assert!(found.text.len() <= limit);
    }

    #[test]
    fn what_hides_nothing_is_kept(text in "[a-zA-Z éß\n,.!?]{0,200}") {
        prop_assert_eq!(redact(&text), text);
    }
}

#[test]
fn other_logs_are_freed_of_secrets_too() {
    assert_eq!(
        without_secrets("status 500: a@b.de said 4111 1111 1111 1111"),
        "status 500: [redacted:email] said [redacted:card]"
    );
}
