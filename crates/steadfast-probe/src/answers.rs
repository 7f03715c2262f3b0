//! Decides whether two responses are about the same operation.
//!
//! A probe cannot count executions on another party's server. It can see that the responses to two
//! operations differ, and whether a third response is like the first. So the first step compares
//! the responses to two operations that are certainly distinct. If no value differs, no comparison
//! proves anything, and the report says so.

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// Headers that mark a response as a replay. Stripe and `steadfast-server` send the first.
const REPLAY_HEADERS: [&str; 4] =
    ["idempotent-replayed", "idempotency-replayed", "x-idempotent-replayed", "x-idempotency-replayed"];
/// Parts of names like `request_id`: such values change with the request, not with the operation.
const NOT_OF_THE_OPERATION: [&str; 4] = ["request", "trace", "correlation", "span"];

/// A response, read to its end.
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

    /// Whether the API refuses the request. A 429 is about the load, not about the request.
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS
    }

    /// The header line that marks this response as a replay.
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

    /// The code of an error body: `code` or `type`, at the top level or under `error`.
    pub(super) fn code(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let places = ["/error/code", "/code", "/error/type", "/type"];
        places.iter().find_map(|place| Some(body.pointer(place)?.as_str()?.to_owned()))
    }

    /// The leaves of the JSON body by JSON pointer, with the `Location` as one more. A body that is
    /// not JSON is one leaf.
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

/// The leaves that differ between two operations at this API.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<String>);

impl Marks {
    /// Compares the responses to two operations that are certainly distinct.
    pub(super) fn between(one: &Answered, other: &Answered) -> Self {
        let (one, other) = (one.leaves(), other.leaves());
        let differing: Vec<String> =
            one.iter().filter(|(name, value)| other.get(*name) != Some(value)).map(|(name, _)| name.clone()).collect();
        // An id is the better evidence: a replay may carry the current time.
        let ids: Vec<String> = differing.iter().filter(|name| is_id(name)).cloned().collect();
        Self(if ids.is_empty() { differing } else { ids })
    }

    /// Whether any leaf differs.
    pub(super) fn tell(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether both responses are about one operation. `None` if no leaf differs between
    /// operations, or the leaves disagree.
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

    /// Describes a response briefly: its status, and the leaf that identifies the operation.
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

/// Whether the last name of a pointer is that of an identity.
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

    /// Whether a third response is about the first operation, judged by the leaves in which the
    /// first two differ.
    fn probe(one: &str, two: &str, third: &str) -> Option<bool> {
        let (one, two, third) = (answer(one), answer(two), answer(third));
        Marks::between(&one, &two).same(&one, &third)
    }

    #[test]
    fn id_outweighs_other_differences() {
        let one = r#"{"id":"a","at":1,"request_id":"r1"}"#;
        let two = r#"{"id":"b","at":1,"request_id":"r2"}"#;
        assert_eq!(probe(one, two, r#"{"id":"a","at":9,"request_id":"r3"}"#), Some(true));
        assert_eq!(probe(one, two, r#"{"id":"c","at":1,"request_id":"r1"}"#), Some(false));
        let nested = (r#"{"charge":{"charge_id":1},"n":1}"#, r#"{"charge":{"charge_id":2},"n":2}"#);
        assert_eq!(probe(nested.0, nested.1, r#"{"charge":{"charge_id":1},"n":7}"#), Some(true));
    }

    #[test]
    fn without_id_all_differences_must_agree() {
        let (one, two) = (r#"{"a":1,"b":1}"#, r#"{"a":2,"b":2}"#);
        assert_eq!(probe(one, two, one), Some(true));
        assert_eq!(probe(one, two, r#"{"a":3,"b":3}"#), Some(false));
        assert_eq!(probe(one, two, r#"{"a":1,"b":3}"#), None, "the differences disagree");
        assert_eq!(probe("receipt 1", "receipt 2", "receipt 1"), Some(true));
        assert_eq!(probe("receipt 1", "receipt 2", "receipt 3"), Some(false));
    }

    #[test]
    fn no_difference_gives_no_verdict() {
        assert_eq!(probe("{}", "{}", "{}"), None);
        assert_eq!(probe("", "", ""), None);
        assert!(!Marks::between(&answer("{}"), &answer("{}")).tell());
    }

    #[test]
    fn location_counts_as_id() {
        let at = |path: &'static str| {
            let headers = [(http::header::LOCATION, http::HeaderValue::from_static(path))].into_iter().collect();
            Answered { headers, ..answer("") }
        };
        let marks = Marks::between(&at("/1"), &at("/2"));
        assert_eq!((marks.same(&at("/1"), &at("/1")), marks.same(&at("/1"), &at("/3"))), (Some(true), Some(false)));
        assert_eq!(marks.describe(&at("/1")), "201 (location /1)");
    }

    #[test]
    fn replay_is_recognised_by_header() {
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
