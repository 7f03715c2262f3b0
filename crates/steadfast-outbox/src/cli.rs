//! The commands, and what they print. Bodies, queries and whole keys are printed only on request.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use comfy_table::Table;
use steadfast::http::StatusCode;
use steadfast_core::{clock, milliseconds};
use steadfast_outbox::{
    Answer, Applied, Change, End, Entry, Failed, OperationId, OutboxStore, RedbOutbox, Refusal, State,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How many entries are read at once.
const PAGE: usize = 1000;

/// Shows the operations in the file of an outbox, and ends those that nobody else can.
///
/// The file belongs to one process at a time, so stop the program that uses it first.
#[derive(Debug, Parser)]
#[command(name = "outbox", version)]
pub(crate) struct Arguments {
    /// The file.
    #[arg(short, long, env = "STEADFAST_OUTBOX")]
    file: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the operations, oldest first.
    Ls {
        /// Only those in this state: waiting, running, held, answer, rejected or unknown.
        #[arg(long, value_parser = ["waiting", "running", "held", "answer", "rejected", "unknown"])]
        state: Option<String>,
        /// Prints an object of JSON for each operation, on a line of its own.
        #[arg(long)]
        json: bool,
    },
    /// Shows one operation, and says what to do about it.
    Show {
        /// Its identifier or its name.
        operation: String,
        /// Prints the query, the body and the whole key too.
        #[arg(long)]
        secrets: bool,
    },
    /// Ends an operation as you say, after you have looked up what the server did.
    Resolve {
        /// Its identifier or its name.
        operation: String,
        /// The server has carried it out, with this 2xx status.
        #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(200..=299), conflicts_with = "rejected", required_unless_present = "rejected")]
        answered: Option<u16>,
        /// The body of the server's answer.
        #[arg(long, requires = "answered", default_value = "")]
        body: String,
        /// The server has not carried it out, for this reason.
        #[arg(long, value_name = "REASON")]
        rejected: Option<String>,
    },
    /// Lets a held operation go on at the next start, once its credentials are mended.
    Release {
        /// Its identifier or its name.
        operation: String,
    },
    /// Cancels an operation of which nothing was sent.
    Cancel {
        /// Its identifier or its name.
        operation: String,
    },
    /// Acknowledges the end of an operation, so that it can be forgotten.
    Acknowledge {
        /// Its identifier or its name.
        operation: String,
    },
}

/// Carries out a command. Returns what to print.
///
/// # Errors
///
/// The file cannot be used, there is no such operation, or the change is not allowed.
pub(crate) async fn run(Arguments { file, command }: Arguments) -> Result<String, Error> {
    let store = RedbOutbox::open_existing(file)?;
    match command {
        Command::Ls { state, json } => {
            let entries = listed(&store, state.as_deref()).await?;
            if json { Ok(as_json(&entries)) } else { as_table(&entries) }
        }
        Command::Show { operation, secrets } => Ok(show(&find(&store, &operation).await?, secrets)),
        Command::Resolve { operation, answered, body, rejected } => {
            let end = match (answered, rejected) {
                (Some(status), _) => End::Answer(Answer::new(StatusCode::from_u16(status)?, body)),
                (None, reason) => End::Rejected(Failed::new(reason.unwrap_or_default())),
            };
            change(&store, &operation, Change::Resolve(end)).await
        }
        Command::Release { operation } => change(&store, &operation, Change::Release).await,
        Command::Cancel { operation } => change(&store, &operation, Change::Cancel).await,
        Command::Acknowledge { operation } => change(&store, &operation, Change::Acknowledge).await,
    }
}

async fn find(store: &RedbOutbox, operation: &str) -> Result<Entry, Error> {
    let named = store.find(operation).await?;
    let identified = match operation.parse::<OperationId>() {
        Ok(id) => store.get(id).await?,
        Err(_) => None,
    };
    match (named, identified) {
        (Some(named), Some(other)) if named.id != other.id => Err(format!(
            "`{operation}` is the name of operation {} and the identifier of another; use {} for the first, or {} for \
             the second",
            named.id,
            named.id,
            // Without hyphens it is an identifier too, and not that name.
            other.id.as_uuid().simple()
        )
        .into()),
        (Some(entry), _) | (None, Some(entry)) => Ok(entry),
        (None, None) => Err(format!("the outbox has no operation `{operation}`; `outbox ls` lists all").into()),
    }
}

async fn change(store: &RedbOutbox, operation: &str, change: Change) -> Result<String, Error> {
    let entry = find(store, operation).await?;
    match store.apply(entry.id, change).await? {
        Applied::Done(entry) => Ok(format!("operation {} is {} now\n", entry.id, entry.state.label())),
        Applied::Refused(Refusal::NotFound(id)) => Err(Refusal::NotFound(id).into()),
        Applied::Refused(refusal) => Err(format!("operation {}: {refusal}", entry.id).into()),
    }
}

async fn listed(store: &RedbOutbox, state: Option<&str>) -> Result<Vec<Entry>, Error> {
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(after, PAGE).await?;
        let is_last = page.len() < PAGE;
        after = page.last().map(|entry| entry.id);
        entries.extend(page.into_iter().filter(|entry| state.is_none_or(|state| entry.state.label() == state)));
        if is_last {
            return Ok(entries);
        }
    }
}

fn as_table(entries: &[Entry]) -> Result<String, Error> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["operation", "name", "state", "attempts", "age", "processed", "request", "key", "last error"]);
    for entry in entries {
        table.add_row([
            entry.id.to_string(),
            on_one_line(entry.name.as_deref().unwrap_or_default()),
            entry.state.label().to_owned(),
            entry.attempts.to_string(),
            age(entry.submitted_ms),
            processed(entry).to_owned(),
            request(entry),
            short_key(entry).unwrap_or_default(),
            on_one_line(last_error(entry).unwrap_or_default()),
        ]);
    }
    let mut said = String::new();
    if !entries.is_empty() {
        for line in table.lines() {
            writeln!(said, "{}", line.trim_end())?;
        }
    }
    writeln!(said, "{} operation{}", entries.len(), if entries.len() == 1 { "" } else { "s" })?;
    Ok(said)
}

/// Prints what the table has, for a program to read.
fn as_json(entries: &[Entry]) -> String {
    let object = |entry: &Entry| {
        let object = serde_json::json!({
            "operation": entry.id.to_string(),
            "name": entry.name,
            "state": entry.state.label(),
            "attempts": entry.attempts,
            "submitted_ms": entry.submitted_ms,
            "processed": processed(entry),
            "method": entry.request.method().as_str(),
            "url": url(entry),
            "key": short_key(entry),
            "principal": entry.principal,
            "last_error": last_error(entry),
        });
        format!("{object}\n")
    };
    entries.iter().map(object).collect()
}

/// Returns the first characters of the key.
fn short_key(entry: &Entry) -> Option<String> {
    entry.request.key().map(|key| key.to_string())
}

/// Returns a text on one line: names and errors have words of callers and servers in them.
fn on_one_line(text: &str) -> String {
    let escaped = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Returns why it has no answer, or not yet.
fn last_error(entry: &Entry) -> Option<&str> {
    match &entry.state {
        State::Ended { end: End::Rejected(failed) | End::Unknown(failed), .. } => Some(&failed.message),
        State::Ended { end: End::Answer(_), .. } => None,
        State::Held { reason, .. } => Some(reason),
        _ => entry.last_error.as_deref(),
    }
}

/// Returns the URL without the query, which may be secret.
fn url(entry: &Entry) -> Option<String> {
    entry.request.url().map(|url| format!("{}{}", url.origin().ascii_serialization(), url.path()))
}

fn request(entry: &Entry) -> String {
    format!("{} {}", entry.request.method(), url(entry).unwrap_or_default())
}

/// Returns whether the server has carried it out, as far as anybody knows.
fn processed(entry: &Entry) -> &'static str {
    match &entry.state {
        State::Ended { end: End::Answer(_), .. } => "yes",
        State::Ended { end: End::Rejected(_), .. } => "no",
        State::Running { is_marked: true, .. } => "maybe",
        _ if entry.may_have_been_processed => "maybe",
        _ => "no",
    }
}

fn age(since_ms: u64) -> String {
    let now = milliseconds(clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default());
    let seconds = Duration::from_millis(now.saturating_sub(since_ms)).as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn show(entry: &Entry, secrets: bool) -> String {
    let mut said = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _written = writeln!(said, "{name:<16}{}", on_one_line(&value));
    };
    line("operation", entry.id.to_string());
    line("name", entry.name.clone().unwrap_or_else(|| "none".to_owned()));
    line("state", entry.state.label().to_owned());
    line("request", request(entry));
    let key = entry.request.key();
    line(
        "key",
        key.as_ref()
            .map_or_else(|| "none".to_owned(), |key| if secrets { key.as_str().to_owned() } else { key.to_string() }),
    );
    line("principal", entry.principal.clone().unwrap_or_else(|| "that of the client".to_owned()));
    line("submitted", format!("{} ago", age(entry.submitted_ms)));
    line("attempts", format!("{} in {} rounds", entry.attempts, entry.rounds.saturating_add(1)));
    line("processed", processed(entry).to_owned());
    if let Some(error) = &entry.last_error {
        line("last error", error.clone());
    }
    if let Some(answer) = entry.end().and_then(End::answer) {
        let body =
            answer.body().map_or_else(|| "its body was not kept".to_owned(), |body| format!("{} bytes", body.len()));
        line("answer", format!("status {}, {body}", answer.status().as_u16()));
    }
    if secrets {
        line("url", entry.request.url().map(String::from).unwrap_or_default());
        line("body", String::from_utf8_lossy(&entry.request.body()).into_owned());
        if let Some(body) = entry.end().and_then(End::answer).and_then(Answer::body) {
            line("answer body", String::from_utf8_lossy(body).into_owned());
        }
    }
    line("what to do", advice(entry));
    said
}

/// Says what is known, and what to do next.
fn advice(entry: &Entry) -> String {
    match &entry.state {
        State::Waiting { .. } if entry.may_have_been_processed => {
            "nothing: it is asked again under its key, or its `reconcile` hook is asked, once the program runs"
                .to_owned()
        }
        State::Waiting { .. } => "nothing: it is sent once the program runs".to_owned(),
        State::Running { .. } => "nothing: its process is gone, and the next one takes it up".to_owned(),
        State::Held { reason, .. } => format!("mend its credentials, then `outbox release`: {reason}"),
        State::Ended { end: End::Answer(_), .. } => "nothing: the server has carried it out".to_owned(),
        State::Ended { end: End::Rejected(failed), .. } => {
            format!("the server has not carried it out, and a new operation is safe: {failed}")
        }
        State::Ended { end: End::Unknown(failed), .. } => {
            format!("look up at the server whether it has carried it out, then `outbox resolve`: {failed}")
        }
        _ => "a later version of this command knows".to_owned(),
    }
}
