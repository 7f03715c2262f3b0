//! Checks whether a Redis server may lose records.
//!
//! A Redis set up as a cache evicts keys when memory runs short. One without an append-only file
//! loses all data when it restarts. In both cases an operation can run twice, long after anybody
//! looked at the settings.

use std::fmt;

use redis::Value;

/// A reason why a Redis server may lose a record within its retention.
///
/// Returned by [`RedisStore::warnings`](super::RedisStore::warnings) and
/// [`RedisStore::check`](super::RedisStore::check). The text names the setting to change:
///
/// ```
/// use steadfast_redis::RedisWarning;
///
/// let warning = RedisWarning::MayEvict("allkeys-lru".to_owned());
/// assert!(warning.to_string().starts_with("maxmemory-policy is allkeys-lru"));
/// assert!(warning.to_string().ends_with("set it to noeviction"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisWarning {
    /// `maxmemory-policy` has this value instead of `noeviction`. When memory runs short, Redis
    /// removes keys within their retention. The `volatile-*` policies remove the store's keys
    /// first, since all of them expire.
    MayEvict(String),
    /// Redis has no append-only file (`appendonly no`). A restart goes back to the last snapshot,
    /// or to nothing.
    NoAppendOnlyFile,
    /// The settings could not be read, for this reason.
    Unchecked(String),
}

impl fmt::Display for RedisWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MayEvict(policy) => {
                write!(
                    f,
                    "maxmemory-policy is {policy}: Redis may evict records, whose operations can then run again; set it to noeviction"
                )
            }
            Self::NoAppendOnlyFile => {
                write!(
                    f,
                    "appendonly is no: a restart loses records, whose operations can then run again; set it to yes"
                )
            }
            Self::Unchecked(why) => write!(f, "could not check whether Redis may lose records: {why}"),
        }
    }
}

/// Returns the warnings for the text of `INFO`. A Cluster returns one text for each node.
///
/// `CONFIG GET` has the same facts, but managed services forbid it.
pub(super) fn warnings(info: &Value) -> Vec<RedisWarning> {
    let mut texts = Vec::new();
    collect(info, &mut texts);
    let mut found = Vec::new();
    let mut add = |warning| {
        if !found.contains(&warning) {
            found.push(warning);
        }
    };
    if texts.is_empty() {
        add(RedisWarning::Unchecked("INFO returned no text".to_owned()));
    }
    for text in &texts {
        let value = |name| text.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'));
        match value("maxmemory_policy") {
            Some("noeviction") => {}
            Some(policy) => add(RedisWarning::MayEvict(policy.to_owned())),
            None => add(RedisWarning::Unchecked("INFO has no maxmemory_policy".to_owned())),
        }
        match value("aof_enabled") {
            Some("1") => {}
            Some(_) => add(RedisWarning::NoAppendOnlyFile),
            None => add(RedisWarning::Unchecked("INFO has no aof_enabled".to_owned())),
        }
    }
    found
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => texts.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| collect(value, texts)),
        // The keys are the names of the nodes.
        Value::Map(nodes) => nodes.iter().for_each(|(_, value)| collect(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(info: &Value, expected: &[RedisWarning]) {
        assert_eq!(warnings(info), expected);
    }

    fn text(policy: &str, aof: &str) -> Value {
        Value::BulkString(
            format!("# Memory\r\nmaxmemory_policy:{policy}\r\n# Persistence\r\naof_enabled:{aof}\r\n").into(),
        )
    }

    #[test]
    fn warnings_of_all_nodes_are_listed_once() {
        let evicts = RedisWarning::MayEvict("volatile-lru".to_owned());
        check(&text("noeviction", "1"), &[]);
        check(&text("volatile-lru", "1"), std::slice::from_ref(&evicts));
        check(&text("noeviction", "0"), &[RedisWarning::NoAppendOnlyFile]);
        let node = |name: &str, info| (Value::BulkString(name.into()), info);
        let cluster = vec![node("a:1", text("noeviction", "1")), node("b:1", text("volatile-lru", "1"))];
        check(&Value::Map(cluster), std::slice::from_ref(&evicts));
        let same = vec![node("a:1", text("volatile-lru", "0")), node("b:1", text("volatile-lru", "0"))];
        check(&Value::Map(same), &[evicts, RedisWarning::NoAppendOnlyFile]);
        for nothing in [Value::Nil, Value::BulkString(Vec::new())] {
            assert!(matches!(warnings(&nothing).as_slice(), [RedisWarning::Unchecked(_), ..]), "{nothing:?}");
        }
    }
}
