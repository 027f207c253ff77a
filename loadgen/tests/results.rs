//! What RESULTS.md and the tables show of the measurements is what the raw results in bench/results give.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Results that `scripts/bench.sh` makes with one command.
struct Suite {
    /// Of the variable in `scripts/bench.sh` that names the scenarios in their order.
    order: &'static str,
    scenarios: &'static str,
    results: &'static str,
    /// The plots, which the tables show.
    plots: &'static str,
    /// The block in RESULTS.md.
    begin: &'static str,
    end: &'static str,
    remedy: &'static str,
}

const OWN: Suite = Suite {
    order: "order",
    scenarios: "bench/scenarios",
    results: "bench/results",
    plots: "bench/results/plots",
    begin: "<!-- bench:begin -->",
    end: "<!-- bench:end -->",
    remedy: "scripts/bench.sh --no-run --update RESULTS.md makes it again",
};
const PEERS: Suite = Suite {
    order: "peers_order",
    scenarios: "bench/scenarios/peers",
    results: "bench/results/peers",
    plots: "bench/results/peers/plots",
    begin: "<!-- peers:begin -->",
    end: "<!-- peers:end -->",
    remedy: "scripts/bench.sh --peers --no-run --update RESULTS.md makes it again",
};

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
fn result_files(suite: &Suite) -> Vec<PathBuf> {
    let results = root().join(suite.results);
    let mut files = Vec::new();
    for scenario in assigned(&root().join("scripts/bench.sh"), suite.order) {
        for server in assigned(&root().join(suite.scenarios).join(format!("{scenario}.sh")), "servers") {
            let pass = |pass: usize| results.join(format!("{scenario}.{server}.{pass}.json"));
            files.extend((1..).map(pass).take_while(|file| file.exists()));
        }
    }
    let all = fs::read_dir(&results).into_iter().flatten().map(|entry| entry.unwrap().path());
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

/// What stands between two lines of RESULTS.md, without the empty lines around it.
fn between<'a>(results: &'a str, begin: &str, end: &str) -> &'a str {
    results
        .split_once(begin)
        .and_then(|(_, rest)| rest.split_once(end))
        .map(|(block, _)| block.trim())
        .unwrap_or_else(|| panic!("RESULTS.md has no {begin}"))
}

/// The block of `suite` in RESULTS.md.
fn block<'a>(suite: &Suite, results: &'a str) -> &'a str {
    between(results, suite.begin, suite.end)
}

#[test]
fn tables_and_plots_agree_with_the_raw_results() {
    assert_agrees(&OWN);
}

#[test]
fn tables_and_plots_of_the_peers_agree_with_the_raw_results() {
    if result_files(&PEERS).is_empty() {
        assert_eq!(block(&PEERS, &read(&root().join("RESULTS.md"))), "", "tables without results");
    } else {
        assert_agrees(&PEERS);
    }
}

/// What `loadgen report` prints of the results of `suite`, run in `work`.
fn report(suite: &Suite, arguments: &[&str], work: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .arg("report")
        .args(arguments)
        .args(result_files(suite))
        .current_dir(work)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_same_lines(shown: &str, made: &str, what: &str) {
    for (line, (shown, made)) in shown.trim().lines().zip(made.trim().lines()).enumerate() {
        assert_eq!(shown, made, "line {line} of {what}");
    }
    assert_eq!(shown.trim().lines().count(), made.trim().lines().count(), "length of {what}");
}

#[track_caller]
fn assert_agrees(suite: &Suite) {
    let Suite { plots, remedy, .. } = suite;
    let name = format!("loadgen-results-{}-{}", suite.order, std::process::id());
    let work = std::env::temp_dir().join(name);
    fs::create_dir_all(&work).unwrap();

    let results = read(&root().join("RESULTS.md"));
    let summary = report(suite, &["--summary"], &work);
    assert_same_lines(block(suite, &results), &summary, &format!("the block in RESULTS.md; {remedy}"));

    let tables = read(&root().join(suite.results).join("tables.md"));
    assert_same_lines(&tables, &report(suite, &["--plots", "plots"], &work), &format!("tables.md; {remedy}"));

    let (shown, made) = (root().join(plots), work.join("plots"));
    assert_eq!(plots_in(&shown), plots_in(&made), "files in {plots}; {remedy}");
    for name in plots_in(&made) {
        assert!(read(&shown.join(&name)) == read(&made.join(&name)), "{plots}/{name} differs; {remedy}");
        assert!(tables.contains(&format!("](plots/{name})")), "tables.md does not show {name}");
    }
    fs::remove_dir_all(&work).unwrap();
}

/// The scripts of the other tables make them of their raw results without a run.
#[test]
fn other_tables_agree_with_their_raw_results() {
    for (script, name) in [("profile.sh", "profile"), ("bench-codec.sh", "codec")] {
        let path = root().join("scripts").join(script);
        let output = Command::new(&path).arg("--no-run").output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let made = String::from_utf8(output.stdout).unwrap();
        assert!(made.lines().count() > 5, "{script}: {made}");
        let results = read(&root().join("RESULTS.md"));
        let shown = between(&results, &format!("<!-- {name}:begin -->"), &format!("<!-- {name}:end -->"));
        assert_same_lines(
            shown,
            &made,
            &format!("the table of {script}; its --no-run --update RESULTS.md helps"),
        );
    }
}

/// Files that RESULTS.md refers to are there.
#[test]
fn links_of_results_lead_somewhere() {
    let results = read(&root().join("RESULTS.md"));
    let targets: Vec<&str> = results
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect();
    assert!(!targets.is_empty());
    for target in targets.iter().filter(|target| !target.starts_with('#') && !target.contains("://")) {
        assert!(root().join(target).exists(), "{target}");
    }
}
