//! Labels of requests: what is kept, and what is refused.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;

use forebay_core::tags::parse;
use proptest::prelude::*;

fn kept(header: &str) -> Option<String> {
    parse(header.as_bytes()).unwrap().map(String::from)
}

#[test]
fn pairs_become_an_object_in_their_order() {
    let cases = [
        ("team=search, env=prod", r#"{"team":"search","env":"prod"}"#),
        ("a=", r#"{"a":""}"#),
        (" a = b = c ,d=e", r#"{"a":"b = c","d":"e"}"#),
        (r#"a=say "hi"\n"#, r#"{"a":"say \"hi\"\\n"}"#),
    ];
    for (header, json) in cases {
        assert_eq!(kept(header).as_deref(), Some(json));
    }
    assert_eq!(kept("  "), None);
}

#[test]
fn what_is_refused_names_the_header_and_why() {
    let many = (0..17).map(|n| format!("k{n}=v")).collect::<Vec<_>>();
    let long = format!("a={}", "v".repeat(257));
    let long_key = format!("{}=v", "k".repeat(65));
    let cases = [
        ("a=b,,c=d", "pairs of key=value"),
        ("a", "pairs of key=value"),
        ("a=b,", "pairs of key=value"),
        ("=b", "a key that is not"),
        ("a b=c", "a key that is not"),
        (&long_key, "a key that is not"),
        ("a=b,a=c", "'a' twice"),
        ("a=\u{e9}", "printable ASCII"),
        ("a=b\tc", "printable ASCII"),
        (&many.join(","), "more than 16"),
        (&long, "more than 256"),
    ];
    for (header, why) in cases {
        let error = parse(header.as_bytes()).expect_err(header);
        assert!(error.message.contains(why), "{header}: {}", error.message);
        assert!(error.message.contains("x-forebay-tags"));
        assert_eq!(error.param.as_deref(), Some("x-forebay-tags"));
    }
    assert!(parse(b"a=\xff").is_err());
    assert!(kept(&many.iter().take(16).cloned().collect::<Vec<_>>().join(",")).is_some());
}

proptest! {
    #[test]
    fn what_is_kept_is_what_was_sent(
        tags in prop::collection::btree_map("[A-Za-z0-9._-]{1,64}", "[!-+\\--~][ -+\\--~]{0,200}", 1..16)
    ) {
        let header = tags
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(", ");
        let read: BTreeMap<String, String> = serde_json::from_str(&kept(&header).unwrap()).unwrap();
        let sent: BTreeMap<String, String> = tags
            .into_iter()
            .map(|(key, value)| (key, value.trim().to_owned()))
            .collect();
        prop_assert_eq!(read, sent);
    }

    #[test]
    fn no_bytes_are_a_panic(header in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(Some(json)) = parse(&header) {
            let read: BTreeMap<String, String> = serde_json::from_str(&json).unwrap();
            prop_assert!(!read.is_empty());
        }
    }
}
