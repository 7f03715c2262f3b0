//! A store does what the model does, over random changes and with a clock that jumps both ways.

use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use steadfast::{Client, KeyPolicy};
use steadfast_outbox::model::Model;
use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{
    Answer, Change, DurableExt, End, Entry, Evidence, MemoryOutbox, Now, Outbox, OutboxStore, Outcome, Terms,
};

/// When a world begins, in milliseconds since the Unix epoch.
pub(super) const START: u64 = 1_700_000_000_000;
const LEASE: u64 = 60_000;

pub(super) fn terms() -> Terms {
    Terms::new(LEASE, 100_000)
}

/// Makes entries as an outbox does.
pub(super) struct Maker {
    outbox: Outbox<MemoryOutbox>,
    client: Client,
}

impl Maker {
    pub(super) async fn new() -> Self {
        let client = Client::builder().base_url("http://127.0.0.1:1").keys(KeyPolicy::standard()).build().unwrap();
        let outbox = Outbox::open(MemoryOutbox::new(), client.clone()).start().await.unwrap();
        Self { outbox, client }
    }

    pub(super) fn entry(&self, path: &str, name: Option<&str>, body: &str) -> NewEntry {
        let prepared = self.client.post(path).body(body.to_owned()).prepare().unwrap();
        let operation = match name {
            Some(name) => prepared.named(name),
            None => prepared.into(),
        };
        self.outbox.new_entry(operation).unwrap()
    }

    fn origin(&self) -> String {
        self.entry("/a", None, "").request.origin()
    }
}

pub(super) fn settle(fence: u64, outcome: Outcome) -> Change {
    Change::Settle { fence, outcome }
}

pub(super) fn answered() -> Outcome {
    let end = End::Answer(Answer::new(StatusCode::CREATED, "ch_1"));
    Outcome::Ended { end, keep_body_ms: Some(50_000) }
}

fn random_change(chance: &mut Rng, entry: &Entry) -> Change {
    let fence = if chance.u8(0..8) == 0 { entry.fence.saturating_sub(1) } else { entry.fence };
    let evidence =
        [Evidence::new(true, false), Evidence::new(false, false), Evidence::new(false, true)][chance.usize(0..3)];
    let postponed = || Outcome::Postponed { after_ms: 30_000, settling_ms: 20_000, evidence, error: "lost".to_owned() };
    match chance.u8(0..11) {
        0 | 1 => Change::Mark { fence, terms: terms() },
        2 => settle(fence, postponed()),
        3 => settle(fence, Outcome::Held { evidence, reason: "status 401".to_owned() }),
        4 => settle(fence, Outcome::NotApplied),
        5 | 6 => settle(fence, answered()),
        7 => Change::Acknowledge,
        8 => Change::Release,
        9 => Change::Cancel,
        _ => Change::Resolve(End::Answer(Answer::new(StatusCode::OK, "seen"))),
    }
}

/// A store whose clock the test sets.
pub(super) trait World {
    type Store: OutboxStore;

    fn store(&self) -> &Self::Store;

    async fn set_clock(&mut self, ms: u64);

    /// Returns the time of the store.
    fn now(&mut self) -> Now;

    /// Hears that the store has written something at its current time.
    fn has_written(&mut self) {}

    /// Opens the store as the next process does.
    async fn reopen(&mut self, model: &mut Model);
}

/// Model and store do the same, and after each step both hold the same.
pub(super) async fn lockstep(mut world: impl World, seed: u64, steps: usize) {
    let (mut chance, maker) = (Rng::with_seed(seed), Maker::new().await);
    let (mut model, mut wall) = (Model::default(), START);
    for step in 0..steps {
        let said = || format!("seed {seed}, step {step}");
        let passed = [0, 1, 40_000, 70_000, 3_600_000, 30 * 3_600_000][chance.usize(0..6)];
        let back = [0, 0, 0, 0, 0, 5_000, 45_000][chance.usize(0..7)];
        wall = wall + passed - back;
        world.set_clock(wall).await;
        let now = world.now();
        let store = world.store();
        let known = model.list(None, usize::MAX);
        let mut writes = true;
        match chance.u8(0..10) {
            0..=2 => {
                let name = chance.bool().then(|| format!("order-{}", chance.u8(0..6)));
                let body = if chance.u8(0..6) == 0 { "13 EUR" } else { "12 EUR" };
                let new = maker.entry(["/a", "/b"][chance.usize(0..2)], name.as_deref(), body);
                let terms = chance.bool().then(terms);
                let expected = model.submit(new.clone(), terms, now);
                let got = store.submit(new, terms).await;
                assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{}", said());
            }
            3 => {
                if model.next_due(&[], now) == Some(Duration::ZERO) {
                    let expected = model.claim_due(terms(), 2, &[], now);
                    assert_eq!(store.claim_due(terms(), 2, Vec::new()).await.unwrap(), expected, "{}", said());
                } else {
                    writes = false;
                    assert!(store.claim_due(terms(), 2, Vec::new()).await.unwrap().is_empty(), "{}", said());
                }
            }
            4 => {
                let expected = model.sweep(3, now);
                assert_eq!(store.sweep(3).await.unwrap(), expected, "{}", said());
                writes = expected > 0;
            }
            5 => {
                writes = false;
                world.reopen(&mut model).await;
            }
            _ if known.is_empty() => writes = false,
            _ => {
                let entry = &known[chance.usize(0..known.len())];
                let change = random_change(&mut chance, entry);
                let expected = model.apply(entry.id, &change, now);
                assert_eq!(store.apply(entry.id, change).await.unwrap(), expected, "{}", said());
            }
        }
        if writes {
            world.has_written();
        }
        let (now, store) = (world.now(), world.store());
        let known = model.list(None, usize::MAX);
        assert_eq!(store.list(None, usize::MAX).await.unwrap(), known, "{}", said());
        assert_eq!(store.usage().await.unwrap(), model.usage().unwrap(), "{}", said());
        assert_eq!(store.next_due(Vec::new()).await.unwrap(), model.next_due(&[], now), "{}", said());
        let origin = vec![maker.origin()];
        assert_eq!(store.next_due(origin.clone()).await.unwrap(), model.next_due(&origin, now), "{}", said());
        if let Some(entry) = known.first() {
            assert_eq!(store.get(entry.id).await.unwrap(), model.get(entry.id), "{}", said());
            let name = entry.name.as_deref().unwrap_or("order-0");
            assert_eq!(store.find(name).await.unwrap(), model.find(name), "{}", said());
            assert_eq!(store.list(Some(entry.id), 2).await.unwrap(), model.list(Some(entry.id), 2), "{}", said());
        }
    }
}
