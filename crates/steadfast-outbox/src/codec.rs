//! Entries as bytes: a version, a checksum, and the entry.

use sha2::{Digest, Sha256};

use crate::entry::Entry;
use crate::id::OperationId;

/// The version of the format. A later one reads the earlier ones.
const VERSION: u8 = 1;
const CHECKSUM: usize = 8;

/// The reason why bytes are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A later version of this crate has written it.
    #[error("it has format {0}, and this version of steadfast-outbox reads format {VERSION}; use a later one")]
    Version(u8),
    /// The bytes were changed after they were written.
    #[error("operation {0} is damaged")]
    Damaged(OperationId),
    /// The entry cannot be written as bytes.
    #[error("the operation cannot be encoded")]
    Encoding,
}

/// Encodes an entry.
///
/// # Errors
///
/// [`CodecError::Encoding`]. No entry is known that causes it.
pub fn encode(entry: &Entry) -> Result<Vec<u8>, CodecError> {
    let content = postcard::to_stdvec(entry).map_err(|_| CodecError::Encoding)?;
    let mut bytes = Vec::with_capacity(1 + CHECKSUM + content.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&checksum(&content));
    bytes.extend_from_slice(&content);
    Ok(bytes)
}

/// Decodes the entry of an operation.
///
/// # Errors
///
/// The bytes are not what was written for this operation, or a later version has written them.
pub fn decode(id: OperationId, bytes: &[u8]) -> Result<Entry, CodecError> {
    let damaged = || CodecError::Damaged(id);
    let (version, rest) = bytes.split_first().ok_or_else(damaged)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let (sum, content) = rest.split_at_checked(CHECKSUM).ok_or_else(damaged)?;
    if sum != checksum(content) {
        return Err(damaged());
    }
    let entry: Entry = postcard::from_bytes(content).map_err(|_| damaged())?;
    if entry.id == id { Ok(entry) } else { Err(damaged()) }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&Sha256::digest(content)[..CHECKSUM]);
    sum
}
