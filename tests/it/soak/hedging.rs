//! The tail that hedging is for: answers of p50 10 ms and p95 18 ms, log-normal, of which 1 % take a second, whoever asks.
//!
//! `cargo test --release --all-features -- --ignored --nocapture the_tail`. Counts are asserted; times depend on the machine and are
//! printed.

use std::sync::Mutex;
use std::time::Duration;

use steadfast::policy::HedgePolicy;
use steadfast::testing::{Act, Answer, FaultServer};
use steadfast::{Client, ResponseExt};

const OPERATIONS: usize = 10_000;
const AT_A_TIME: usize = 20;

/// 10 ms · e^(σ·z): with σ = ln(1.8) / 1.645 the 95th of a hundred takes 18 ms.
fn latency(dice: &mut fastrand::Rng) -> Duration {
    if dice.u8(..100) == 0 {
        return Duration::from_secs(1);
    }
    let radius = (-2.0 * (1.0 - f64_of(dice)).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * f64_of(dice)).cos();
    Duration::from_secs_f64(0.010 * (1.8_f64.ln() / 1.645 * normal).exp())
}

/// In 0..1.
fn f64_of(dice: &mut fastrand::Rng) -> f64 {
    f64::from(dice.u32(..)) / (f64::from(u32::MAX) + 1.0)
}

struct Run {
    p50: Duration,
    p999: Duration,
    extra: f64,
}

async fn run(seed: u64, hedge: Option<HedgePolicy>) -> Run {
    let dice = Mutex::new(fastrand::Rng::with_seed(seed));
    // Once per connection it is asked without a request, and must not roll then.
    let server = FaultServer::start(move |_, request| {
        let delay = request.map_or(Duration::ZERO, |_| latency(&mut dice.lock().unwrap()));
        Act::answer(Answer::new(200).delay(delay))
    });
    let server = server.await;
    let client = Client::builder().base_url(server.url(""));
    let client = hedge.into_iter().fold(client, |client, policy| client.hedge(policy)).build().unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..AT_A_TIME {
        let client = client.clone();
        workers.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..OPERATIONS / AT_A_TIME {
                let response = client.get("/").send().await.unwrap();
                times.push(response.elapsed());
                response.bytes().await.unwrap();
            }
            times
        });
    }
    let mut times: Vec<Duration> = workers.join_all().await.into_iter().flatten().collect();
    times.sort_unstable();
    let received = server.received().len();
    assert_eq!(times.len(), OPERATIONS);
    let extra = received as f64 / OPERATIONS as f64 - 1.0;
    Run { p50: times[OPERATIONS / 2], p999: times[OPERATIONS - OPERATIONS / 1000], extra }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or two, and prints times"]
async fn the_tail_is_cut_for_a_few_requests_more() {
    let plain = run(1, None).await;
    println!("without hedges: p50 {:?}, p99.9 {:?}", plain.p50, plain.p999);
    assert!(plain.extra == 0.0 && plain.p999 >= Duration::from_secs(1), "the tail is there");
    let mut runs = Vec::new();
    for seed in 2..7 {
        let found = run(seed, Some(HedgePolicy::quantile(0.98).max_extra_load(0.03))).await;
        println!("p98, 3 %: p50 {:?}, p99.9 {:?}, {:.2} % more requests", found.p50, found.p999, found.extra * 100.0);
        assert!(found.extra > 0.0 && found.extra <= 0.0305, "the limit of 3 %: {}", found.extra);
        runs.push(found);
    }
    runs.sort_by(|one, other| one.extra.total_cmp(&other.extra));
    assert!(runs[2].extra <= 0.025, "median: {}", runs[2].extra);
    runs.sort_by_key(|run| run.p999);
    println!("median p99.9: {:?}", runs[2].p999);
}
