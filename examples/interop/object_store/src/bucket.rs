//! An S3-like server: one object, and how often something was changed.

use steadfast_testing::{Answer, Received};

/// The content of the object.
pub const OBJECT: &str = "a report of some length";

/// A bucket with at most one object.
#[derive(Debug, Default)]
pub struct Bucket {
    /// Objects written and uploads begun. A put of the bytes that are there already changes nothing.
    pub changes: usize,
    /// Whether it answers everything with 503.
    pub is_down: bool,
    /// Whether the first `get` ends in the middle of the object.
    cuts_first_get: bool,
    object: Option<Vec<u8>>,
}

impl Bucket {
    /// A bucket with the object in it.
    pub fn with_object(cuts_first_get: bool) -> Self {
        Self { cuts_first_get, object: Some(OBJECT.into()), ..Self::default() }
    }

    /// A bucket that answers everything with 503.
    pub fn down() -> Self {
        Self { is_down: true, ..Self::default() }
    }

    /// Executes a request.
    pub fn answer(&mut self, request: &Received) -> Answer {
        match request.method.as_str() {
            _ if self.is_down => Answer::new(503),
            "GET" => self.get(request.header("range")),
            "PUT" if self.object.is_some() && request.header("if-none-match") == Some("*") => Answer::new(412),
            "PUT" => self.put(&request.body),
            "POST" if request.target.ends_with("?uploads=") => self.begin_upload(),
            _ => Answer::new(501),
        }
    }

    fn put(&mut self, body: &[u8]) -> Answer {
        if self.object.as_deref() != Some(body) {
            self.changes += 1;
            self.object = Some(body.to_vec());
        }
        Answer::new(200).header("etag", "\"1\"").body("")
    }

    fn begin_upload(&mut self) -> Answer {
        self.changes += 1;
        Answer::new(200).header("content-type", "application/xml").body(format!(
            "<InitiateMultipartUploadResult><UploadId>{}</UploadId></InitiateMultipartUploadResult>",
            self.changes
        ))
    }

    fn get(&mut self, range: Option<&str>) -> Answer {
        let Some(object) = &self.object else { return Answer::new(404) };
        let from = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        let (status, from) = from.map_or((200, 0), |from: usize| (206, from));
        let part = object.get(from..).unwrap_or_default();
        let answer = Answer::new(status)
            .header("etag", "\"1\"")
            .header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            .header("content-range", format!("bytes {from}-{}/{}", object.len() - 1, object.len()));
        if std::mem::take(&mut self.cuts_first_get) {
            return answer.body(&part[..part.len() / 2]).claiming_length(part.len());
        }
        answer.body(part)
    }
}
