//! Whether two answers are about the same operation.
//!
//! A probe cannot count executions at somebody else's server. It can see that two operations are answered differently, and then
//! whether a third answer is like the first. What tells two operations apart is found out first, on two that surely are two; where
//! nothing does, no comparison proves anything, and the report says so.

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// Headers by which an API says that an answer is a replay. Stripe and this crate's server half send the first.
const REPLAY_HEADERS: [&str; 4] =
    ["idempotent-replayed", "idempotency-replayed", "x-idempotent-replayed", "x-idempotency-replayed"];
/// Names like `request_id` change with the request, not with the operation.
const NOT_OF_THE_OPERATION: [&str; 4] = ["request", "trace", "correlation", "span"];

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answered {
    pub(super) fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// A word about the request; 429 is one about the load.
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS
    }

    /// The line by which it says that it is a replay.
    pub(super) fn replay_line(&self) -> Option<String> {
        let says = |name: &str| self.header(name).filter(|value| value.eq_ignore_ascii_case("true"));
        let marked = REPLAY_HEADERS.iter().find_map(|name| Some(format!("{name}: {}", says(name)?)));
        marked.or_else(|| {
            let status = self.header("idempotency-status")?;
            let word = status.split(';').next()?.trim();
            (word == "replayed").then(|| format!("idempotency-status: {status}"))
        })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The word by which an error body names itself: `code` or `type`, at the top or under `error`.
    pub(super) fn code(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let places = ["/error/code", "/code", "/error/type", "/type"];
        places.iter().find_map(|place| Some(body.pointer(place)?.as_str()?.to_owned()))
    }

    /// Its leaves by JSON pointer, the `Location` by that name; one leaf for a body that is not JSON.
    fn leaves(&self) -> BTreeMap<String, String> {
        let mut leaves = BTreeMap::new();
        match serde_json::from_slice(&self.body) {
            Ok(value) => collect(&value, String::new(), &mut leaves),
            Err(_) => drop(leaves.insert("the body".to_owned(), String::from_utf8_lossy(&self.body).into_owned())),
        }
        if let Some(location) = self.header("location") {
            leaves.insert("location".to_owned(), location.to_owned());
        }
        leaves
    }
}

fn collect(value: &Value, pointer: String, leaves: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| collect(value, format!("{pointer}/{name}"), leaves));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| collect(value, format!("{pointer}/{index}"), leaves));
        }
        leaf => drop(leaves.insert(pointer, leaf.to_string())),
    }
}

/// What tells operations apart at this API.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<String>);

impl Marks {
    /// From the answers to two operations that surely are two.
    pub(super) fn between(one: &Answered, other: &Answered) -> Self {
        let (one, other) = (one.leaves(), other.leaves());
        let differing: Vec<String> =
            one.iter().filter(|(name, value)| other.get(*name) != Some(value)).map(|(name, _)| name.clone()).collect();
        // An id is the better witness: a replay may well carry the time of today.
        let ids: Vec<String> = differing.iter().filter(|name| is_id(name)).cloned().collect();
        Self(if ids.is_empty() { differing } else { ids })
    }

    /// Whether anything does.
    pub(super) fn tell(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether both answers are about one operation; `None` if nothing tells, or the marks disagree.
    pub(super) fn same(&self, one: &Answered, other: &Answered) -> Option<bool> {
        let (one, other) = (one.leaves(), other.leaves());
        let equal = self.0.iter().filter(|name| one.get(*name) == other.get(*name)).count();
        match equal {
            _ if self.0.is_empty() => None,
            0 => Some(false),
            all if all == self.0.len() => Some(true),
            _ => None,
        }
    }

    /// An answer in a few words: its status, and the mark that names the operation.
    pub(super) fn describe(&self, answer: &Answered) -> String {
        let leaves = answer.leaves();
        let mark = self.0.iter().find_map(|name| Some((name, leaves.get(name)?)));
        let code = if answer.is_success() { None } else { answer.code() };
        match (mark, code) {
            (Some((name, value)), _) if answer.is_success() => {
                let value: String = value.trim_matches('"').chars().take(40).collect();
                format!("{} ({} {value})", answer.status.as_u16(), name.trim_start_matches('/'))
            }
            (_, Some(code)) => format!("{} ({code})", answer.status.as_u16()),
            _ => answer.status.as_u16().to_string(),
        }
    }
}

/// Whether a pointer's last name is that of an identity.
fn is_id(pointer: &str) -> bool {
    let name = pointer.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let is_id = ["id", "uuid", "location", "reference"].contains(&name.as_str())
        || name.ends_with("_id")
        || name.ends_with("-id");
    is_id && !NOT_OF_THE_OPERATION.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Answered {
        Answered { status: StatusCode::CREATED, headers: HeaderMap::new(), body: body.into() }
    }

    /// Whether a third answer is about the first operation, told by what the first two differ in.
    fn probe(one: &str, two: &str, third: &str) -> Option<bool> {
        let (one, two, third) = (answer(one), answer(two), answer(third));
        Marks::between(&one, &two).same(&one, &third)
    }

    #[test]
    fn an_id_is_the_better_witness() {
        let one = r#"{"id":"a","at":1,"request_id":"r1"}"#;
        let two = r#"{"id":"b","at":1,"request_id":"r2"}"#;
        assert_eq!(probe(one, two, r#"{"id":"a","at":9,"request_id":"r3"}"#), Some(true));
        assert_eq!(probe(one, two, r#"{"id":"c","at":1,"request_id":"r1"}"#), Some(false));
        let nested = (r#"{"charge":{"charge_id":1},"n":1}"#, r#"{"charge":{"charge_id":2},"n":2}"#);
        assert_eq!(probe(nested.0, nested.1, r#"{"charge":{"charge_id":1},"n":7}"#), Some(true));
    }

    #[test]
    fn without_an_id_all_that_differs_must_agree() {
        let (one, two) = (r#"{"a":1,"b":1}"#, r#"{"a":2,"b":2}"#);
        assert_eq!(probe(one, two, one), Some(true));
        assert_eq!(probe(one, two, r#"{"a":3,"b":3}"#), Some(false));
        assert_eq!(probe(one, two, r#"{"a":1,"b":3}"#), None, "one says so, the other not");
        assert_eq!(probe("receipt 1", "receipt 2", "receipt 1"), Some(true));
        assert_eq!(probe("receipt 1", "receipt 2", "receipt 3"), Some(false));
    }

    #[test]
    fn where_nothing_differs_nothing_is_said() {
        assert_eq!(probe("{}", "{}", "{}"), None);
        assert_eq!(probe("", "", ""), None);
        assert!(!Marks::between(&answer("{}"), &answer("{}")).tell());
    }

    #[test]
    fn a_location_is_an_id() {
        let at = |path: &'static str| {
            let headers = [(http::header::LOCATION, http::HeaderValue::from_static(path))].into_iter().collect();
            Answered { headers, ..answer("") }
        };
        let marks = Marks::between(&at("/1"), &at("/2"));
        assert_eq!((marks.same(&at("/1"), &at("/1")), marks.same(&at("/1"), &at("/3"))), (Some(true), Some(false)));
        assert_eq!(marks.describe(&at("/1")), "201 (location /1)");
    }

    #[test]
    fn a_replay_says_so_by_a_header() {
        let with = |name: &'static str, value: &'static str| {
            let headers = [(http::HeaderName::from_static(name), http::HeaderValue::from_static(value))];
            Answered { headers: headers.into_iter().collect(), ..answer("") }.replay_line()
        };
        assert_eq!(with("idempotent-replayed", "true").as_deref(), Some("idempotent-replayed: true"));
        assert!(with("idempotency-status", "replayed;retention=3600").is_some());
        assert_eq!(with("idempotency-status", "stored"), None);
        assert_eq!(with("idempotent-replayed", "false"), None);
    }
}
