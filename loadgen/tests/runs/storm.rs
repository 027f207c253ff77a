//! `storm` against relays: everyone comes back, and what goes wrong is told.

use crate::relay::{self, Behaviour};
use crate::{Run, run_against};

fn storm(behaviour: Behaviour, path: &str, arguments: &str) -> Run {
    run_against(relay::start(behaviour), path, &format!("storm {arguments}"))
}

#[test]
fn everyone_comes_back_and_receives_in_every_round() {
    let cpus = std::thread::available_parallelism().unwrap().get().min(2);
    let arguments = format!("--connections 30 --rounds 3 --cpus 0-{}", cpus - 1);
    let run = storm(Behaviour::Good, "pubsub/topic", &arguments);
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("expected"), run.count("delivered")], [90, 90, 90]);
    assert_eq!(run.figure("deliveries_after_storm"), 90.0);
    let rounds = run.document["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 3);
    for round in rounds {
        let [first, last, receiving] = ["first_back_seconds", "last_back_seconds", "receiving_seconds"]
            .map(|name| round[name].as_f64().unwrap());
        assert!(first <= last && last <= receiving, "{round}");
    }
    assert_eq!(run.document["latency"]["first_connect"]["count"], 30);
    assert_eq!(run.document["latency"]["handshake"]["count"], 90);
    assert_eq!(run.document["latency"]["back"]["count"], 90);
    assert!(run.text.contains("\n  round 3: dropped "), "{}", run.text);
}

#[test]
fn rounds_go_on_until_the_time_is_over() {
    let run = storm(Behaviour::Good, "pubsub/topic", "--connections 5 --duration 500ms");
    run.assert_passed();
    let rounds = run.document["rounds"].as_array().unwrap().len() as u64;
    assert!(rounds > 1, "{}", run.text);
    assert_eq!(run.count("delivered"), 5 * rounds);
    assert!((0.5..5.0).contains(&run.document["measured_seconds"].as_f64().unwrap()), "{}", run.text);
    // Whichever bound comes first, and one round at least.
    for (bounds, expected) in [("--duration 1m --rounds 2", 2), ("--duration 1ms --rounds 90000", 1)] {
        let run = storm(Behaviour::Good, "pubsub/topic", &format!("--connections 50 {bounds}"));
        run.assert_passed();
        assert_eq!(run.document["rounds"].as_array().unwrap().len(), expected, "{}", run.text);
    }
}

#[test]
fn nothing_is_published_where_that_is_not_asked_for() {
    let run = storm(Behaviour::Good, "sub/topic", "--connections 10");
    run.assert_passed();
    assert_eq!(run.count("delivered"), 10);
    assert!(run.document["rounds"][0]["receiving_seconds"].is_null(), "{}", run.document);
    assert_eq!(run.figure("deliveries_after_storm"), 0.0);
}

#[test]
fn refused_handshakes_are_counted_and_tried_again() {
    let run = storm(Behaviour::RefuseHandshakes(10, 14), "sub/topic", "--connections 10");
    run.assert_failed("4 × handshake_status_503");
    assert_eq!([run.count("sent"), run.count("delivered"), run.count("lost")], [14, 10, 0]);
    assert_eq!(run.figure("retries"), 4.0);
}

#[test]
fn a_server_that_takes_nobody_back_ends_the_storm() {
    let run =
        storm(Behaviour::RefuseHandshakes(10, usize::MAX), "sub/topic", "--connections 10 --timeout 2s");
    run.assert_failed("nothing arrived for 2 s during the measurement");
    assert!(run.error("handshake_status_503") >= 10, "{}", run.text);
    assert_eq!([run.count("delivered"), run.count("lost")], [0, 10]);
}

#[test]
fn a_message_that_does_not_reach_all_ends_the_storm() {
    let run = storm(Behaviour::LoseAtLast(0), "pubsub/topic", "--connections 10 --timeout 2s");
    run.assert_failed("nothing arrived for 2 s during the measurement");
    assert_eq!(run.count("lost"), 0);
    let run = storm(Behaviour::RepeatAtLast(0), "pubsub/topic", "--connections 10");
    run.assert_failed("1 messages duplicated");
}
