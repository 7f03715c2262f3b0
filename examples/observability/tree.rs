//! Spans as a tree.

use std::fmt::Write as _;

use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::SpanData;

/// What a line shows of a span: an attribute, and the word for it.
const SHOWN: [(&str, &str); 8] = [
    ("http.response.status_code", "status"),
    ("error.type", "error"),
    ("steadfast.attempt", "attempt"),
    ("http.request.resend_count", "resend"),
    ("steadfast.attempts", "attempts"),
    ("steadfast.outcome", "outcome"),
    ("steadfast.idempotency.outcome", "outcome"),
    ("steadfast.idempotency.end", "end"),
];

/// Renders the trees of these spans.
pub(crate) fn of(spans: &[SpanData]) -> String {
    let mut text = String::new();
    let is_root = |span: &&SpanData| spans.iter().all(|other| other.span_context.span_id() != span.parent_span_id);
    let mut roots: Vec<_> = spans.iter().filter(is_root).collect();
    roots.sort_by_key(|span| span.start_time);
    for root in roots {
        add(&mut text, spans, root, "", "");
    }
    text
}

fn add(text: &mut String, spans: &[SpanData], span: &SpanData, first: &str, rest: &str) {
    let mut line = format!("{first}{}", span.name);
    // Writing to a string cannot fail.
    let _infallible = write!(text, "{line:<46} {:<9}", format!("{:?}", span.span_kind).to_uppercase());
    line.clear();
    for (key, word) in SHOWN {
        if let Some(found) = span.attributes.iter().find(|attribute| attribute.key.as_str() == key) {
            let _infallible = write!(text, " {word}={}", found.value);
        }
    }
    text.push('\n');
    let children = children(spans, span.span_context.span_id());
    for (index, child) in children.iter().enumerate() {
        let (branch, below) = if index + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        add(text, spans, child, &format!("{rest}{branch}"), &format!("{rest}{below}"));
    }
}

fn children(spans: &[SpanData], parent: SpanId) -> Vec<&SpanData> {
    let mut children: Vec<_> = spans.iter().filter(|span| span.parent_span_id == parent).collect();
    children.sort_by_key(|span| span.start_time);
    children
}
