//! Runs the checks of the fuzz targets on kept inputs: seeds that reach every branch of the checks, and whatever
//! fuzzing found. Keeps `fuzz/` compiling and its checks true between runs of the fuzzer.
//!
//! Memory is counted by the fuzz targets only, since an allocator that counts is `unsafe`.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "public for the fuzz targets, which are another package")]
mod checks;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Where no memory is counted, none is held.
fn uncounted() -> usize {
    0
}

/// Runs every kept input of a target, and every start of it, through the check.
#[track_caller]
fn run_corpus(target: &str, check: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz-corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).expect("the target's corpus") {
        let path = entry.expect("a directory entry").path();
        let input = fs::read(&path).expect("a readable input");
        for len in 0..=input.len() {
            let outcome = catch_unwind(AssertUnwindSafe(|| check(&input[..len])));
            assert!(outcome.is_ok(), "{}: its first {len} bytes", path.display());
        }
        inputs += 1;
    }
    assert!(inputs >= 5, "{inputs} inputs in {}", directory.display());
}

#[test]
fn kept_inputs_of_the_handshake() {
    run_corpus("handshake", checks::handshake::check);
}

#[test]
fn kept_inputs_of_the_session() {
    run_corpus("session", |input| checks::session::check(input, uncounted));
}

#[test]
fn kept_inputs_of_deflate() {
    run_corpus("deflate", |input| checks::deflate::check(input, uncounted));
}

#[test]
fn kept_inputs_beside_tungstenite() {
    run_corpus("differential", checks::differential::check);
}
