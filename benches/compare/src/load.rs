//! The client process: runs one contender through one scenario, for a number of operations.

use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::contender::{Charge, Contender, NewCharge, Place};
use crate::wire::Site;

const CHARGE: NewCharge = NewCharge { amount: 1200, currency: "eur", customer: "cus_9s6XKzkNRiz8i3" };

/// The task of a client process.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// One GET after the other.
    Get,
    /// One POST after the other.
    Post,
    /// One GET after the other, each with the responses 503, 503 and 200.
    Persist,
    /// 64 tasks, each one GET after the other.
    Get64,
    /// 10,000 tasks on all cores, each sending one GET after the other: for a profiler.
    Crowd,
    /// One GET to each of 1,000 origins, then one GET after the other to 50 of them in turn.
    Origins,
    /// GETs to which the server never responds, all at once.
    Hold,
}

/// The numbers that a client process prints.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Say {
    /// Nothing; another program counts.
    Nothing,
    /// Allocations of one operation, the lowest count seen.
    Allocations,
    /// Bytes that all operations hold together.
    Bytes,
    /// Median nanoseconds of an operation, and operations a second.
    Time,
}

/// Runs `operations` of the scenario and returns the requested numbers.
pub fn run<C: Contender>(site: &Site, scenario: Scenario, operations: usize, say: Say) -> Vec<f64> {
    let mut runtime = match scenario {
        Scenario::Crowd => tokio::runtime::Builder::new_multi_thread(),
        // One thread, so that its count is complete.
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build().unwrap();
    let client = runtime.block_on(async { C::new(site) });
    let load = Load { runtime, client, base: site.base(), port: site.port };
    match (scenario, say) {
        (Scenario::Hold, _) => vec![load.hold(operations)],
        (_, Say::Allocations) => vec![load.allocations(scenario)],
        (_, Say::Time) => load.time(scenario, operations),
        _ => {
            load.work(scenario, operations);
            Vec::new()
        }
    }
}

struct Load<C> {
    runtime: Runtime,
    client: C,
    base: String,
    port: u16,
}

impl<C: Contender> Load<C> {
    fn work(&self, scenario: Scenario, operations: usize) {
        match scenario {
            Scenario::Get64 => drop(self.at_once(64, operations)),
            Scenario::Crowd => drop(self.at_once(10_000, operations)),
            Scenario::Origins => {
                let places: Vec<Place> = (0..1000).map(|number| self.origin(number)).collect();
                for place in &places {
                    self.runtime.block_on(self.client.get(place));
                }
                // The pool closes a connection that is idle for 4 s. On a busy machine a turn of
                // all origins takes longer, and each GET would then count a new connection.
                for number in 0..operations {
                    self.runtime.block_on(self.client.get(&places[950 + number % 50]));
                }
            }
            _ => {
                let place = self.place(scenario);
                for _ in 0..operations {
                    self.runtime.block_on(self.operation(scenario, &place));
                }
            }
        }
    }

    fn place(&self, scenario: Scenario) -> Place {
        Place::new(&self.base, if scenario == Scenario::Persist { "/flaky" } else { "/charges" })
    }

    /// All addresses of 127.0.0.0/8 are this machine.
    fn origin(&self, number: usize) -> Place {
        let base = format!("http://127.0.{}.{}:{}/v1", number / 250, number % 250 + 1, self.port);
        Place::new(&base, "/charges")
    }

    async fn operation(&self, scenario: Scenario, place: &Place) -> Charge {
        match scenario {
            Scenario::Post => self.client.post(place, &CHARGE).await,
            Scenario::Persist => self.client.persist(place).await,
            _ => self.client.get(place).await,
        }
    }

    /// Counts after the first few operations, once the connection and lazy state exist.
    fn allocations(&self, scenario: Scenario) -> f64 {
        let place = self.place(scenario);
        let once = || self.runtime.block_on(self.operation(scenario, &place));
        for _ in 0..5 {
            once();
        }
        (0..50).map(|_| measure(|| drop(once())).count_total).min().unwrap() as f64
    }

    fn time(&self, scenario: Scenario, operations: usize) -> Vec<f64> {
        self.work(scenario, operations / 10);
        let started = Instant::now();
        let mut each = match scenario {
            Scenario::Get64 => self.at_once(64, operations),
            Scenario::Crowd => self.at_once(10_000, operations),
            _ => {
                let place = self.place(scenario);
                let once = |_| self.runtime.block_on(timed(self.operation(scenario, &place)));
                (0..operations).map(once).collect()
            }
        };
        let elapsed = started.elapsed();
        each.sort_unstable();
        vec![each[each.len() / 2].as_nanos() as f64, operations as f64 / elapsed.as_secs_f64()]
    }

    /// Returns the duration of each operation.
    fn at_once(&self, tasks: usize, operations: usize) -> Vec<Duration> {
        self.runtime.block_on(async {
            let mut running = JoinSet::new();
            for _ in 0..tasks {
                let (client, place) = (self.client.clone(), self.place(Scenario::Get64));
                running.spawn(async move {
                    let mut each = Vec::with_capacity(operations / tasks);
                    for _ in 0..operations / tasks {
                        each.push(timed(client.get(&place)).await);
                    }
                    each
                });
            }
            running.join_all().await.concat()
        })
    }

    /// Returns the bytes that one operation holds while it waits for a response, including its
    /// connection.
    fn hold(&self, operations: usize) -> f64 {
        // Initialises all lazy state.
        self.work(Scenario::Get, 5);
        let place = Place::new(&self.base, "/hold");
        let places = vec![place; operations];
        let before = held(self.port);
        let mut running = Vec::with_capacity(operations);
        let waiting = measure(|| {
            self.runtime.block_on(async {
                for place in places {
                    let client = self.client.clone();
                    running.push(tokio::spawn(async move { client.get(&place).await }));
                }
                while held(self.port) < before + operations {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        });
        waiting.bytes_current as f64 / operations as f64
    }
}

async fn timed<T>(operation: impl Future<Output = T>) -> Duration {
    let started = Instant::now();
    operation.await;
    started.elapsed()
}

/// Returns how many requests the server holds.
fn held(port: u16) -> usize {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /v1/held HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).unwrap();
    let answer = std::str::from_utf8(&answer[..length]).unwrap();
    answer.rsplit("\r\n").next().unwrap().parse().unwrap()
}
