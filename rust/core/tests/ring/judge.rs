//! What a chain is by the standard's words, walked as plainly as can be: the third opinion beside
//! the code under test and `virtio-queue`.

use vm_memory::{Bytes, GuestAddress};

use crate::driver::{Descriptor, INDIRECT, NEXT, Piece, WRITE};
use crate::guest::Guest;

/// Why a chain is malformed: the rule that is broken first on the way along the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Head,
    Next,
    Length,
    Order,
    Sum,
    Table,
    Indirect,
}

/// A table of descriptors in guest memory.
#[derive(Clone, Copy)]
pub struct Table {
    pub at: u64,
    pub count: u32,
}

/// What a chain is that breaks no rule.
#[derive(Debug, PartialEq, Eq)]
pub enum Chain {
    /// Its buffers, empty ones left out.
    Good(Vec<Piece>),
    /// Some of it lies outside of memory.
    Outside,
}

/// What the chain at `head` is, or the rule that it breaks.
pub fn judge(guest: &Guest, table: Table, head: u16, limit: usize) -> Result<Chain, Fault> {
    if u32::from(head) >= table.count {
        return Err(Fault::Head);
    }
    let mut pieces = Vec::new();
    let (mut here, mut index, mut inside) = (table, u32::from(head), false);
    let mut outside = false;
    loop {
        let descriptor = read(guest, here, index).expect("the table is in memory");
        if descriptor.flags & INDIRECT != 0 {
            if inside || descriptor.flags & NEXT != 0 {
                return Err(Fault::Indirect);
            }
            let Some(inner) = inner(guest, descriptor, limit)? else { return Ok(Chain::Outside) };
            here = inner;
            (index, inside) = (0, true);
            continue;
        }
        outside |= !take(guest, descriptor, &mut pieces, limit)?;
        if descriptor.flags & NEXT == 0 {
            pieces.retain(|piece| piece.len > 0);
            return Ok(if outside { Chain::Outside } else { Chain::Good(pieces) });
        }
        index = u32::from(descriptor.next);
        if index >= here.count {
            return Err(Fault::Next);
        }
    }
}

/// An indirect table; `None` if it is not all in memory.
fn inner(guest: &Guest, descriptor: Descriptor, limit: usize) -> Result<Option<Table>, Fault> {
    let count = descriptor.len / 16;
    if !descriptor.len.is_multiple_of(16) || count == 0 || count as usize > limit {
        return Err(Fault::Table);
    }
    // Every entry must be there, used or not.
    let table = Table { at: descriptor.at, count };
    let whole = (0..count).all(|index| read(guest, table, index).is_some());
    Ok(whole.then_some(table))
}

/// Takes a buffer; `false` if it is not all in memory.
fn take(
    guest: &Guest,
    descriptor: Descriptor,
    pieces: &mut Vec<Piece>,
    limit: usize,
) -> Result<bool, Fault> {
    let Descriptor { at, len, flags, .. } = descriptor;
    let writable = flags & WRITE != 0;
    if pieces.len() == limit {
        return Err(Fault::Length);
    }
    if !writable && pieces.iter().any(|piece| piece.writable) {
        return Err(Fault::Order);
    }
    pieces.push(Piece { at, len, writable });
    if pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>() >> 32 != 0 {
        return Err(Fault::Sum);
    }
    let mut bytes = vec![0; len.min(0x10_0000) as usize];
    let whole = bytes.len() == len as usize;
    let there = guest.driver.read_slice(&mut bytes, GuestAddress(at)).is_ok();
    Ok(len == 0 || whole && there)
}

fn read(guest: &Guest, table: Table, index: u32) -> Option<Descriptor> {
    let at = table.at.checked_add(16 * u64::from(index))?;
    let mut bytes = [0; 16];
    guest.driver.read_slice(&mut bytes, GuestAddress(at)).ok()?;
    Some(Descriptor {
        at: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        len: u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
        flags: u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
        next: u16::from_le_bytes(bytes[14..].try_into().unwrap()),
    })
}
