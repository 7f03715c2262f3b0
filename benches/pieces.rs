//! Measures the parts of every operation: a key, a request, a decision, a claim. Counts time and
//! allocations.
//!
//! ```text
//! cargo bench -p steadfast-benches --bench pieces               all of them
//! cargo bench -p steadfast-benches --bench pieces -- policy     only matching names
//! ```
//!
//! `benches/compare` compares a whole operation with other clients, and `benches/server.rs`
//! measures the layer and its stores. Use this benchmark when you change one of the parts. Times
//! differ between machines, and no check depends on them.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark that cannot do its work has nothing to say, and time is what it measures"
)]

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime};

use divan::{AllocProfiler, Bencher};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Shared objects are measured with one thread and with two.
const THREADS: [usize; 2] = [1, 2];
/// Iterations in a row. A single one would also measure the waking of a cold cache.
const SAMPLE: u32 = 500;

fn main() {
    divan::main();
}

mod client {
    use steadfast::{Client, IdempotencyKey};

    use super::*;

    fn with_a_base() -> Client {
        Client::builder().base_url("https://api.example.com/v1").build().unwrap()
    }

    #[divan::bench(sample_size = SAMPLE)]
    fn clone_a_client(bencher: Bencher<'_, '_>) {
        let client = with_a_base();
        bencher.bench(|| client.clone());
    }

    /// Most of the time is the system call for sixteen random bytes.
    #[divan::bench(sample_size = SAMPLE)]
    fn mint_a_key() -> IdempotencyKey {
        IdempotencyKey::mint().unwrap()
    }

    /// For comparison: the cost that a relative path saves.
    #[divan::bench(sample_size = SAMPLE)]
    fn parse_a_url() -> steadfast::reqwest::Url {
        black_box("https://api.example.com/v1/charges").parse().unwrap()
    }

    #[divan::bench(sample_size = SAMPLE)]
    fn get_by_path(bencher: Bencher<'_, '_>) {
        let client = with_a_base();
        bencher.bench(|| client.get(black_box("/charges")));
    }

    #[divan::bench(sample_size = SAMPLE)]
    fn get_by_url(bencher: Bencher<'_, '_>) {
        let client = Client::new();
        bencher.bench(|| client.get(black_box("https://api.example.com/v1/charges")));
    }

    #[divan::bench(sample_size = SAMPLE)]
    fn post_json(bencher: Bencher<'_, '_>) {
        let client = with_a_base();
        bencher.bench(|| client.post(black_box("/charges")).json(&black_box(("eur", 1200_u64))));
    }
}

mod policy {
    use steadfast::http::HeaderMap;
    use steadfast::http::header::{HeaderValue, RETRY_AFTER};
    use steadfast::policy::{
        Breaker, BreakerPolicy, Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, StopReason,
        TokenBucket, parse_retry_hint,
    };

    use super::*;

    /// All operations to an origin share one budget.
    #[divan::bench(threads = THREADS)]
    fn operation_that_succeeds_at_once(bencher: Bencher<'_, '_>) {
        let (policy, budget, now) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::standard()), Instant::now());
        bencher.bench(|| {
            let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
            operation.begin_attempt();
            let decision = operation.decide(Class::Success, &Hint::default(), now, 0.0);
            assert_eq!(decision, Decision::Stop(StopReason::Done));
        });
    }

    #[divan::bench(threads = THREADS)]
    fn operation_that_succeeds_after_a_retry(bencher: Bencher<'_, '_>) {
        let (policy, budget, now) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::standard()), Instant::now());
        bencher.bench(|| {
            let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
            for class in [Class::Ambiguous, Class::Success] {
                operation.begin_attempt();
                black_box(operation.decide(class, &Hint::default(), now, 0.5));
            }
        });
    }

    /// The usual case.
    #[divan::bench]
    fn hint_that_is_not_there(bencher: Bencher<'_, '_>) {
        read_a_hint(bencher, None);
    }

    #[divan::bench]
    fn hint_in_seconds(bencher: Bencher<'_, '_>) {
        read_a_hint(bencher, Some("120"));
    }

    #[divan::bench]
    fn hint_that_is_a_date(bencher: Bencher<'_, '_>) {
        read_a_hint(bencher, Some("Sun, 06 Nov 2094 08:49:37 GMT"));
    }

    fn read_a_hint(bencher: Bencher<'_, '_>, value: Option<&'static str>) {
        let headers: HeaderMap =
            value.map(|value| (RETRY_AFTER, HeaderValue::from_static(value))).into_iter().collect();
        let now = SystemTime::now();
        assert_eq!(parse_retry_hint(&headers, now).is_some(), value.is_some());
        bencher.bench(|| parse_retry_hint(black_box(&headers), now));
    }

    /// One lock for all calls to an origin, held for this long.
    #[divan::bench(threads = THREADS)]
    fn call_through_a_breaker(bencher: Bencher<'_, '_>) {
        let (breaker, now) = (Breaker::new(BreakerPolicy::new()), Instant::now());
        bencher.bench(|| {
            let permit = breaker.acquire(now).unwrap();
            permit.record(Class::Success, Duration::from_millis(1), now)
        });
    }
}

mod server {
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use http::{HeaderMap, StatusCode};
    use steadfast::server::{
        Claim, ClaimOutcome, ClaimRef, Completion, End, Fingerprint, MemoryStore, Record, RecordId, Store,
    };

    use super::*;

    /// So short that records expire as fast as they arrive, as in a process that has run for a day.
    const KEPT: Duration = Duration::from_millis(1);
    const LEASE: Duration = Duration::from_secs(30);

    #[divan::bench]
    fn identity_of_a_key() -> RecordId {
        RecordId::new(black_box("tenant"), black_box("1f0c33a2-6b1d-4c0e-9d5e-0d6f6a2b7c11"))
    }

    #[divan::bench(args = [32, 1024, 1024 * 1024])]
    fn fingerprint_of_bytes(bencher: Bencher<'_, '_>, length: usize) {
        let body = vec![b'x'; length];
        bencher.counter(divan::counter::BytesCount::new(length)).bench(|| Fingerprint::of(black_box(&body)));
    }

    fn record() -> Record {
        Record::new(StatusCode::CREATED, &HeaderMap::new(), Bytes::from_static(br#"{"id":"ch_1","amount":1200}"#))
    }

    /// Polls the claim once: a store in memory is ready at once.
    fn claim(store: &MemoryStore, id: &RecordId) -> ClaimOutcome<()> {
        let token = store.token().unwrap();
        let claim = Claim::new(id, token, Fingerprint::from_bytes([1; 32]), LEASE, KEPT);
        let claimed = store.claim(&claim).now_or_never().unwrap().unwrap();
        if matches!(claimed, ClaimOutcome::Acquired(())) {
            let completion = Completion::new(record(), KEPT);
            store
                .finish(ClaimRef::new(*id, token), Some(()), &End::Completed(completion))
                .now_or_never()
                .unwrap()
                .unwrap();
        }
        claimed
    }

    #[divan::bench(threads = THREADS, sample_size = SAMPLE)]
    fn claim_and_complete_in_memory(bencher: Bencher<'_, '_>) {
        let (store, keys) = (MemoryStore::new().max_records(usize::MAX).max_bytes(usize::MAX), AtomicU64::new(0));
        let next = || RecordId::new("", &keys.fetch_add(1, Ordering::Relaxed).to_string());
        bencher.with_inputs(next).bench_refs(|id| assert!(matches!(claim(&store, id), ClaimOutcome::Acquired(()))));
    }

    #[divan::bench(threads = THREADS)]
    fn look_at_a_record_in_memory(bencher: Bencher<'_, '_>) {
        let (store, id) = (MemoryStore::new(), RecordId::new("", "1"));
        let claim = Claim::new(&id, store.token().unwrap(), Fingerprint::from_bytes([1; 32]), LEASE, LEASE);
        store.claim(&claim).now_or_never().unwrap().unwrap();
        bencher.bench(|| assert!(store.get(&id).now_or_never().unwrap().unwrap().is_some()));
    }
}
