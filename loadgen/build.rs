//! Tells the program the commit that it is built from, as `LOADGEN_COMMIT`: with `+` if its sources have changes, and
//! empty where they are of no repository, as in a tarball, even one unpacked inside another project's repository.

use std::path::Path;
use std::process::{Command, Stdio};

/// What loadgen is built from, seen from its package.
const SOURCES: [&str; 5] = ["src", "build.rs", "Cargo.toml", "../Cargo.toml", "../Cargo.lock"];

/// Files of git of which one changes whenever the commit does.
const MOVES: [&str; 3] = ["HEAD", "logs/HEAD", "packed-refs"];

fn main() {
    // A file that is not there would have every build run this again.
    for path in SOURCES.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rustc-env=LOADGEN_COMMIT={}", commit().unwrap_or_default());
}

fn commit() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in MOVES.into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let hash = git(&["rev-parse", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=no", "--"];
    let changes = git(&[&status[..], &SOURCES[..]].concat())?;
    Some(if changes.is_empty() { hash } else { hash + "+" })
}

/// What git says in the package's directory; nothing if it fails, or is not there.
fn git(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // Set within hooks, for the repository that the hook is of.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        command.env_remove(variable);
    }
    // `status` would otherwise write the index, for a later look to be quicker.
    let output =
        command.env("GIT_OPTIONAL_LOCKS", "0").args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
