//! What RESULTS.md shows of the measurements is what the raw results in bench/results give.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const REMEDY: &str = "scripts/bench.sh --no-run --update RESULTS.md makes it again";
/// Plots as RESULTS.md refers to them.
const PLOTS: &str = "bench/results/plots";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words of `name="…"` in a shell script.
fn assigned(path: &Path, name: &str) -> Vec<String> {
    let text = read(path);
    let begin = format!("{name}=\"");
    let line = text.lines().find_map(|line| line.strip_prefix(&begin)?.strip_suffix('"'));
    let line = line.unwrap_or_else(|| panic!("{}: no {name}", path.display()));
    line.split(' ').map(str::to_owned).collect()
}

/// The raw results in the order of scripts/bench.sh: scenarios, servers, passes.
fn result_files() -> Vec<PathBuf> {
    let results = root().join("bench/results");
    let mut files = Vec::new();
    for scenario in assigned(&root().join("scripts/bench.sh"), "order") {
        for server in assigned(&root().join(format!("bench/scenarios/{scenario}.sh")), "servers") {
            let pass = |pass: usize| results.join(format!("{scenario}.{server}.{pass}.json"));
            files.extend((1..).map(pass).take_while(|file| file.exists()));
        }
    }
    let all = fs::read_dir(&results).unwrap().map(|entry| entry.unwrap().path());
    let all = all.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    assert_eq!(all.count(), files.len(), "a result belongs to no scenario, or a pass is missing");
    files
}

fn plots_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn tables_and_plots_agree_with_the_raw_results() {
    let work = std::env::temp_dir().join(format!("loadgen-results-{}", std::process::id()));
    fs::create_dir_all(&work).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["report", "--plots", PLOTS])
        .args(result_files())
        .current_dir(&work)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = String::from_utf8(output.stdout).unwrap();

    let results = read(&root().join("RESULTS.md"));
    let block = results
        .split_once("<!-- bench:begin -->")
        .and_then(|(_, rest)| rest.split_once("<!-- bench:end -->"))
        .map(|(block, _)| block.trim())
        .expect("RESULTS.md has one generated block");
    for (line, (shown, made)) in block.lines().zip(made.trim().lines()).enumerate() {
        assert_eq!(shown, made, "line {line} of the block in RESULTS.md; {REMEDY}");
    }
    assert_eq!(block.lines().count(), made.trim().lines().count(), "length of the block; {REMEDY}");
    let tables = read(&root().join("bench/results/tables.md"));
    assert_eq!(tables.trim(), block.replace("](bench/results/plots/", "](plots/"), "tables.md; {REMEDY}");

    let (shown, made) = (root().join(PLOTS), work.join(PLOTS));
    assert_eq!(plots_in(&shown), plots_in(&made), "files in {PLOTS}; {REMEDY}");
    for name in plots_in(&made) {
        assert!(read(&shown.join(&name)) == read(&made.join(&name)), "{PLOTS}/{name} differs; {REMEDY}");
        assert!(block.contains(&format!("]({PLOTS}/{name})")), "RESULTS.md does not show {name}");
    }
    fs::remove_dir_all(&work).unwrap();
}
