//! Counts what is allocated, so that a parser whose cost grows faster than its input is found without a clock.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator as it came; the counter is a plain cell of the thread that
// allocates nothing by itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // After the end of its thread the counter is gone: nothing is measured there.
        let _ = ALLOCATED.try_with(|sum| sum.set(sum.get().saturating_add(layout.size())));
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` comes from `alloc` above, that is from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `call`, and fails if it allocates more than `fixed` bytes and `each` for every byte of its input: all that it
/// ever asks for, not only what it holds at once, so that copying again and again shows too.
pub fn bounded<T>(input: &[u8], fixed: usize, each: usize, call: impl FnOnce() -> T) -> T {
    let before = ALLOCATED.get();
    let answer = call();
    let used = ALLOCATED.get() - before;
    assert!(
        used <= fixed + each * input.len(),
        "{used} bytes were allocated for {} of input",
        input.len()
    );
    answer
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn what_stays_within_its_bound_passes() {
        assert_eq!(bounded(&[0; 100], 0, 8, || vec![0_u8; 100].len()), 100);
    }

    #[test]
    #[should_panic(expected = "bytes were allocated")]
    fn what_grows_faster_than_its_input_is_found() {
        bounded(&[0; 100], 64, 2, || {
            let mut text = Vec::new();
            for at in 0..100_usize {
                text = [text.as_slice(), &at.to_be_bytes()].concat();
            }
            text.len()
        });
    }
}
