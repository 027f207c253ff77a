//! The rules of the house that a machine can hold: import directions, file sizes, where `unsafe` may be.

use std::fs;
use std::path::{Path, PathBuf};

/// Files that may say `unsafe`, relative to the package. A new one needs a reason and a review, here.
const UNSAFE_ALLOWED: [&str; 6] = [
    "src/shard/batch.rs",
    "src/shard/ring.rs",
    "src/shard/unsent.rs",
    "loadgen/src/sys.rs",
    "bench/floor/src/sys.rs",
    "tests/support/sys.rs",
];

/// A source file and its path relative to the package.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines with their numbers, without comments (a rule is about code).
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().filter_map(|(at, line)| {
            let code = line.split("//").next().unwrap_or_default();
            (!code.trim().is_empty()).then_some((at + 1, code))
        })
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a directory of the package.
fn sources(directory: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(path) = open.pop() {
        let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for entry in entries {
            let path: PathBuf = entry.expect("a directory entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root()).expect("below the root");
                let text = fs::read_to_string(&path).expect("a readable source file");
                found.push(Source { path: relative.to_string_lossy().into_owned(), text });
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {directory}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether the code names this crate or module: the word, followed by `::`, or imported by itself.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + word.len()..];
        let whole_word = !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
        whole_word
            && (after.starts_with("::")
                || (code.trim_start().starts_with("use ") && after.starts_with([';', ' '])))
    })
}

/// Panics with every line that names one of the words.
#[track_caller]
fn forbid(sources: &[Source], words: &[&str], rule: &str) {
    let faults: Vec<String> = sources
        .iter()
        .flat_map(|source| source.code().map(move |(at, code)| (source, at, code)))
        .filter(|(_, _, code)| words.iter().any(|word| names(code, word)))
        .map(|(source, at, code)| format!("{}:{at}: {}", source.path, code.trim()))
        .collect();
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

fn outside(sources: Vec<Source>, directory: &str) -> Vec<Source> {
    sources.into_iter().filter(|source| !source.path.starts_with(directory)).collect()
}

#[test]
fn the_rule_checker_sees_what_it_must() {
    assert!(names("use tokio::net;", "tokio"));
    assert!(names("use tokio;", "tokio"));
    assert!(names("    let x = glommio::timer::sleep(d);", "glommio"));
    assert!(names("use crate::{shard::Mesh, ws};", "shard"));
    assert!(!names("let my_tokio = 1;", "tokio"));
    assert!(!names("let shards = shard.count();", "shard"));
}

#[test]
fn only_the_shards_name_glommio_and_io_uring() {
    forbid(
        &outside(sources("src"), "src/shard"),
        &["glommio", "io_uring"],
        "only src/shard names the engine",
    );
}

#[test]
fn only_the_control_thread_names_tokio_and_axum() {
    forbid(&outside(sources("src"), "src/control"), &["tokio", "axum"], "only src/control names tokio");
}

#[test]
fn imports_point_one_way() {
    let layers: [(&str, &[&str]); 9] = [
        ("src/ws", &["crate::config", "crate::shard", "crate::component", "crate::app", "crate::control"]),
        ("src/config", &["crate::ws", "crate::shard", "crate::component", "crate::app", "crate::control"]),
        (
            "src/component",
            &["crate::routes", "crate::shard", "crate::control", "crate::server", "crate::app"],
        ),
        (
            "src/decorators",
            &["crate::routes", "crate::shard", "crate::control", "crate::server", "crate::app"],
        ),
        ("src/routes", &["crate::shard", "crate::control", "crate::server", "crate::app"]),
        ("src/shard", &["crate::control", "crate::server", "crate::app"]),
        ("src/control", &["crate::server", "crate::app"]),
        ("src/server", &["crate::app"]),
        // The binary: nothing but what any user of the library has.
        ("src/push", &["crate"]),
    ];
    for (layer, above) in layers {
        // A layer is one file or a directory of them.
        let own: Vec<Source> = sources("src")
            .into_iter()
            .filter(|source| {
                source.path == format!("{layer}.rs") || source.path.starts_with(&format!("{layer}/"))
            })
            .collect();
        forbid(&own, above, &format!("{layer} imports nothing above it"));
    }
}

#[test]
fn the_protocol_layer_touches_no_socket_clock_or_runtime() {
    // `std::io` is not among them: tungstenite parses headers from an `io::Cursor` over bytes.
    let words =
        ["std::net", "std::time", "std::thread", "std::os", "libc", "socket2", "Instant", "SystemTime"];
    forbid(&sources("src/ws"), &words, "src/ws is sans-io");
}

#[test]
fn the_witnesses_import_nothing_of_ours() {
    forbid(&sources("tests/support"), &["corecast"], "tests/support is an independent witness");
    forbid(&sources("loadgen/src"), &["corecast"], "loadgen is an independent witness");
    let manifest = fs::read_to_string(root().join("loadgen/Cargo.toml")).expect("loadgen/Cargo.toml");
    assert!(
        !manifest.contains("path = \"..\"") && !manifest.contains("corecast"),
        "loadgen depends on corecast"
    );
}

#[test]
fn shards_hold_no_locks() {
    let words = ["Mutex", "RwLock", "Condvar"];
    let faults: Vec<String> = sources("src/shard")
        .iter()
        .flat_map(|source| {
            source.code().map(|(at, code)| (source.path.clone(), at, code.to_owned())).collect::<Vec<_>>()
        })
        .filter(|(_, _, code)| words.iter().any(|word| code.contains(word)))
        .map(|(path, at, code)| format!("{path}:{at}: {}", code.trim()))
        .collect();
    assert!(faults.is_empty(), "no locks in a shard:\n{}", faults.join("\n"));
}

#[test]
fn unsafe_is_in_named_files_only_and_says_why() {
    let mut faults = Vec::new();
    for source in ["src", "loadgen/src", "bench", "tests"].into_iter().flat_map(sources) {
        if source.path == "tests/tidy.rs" {
            continue;
        }
        let allowed = UNSAFE_ALLOWED.contains(&source.path.as_str());
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, code) in source.code() {
            let is_unsafe = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"]
                .iter()
                .any(|form| code.contains(form));
            if is_unsafe && !allowed {
                faults.push(format!("{}:{at}: unsafe in a file that may not", source.path));
            }
            // The reason stands on the lines above, perhaps above the statement's first line.
            let above = &lines[at.saturating_sub(7)..at];
            if is_unsafe && !above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                faults.push(format!("{}:{at}: unsafe without a SAFETY comment", source.path));
            }
        }
        if allowed && !source.text.contains("unsafe") {
            faults.push(format!("{}: allowed to be unsafe, and is not", source.path));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let limit = 650;
    let faults: Vec<String> = ["src", "tests", "loadgen/src"]
        .into_iter()
        .flat_map(sources)
        .map(|source| (source.text.lines().count(), source.path))
        .filter(|(lines, _)| *lines > limit)
        .map(|(lines, path)| format!("{path}: {lines} lines, more than {limit}"))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_unfinished_is_left() {
    let words = ["dbg!", "todo!", "unimplemented!", "FIXME", "XXX", "#[ignore"];
    let mut faults = Vec::new();
    for source in ["src", "loadgen/src", "bench", "tests"].into_iter().flat_map(sources) {
        if source.path == "tests/tidy.rs" {
            continue;
        }
        for (at, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
