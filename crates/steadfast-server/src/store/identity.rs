//! What identifies a record, as a version that every store keeps beside its records.
//!
//! A key is found again by a hash, and told from another request's by a second one. A build that
//! hashed in another way would find nothing of what an earlier one has stored, and run all of it
//! again. So a store says how its records are identified, and one that was written in another way
//! is refused.

/// The version of what identifies a record: how scope and key, or consumer and event, become a
/// [`RecordId`](super::RecordId), and what a request's [`Fingerprint`](super::Fingerprint) covers.
///
/// The durable stores of this crate keep it beside their records. One that holds records of another
/// version cannot be opened, or refuses every claim: [`StoreError::IdentityMismatch`](super::StoreError::IdentityMismatch). A store of
/// your own that outlives its process should do the same.
pub const IDENTITY_VERSION: u32 = 1;

/// A store's records are identified in another way than by this build, which could not recognise
/// what has run.
///
/// Go on with the version of this crate that wrote them; or stop every process, wait until the
/// records are past their retention, and begin with another file, schema or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its records are identified by version {}, and this build identifies them by version {IDENTITY_VERSION}: it could not \
     recognise what has run",
    .found.map_or("0 (not told)".to_owned(), |version| version.to_string())
)]
#[non_exhaustive]
pub struct IdentityMismatch {
    /// The version of the records; `None` if there are records and they do not say.
    pub found: Option<u32>,
}

/// Verifies the version that the records of a store are found to have; `None` if there are records
/// and they do not say. For stores of your own. One without records is new, and is given
/// [`IDENTITY_VERSION`].
///
/// # Errors
///
/// It is not the version of this build.
pub fn verify_identity(found: Option<u32>) -> Result<(), IdentityMismatch> {
    if found == Some(IDENTITY_VERSION) { Ok(()) } else { Err(IdentityMismatch { found }) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;
    use crate::{Fingerprint, IdempotencyLayer, MemoryStore, RecordId, Scope};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whoever changes one of these raises [`IDENTITY_VERSION`]. The hashes are those of Python's
    /// `hashlib`.
    #[tokio::test]
    async fn identity_is_that_of_its_version() {
        assert_eq!(IDENTITY_VERSION, 1);
        assert_eq!(
            hex(RecordId::new("tenant-7", "order-1").as_bytes()),
            "75f1dfdce15e4b9e2e43836293984bfab4494f9018b94480a3f8229470a55b25"
        );
        assert_eq!(
            hex(RecordId::of_event("billing", "evt_1").as_bytes()),
            "fbd536cb4e4768a31ca30a401deb4bde13c369cec723ced12f0f59af5fd643f6"
        );

        let payload = Fingerprint::of(b"{}");
        assert_eq!(hex(payload.as_bytes()), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");

        let request = Request::post("https://API.example.com:8443/orders?a=1").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        let fingerprint = layer.state.config.fingerprint(&parts, &Bytes::from_static(b"{}"));
        assert_eq!(hex(fingerprint.as_bytes()), "dd24a1705f5ec5859ef7be3e7c90dd0410acd32c5fc7f0fe2e7d1413b949fc76");
    }

    #[test]
    fn only_the_same_version_is_accepted() {
        assert_eq!(verify_identity(Some(IDENTITY_VERSION)), Ok(()));
        for found in [None, Some(0), Some(IDENTITY_VERSION + 1)] {
            assert_eq!(verify_identity(found), Err(IdentityMismatch { found }));
        }
        let told = [None, Some(7)].map(|found| IdentityMismatch { found }.to_string());
        assert!(told[0].contains("version 0 (not told)") && told[1].contains("version 7"), "{told:?}");
    }
}
