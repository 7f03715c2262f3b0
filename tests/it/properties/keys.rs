//! Idempotency keys from arbitrary text.

use proptest::prelude::*;
use steadfast::IdempotencyKey;

use super::cases;

/// Returns whether `text` is a bare key: visible ASCII with inner spaces. A leading quote would
/// make it the other spelling.
fn is_bare(text: &str) -> bool {
    let visible = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    visible && !text.is_empty() && !text.starts_with([' ', '"']) && !text.ends_with(' ')
}

/// Writes the key as a structured field (RFC 9651 §4.1.6).
fn quoted(bare: &str) -> String {
    let escape = |c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] };
    format!("\"{}\"", bare.chars().flat_map(escape).collect::<String>())
}

/// Strategy for any text, and for text that resembles a key.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[ -~]{0,40}", "\"[ -~]{0,40}\"", r#"["\\a ]{0,8}"#, r#""["\\a ]{0,6}""#]
}

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn key_is_equal_in_both_spellings(text in texts()) {
        let Ok(key) = text.parse::<IdempotencyKey>() else {
            prop_assert!(!is_bare(&text), "refused: {text:?}");
            return Ok(());
        };
        let bare = key.as_str();
        prop_assert!(is_bare(bare), "{text:?} became {bare:?}");
        prop_assert!(text == bare || text == quoted(bare), "{text:?} became {bare:?}");
        for spelling in [bare.to_owned(), quoted(bare)] {
            prop_assert_eq!(spelling.parse(), Ok(key.clone()), "{:?}", spelling);
        }
    }

    #[test]
    fn debug_shows_only_beginning_of_key(text in "[!-~]{1,300}") {
        if let Ok(key) = text.parse::<IdempotencyKey>() {
            let shown = key.to_string();
            let beginning = shown.strip_suffix('…').expect("it ends with an ellipsis");
            prop_assert!(key.as_str().starts_with(beginning));
            prop_assert!(beginning.len() <= 8 && beginning.len() * 4 <= key.as_str().len());
            prop_assert_eq!(format!("{key:?}"), format!("IdempotencyKey({shown})"));
        }
    }
}
