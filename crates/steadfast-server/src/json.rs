//! JSON whose numbers keep their digits.
//!
//! An identity must not depend on a rounding. `serde_json::Value` and RFC 8785 hold numbers as
//! doubles, or up to 64 bits: two event ids of 20 digits can then be one id, and two amounts one
//! amount. serde_json's feature `arbitrary_precision` keeps the digits, but a feature counts for
//! the whole program, and changes what others read. So `serde_json` checks the grammar and reads
//! the strings, and this file finds where the values begin and end.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// The deepest nesting, as in `serde_json`: reading is recursive.
const MAX_DEPTH: usize = 128;

#[derive(Debug, PartialEq)]
pub(super) enum Json<'a> {
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
    Array(Vec<Json<'a>>),
    String(Cow<'a, str>),
    /// As it was written.
    Number(&'a str),
    /// `true`, `false` or `null`.
    Word(&'a str),
}

impl<'a> Json<'a> {
    /// Reads a body. Returns `None` if it is no JSON, or nested too deeply.
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        serde_json::from_str::<IgnoredAny>(text).ok()?;
        Scanner { rest: text }.value(MAX_DEPTH)
    }

    /// Returns the value at a pointer (RFC 6901). Of equal names the last one counts.
    pub(super) fn at(&self, pointer: &str) -> Option<&Self> {
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return None;
        }
        tokens(pointer).try_fold(self, |value, token| match value {
            Self::Object(members) => members.iter().rev().find(|(name, _)| *name == token).map(|(_, value)| value),
            Self::Array(items) => items.get(index(&token)?),
            _ => None,
        })
    }

    /// Removes the value at a pointer, if there is one. In an array, `null` takes its place.
    pub(super) fn remove(&mut self, pointer: &str) {
        let tokens: Vec<String> = tokens(pointer).collect();
        let Some((last, parents)) = tokens.split_last() else { return };
        let parent = parents.iter().try_fold(self, |value, token| match value {
            Self::Object(members) => members.iter_mut().rev().find(|(name, _)| name == token).map(|(_, value)| value),
            Self::Array(items) => items.get_mut(index(token)?),
            _ => None,
        });
        match parent {
            Some(Self::Object(members)) => members.retain(|(name, _)| name != last),
            // The other items keep their places: the next pointer counts them too.
            Some(Self::Array(items)) => {
                if let Some(item) = index(last).and_then(|at| items.get_mut(at)) {
                    *item = Self::Word("null");
                }
            }
            _ => {}
        }
    }

    /// Returns the canonical form: members sorted, without white space, equal strings and numbers
    /// written equally. Returns `None` if an object has two members of one name: readers disagree
    /// on which of them counts.
    pub(super) fn canonical(mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.write(&mut out)?;
        Some(out)
    }

    fn write(&mut self, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Object(members) => {
                members.sort_by(|(one, _), (other, _)| one.cmp(other));
                if members.windows(2).any(|pair| matches!(pair, [(one, _), (other, _)] if one == other)) {
                    return None;
                }
                out.push(b'{');
                for (index, (name, value)) in members.iter_mut().enumerate() {
                    separate(index, out);
                    serde_json::to_writer(&mut *out, name).ok()?;
                    out.push(b':');
                    value.write(out)?;
                }
                out.push(b'}');
            }
            Self::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter_mut().enumerate() {
                    separate(index, out);
                    item.write(out)?;
                }
                out.push(b']');
            }
            Self::String(text) => serde_json::to_writer(&mut *out, text).ok()?,
            Self::Number(text) => out.extend_from_slice(exact(text).as_bytes()),
            Self::Word(text) => out.extend_from_slice(text.as_bytes()),
        }
        Some(())
    }
}

/// Returns the place that a token names in an array: digits without a sign and without a zero before
/// them (RFC 6901 §4).
fn index(token: &str) -> Option<usize> {
    let is_number = token == "0" || !token.starts_with(['0', '+']);
    token.parse().ok().filter(|_| is_number)
}

fn separate(index: usize, out: &mut Vec<u8>) {
    if index > 0 {
        out.push(b',');
    }
}

/// Returns the names that a pointer goes through (RFC 6901 §4).
fn tokens(pointer: &str) -> impl Iterator<Item = String> {
    pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~"))
}

/// Returns a number in one form for each value, without rounding: `1`, `1.0` and `10e-1` are `1e0`.
fn exact(text: &str) -> Cow<'_, str> {
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |unsigned| ("-", unsigned));
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_end_matches('0');
    let dropped = digits.len().saturating_sub(significant.len());
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return Cow::Borrowed("0");
    }
    let shift = || i64::try_from(dropped).ok()?.checked_sub(i64::try_from(fraction.len()).ok()?);
    let exponent = exponent.parse::<i64>().ok().and_then(|exponent| exponent.checked_add(shift()?));
    // An exponent that large stays as it was written.
    exponent.map_or(Cow::Borrowed(text), |exponent| Cow::Owned(format!("{sign}{significant}e{exponent}")))
}

/// Splits text of which it is known that it is JSON.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn value(&mut self, depth: usize) -> Option<Json<'a>> {
        self.skip_space();
        match self.rest.as_bytes().first()? {
            b'{' => {
                let mut members = Vec::new();
                self.items(b'}', depth, |this, depth| {
                    let name = this.string()?;
                    this.skip_space();
                    this.take(1)?;
                    members.push((name, this.value(depth)?));
                    Some(())
                })?;
                Some(Json::Object(members))
            }
            b'[' => {
                let mut items = Vec::new();
                self.items(b']', depth, |this, depth| {
                    items.push(this.value(depth)?);
                    Some(())
                })?;
                Some(Json::Array(items))
            }
            b'"' => self.string().map(Json::String),
            first => {
                let is_number = *first == b'-' || first.is_ascii_digit();
                let end = self.rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(self.rest.len());
                let text = self.take(end)?;
                Some(if is_number { Json::Number(text) } else { Json::Word(text) })
            }
        }
    }

    /// Reads the items up to the closing bracket.
    fn items(&mut self, closing: u8, depth: usize, mut item: impl FnMut(&mut Self, usize) -> Option<()>) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.take(1)?;
        self.skip_space();
        while *self.rest.as_bytes().first()? != closing {
            item(self, depth)?;
            self.skip_space();
            if *self.rest.as_bytes().first()? == b',' {
                self.take(1)?;
                self.skip_space();
            }
        }
        self.take(1).map(|_| ())
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let mut is_escaped = false;
        let closing = self.rest.bytes().skip(1).position(|byte| {
            let closes = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            closes
        })?;
        let quoted = self.take(closing + 2)?;
        let inner = quoted.get(1..=closing)?;
        if inner.contains('\\') {
            serde_json::from_str(quoted).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(inner))
        }
    }

    fn take(&mut self, bytes: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Option<String> {
        Json::read(text.as_bytes())?.canonical().map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn equal_documents_have_one_canonical_form() {
        for (one, other) in [
            (r#"{"a":1,"b":[true,null]}"#, " { \"b\" : [ true ,\tnull ] ,\r\n \"a\" : 1 } "),
            (r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"y":2,"x":1}}"#),
            (r#"["é/\"\\"]"#, r#"["\u00e9\/\u0022\\"]"#),
            ("1", "1.0"),
            ("1200", "12e2"),
            ("0.5", "5E-1"),
            ("-0", "0.00e7"),
            ("[]", "[ ]"),
            ("{}", "{ }"),
            (r#""""#, r#" "" "#),
        ] {
            assert!(canonical(one).is_some(), "{one}");
            assert_eq!(canonical(one), canonical(other), "{one}");
        }
    }

    #[test]
    fn different_documents_keep_different_forms() {
        let all = [
            "1",
            "-1",
            "10",
            "0.1",
            "1e400",
            "1e401",
            "9007199254740992",
            "9007199254740993",
            "18446744073709551616",
            "18446744073709551617",
            "1e99999999999999999999",
            "true",
            "false",
            "null",
            r#""1""#,
            r#""true""#,
            "[]",
            "[[]]",
            "{}",
            "[1]",
            "[1,1]",
            "[1,2]",
            "[2,1]",
            "[12]",
            r#"{"a":1}"#,
            r#"{"b":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"["a,b"]"#,
            r#"["a","b"]"#,
            r#"["a\",\"b"]"#,
            r#""A""#,
            r#""a""#,
            r#""\u00e9""#,
            r#""e\u0301""#,
        ];
        let forms: Vec<_> = all.iter().map(|text| canonical(text).unwrap_or_else(|| panic!("{text}"))).collect();
        for (index, form) in forms.iter().enumerate() {
            assert!(forms.iter().skip(index + 1).all(|other| other != form), "{}", all[index]);
        }
    }

    #[test]
    fn what_is_no_clear_json_has_no_form() {
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(canonical(&deep(128)).is_some());
        for text in ["", "{", "a=1", "[1,]", "1 2", r#""\ud800""#, r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":1}"#] {
            assert_eq!(canonical(text), None, "{text}");
        }
        assert_eq!(canonical(&deep(129)), None);
        assert_eq!(canonical(&deep(100_000)), None);
        assert_eq!(Json::read(b"\"\xff\""), None);
    }

    #[test]
    fn pointer_finds_and_removes_one_value() {
        let text = r#"{"a/b":{"m~n":[1,{"x":2}]},"a":3,"a":4}"#;
        let json = Json::read(text.as_bytes()).unwrap();
        for (pointer, expected) in [
            ("/a~1b/m~0n/1/x", Some(Json::Number("2"))),
            ("/a", Some(Json::Number("4"))),
            ("/a~1b/m~0n/2", None),
            ("/a/x", None),
            ("/b", None),
            ("a", None),
        ] {
            assert_eq!(json.at(pointer), expected.as_ref(), "{pointer}");
        }
        for (pointer, left) in [
            ("/a/x", r#"{"a":{"b":[1e0,2e0]},"c":3e0}"#),
            ("/a/b/0", r#"{"a":{"b":[null,2e0]},"c":3e0}"#),
            ("/a/b/7", r#"{"a":{"b":[1e0,2e0]},"c":3e0}"#),
            ("/a/b/01", r#"{"a":{"b":[1e0,2e0]},"c":3e0}"#),
            ("/a/b/+1", r#"{"a":{"b":[1e0,2e0]},"c":3e0}"#),
            ("/a/b", r#"{"a":{},"c":3e0}"#),
            ("/c", r#"{"a":{"b":[1e0,2e0]}}"#),
            ("", r#"{"a":{"b":[1e0,2e0]},"c":3e0}"#),
        ] {
            let mut json = Json::read(br#"{"a":{"b":[1,2]},"c":3}"#).unwrap();
            json.remove(pointer);
            assert_eq!(String::from_utf8(json.canonical().unwrap()).unwrap(), left, "{pointer}");
        }
    }

    #[test]
    fn values_agree_with_serde_json() {
        use serde_json::Value;

        fn to_value(json: &Json<'_>) -> Value {
            match json {
                Json::Object(members) => {
                    Value::Object(members.iter().map(|(name, value)| (name.to_string(), to_value(value))).collect())
                }
                Json::Array(items) => Value::Array(items.iter().map(to_value).collect()),
                Json::String(text) => Value::String(text.to_string()),
                Json::Number(text) | Json::Word(text) => serde_json::from_str(text).unwrap(),
            }
        }
        // Random documents, with random white space and escapes.
        fn document(random: &mut fastrand::Rng, depth: usize) -> String {
            let space = |random: &mut fastrand::Rng| *random.choice(&["", " ", "\r\n\t"]).unwrap();
            let scalars =
                ["true", "null", "-0", "1.5e3", "12", r#""""#, r#""a b""#, r#""\u0041\\\"""#, r#""],}""#, r#""\\""#];
            let (count, shape) = (random.usize(0..4), random.usize(0..3));
            let items = |random: &mut fastrand::Rng, named: bool| -> String {
                let item = |index: usize| {
                    let name = if named { format!("\"k{index}\"{}:", space(random)) } else { String::new() };
                    format!("{}{name}{}", space(random), document(random, depth - 1))
                };
                (0..count).map(item).collect::<Vec<_>>().join(",")
            };
            let text = match shape {
                _ if depth == 0 => scalars[random.usize(0..scalars.len())].to_owned(),
                0 => scalars[random.usize(0..scalars.len())].to_owned(),
                1 => format!("[{}]", items(random, false)),
                _ => format!("{{{}}}", items(random, true)),
            };
            format!("{}{text}{}", space(random), space(random))
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..5000 {
            let text = document(&mut random, 4);
            let ours = Json::read(text.as_bytes()).map(|json| to_value(&json));
            assert_eq!(ours, Some(serde_json::from_str::<Value>(&text).unwrap()), "{text}");
        }
    }
}
