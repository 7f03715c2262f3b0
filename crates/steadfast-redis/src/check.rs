//! Whether the server is set up to keep what it is given.
//!
//! A Redis that is a cache forgets keys when it wants their room, and one without an append-only file forgets all when it restarts;
//! both let an operation run twice, long after anybody looked at the settings.

use std::fmt;

use redis::Value;

/// Why a Redis may forget a record inside its retention.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisWarning {
    /// `maxmemory-policy` is this one, and not `noeviction`: short of memory, Redis removes keys that still count. The `volatile-*`
    /// policies take ours first, since all of ours expire.
    MayEvict(String),
    /// There is no append-only file (`appendonly no`): a restart goes back to the last snapshot, or to nothing.
    NoAppendOnlyFile,
    /// The server does not say how it is set up.
    Unchecked(String),
}

impl fmt::Display for RedisWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MayEvict(policy) => {
                write!(
                    f,
                    "maxmemory-policy is {policy}: a record may be evicted, and its operation run again; use noeviction"
                )
            }
            Self::NoAppendOnlyFile => {
                write!(
                    f,
                    "there is no append-only file: a restart forgets records, and their operations run again; use appendonly yes"
                )
            }
            Self::Unchecked(why) => write!(f, "it could not be checked whether records may be lost: {why}"),
        }
    }
}

/// What `INFO` says of it. A Cluster answers with one text for each node.
///
/// `CONFIG GET` would say the same, and managed services forbid it.
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
        add(RedisWarning::Unchecked("INFO has no text".to_owned()));
    }
    for text in &texts {
        let value = |name| text.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'));
        match value("maxmemory_policy") {
            Some("noeviction") => {}
            Some(policy) => add(RedisWarning::MayEvict(policy.to_owned())),
            None => add(RedisWarning::Unchecked("INFO names no maxmemory_policy".to_owned())),
        }
        match value("aof_enabled") {
            Some("1") => {}
            Some(_) => add(RedisWarning::NoAppendOnlyFile),
            None => add(RedisWarning::Unchecked("INFO names no aof_enabled".to_owned())),
        }
    }
    found
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => texts.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| collect(value, texts)),
        // The names of the nodes are the keys.
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
    fn what_may_be_forgotten_is_named_once_for_all_nodes() {
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
