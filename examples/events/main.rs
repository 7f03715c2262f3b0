//! Events from an at-least-once queue have one effect each in a database, while consumers are
//! killed.
//!
//! ```text
//! ./scripts/with_servers.sh cargo run --example events
//! ```
//!
//! A producer puts events into a Redis Stream, some of them twice, like a producer that got no
//! reply. Two consumers of one group read them. If a consumer dies, its messages without
//! acknowledgement stay in the group's pending list, where the other consumer finds them. Each
//! event goes through the inbox: the effect and its record are one PostgreSQL transaction.
//! Meanwhile one consumer after another is killed. A second round runs without an inbox.
//!
//! The last line is for scripts: `once`, `twice` and `never` are the database's counts for the
//! consumers with an inbox. Unless `twice=0 never=0`, the exit code is 1.
//!
//! `consumer.rs` is the consumer. The stream and the schema belong to this run and are removed at
//! the end.

mod consumer;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use steadfast_postgres::PostgresStore;
use tokio::process::{Child, Command};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser, Clone)]
#[command(about = "Events from an at-least-once queue, with one effect each")]
struct Flags {
    /// The Redis of the stream
    #[arg(long, env = "STEADFAST_REDIS_URL")]
    redis: Option<String>,
    /// The PostgreSQL of the effects
    #[arg(long, env = "STEADFAST_POSTGRES_URL")]
    database: Option<String>,
    /// Number of events to produce
    #[arg(long, default_value_t = 400)]
    events: u32,
    /// Number of times that a consumer is killed
    #[arg(long, default_value_t = 8)]
    kills: u32,
    /// Run as a consumer: with an inbox, or naive
    #[arg(long, hide = true, requires = "run")]
    consume: Option<String>,
    #[arg(long, hide = true)]
    run: Option<String>,
    /// Run a short round
    #[arg(long)]
    self_test: bool,
}

const WANTED: &str = "this example needs a Redis and a PostgreSQL: ./scripts/with_servers.sh cargo run --example events, \
                      or --redis and --database";

/// The servers and names that consumers and supervisor of one round share.
#[derive(Clone)]
struct Place {
    redis: String,
    database: String,
    /// Name of the stream, its group and the schema.
    run: String,
}

impl Place {
    async fn redis(&self) -> Result<MultiplexedConnection> {
        Ok(redis::Client::open(self.redis.as_str())?.get_multiplexed_async_connection().await?)
    }

    fn pool(&self) -> Result<PgPool> {
        let options = self.database.parse::<PgConnectOptions>()?.options([("search_path", &self.run)]);
        Ok(PgPoolOptions::new().max_connections(8).connect_lazy_with(options))
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut flags = Flags::parse();
    let (redis, database) = (flags.redis.clone().ok_or(WANTED)?, flags.database.clone().ok_or(WANTED)?);
    if let (Some(mode), Some(run)) = (&flags.consume, flags.run.clone()) {
        consumer::run(&Place { redis, database, run }, mode == "inbox").await?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.self_test {
        (flags.events, flags.kills) = (120, 3);
    }
    let mut rounds = Vec::new();
    for mode in ["inbox", "naive"] {
        let run = format!("events_{:016x}", fastrand::u64(..));
        let place = Place { redis: redis.clone(), database: database.clone(), run };
        let round = round(&flags, &place, mode).await;
        tidy(&place).await?;
        rounds.push(round?);
    }
    Ok(report(&rounds))
}

fn report(rounds: &[Round]) -> ExitCode {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "inbox", "no inbox"]);
    for (name, of) in ROWS {
        table.add_row(std::iter::once((*name).to_owned()).chain(rounds.iter().map(|round| of(round).to_string())));
    }
    println!("{table}\n");
    let Some(Round { events, once, twice, never, kills, .. }) = rounds.first() else { return ExitCode::FAILURE };
    println!("events={events} once={once} twice={twice} never={never} kills={kills}");
    if *twice == 0 && *never == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The result of a round, counted by the database.
struct Round {
    events: i64,
    messages: i64,
    kills: i64,
    once: i64,
    twice: i64,
    never: i64,
}

type Row = (&'static str, fn(&Round) -> i64);
const ROWS: &[Row] = &[
    ("events", |round| round.events),
    ("messages in the stream", |round| round.messages),
    ("kill -9 of a consumer", |round| round.kills),
    ("one effect", |round| round.once),
    ("two effects or more", |round| round.twice),
    ("no effect", |round| round.never),
];

async fn round(flags: &Flags, place: &Place, mode: &str) -> Result<Round> {
    let pool = place.pool()?;
    sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {}", place.run))).execute(&pool).await?;
    PostgresStore::new(pool.clone()).create_table().await?;
    sqlx::query("CREATE TABLE effects (event text NOT NULL)").execute(&pool).await?;
    let mut redis = place.redis().await?;
    let messages = produce(&mut redis, place, flags.events).await?;

    let mut consumers = [start(place, mode)?, start(place, mode)?];
    let style = ProgressStyle::with_template("{prefix:>8} [{bar:40}] {pos}/{len} messages, {msg}")?;
    let bar = ProgressBar::new(messages).with_style(style).with_prefix(mode.to_owned());
    let mut kills = 0;
    loop {
        let left = left(&mut redis, place).await?;
        bar.set_position(messages.saturating_sub(left));
        if left == 0 {
            break;
        }
        let due = bar.position() * u64::from(flags.kills + 1) / messages.max(1);
        if kills < due.min(flags.kills.into()) {
            let index = usize::try_from(kills % 2)?;
            if let Some(consumer) = consumers.get_mut(index) {
                consumer.kill().await?;
                *consumer = start(place, mode)?;
            }
            kills += 1;
            bar.set_message(format!("{kills} kills"));
        }
        consumer::pause(Duration::from_millis(2)).await;
    }
    bar.finish_and_clear();

    const COUNT: &str = "WITH times AS (SELECT event, count(*) AS n FROM effects GROUP BY event)
                         SELECT count(*) FILTER (WHERE n = 1), count(*) FILTER (WHERE n > 1) FROM times";
    let (once, twice): (i64, i64) = sqlx::query_as(COUNT).fetch_one(&pool).await?;
    let events = i64::from(flags.events);
    let (messages, kills) = (i64::try_from(messages)?, i64::try_from(kills)?);
    Ok(Round { events, messages, kills, once, twice, never: events - once - twice })
}

/// Produces the events, every tenth one twice. Returns the number of messages.
async fn produce(redis: &mut MultiplexedConnection, place: &Place, events: u32) -> Result<u64> {
    let mut messages = 0;
    for number in 0..events {
        for _ in 0..(if number % 10 == 0 { 2 } else { 1 }) {
            let fields = [("id", format!("evt_{number}")), ("payload", format!("{{\"amount\":{number}}}"))];
            let _id: String = redis.xadd(&place.run, "*", &fields).await?;
            messages += 1;
        }
    }
    // The group starts at the first message, whichever consumer comes first.
    let _made: () = redis.xgroup_create(&place.run, &place.run, "0").await?;
    Ok(messages)
}

/// Returns the number of messages without acknowledgement: not delivered yet, or pending.
async fn left(redis: &mut MultiplexedConnection, place: &Place) -> Result<u64> {
    let groups: redis::streams::StreamInfoGroupsReply = redis.xinfo_groups(&place.run).await?;
    let group = groups.groups.first().ok_or("the group is gone")?;
    let behind = group.lag.ok_or("the group reports no lag")?;
    Ok(u64::try_from(group.pending + behind)?)
}

fn start(place: &Place, mode: &str) -> Result<Child> {
    let arguments = ["--consume", mode, "--run", &place.run, "--redis", &place.redis, "--database", &place.database];
    Ok(Command::new(std::env::current_exe()?).args(arguments).kill_on_drop(true).spawn()?)
}

async fn tidy(place: &Place) -> Result<()> {
    let _removed: () = place.redis().await?.del(&place.run).await?;
    sqlx::query(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {} CASCADE", place.run))).execute(&place.pool()?).await?;
    Ok(())
}
