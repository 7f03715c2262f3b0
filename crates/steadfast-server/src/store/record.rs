//! The stored response, which is replayed byte for byte until its retention ends.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RecordId;
use super::codec::RecordCodec;
use crate::stored_headers::StoredHeaders;

/// The layout of new records. A record of a later layout is refused.
const VERSION: u8 = 1;
const CHECKSUM: usize = 8;
/// Added to the status of a sealed record, so that a build without codecs refuses it instead of
/// replaying its bytes as a response.
const SEALED: u16 = 1000;

/// A stored response. Its clones share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record(Arc<RecordParts>);

#[derive(Clone, Debug, PartialEq)]
struct RecordParts {
    status: StatusCode,
    headers: HeaderMap,
    /// `None` if the response was streamed or too long. The record then says only that the
    /// operation has ended.
    body: Option<Bytes>,
    /// Whether the body is the whole record as a codec has sealed it.
    sealed: bool,
}

impl Record {
    /// Creates a record that can be replayed. It leaves out the headers that are not stored by
    /// default: see [`IdempotencyLayer::omit_headers`](crate::IdempotencyLayer::omit_headers).
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{HeaderMap, HeaderValue, StatusCode, header};
    /// use steadfast_server::Record;
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert(header::LOCATION, HeaderValue::from_static("/orders/7"));
    /// headers.insert(header::SET_COOKIE, HeaderValue::from_static("session=1"));
    /// let record = Record::new(StatusCode::CREATED, &headers, Bytes::from("ordered"));
    /// assert!(record.headers().contains_key(header::LOCATION));
    /// // Another client may send the repeat, so the session is not stored.
    /// assert!(!record.headers().contains_key(header::SET_COOKIE));
    /// ```
    #[must_use]
    pub fn new(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        Self::of(status, StoredHeaders::default().of(headers), Some(body))
    }

    /// Creates the record of an operation whose response is not kept. A repeat gets 410.
    #[must_use]
    pub fn not_kept(status: StatusCode) -> Self {
        Self::of(status, HeaderMap::new(), None)
    }

    /// Creates a record with exactly these headers.
    pub(crate) fn of(status: StatusCode, headers: HeaderMap, body: Option<Bytes>) -> Self {
        Self(Arc::new(RecordParts { status, headers, body, sealed: false }))
    }

    /// Seals this record with `codec`. A record without a response is returned unchanged. If the
    /// codec fails, the response is not kept.
    pub fn sealed(self, id: &RecordId, codec: &dyn RecordCodec) -> Self {
        if self.body().is_none() {
            return self;
        }
        match codec.seal(id, &self.encode()) {
            Ok(bytes) => Self::of_sealed(self.status(), bytes.into()),
            Err(error) => {
                tracing::error!(target: "steadfast", ?id, %error, "a response could not be sealed, and is not kept");
                Self::not_kept(self.status())
            }
        }
    }

    fn of_sealed(status: StatusCode, bytes: Bytes) -> Self {
        Self(Arc::new(RecordParts { status, headers: HeaderMap::new(), body: Some(bytes), sealed: true }))
    }

    /// Decrypts a record from a store with the codec that sealed it. A record without a response is
    /// returned unchanged.
    ///
    /// The layer does this itself; call it in tools that read records.
    ///
    /// # Errors
    ///
    /// Returns an error if the record is sealed and there is no codec, or if the codec cannot open
    /// it. Also if the record is not sealed and the codec does not
    /// [accept](RecordCodec::accepts_plain) that.
    pub fn opened(self, id: &RecordId, codec: Option<&dyn RecordCodec>) -> Result<Self, RecordError> {
        match (codec, self.body()) {
            (Some(codec), Some(bytes)) if self.is_sealed() => open(id, codec, bytes),
            (None, _) if self.is_sealed() => Err(RecordError::Sealed),
            (Some(codec), Some(_)) if !codec.accepts_plain() => Err(RecordError::NotSealed),
            _ => Ok(self),
        }
    }

    /// Returns whether a codec has sealed the record. [`body`](Self::body) is then the sealed form
    /// of the whole response, and there are no headers.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.0.sealed
    }

    /// Returns the response's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Returns the response's headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// Returns the response's body. `None` if it was not kept.
    #[must_use]
    pub fn body(&self) -> Option<&Bytes> {
        self.0.body.as_ref()
    }

    /// Returns the parts of the record. Does not copy them if the record is not shared.
    pub(crate) fn into_parts(self) -> (StatusCode, HeaderMap, Option<Bytes>) {
        let RecordParts { status, headers, body, .. } = Arc::unwrap_or_clone(self.0);
        (status, headers, body)
    }

    /// Returns the approximate size of the record, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers: usize = self.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        headers + self.body().map_or(0, Bytes::len)
    }

    /// Encodes the record for a store that keeps bytes: a version, a checksum, the content.
    /// [`decode`](Self::decode) reads it.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{HeaderMap, StatusCode};
    /// use steadfast_server::Record;
    ///
    /// let record = Record::new(StatusCode::CREATED, &HeaderMap::new(), Bytes::from("charged"));
    /// let mut bytes = record.encode();
    /// assert_eq!(Record::decode(&bytes)?, record);
    ///
    /// // A damaged record is refused, so it is never replayed.
    /// *bytes.last_mut().expect("it has a body") ^= 1;
    /// assert!(Record::decode(&bytes).is_err());
    /// # Ok::<(), steadfast_server::RecordError>(())
    /// ```
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        seal(&self.wire())
    }

    fn wire(&self) -> Wire<'_> {
        let headers =
            self.headers().iter().map(|(name, value)| (Raw(name.as_str().as_bytes()), Raw(value.as_bytes()))).collect();
        let status = self.status().as_u16() + if self.is_sealed() { SEALED } else { 0 };
        Wire { status, headers, body: self.body().map(|body| Raw(body)) }
    }

    /// Returns the record as one piece of memory, for a store that keeps it in this process.
    pub(super) fn pack(&self) -> Bytes {
        let wire = self.wire();
        // As long as the record: it is kept for a day, and a second copy to shorten it would need
        // the memory twice.
        let room = Vec::with_capacity(wire.length());
        // Writing to a vector cannot fail, because it grows.
        postcard::to_extend(&wire, room).unwrap_or_default().into()
    }

    /// Returns the record that was packed. It shares the memory of these bytes.
    pub(super) fn unpack(bytes: &Bytes) -> Result<Self, RecordError> {
        Self::of_wire(postcard::from_bytes(bytes).map_err(|_| RecordError::Damaged)?, |part| bytes.slice_ref(part))
    }

    fn of_wire(wire: Wire<'_>, part: impl Fn(&[u8]) -> Bytes) -> Result<Self, RecordError> {
        if let (Some(status), Some(Raw(bytes))) = (wire.status.checked_sub(SEALED), &wire.body) {
            let status = StatusCode::from_u16(status).map_err(|_| RecordError::Damaged)?;
            return Ok(Self::of_sealed(status, part(bytes)));
        }
        // Room for the headers that a replay adds, so that the map does not grow.
        let mut headers = HeaderMap::with_capacity(wire.headers.len() + 2);
        for (Raw(name), Raw(value)) in wire.headers {
            let name = HeaderName::from_bytes(name).map_err(|_| RecordError::Damaged)?;
            headers.append(name, HeaderValue::from_maybe_shared(part(value)).map_err(|_| RecordError::Damaged)?);
        }
        let status = StatusCode::from_u16(wire.status).map_err(|_| RecordError::Damaged)?;
        Ok(Self::of(status, headers, wire.body.map(|Raw(body)| part(body))))
    }

    /// Reads a record that [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    ///
    /// Returns an error if the bytes are damaged, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        Self::of_wire(unseal(bytes)?, Bytes::copy_from_slice)
    }
}

fn open(id: &RecordId, codec: &dyn RecordCodec, sealed: &[u8]) -> Result<Record, RecordError> {
    let plain = codec.open(id, sealed).map_err(|error| {
        tracing::error!(target: "steadfast", ?id, %error, "a record could not be opened");
        RecordError::CannotOpen
    })?;
    Record::decode(&plain)
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    status: u16,
    #[serde(borrow)]
    headers: Vec<(Raw<'a>, Raw<'a>)>,
    #[serde(borrow)]
    body: Option<Raw<'a>>,
}

impl Wire<'_> {
    /// Returns the length of the encoded form.
    fn length(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.length() + value.length()).sum();
        let body = self.body.as_ref().map_or(0, Raw::length);
        number_length(self.status.into()) + number_length(self.headers.len()) + headers + 1 + body
    }
}

impl Raw<'_> {
    fn length(&self) -> usize {
        number_length(self.0.len()) + self.0.len()
    }
}

/// Returns the length of a number in postcard: seven bits in each byte.
fn number_length(number: usize) -> usize {
    let bits = usize::BITS - (number | 1).leading_zeros();
    usize::try_from(bits.div_ceil(7)).unwrap_or(1)
}

/// Bytes that are written as a whole. Serde would write a slice byte by byte.
#[derive(Deserialize)]
struct Raw<'a>(#[serde(borrow)] &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Encodes a value so that damage is detected: the version of the layout, a checksum, the content.
pub fn seal(value: &impl Serialize) -> Vec<u8> {
    // Writing to a vector cannot fail, because it grows.
    let content = postcard::to_stdvec(value).unwrap_or_default();
    let mut bytes = Vec::with_capacity(1 + CHECKSUM + content.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&checksum(&content));
    bytes.extend_from_slice(&content);
    bytes
}

/// Reads what [`seal`] writes.
pub fn unseal<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, RecordError> {
    let (version, rest) = bytes.split_first().ok_or(RecordError::Damaged)?;
    if *version != VERSION {
        return Err(RecordError::Version(*version));
    }
    let (sum, content) = rest.split_at_checked(CHECKSUM).ok_or(RecordError::Damaged)?;
    if sum != checksum(content) {
        return Err(RecordError::Damaged);
    }
    postcard::from_bytes(content).map_err(|_| RecordError::Damaged)
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let hash = Sha256::digest(content);
    std::array::from_fn(|index| hash.get(index).copied().unwrap_or_default())
}

/// Why bytes are not a valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes have changed since they were written.
    #[error("it is damaged")]
    Damaged,
    /// A newer version of this crate wrote the bytes.
    #[error("it has the layout {0}, which this version does not know")]
    Version(u8),
    /// A codec has sealed the record, and there is no codec to open it.
    #[error("it is sealed, and there is no codec")]
    Sealed,
    /// No codec has sealed the record, and the codec accepts only sealed ones.
    #[error("it is not sealed, and the codec accepts no such record")]
    NotSealed,
    /// The codec could not open the record. Its own error is in the log.
    #[error("the codec cannot open it")]
    CannotOpen,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut headers = HeaderMap::new();
        headers.append("x-multi", HeaderValue::from_static("a"));
        headers.append("x-multi", HeaderValue::from_bytes(b"\xff").unwrap());
        Record::new(StatusCode::CREATED, &headers, Bytes::from_static(b"\0\x01\xff\r\n"))
    }

    #[test]
    fn decoding_returns_encoded_record() {
        for record in
            [record(), Record::not_kept(StatusCode::OK), Record::new(StatusCode::OK, &HeaderMap::new(), Bytes::new())]
        {
            assert_eq!(Record::decode(&record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn packed_record_is_whole_and_not_copied() {
        let long = Record::new(StatusCode::OK, &HeaderMap::new(), Bytes::from(vec![b'x'; 20_000]));
        for record in [record(), Record::not_kept(StatusCode::OK), long] {
            let packed = record.pack();
            assert_eq!(packed.len(), record.wire().length());
            let unpacked = Record::unpack(&packed).unwrap();
            assert_eq!(unpacked, record);
            let inside = |part: &[u8]| part.is_empty() || packed.as_ptr_range().contains(&part.as_ptr());
            assert!(unpacked.body().is_none_or(|body| inside(body)));
            assert!(unpacked.headers().values().all(|value| inside(value.as_bytes())));
            assert!((0..packed.len()).all(|length| Record::unpack(&packed.slice(..length)).is_err()));
        }
    }

    /// Other stores have this layout on their disks.
    #[test]
    fn layout_is_unchanged() {
        let headers = [(http::header::CONTENT_TYPE, HeaderValue::from_static("a/b"))].into_iter().collect();
        let record = Record::new(StatusCode::CREATED, &headers, Bytes::from_static(b"hi"));
        let content = &record.encode()[1 + CHECKSUM..];
        assert_eq!(content, b"\xc9\x01\x01\x0ccontent-type\x03a/b\x01\x02hi");
    }

    /// Adds the identity's first byte to each byte: enough to show which record was sealed.
    struct Shift {
        accepts_plain: bool,
    }

    impl RecordCodec for Shift {
        fn seal(&self, id: &RecordId, plain: &[u8]) -> Result<Vec<u8>, crate::CodecError> {
            Ok(plain.iter().map(|byte| byte.wrapping_add(id.as_bytes()[0])).collect())
        }

        fn open(&self, id: &RecordId, sealed: &[u8]) -> Result<Vec<u8>, crate::CodecError> {
            if sealed.is_empty() {
                return Err("nothing was sealed".into());
            }
            Ok(sealed.iter().map(|byte| byte.wrapping_sub(id.as_bytes()[0])).collect())
        }

        fn accepts_plain(&self) -> bool {
            self.accepts_plain
        }
    }

    #[test]
    fn sealed_record_is_opened_for_its_identity_only() {
        let (one, other) = (RecordId::new("", "1"), RecordId::new("", "2"));
        assert_ne!(one.as_bytes()[0], other.as_bytes()[0]);
        let (strict, lenient) = (&Shift { accepts_plain: false }, &Shift { accepts_plain: true });
        let sealed = record().sealed(&one, strict);
        assert_eq!((sealed.status(), sealed.headers().len()), (StatusCode::CREATED, 0));
        for kept in [Record::decode(&sealed.encode()).unwrap(), Record::unpack(&sealed.pack()).unwrap()] {
            assert_eq!(kept, sealed);
            assert_eq!(kept.clone().opened(&one, Some(strict)), Ok(record()));
            assert!(kept.clone().opened(&other, Some(strict)).is_err());
            assert_eq!(kept.opened(&one, None), Err(RecordError::Sealed));
        }
        let empty = Record::of_sealed(StatusCode::OK, Bytes::new());
        assert_eq!(empty.opened(&one, Some(strict)), Err(RecordError::CannotOpen));
        assert_eq!(record().opened(&one, Some(strict)), Err(RecordError::NotSealed));
        assert_eq!(record().opened(&one, Some(lenient)), Ok(record()));
        assert_eq!(record().opened(&one, None), Ok(record()));
        // It has no response to seal.
        let not_kept = Record::not_kept(StatusCode::OK);
        assert_eq!(not_kept.clone().sealed(&one, strict).opened(&one, Some(strict)), Ok(not_kept));
    }

    #[test]
    fn sealed_record_is_refused_without_codec() {
        let sealed = record().sealed(&RecordId::new("", "1"), &Shift { accepts_plain: false });
        // That build read the status first, and knew none above 999.
        assert_eq!(sealed.encode()[1 + CHECKSUM..][..2], [0xb1, 0x09]);
        assert!(StatusCode::from_u16(SEALED + 100).is_err());
    }

    #[test]
    fn damaged_or_newer_record_is_refused() {
        let bytes = record().encode();
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x40;
            assert!(Record::decode(&damaged).is_err(), "byte {index}");
        }
        for length in 0..bytes.len() {
            assert!(Record::decode(&bytes[..length]).is_err(), "cut to {length}");
        }
        let mut newer = bytes;
        newer[0] = VERSION + 1;
        assert_eq!(Record::decode(&newer), Err(RecordError::Version(2)));
    }
}
