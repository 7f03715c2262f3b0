//! The entries of a shard, under small numbers.
//!
//! A hash table that is just over its load limit has more than half of its places free. With
//! entries of this size that would be more memory than the records need. So the table holds numbers
//! of four bytes, and the entries are here, in pieces: growing copies nothing, and at most one piece
//! is partly empty. A vector would copy all entries under the lock, and keep the old ones meanwhile.

/// Entries in one piece.
const PIECE: usize = 8;

/// The number of an entry. It is used again after the entry is removed.
pub(super) type Slot = u32;

#[derive(Debug)]
pub(super) struct Slots<T> {
    pieces: Vec<Vec<Option<T>>>,
    free: Vec<Slot>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn get(&self, slot: Slot) -> Option<&T> {
        let (piece, at) = place(slot);
        self.pieces.get(piece)?.get(at)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let (piece, at) = place(slot);
        self.pieces.get_mut(piece)?.get_mut(at)?.as_mut()
    }

    pub(super) fn insert(&mut self, entry: T) -> Slot {
        if let Some(slot) = self.free.pop() {
            let (piece, at) = place(slot);
            if let Some(place) = self.pieces.get_mut(piece).and_then(|piece| piece.get_mut(at)) {
                *place = Some(entry);
            }
            return slot;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let full = self.pieces.len() - 1;
        let piece = &mut self.pieces[full];
        piece.push(Some(entry));
        // A shard never has 2³² entries: that would be 800 GB.
        Slot::try_from(full * PIECE + piece.len() - 1).unwrap_or(Slot::MAX)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<T> {
        let (piece, at) = place(slot);
        let entry = self.pieces.get_mut(piece)?.get_mut(at)?.take()?;
        self.free.push(slot);
        Some(entry)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten().flatten()
    }
}

fn place(slot: Slot) -> (usize, usize) {
    let slot = usize::try_from(slot).unwrap_or(usize::MAX);
    (slot / PIECE, slot % PIECE)
}
