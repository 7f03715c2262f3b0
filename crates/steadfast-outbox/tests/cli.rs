//! The command `outbox`, run as a process.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is its business")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use steadfast::{Client, KeyPolicy};
use steadfast_outbox::{
    Applied, Change, DurableExt, Entry, Evidence, MemoryOutbox, Outbox, OutboxStore, Outcome, RedbOutbox, Submitted,
    Terms,
};
use tempfile::TempDir;

/// Runs the command. Returns its exit code, and what it printed.
fn outbox(file: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outbox")).arg("--file").arg(file).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// A file with an operation that waits, one that is unknown, and one that is held.
async fn file() -> (TempDir, PathBuf, Vec<Entry>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("operations.redb");
    let client = Client::builder().base_url("http://api.test").keys(KeyPolicy::standard()).build().unwrap();
    let maker = Outbox::open(MemoryOutbox::new(), client.clone()).start().await.unwrap();
    let store = RedbOutbox::open(&path).unwrap();
    let mut entries = Vec::new();
    for (name, outcome) in [
        ("waits", None),
        ("unknown", Some(Outcome::Ended { end: unknown(), keep_body_ms: None })),
        ("held", Some(Outcome::Held { evidence: Evidence::new(false, false), reason: "status 401".to_owned() })),
    ] {
        let charge = client.post("/charges?card=s3cret").body("s3cret body").prepare().unwrap();
        let new = maker.new_entry(charge.named(name)).unwrap();
        let terms = outcome.is_some().then(|| Terms::new(60_000, 60_000));
        let Submitted::New(mut entry) = store.submit(new, terms).await.unwrap() else { panic!("it is new") };
        if let Some(outcome) = outcome {
            let settled = store.apply(entry.id, Change::Settle { fence: 1, outcome }).await.unwrap();
            let Applied::Done(after) = settled else { panic!("{settled:?}") };
            entry = after;
        }
        entries.push(entry);
    }
    (folder, path, entries)
}

/// Writes one more operation into a file.
async fn submitted(path: &Path, name: &str) -> Entry {
    let client = Client::builder().base_url("http://api.test").keys(KeyPolicy::standard()).build().unwrap();
    let maker = Outbox::open(MemoryOutbox::new(), client.clone()).start().await.unwrap();
    let new = maker.new_entry(client.post("/charges").prepare().unwrap().named(name)).unwrap();
    let store = RedbOutbox::open(path).unwrap();
    let Submitted::New(entry) = store.submit(new, None).await.unwrap() else { panic!("it is new") };
    entry
}

fn unknown() -> steadfast_outbox::End {
    steadfast_outbox::End::Unknown(steadfast_outbox::Failed::new("attempt 1: ambiguous, may have been processed"))
}

#[tokio::test]
async fn list_shows_states_and_no_secret() {
    let (_folder, path, entries) = file().await;
    let (code, said) = outbox(&path, &["ls"]);
    assert_eq!(code, 0, "{said}");
    for entry in &entries {
        assert!(said.contains(&entry.id.to_string()), "{said}");
    }
    assert!(said.contains("POST http://api.test/charges") && said.contains("3 operations"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let unknown = said.lines().find(|line| line.contains("unknown")).unwrap();
    assert!(unknown.contains("maybe"), "{said}");
    let (code, said) = outbox(&path, &["ls", "--state", "held"]);
    assert!(code == 0 && said.contains("1 operation\n") && said.contains("held"), "{said}");
}

#[tokio::test]
async fn show_says_what_to_do() {
    let (_folder, path, entries) = file().await;
    let key = entries[1].request.key().unwrap();
    let (code, said) = outbox(&path, &["show", "unknown"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("look up at the server") && said.contains("`outbox resolve`"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("processed") && line.ends_with("maybe")), "{said}");
    assert!(!said.contains("s3cret") && !said.contains(key.as_str()), "{said}");
    let (code, said) = outbox(&path, &["show", &entries[1].id.to_string(), "--secrets"]);
    assert!(code == 0 && said.contains("s3cret body") && said.contains(key.as_str()), "{said}");
    let (_, said) = outbox(&path, &["show", "held"]);
    assert!(said.contains("mend its credentials"), "{said}");
}

#[tokio::test]
async fn person_ends_releases_cancels_and_acknowledges() {
    let (_folder, path, _) = file().await;
    let (code, said) = outbox(&path, &["resolve", "unknown", "--answered", "201", "--body", "ch_1"]);
    assert!(code == 0 && said.contains("is answer now"), "{said}");
    let (code, said) = outbox(&path, &["acknowledge", "unknown"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = outbox(&path, &["release", "held"]);
    assert!(code == 0 && said.contains("is waiting now"), "{said}");
    let (code, said) = outbox(&path, &["cancel", "waits"]);
    assert!(code == 0 && said.contains("is rejected now"), "{said}");
    let (code, said) = outbox(&path, &["resolve", "waits", "--rejected", "not in the books"]);
    assert!(code == 1 && said.contains("has ended already: rejected"), "{said}");
}

#[tokio::test]
async fn every_mistake_is_one_line_and_no_success() {
    let (folder, path, _) = file().await;
    let wrong: [(&Path, &[&str], i32, &str); 6] = [
        (&path, &["show", "nothing"], 1, "no operation `nothing`"),
        (&path, &["acknowledge", "01935c7e-2b6a-7c3e-8f6d-2a4b6c8d0e1f"], 1, "no operation `01935c7e"),
        (&path, &["acknowledge", "waits"], 1, "has not ended"),
        (&path, &["resolve", "unknown"], 2, "--answered"),
        (&path, &["resolve", "unknown", "--answered", "7"], 2, "200..=299"),
        (&folder.path().join("missing"), &["ls"], 1, "there is no outbox at"),
    ];
    for (path, arguments, code, text) in wrong {
        let (exit, said) = outbox(path, arguments);
        assert!(exit == code && said.contains(text), "{arguments:?}: {exit}, {said}");
        assert!(code == 2 || said.lines().count() == 1, "{said}");
    }
    assert!(!folder.path().join("missing").exists());
    let held = RedbOutbox::open(&path).unwrap();
    let (exit, said) = outbox(&path, &["ls"]);
    assert!(exit == 1 && said.contains("in use by another process"), "{said}");
    drop(held);
    std::fs::write(&path, "not a database").unwrap();
    let (exit, said) = outbox(&path, &["ls"]);
    assert!(exit == 1 && said.contains("is damaged"), "{said}");
}

#[tokio::test]
async fn name_that_is_an_identifier_is_ambiguous() {
    let (_folder, path, entries) = file().await;
    let (waits, id) = (entries[0].id, entries[0].id.to_string());
    let named = submitted(&path, &id).await;
    let (code, said) = outbox(&path, &["cancel", &id]);
    assert!(code == 1 && said.lines().count() == 1 && said.contains("the identifier of another"), "{said}");
    let (code, said) = outbox(&path, &["cancel", &waits.as_uuid().simple().to_string()]);
    assert!(code == 0 && said.contains(&format!("{waits} is rejected now")), "{said}");
    let (code, said) = outbox(&path, &["cancel", &named.id.to_string()]);
    assert!(code == 0 && said.contains(&format!("{} is rejected now", named.id)), "{said}");
}

#[tokio::test]
async fn reader_that_leaves_early_is_no_error() {
    let (_folder, path, _) = file().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox"));
    let command = command.arg("--file").arg(&path).arg("ls").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[tokio::test]
async fn list_has_one_line_for_each_operation() {
    let (_folder, path, _) = file().await;
    submitted(&path, "two\nlines \u{1b}[2K").await;
    let (code, said) = outbox(&path, &["ls"]);
    assert_eq!((code, said.lines().count()), (0, 6), "{said}");
    assert!(said.contains(r"two\nlines \u{1b}[2K") && said.contains("ambiguous, may have been processed"), "{said}");
}

#[tokio::test]
async fn json_has_an_object_a_line_and_no_secret() {
    let (_folder, path, entries) = file().await;
    let (code, said) = outbox(&path, &["ls", "--json"]);
    assert!(code == 0 && !said.contains("s3cret"), "{said}");
    let listed: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), entries.len(), "{said}");
    let unknown = &listed[1];
    assert_eq!(unknown["operation"], entries[1].id.to_string());
    assert_eq!((&unknown["state"], &unknown["processed"]), (&"unknown".into(), &"maybe".into()));
    assert_eq!((&unknown["method"], &unknown["url"]), (&"POST".into(), &"http://api.test/charges".into()));
    let key = entries[1].request.key().unwrap();
    assert!(unknown["key"] == key.to_string() && key.to_string() != key.as_str(), "{said}");
    let (code, said) = outbox(&path, &["ls", "--json", "--state", "rejected"]);
    assert_eq!((code, said.as_str()), (0, ""));
}
