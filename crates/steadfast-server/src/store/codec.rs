//! Stored answers that only this service can read.
//!
//! A store keeps answers as they were sent: a token that was issued, an address, an account.
//! Whoever reads the store, or a backup of it, reads them. A codec seals an answer before any store
//! sees it, the one in memory included.

use super::RecordId;

/// Why a codec could not seal or open a record. It is logged, so it should not quote what it was
/// given.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// Seals answers before they are stored, and opens them before they are replayed. Set it with
/// [`IdempotencyLayer::codec`](crate::IdempotencyLayer::codec).
///
/// Status, headers and body are sealed. The status is kept in the clear as well, as are the hashes
/// of key and request, the times and the length: a store needs them.
///
/// Use authenticated encryption, and bind each record to its `id`, so that nobody who can write to
/// the store can put one caller's answer in the place of another's:
///
/// ```
/// use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
/// use steadfast_server::{CodecError, IdempotencyLayer, MemoryStore, RecordCodec, RecordId, Scope};
///
/// struct Aead(RandomizedNonceKey);
///
/// impl RecordCodec for Aead {
///     fn seal(&self, id: &RecordId, plain: &[u8]) -> Result<Vec<u8>, CodecError> {
///         let mut sealed = plain.to_vec();
///         let nonce = self.0.seal_in_place_append_tag(Aad::from(id.as_bytes()), &mut sealed)?;
///         Ok([nonce.as_ref().as_slice(), &sealed].concat())
///     }
///
///     fn open(&self, id: &RecordId, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
///         let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or("it is too short")?;
///         let mut plain = sealed.to_vec();
///         let nonce = Nonce::assume_unique_for_key(*nonce);
///         let length = self.0.open_in_place(nonce, Aad::from(id.as_bytes()), &mut plain)?.len();
///         plain.truncate(length);
///         Ok(plain)
///     }
/// }
///
/// # fn main() -> Result<(), CodecError> {
/// // From where you keep secrets; the same in every process that shares the store.
/// let key = [7; 32];
/// let codec = Aead(RandomizedNonceKey::new(&AES_256_GCM, &key)?);
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).codec(codec);
/// # Ok(())
/// # }
/// ```
///
/// Calls happen on the task that handles the request, so they must not block: fetch the key before.
/// To change the key, put the key's number before the nonce, and go on opening with the old key
/// until its records are past their retention.
pub trait RecordCodec: Send + Sync + 'static {
    /// Seals the bytes of the record with this identity.
    ///
    /// # Errors
    ///
    /// The answer is then not stored. The operation's end is: a repeat does not run, and is
    /// answered with 410.
    fn seal(&self, id: &RecordId, plain: &[u8]) -> Result<Vec<u8>, CodecError>;

    /// Opens what [`seal`](Self::seal) has made for this identity.
    ///
    /// # Errors
    ///
    /// The repeat is then answered with 500, and does not run.
    fn open(&self, id: &RecordId, sealed: &[u8]) -> Result<Vec<u8>, CodecError>;

    /// Whether records that were stored without a codec are replayed. Default: `false`, since
    /// whoever can write to the store could plant them.
    ///
    /// Return `true` for one retention while you introduce a codec. Processes that do not have it
    /// yet answer sealed records with 500; they run nothing twice.
    fn accepts_plain(&self) -> bool {
        false
    }
}
