//! Changes that wait at the same time share two statements and one commit. One that comes alone does
//! not wait.
//!
//! A row is written only if its version is still the one that was read, so nothing is locked between
//! the two statements. Each write has a version of its own. If the reply to a write is lost, the
//! version in the row therefore tells whether it was written.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use steadfast_core::clock;
use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{Applied, Change, OperationId, OutboxStoreError, Submitted, Terms};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::draft::Draft;
use super::room::Room;
use super::table::{Table, encode, new_version, unavailable};
use crate::error::is_lost;

/// How many batches are under way at the same time.
const LANES: usize = 2;
/// Maximum number of changes in a batch.
const MOST: usize = 128;
/// How long a change that rides along waits for a batch.
const RIDE: Duration = Duration::from_millis(100);
/// Pause before the first look at a row whose write has an unknown outcome. It doubles.
const PAUSE: Duration = Duration::from_millis(10);

/// The changes that wait, and the lanes that carry them out.
#[derive(Default)]
pub(super) struct Batches {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Call>,
    lanes: usize,
    /// Somebody starts a lane after `RIDE`.
    has_late_start: bool,
}

/// A change that somebody waits for.
pub(super) enum Call {
    Submit { new: Box<NewEntry>, terms: Option<Terms>, reply: Reply<Submitted> },
    Apply { id: OperationId, change: Change, reply: Reply<Applied> },
}

/// Where the result of a change goes, and what it is once a write has succeeded.
pub(super) struct Reply<T> {
    sender: oneshot::Sender<Result<T, OutboxStoreError>>,
    /// All of them, since a write whose reply was lost may arrive later.
    tries: Vec<Try<T>>,
}

struct Try<T> {
    /// The version that the write gives its rows.
    version: Uuid,
    result: Result<T, OutboxStoreError>,
    /// The operation that the result says something of. If it could not be written, the result is void.
    subject: OperationId,
}

impl<T> Reply<T> {
    pub(super) fn new(sender: oneshot::Sender<Result<T, OutboxStoreError>>) -> Self {
        Self { sender, tries: Vec::new() }
    }

    fn send(self, result: Result<T, OutboxStoreError>) {
        // The caller may have gone.
        let _gone = self.sender.send(result);
    }

    /// Sends the result of an earlier write whose reply was lost, if the row's version shows that it was
    /// written.
    fn recognise(mut self, found: Option<Uuid>) -> Option<Self> {
        match self.tries.iter().position(|tried| found == Some(tried.version)) {
            Some(tried) => {
                let result = self.tries.swap_remove(tried).result;
                self.send(result);
                None
            }
            None => Some(self),
        }
    }

    /// Sends the result of the last write.
    fn answer(mut self) {
        if let Some(last) = self.tries.pop() {
            self.send(last.result);
        }
    }

    fn subject(&self) -> Option<OperationId> {
        self.tries.last().map(|last| last.subject)
    }
}

impl Call {
    fn id(&self) -> OperationId {
        match self {
            Self::Submit { new, .. } => new.id,
            Self::Apply { id, .. } => *id,
        }
    }

    fn name(&self) -> Option<&String> {
        match self {
            Self::Submit { new, .. } => new.name.as_ref(),
            Self::Apply { .. } => None,
        }
    }

    fn recognise(self, draft: &Draft) -> Option<Self> {
        let found = draft.version(self.id());
        Some(match self {
            Self::Submit { new, terms, reply } => Self::Submit { new, terms, reply: reply.recognise(found)? },
            Self::Apply { id, change, reply } => Self::Apply { id, change, reply: reply.recognise(found)? },
        })
    }

    /// Changes the draft, and remembers what that means.
    fn plan(&mut self, draft: &mut Draft, version: Uuid, full: Option<&str>) {
        match self {
            Self::Submit { new, terms, reply } => {
                let result = match full {
                    // What is there already needs no room.
                    Some(what) if !draft.has(new) => Err(OutboxStoreError::full(what)),
                    _ => draft.submit(new, *terms),
                };
                let subject = match &result {
                    Ok(Submitted::New(entry) | Submitted::Existing(entry)) => entry.id,
                    Err(OutboxStoreError::NameTaken { id, .. }) => *id,
                    Err(_) => new.id,
                };
                reply.tries.push(Try { version, result, subject });
            }
            Self::Apply { id, change, reply } => {
                let result = draft.apply(*id, change);
                reply.tries.push(Try { version, result, subject: *id });
            }
        }
    }

    fn subject(&self) -> Option<OperationId> {
        match self {
            Self::Submit { reply, .. } => reply.subject(),
            Self::Apply { reply, .. } => reply.subject(),
        }
    }

    fn answer(self) {
        match self {
            Self::Submit { reply, .. } => reply.answer(),
            Self::Apply { reply, .. } => reply.answer(),
        }
    }

    fn fail(self, error: &Arc<sqlx::Error>) {
        let error = unavailable(error.clone());
        match self {
            Self::Submit { reply, .. } => reply.send(Err(error)),
            Self::Apply { reply, .. } => reply.send(Err(error)),
        }
    }
}

impl Batches {
    /// Hands a change over. It is carried out even if its caller goes.
    pub(super) fn add(self: &Arc<Self>, table: &Table, room: &Arc<Room>, call: Call) {
        let starts = self.with(|queue| {
            queue.waiting.push(call);
            queue.start()
        });
        if starts {
            tokio::spawn(Lane::new(self, table, room).run());
        }
    }

    /// Hands a change over that is carried out with the next batch, and by itself only after a while.
    pub(super) fn add_along(self: &Arc<Self>, table: &Table, room: &Arc<Room>, call: Call) {
        let starts = self.with(|queue| {
            queue.waiting.push(call);
            queue.lanes == 0 && !std::mem::replace(&mut queue.has_late_start, true)
        });
        if starts {
            let (batches, table, room) = (self.clone(), table.clone(), room.clone());
            tokio::spawn(async move {
                clock::sleep(RIDE).await;
                let starts = batches.with(|queue| {
                    queue.has_late_start = false;
                    !queue.waiting.is_empty() && queue.start()
                });
                if starts {
                    Lane::new(&batches, &table, &room).run().await;
                }
            });
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Queue) -> T) -> T {
        call(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Queue {
    /// Counts one more lane, if it may start.
    fn start(&mut self) -> bool {
        let starts = self.lanes < LANES;
        self.lanes += usize::from(starts);
        starts
    }
}

/// A task that carries batches out until nothing waits.
struct Lane {
    batches: Arc<Batches>,
    table: Table,
    room: Arc<Room>,
    is_counted: bool,
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Its runtime has gone, or it has panicked. Another one may start.
        if self.is_counted {
            self.batches.with(|queue| queue.lanes -= 1);
        }
    }
}

impl Lane {
    fn new(batches: &Arc<Batches>, table: &Table, room: &Arc<Room>) -> Self {
        Self { batches: batches.clone(), table: table.clone(), room: room.clone(), is_counted: true }
    }

    async fn run(mut self) {
        while let Some(batch) = self.next() {
            if let Err((rest, error)) = self.carry_out(batch).await {
                self.one_by_one(rest, error).await;
            }
        }
    }

    /// Takes what waits. If nothing does, the lane ends under the same lock, so that no change waits
    /// for a lane that is about to end.
    fn next(&mut self) -> Option<Vec<Call>> {
        let batch = self.batches.with(|queue| {
            let most = queue.waiting.len().min(MOST);
            let batch: Vec<Call> = queue.waiting.drain(..most).collect();
            queue.lanes -= usize::from(batch.is_empty());
            batch
        });
        self.is_counted = !batch.is_empty();
        self.is_counted.then_some(batch)
    }

    /// Carries out what the database has refused together: one change must not fail the others.
    async fn one_by_one(&self, batch: Vec<Call>, error: sqlx::Error) {
        if is_lost(&error) || batch.len() == 1 {
            let error = Arc::new(error);
            return batch.into_iter().for_each(|call| call.fail(&error));
        }
        for call in batch {
            if let Err((rest, error)) = self.carry_out(vec![call]).await {
                let error = Arc::new(error);
                rest.into_iter().for_each(|call| call.fail(&error));
            }
        }
    }

    /// Reads, changes and writes until every change has its result.
    async fn carry_out(&self, mut batch: Vec<Call>) -> Result<(), (Vec<Call>, sqlx::Error)> {
        let deadline = self.table.database.deadline();
        let mut pause = PAUSE;
        while !batch.is_empty() {
            let full = self.full(&batch).await;
            let result = self.try_once(&mut batch, deadline, full.as_deref()).await;
            if let Err(error) = result {
                if !is_lost(&error) || !has_tries(&batch) || !is_open(deadline) {
                    return Err((batch, error));
                }
                // What was written shows in the rows, as soon as the database can be reached again.
                clock::sleep(pause).await;
                pause *= 2;
            }
        }
        Ok(())
    }

    /// Answers the changes that could be written, and leaves the others in the batch.
    async fn try_once(
        &self,
        batch: &mut Vec<Call>,
        deadline: Option<Instant>,
        full: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        let ids = batch.iter().map(|call| *call.id().as_uuid()).collect();
        let names = batch.iter().filter_map(Call::name).cloned().collect();
        let mut draft = self.table.read(deadline, ids, names).await?;
        *batch = std::mem::take(batch).into_iter().filter_map(|call| call.recognise(&draft)).collect();
        let version = new_version()?;
        batch.iter_mut().for_each(|call| call.plan(&mut draft, version, full));
        let writes = draft.writes().map_err(encode)?;
        let tried: HashSet<OperationId> = writes.ids.iter().copied().map(OperationId::from).collect();
        let added = writes.added();
        let written =
            if tried.is_empty() { HashSet::new() } else { self.table.write(deadline, version, writes).await? };
        self.room.add(added);
        for call in std::mem::take(batch) {
            let is_void = call.subject().is_some_and(|id| tried.contains(&id) && !written.contains(&id));
            if is_void { batch.push(call) } else { call.answer() }
        }
        Ok(())
    }

    /// Returns the limit that is reached, if there are submissions and one is.
    async fn full(&self, batch: &[Call]) -> Option<String> {
        let submits = batch.iter().any(|call| matches!(call, Call::Submit { .. }));
        if submits { self.room.full(&self.table).await } else { None }
    }
}

fn is_open(deadline: Option<Instant>) -> bool {
    deadline.is_none_or(|deadline| clock::now() < deadline)
}

/// Returns whether a write was tried.
fn has_tries(batch: &[Call]) -> bool {
    batch.iter().any(|call| call.subject().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_that_arrives_late_is_recognised() {
        let (sender, mut answer) = oneshot::channel();
        let [first, second, other] = [1, 2, 3].map(Uuid::from_u128);
        let mut reply = Reply::new(sender);
        for (version, result) in [(first, "first"), (second, "second")] {
            reply.tries.push(Try { version, result: Ok(result), subject: first.into() });
        }
        let reply = reply.recognise(None).and_then(|reply| reply.recognise(Some(other))).unwrap();
        assert_eq!(reply.subject(), Some(first.into()));
        // The second try has found the row changed: by the first one, whose reply was lost.
        assert!(reply.recognise(Some(first)).is_none());
        assert_eq!(answer.try_recv().unwrap().unwrap(), "first");
    }
}
