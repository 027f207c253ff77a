//! An allocator that counts, for targets that bound memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has allocated and not freed.
    static HELD_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting.
struct Counting;

fn count(added: usize, freed: usize) {
    // Memory may be freed by another thread than the one that took it, so the count may wrap.
    HELD_BYTES.with(|held| held.set(held.get().wrapping_add(added).wrapping_sub(freed)));
}

// SAFETY: every call is handed on to the system's allocator as it came; the counter is a thread local
// without destructor or lazy initialisation, so that counting neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as promised by the caller; the memory is the system's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as promised by the caller; the memory is the system's.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread holds.
pub fn held_bytes() -> usize {
    HELD_BYTES.with(Cell::get)
}
