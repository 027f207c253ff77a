//! `verify` against a broker: it passes what is right, under churn too, and finds every kind of fault.

use serde_json::Value;

use crate::broker::{self, Fault};
use crate::{Run, run_against};

const STEADY: &str = "--churn 0 --connections 6 --topics 2 --rate 400 --duration 200ms --timeout 3s";
/// Many leave, so that several have resumed even in a short run.
const CHURN: &str = "--churn 100 --connections 20 --topics 3 --rate 300 --duration 2s --timeout 5s";

fn verify(fault: Fault, arguments: &str) -> Run {
    run_against(broker::start(fault), "pubsub/t", &format!("verify --seed 7 {arguments}"))
}

impl Run {
    /// The faults named, as `what topic expected got`.
    fn faults(&self) -> Vec<String> {
        let faults = self.document["faults"].as_array().cloned().unwrap_or_default();
        let text = |fault: &Value| {
            let text = |name: &str| fault[name].as_str().unwrap().to_owned();
            format!("{} {} {} {}", text("what"), text("topic"), fault["expected"], fault["got"])
        };
        faults.iter().map(text).collect()
    }

    #[track_caller]
    fn assert_found(&self, reason: &str, fault: &str) {
        self.assert_failed(reason);
        assert_eq!(self.faults().first().map(String::as_str), Some(fault), "{}", self.text);
    }
}

#[test]
fn all_is_well_without_churn() {
    let run = verify(Fault::None, STEADY);
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("expected"), run.count("delivered")], [80, 240, 240]);
    assert_eq!([run.count("publisher_delivered"), run.received("messages")], [80, 320]);
    assert_eq!([run.figure("gaps"), run.figure("reconnects")], [0.0, 0.0]);
    assert!(run.text.contains("\n  seed 7\n"), "{}", run.text);
    assert_eq!(run.document["settings"]["seed"], 7);
}

#[test]
fn all_is_well_with_churn_on_several_threads() {
    let cpus = std::thread::available_parallelism().unwrap().get().min(2);
    let run = verify(Fault::None, &format!("{CHURN} --cpus 0-{}", cpus - 1));
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("expected"), run.count("delivered")], [600, 4000, 4000]);
    let [reconnects, resets, closes] =
        ["reconnects", "left_by_reset", "left_by_close"].map(|name| run.figure(name));
    assert!(resets > 0.0 && closes > 0.0 && reconnects == resets + closes, "{}", run.text);
    assert_eq!(run.document["latency"]["reconnect"]["count"].as_f64(), Some(reconnects));
}

#[test]
fn churn_may_be_given_without_saying_how_much() {
    let steady = STEADY.strip_prefix("--churn 0").unwrap();
    let run = verify(Fault::None, &format!("--churn {steady}"));
    run.assert_passed();
    assert_eq!(run.document["settings"]["churn_percent"], 10.0);
}

#[test]
fn a_server_without_ids_is_checked_by_sequence_numbers() {
    let run = verify(Fault::Declines, &format!("{STEADY} --plain"));
    run.assert_passed();
    assert_eq!([run.count("delivered"), run.count("publisher_delivered")], [240, 80]);
    let run = verify(Fault::Declines, STEADY);
    run.assert_failed("handshake_invalid_subprotocol_declined");
    run.assert_failed("only 2 of 8 connections were opened");
}

#[test]
fn a_lost_message_is_a_gap() {
    let run = verify(Fault::Lose(10), STEADY);
    run.assert_found("1 messages lost", "gap t-0 510 511");
    assert_eq!([run.count("lost"), run.count("delivered")], [1, 239]);
    assert_eq!(run.figure("gaps"), 1.0);
    // Which subscriber of the topic the server took for its first one is chance.
    let subscriber = run.document["faults"][0]["subscriber"].as_u64().unwrap();
    assert!(subscriber < 3, "the three of topic 0 are the first ones: {}", run.text);
    let line = format!("fault gap: topic t-0, subscriber {subscriber}: expected 510, got 511");
    assert!(run.text.contains(&line), "{}", run.text);
}

#[test]
fn a_loss_at_the_beginning_and_at_the_end_is_noticed() {
    verify(Fault::Lose(1), STEADY).assert_found("1 messages lost", "gap t-0 501 502");
    let run = verify(Fault::Lose(40), STEADY);
    run.assert_found("1 messages lost", "incomplete t-0 540 539");
    assert_eq!(run.figure("gaps"), 0.0);
}

#[test]
fn a_repeat_is_noticed() {
    let run = verify(Fault::Repeat(10), STEADY);
    run.assert_found("1 messages duplicated", "repeat t-0 511 510");
    assert_eq!([run.count("lost"), run.count("delivered")], [0, 240]);
}

#[test]
fn a_reordering_is_noticed_and_is_no_loss() {
    let run = verify(Fault::Swap(10), STEADY);
    run.assert_found("1 messages reordered", "gap t-0 510 511");
    assert_eq!(run.faults()[1], "reordered t-0 512 510");
    assert_eq!([run.count("lost"), run.count("delivered")], [0, 240]);
}

#[test]
fn changed_contents_are_noticed() {
    let run = verify(Fault::Damage(10), STEADY);
    run.assert_found("1 messages corrupted", "corrupted t-0 510 510");
    assert_eq!([run.count("corrupted"), run.count("lost")], [1, 0]);
    let run = verify(Fault::Intrude(10), STEADY);
    run.assert_found("1 messages foreign", "foreign t-0 510 510");
    verify(Fault::Kind(10), STEADY).assert_failed("1 × wrong_kind");
    verify(Fault::Headless(10), STEADY).assert_failed("1 × malformed_message");
    verify(Fault::Misroute(10), STEADY).assert_failed("1 × misrouted");
}

#[test]
fn wrong_ids_are_noticed_although_nothing_is_lost() {
    let run = verify(Fault::Renumber(10), STEADY);
    run.assert_found("× wrong_offset", "wrong_offset t-0 510 511");
    assert_eq!([run.count("lost"), run.count("delivered")], [0, 240]);
    assert_eq!(run.faults().len(), 10, "the first ones are named");
    assert_eq!(run.error("wrong_offset"), 3 * 31, "and all are counted");
    verify(Fault::Epoch(10), STEADY).assert_failed("1 × wrong_epoch");
}

#[test]
fn who_is_closed_by_the_server_comes_back_and_misses_nothing() {
    let run = verify(Fault::Close(10), STEADY);
    run.assert_failed("1 × close_1008");
    assert_eq!([run.count("lost"), run.count("delivered")], [0, 240]);
    assert_eq!(run.figure("reconnects"), 1.0);
}

#[test]
fn a_resume_that_leaves_a_message_out_is_noticed() {
    let run = verify(Fault::ResumeSkips, CHURN);
    run.assert_failed("messages lost");
    assert!(run.figure("gaps") > 0.0 && run.count("duplicated") == 0, "{}", run.text);
}

#[test]
fn a_resume_that_repeats_a_message_is_noticed() {
    let run = verify(Fault::ResumeRepeats, CHURN);
    run.assert_failed("messages duplicated");
    assert_eq!(run.count("duplicated") as f64, run.figure("reconnects"));
    assert_eq!([run.count("lost"), run.count("delivered")], [0, 4000]);
}

#[test]
fn a_failed_recovery_is_counted_and_what_was_missed_is_lost() {
    let run = verify(Fault::ResumeForgets, CHURN);
    run.assert_failed("× failed_recovery");
    assert_eq!(run.error("failed_recovery") as f64, run.figure("reconnects"));
    assert!(run.count("lost") > 0, "{}", run.text);
    assert_eq!(run.figure("gaps"), 0.0, "the notice told of each");
}

#[test]
fn a_resume_that_is_not_one_is_noticed() {
    let run = verify(Fault::ResumeIgnored, CHURN);
    run.assert_failed("messages lost");
    assert_eq!(run.error("failed_recovery"), 0);
}

#[test]
fn a_resume_that_is_refused_ends_the_run_in_time() {
    let run = verify(Fault::ResumeRefused, &CHURN.replace("5s", "1s"));
    run.assert_failed("× handshake_status_503");
    assert!(run.count("lost") > 0 && run.figure("reconnects") == 0.0, "{}", run.text);
    assert!(run.faults().iter().all(|fault| fault.starts_with("incomplete")), "{}", run.text);
}

#[test]
fn a_close_that_is_not_answered_is_noticed() {
    let run = verify(Fault::Deaf, &CHURN.replace("5s", "1s"));
    run.assert_failed("× close_not_answered");
}
