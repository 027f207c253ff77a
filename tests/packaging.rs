//! What ships beside the binary: unit files, the script for kernel limits, the seccomp profile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// A folder that is removed again.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("corecast-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("cannot make a folder");
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("cannot make a folder");
        fs::write(&path, text).expect("cannot write");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether a program is there; says aloud that the test is skipped if not.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(
        there || std::env::var_os("CORECAST_TESTS_REQUIRE_ALL").is_none(),
        "{program} is missing, and nothing may be skipped here"
    );
    if !there {
        println!("skipped: {program} is not installed");
    }
    there
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !has("systemd-analyze") {
        return;
    }
    let folder = Folder::new("units");
    let unit = |name: &str| {
        let unit = fs::read_to_string(script("packaging").join(name)).expect("a unit file");
        // The program that a unit starts must exist.
        folder.write(name, &unit.replace("/usr/local/bin/corecast", env!("CARGO_BIN_EXE_corecast")))
    };
    let verify = |units: &[&PathBuf]| -> Output {
        Command::new("systemd-analyze").arg("verify").args(units).output().expect("systemd-analyze")
    };
    let units = [unit("corecast.service"), unit("corecast.socket")];
    let verified = verify(&[&units[0], &units[1]]);
    assert!(verified.status.success() && verified.stderr.is_empty(), "{}", text(&verified.stderr));

    let wrong = folder.write("wrong.service", "[Service]\nExecStart=/bin/true\nNoNewPrivilege=yes\n");
    assert!(text(&verify(&[&wrong]).stderr).contains("NoNewPrivilege"), "it would say so");
}

#[test]
fn the_service_may_use_io_uring() {
    if !has("systemd-analyze") {
        return;
    }
    let unit = fs::read_to_string(script("packaging/corecast.service")).expect("a unit file");
    let group = unit.lines().find_map(|line| line.strip_prefix("SystemCallFilter=")).expect("a filter");
    let mut open = vec![group.to_owned()];
    let mut calls = Vec::new();
    while let Some(group) = open.pop() {
        let listed =
            Command::new("systemd-analyze").args(["syscall-filter", &group]).output().expect("a list");
        for name in text(&listed.stdout).lines().skip(1).map(str::trim).filter(|name| !name.starts_with('#'))
        {
            let list = if name.starts_with('@') { &mut open } else { &mut calls };
            list.push(name.to_owned());
        }
    }
    for needed in ["io_uring_setup", "io_uring_enter", "io_uring_register", "sched_setaffinity", "prlimit64"]
    {
        assert!(calls.iter().any(|call| call == needed), "{group} lacks {needed}");
    }
}

/// Kernel limits as files, all of them too low.
fn low_limits(folder: &Folder) {
    for (key, value) in [
        ("kernel/io_uring_disabled", "2\n"),
        ("fs/file-max", "1000\n"),
        ("fs/nr_open", "1048576\n"),
        ("net/core/somaxconn", "128\n"),
        ("net/ipv4/tcp_max_syn_backlog", "512\n"),
        ("net/ipv4/tcp_migrate_req", "0\n"),
        ("net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("net/ipv4/tcp_mem", "1\t2\t3\n"),
    ] {
        folder.write(key, value);
    }
}

fn tune(folder: &Folder, argument: &str) -> Output {
    Command::new(script("tune.sh"))
        .arg(argument)
        .env("TUNE_PROC_SYS", &folder.0)
        .env("TUNE_SYSCTL_FILE", folder.0.join("90-corecast.conf"))
        .output()
        .expect("tune.sh")
}

/// The line of a table about this limit.
fn row(output: &Output, name: &str) -> String {
    let table = text(&output.stdout);
    let row = table.lines().find(|line| line.split(' ').next() == Some(name));
    row.unwrap_or_else(|| panic!("no row {name}: {table}{}", text(&output.stderr))).to_owned()
}

#[test]
fn kernel_limits_are_compared_and_set() {
    const KEYS: [&str; 7] = [
        "kernel.io_uring_disabled",
        "fs.file-max",
        "net.core.somaxconn",
        "net.ipv4.tcp_max_syn_backlog",
        "net.ipv4.tcp_migrate_req",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_mem",
    ];
    let folder = Folder::new("limits");
    low_limits(&folder);
    folder.write("90-corecast.conf", "# old\nvm.swappiness = 1\nnet.core.somaxconn = 5\n");
    let checked = tune(&folder, "--check");
    assert_eq!(checked.status.code(), Some(1), "{}", text(&checked.stdout));
    for key in KEYS {
        assert!(row(&checked, key).contains("MISSED"), "{}", row(&checked, key));
    }
    assert!(row(&checked, "fs.nr_open").ends_with("ok"));
    assert!(row(&checked, "net.netfilter.nf_conntrack_max").contains("not tracked"));
    assert_eq!(
        fs::read_to_string(folder.0.join("net/core/somaxconn")).expect("read"),
        "128\n",
        "only a check"
    );

    let applied = tune(&folder, "--apply");
    for outcome in [&applied, &tune(&folder, "--check")] {
        for key in KEYS {
            assert!(row(outcome, key).ends_with("ok"), "{}", row(outcome, key));
        }
    }
    assert_eq!(fs::read_to_string(folder.0.join("net/core/somaxconn")).expect("read"), "4096\n");
    let kept = fs::read_to_string(folder.0.join("90-corecast.conf")).expect("read");
    for line in ["vm.swappiness = 1", "net.core.somaxconn = 4096", "net.ipv4.tcp_migrate_req = 1"] {
        assert!(kept.lines().any(|kept| kept == line), "{line}: {kept}");
    }
    assert!(!kept.contains("somaxconn = 5") && !kept.contains("nr_open"), "{kept}");
    // What is more than enough stays.
    folder.write("net/core/somaxconn", "65535\n");
    tune(&folder, "--apply");
    assert_eq!(fs::read_to_string(folder.0.join("net/core/somaxconn")).expect("read"), "65535\n");
    assert_eq!(tune(&folder, "--help").status.code(), Some(2));
}

#[test]
fn the_seccomp_profile_is_the_given_one_with_io_uring() {
    if !has("jq") {
        return;
    }
    let folder = Folder::new("seccomp");
    let make =
        |profile: &Path| Command::new(script("packaging/seccomp.sh")).arg(profile).output().expect("run");
    let given = folder.write(
        "default.json",
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read", "io_uring_setup"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["io_uring_enter"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    let made = make(&given);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let profile: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(profile["syscalls"][0]["names"], serde_json::json!(["read"]));
    assert_eq!(
        profile["syscalls"][1]["names"],
        serde_json::json!(["io_uring_enter", "io_uring_register", "io_uring_setup"])
    );
    assert_eq!(profile["syscalls"][1]["action"], "SCMP_ACT_ALLOW");
    assert!(profile["syscalls"][2].is_null());

    let other = folder.write("other.json", r#"{"a": 1}"#);
    let refused = make(&other);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("no seccomp profile"), "{}", text(&refused.stderr));
}

/// The default profile that ships with podman and its kin, in the form of Docker's.
const SHIPPED_PROFILE: &str = "/usr/share/containers/seccomp.json";

#[test]
fn a_shipped_seccomp_profile_gets_io_uring_and_nothing_else() {
    if !has("jq") {
        return;
    }
    let Ok(given) = std::fs::read(SHIPPED_PROFILE) else {
        assert!(
            std::env::var_os("CORECAST_TESTS_REQUIRE_ALL").is_none(),
            "{SHIPPED_PROFILE} is missing (package golang-github-containers-common), and nothing may be skipped here"
        );
        println!("skipped: there is no {SHIPPED_PROFILE}");
        return;
    };
    let made = Command::new(script("packaging/seccomp.sh")).arg(SHIPPED_PROFILE).output().expect("run");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let allowed = |profile: &[u8]| {
        let profile: serde_json::Value = serde_json::from_slice(profile).expect("JSON");
        let rules = profile["syscalls"].as_array().expect("rules").clone();
        let rules = rules.into_iter().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW");
        let names = rules.flat_map(|rule| rule["names"].as_array().expect("names").clone());
        names.map(|name| name.as_str().expect("a name").to_owned()).collect::<BTreeSet<String>>()
    };
    let mut expected = allowed(&given);
    assert!(expected.len() > 200);
    expected.extend(["io_uring_setup", "io_uring_enter", "io_uring_register"].map(str::to_owned));
    assert_eq!(allowed(&made.stdout), expected);
}

#[test]
fn scripts_say_what_they_do() {
    for (name, word) in [("check.sh", "tests"), ("packaging/seccomp.sh", "io_uring")] {
        let help = Command::new(script(name)).arg("--help").output().expect("run");
        assert!(help.status.success() && text(&help.stdout).contains(word), "{name}: {help:?}");
        assert!(text(&help.stdout).starts_with("usage: "), "{name}: {help:?}");
    }
    let wrong = Command::new(script("check.sh")).arg("--quick").output().expect("run");
    assert_eq!(wrong.status.code(), Some(2));
}
