//! Encryption of stored responses.
//!
//! A store keeps responses as they were sent, with issued tokens, addresses and accounts. Anyone
//! who can read the store or a backup can read them. A codec encrypts a response before any store
//! gets it, the one in memory included.

use super::RecordId;

/// Why a codec could not seal or open a record. It is logged, so it should not quote its input.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// Encrypts responses before they are stored, and decrypts them before they are replayed. Set it
/// with [`IdempotencyLayer::codec`](crate::IdempotencyLayer::codec).
///
/// Status, headers and body are sealed. The status is also stored in the clear, and so are the
/// hashes of key and request, the times and the length, because a store needs them.
///
/// Use authenticated encryption, and bind each record to its `id`. Otherwise an attacker who can
/// write to the store could replace one caller's response by another's:
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
/// // From your secret store; the same in every process that shares the records.
/// let key = [7; 32];
/// let codec = Aead(RandomizedNonceKey::new(&AES_256_GCM, &key)?);
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).codec(codec);
/// # Ok(())
/// # }
/// ```
///
/// Calls run on the task that handles the request, so they must not block: fetch the key before.
///
/// To change the key, put the key's number before the nonce. Keep the old key for opening until its
/// records are past their retention.
pub trait RecordCodec: Send + Sync + 'static {
    /// Seals the bytes of the record with this identity.
    ///
    /// # Errors
    ///
    /// If you return an error, the response is not stored, but the operation's end is. A repeat
    /// does not run, and gets 410.
    fn seal(&self, id: &RecordId, plain: &[u8]) -> Result<Vec<u8>, CodecError>;

    /// Opens the bytes that [`seal`](Self::seal) has made for this identity.
    ///
    /// # Errors
    ///
    /// If you return an error, the repeat gets 500, and does not run.
    fn open(&self, id: &RecordId, sealed: &[u8]) -> Result<Vec<u8>, CodecError>;

    /// Returns whether records that were stored without a codec are replayed. Default: `false`,
    /// because anyone who can write to the store could plant them.
    ///
    /// Return `true` for one retention while you introduce a codec. Processes that do not have it
    /// yet respond 500 to sealed records; they run nothing twice.
    fn accepts_plain(&self) -> bool {
        false
    }
}
