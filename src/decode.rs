//! The error of JSON that does not fit the type.
//!
//! serde's messages quote the offending value. A response may hold a card number or a token, which
//! does not belong in a log. So the message is written again without the value.
//!
//! It has a type of the public API, and imports no other module of the crate.

use std::fmt;

/// JSON that does not fit the type. The message has the place and the expected type, and never the
/// value, which may be secret.
///
/// ```
/// #[derive(Debug, serde::Deserialize)]
/// struct ApiError { code: String }
///
/// fn code(error: &steadfast::Error) -> String {
///     match error.json::<ApiError>() {
///         Ok(api_error) => api_error.code,
///         // missing field `code` at line 1 column 2
///         Err(decode_error) => decode_error.to_string(),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError(String);

impl DecodeError {
    pub(crate) fn new(error: &serde_json::Error) -> Self {
        let place = format!("at line {} column {}", error.line(), error.column());
        let text = error.to_string();
        // serde's messages repeat the offending value before ", expected". The text after it comes
        // from the program's types.
        let unfit = ["invalid type: ", "invalid value: ", "unknown variant ", "unknown field ", "invalid length "];
        let safe = ["missing field ", "duplicate field "];
        let reason = if !error.is_data() || safe.iter().any(|start| text.starts_with(start)) {
            text.strip_suffix(&place).unwrap_or(&text).trim_end().to_owned()
        } else {
            let start =
                unfit.iter().find(|start| text.starts_with(**start)).copied().unwrap_or("it does not fit the type ");
            let expected = text.rfind(", expected ").filter(|_| start.starts_with("invalid")).map(|at| &text[at..]);
            let expected = expected.map_or("", |expected| expected.strip_suffix(&place).unwrap_or(expected)).trim_end();
            format!("{}{expected}", start.trim_end_matches([' ', ':']))
        };
        Self(format!("{reason} {place}"))
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_error_hides_the_value() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only its errors are looked at")]
        struct Charge {
            id: u64,
            kind: Option<Kind>,
        }
        #[derive(Debug, serde::Deserialize)]
        enum Kind {
            Card,
        }
        let check = |json: &str| DecodeError::new(&serde_json::from_str::<Charge>(json).unwrap_err()).to_string();
        assert_eq!(check(r#"{"id":"s3cret"}"#), "invalid type, expected u64 at line 1 column 14");
        assert_eq!(check(r#"{"id":-7}"#), "invalid value, expected u64 at line 1 column 8");
        assert_eq!(check("{}"), "missing field `id` at line 1 column 2");
        assert_eq!(check(r#"{"s3cret":1}"#), "unknown field at line 1 column 9");
        assert_eq!(check(r#"{"id":1,"kind":"s3cret"}"#), "unknown variant at line 1 column 23");
        assert_eq!(check(r#"{"id":1"#), "EOF while parsing an object at line 1 column 7");
    }
}
