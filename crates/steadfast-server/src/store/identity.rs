//! The version of the hashes that identify records. Every durable store keeps it beside its
//! records.
//!
//! One hash finds the record of a key, and a second tells its request from another. A build with
//! other hashes would find none of the earlier records, and run their operations again. So a store
//! keeps the version of its hashes, and a build with another version refuses it.

/// The version of the hashes that identify records: how scope and key, or consumer and event,
/// become a [`RecordId`](super::RecordId), and what a request's [`Fingerprint`](super::Fingerprint)
/// covers.
///
/// The durable stores of this project keep it beside their records. If a store holds records of
/// another version, it cannot be opened, or refuses every claim:
/// [`StoreError::IdentityMismatch`](super::StoreError::IdentityMismatch). If your own store
/// outlives its process, do the same with [`verify_identity`].
pub const IDENTITY_VERSION: u32 = 1;

/// A store's records have another identity version than this build, so this build could not
/// recognise their repeats.
///
/// Either keep the version of this crate that wrote the records. Or stop every process, wait until
/// the records are past their retention, and begin with another file, schema or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its records are identified by version {}, and this build identifies them by version {IDENTITY_VERSION}, so it could \
     not recognise repeats",
    .found.map_or("0 (not told)".to_owned(), |version| version.to_string())
)]
#[non_exhaustive]
pub struct IdentityMismatch {
    /// The version of the records. `None` if there are records without a version.
    pub found: Option<u32>,
}

/// Checks the identity version that a store of yours found beside its records. Pass `None` if there
/// are records without a version. A store without records is new: give it [`IDENTITY_VERSION`]
/// instead.
///
/// ```
/// use steadfast_server::{IDENTITY_VERSION, verify_identity};
///
/// assert!(verify_identity(Some(IDENTITY_VERSION)).is_ok());
/// // Its repeats could not be recognised, so they would run twice.
/// assert!(verify_identity(Some(IDENTITY_VERSION + 1)).is_err());
/// ```
///
/// # Errors
///
/// Returns an error if it is not the version of this build.
pub fn verify_identity(found: Option<u32>) -> Result<(), IdentityMismatch> {
    if found == Some(IDENTITY_VERSION) { Ok(()) } else { Err(IdentityMismatch { found }) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;
    use crate::{BodyFingerprint, Fingerprint, IdempotencyLayer, MemoryStore, RecordId, Scope};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // If you change one of these hashes, raise `IDENTITY_VERSION`. They were computed with Python's
    // `hashlib`.
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

        let json = br#"{"b":0, "a":1, "c":1.20}"#;
        for (setting, body, hash) in [
            (
                BodyFingerprint::ignore_fields(["b", "a"]),
                &json[..],
                "f3577f1e4a8e16722c79589e8828ca706c463d496a8e6c2cb7b233fbb4f8751c",
            ),
            (
                BodyFingerprint::ignore_body(),
                &json[..],
                "9aba5639c6ff4fbb28fc05d2ee07a1e343d47d5013fafde5f2753d0581baa3ca",
            ),
            (
                BodyFingerprint::from_fn("v1", |_, _| Bytes::from_static(b"x")),
                &json[..],
                "ccc6b4b4a32349403d71504d16d33e45fe9522534cc97986043e078c0a411f40",
            ),
        ] {
            let layer = layer.clone().fingerprint_body(setting);
            let fingerprint = layer.state.config.fingerprint(&parts, &Bytes::from_static(body));
            assert_eq!(hex(fingerprint.as_bytes()), hash);
        }
        let stripe = BodyFingerprint::ignore_fields(["pending_webhooks"]);
        assert_eq!(
            hex(stripe.of_payload(r#"{"pending_webhooks":2,"id":"evt_1"}"#).as_bytes()),
            "e40c781e5e4c45c56da8cf6ac6090f490feac48e427463986ac42eb64132e270"
        );
        assert_eq!(
            hex(BodyFingerprint::canonical_json().of_payload("a=1").as_bytes()),
            "5b9fbfea658c2b515c5f6b386f935e0808715e6c72133f2af596d4e46e71ce45"
        );
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
