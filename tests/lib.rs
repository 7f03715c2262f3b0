//! Compiles and runs every example on the pages of the project: README, cookbook, guide.
//!
//! They use the companion crates, which the client's own package cannot depend on.

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
mod readme {}

#[doc = include_str!("../src/cookbook.md")]
#[cfg(doctest)]
mod cookbook {}

#[doc = include_str!("../CHANGELOG.md")]
#[cfg(doctest)]
mod changelog {}

#[doc = include_str!("../src/guide/migrating.md")]
#[cfg(doctest)]
mod migrating {}

#[doc = include_str!("../src/guide/credentials.md")]
#[cfg(doctest)]
mod credentials {}

#[doc = include_str!("../src/guide/design.md")]
#[cfg(doctest)]
mod design {}

#[doc = include_str!("../src/guide/failures.md")]
#[cfg(doctest)]
mod failures {}

#[doc = include_str!("../src/guide/internals.md")]
#[cfg(doctest)]
mod internals {}

#[doc = include_str!("../src/guide/keep_your_client.md")]
#[cfg(doctest)]
mod keep_your_client {}

#[doc = include_str!("../src/guide/observability.md")]
#[cfg(doctest)]
mod observability {}

#[doc = include_str!("../src/guide/outbox.md")]
#[cfg(doctest)]
mod outbox {}

#[doc = include_str!("../src/guide/overload.md")]
#[cfg(doctest)]
mod overload {}

#[doc = include_str!("../src/guide/performance.md")]
#[cfg(doctest)]
mod performance {}

#[doc = include_str!("../src/guide/production.md")]
#[cfg(doctest)]
mod production {}

#[doc = include_str!("../src/guide/proof.md")]
#[cfg(doctest)]
mod proof {}

#[doc = include_str!("../src/guide/proof_client.md")]
#[cfg(doctest)]
mod proof_client {}

#[doc = include_str!("../src/guide/server.md")]
#[cfg(doctest)]
mod server {}

#[doc = include_str!("../src/guide/simulation.md")]
#[cfg(doctest)]
mod simulation {}

#[doc = include_str!("../src/guide/timeouts.md")]
#[cfg(doctest)]
mod timeouts {}

#[doc = include_str!("../src/guide/testing.md")]
#[cfg(doctest)]
mod testing {}

#[doc = include_str!("../crates/steadfast-core/README.md")]
#[cfg(doctest)]
mod core_readme {}

#[doc = include_str!("../crates/steadfast-server/README.md")]
#[cfg(doctest)]
mod server_readme {}

#[doc = include_str!("../crates/steadfast-axum/README.md")]
#[cfg(doctest)]
mod axum_readme {}

#[doc = include_str!("../crates/steadfast-otel/README.md")]
#[cfg(doctest)]
mod otel_readme {}

#[doc = include_str!("../crates/steadfast-outbox/README.md")]
#[cfg(doctest)]
mod outbox_readme {}

#[doc = include_str!("../crates/steadfast-redb/README.md")]
#[cfg(doctest)]
mod redb_readme {}

#[doc = include_str!("../crates/steadfast-redis/README.md")]
#[cfg(doctest)]
mod redis_readme {}

#[doc = include_str!("../crates/steadfast-postgres/README.md")]
#[cfg(doctest)]
mod postgres_readme {}

#[doc = include_str!("../crates/steadfast-reqwest-middleware/README.md")]
#[cfg(doctest)]
mod reqwest_middleware_readme {}

#[doc = include_str!("../crates/steadfast-testing/README.md")]
#[cfg(doctest)]
mod testing_readme {}

#[doc = include_str!("../crates/steadfast-probe/README.md")]
#[cfg(doctest)]
mod probe_readme {}
