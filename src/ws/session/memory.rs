//! What the session holds: never more than what arrived allows, and nothing between messages.

use super::*;

#[test]
fn memory_follows_arrived_bytes_and_is_freed_after_delivery() {
    let text = "€".repeat(6000);
    for first in [0x81, 0x82] {
        let long = frame(first, text.as_bytes());
        let (head, tail) = text.as_bytes().split_at(17);
        let fragments: Vec<u8> = tail.chunks(3).flat_map(|part| frame(0x00, part)).collect();
        let fragments = [frame(first & 0x0f, head), fragments, frame(0x80, b"")].concat();
        for (stream, step) in [(long.clone(), 1), (long, 1000), (fragments.clone(), 1), (fragments, 777)] {
            let mut session = Session::default();
            let mut arrived = 0;
            let mut delivered = 0;
            for piece in stream.chunks(step) {
                let mut piece = piece.to_vec();
                let mut input = piece.as_mut_slice();
                arrived += input.len();
                while let Some(event) = session.next_event(&mut input, &LIMITS, None).unwrap() {
                    let Event::Message(payload) = event else { panic!("{event:?}") };
                    assert_eq!(payload.as_bytes(), text.as_bytes());
                    delivered += 1;
                }
                let held = session.partial.as_ref().map_or(0, |partial| partial.message_capacity());
                assert!(held <= 2 * arrived + GROWTH_STEP_BYTES, "{held} bytes for {arrived}");
            }
            assert_eq!(delivered, 1);
            assert!(session.is_idle());
        }
    }
}

#[test]
fn empty_fragments_hold_nothing() {
    for first in [0x01, 0x02] {
        let mut session = Session::default();
        let mut stream = [frame(first, b""), frame(0x00, b"").repeat(10_000)].concat();
        assert_eq!(session.next_event(&mut stream.as_mut_slice(), &LIMITS, None), Ok(None));
        assert_eq!(session.partial.as_ref().unwrap().message_capacity(), 0);
        let mut end = frame(0x80, b"");
        let mut input = end.as_mut_slice();
        let event = session.next_event(&mut input, &LIMITS, None).unwrap();
        assert!(matches!(event, Some(Event::Message(payload)) if payload.as_bytes().is_empty()));
        assert_eq!(session.next_event(&mut input, &LIMITS, None), Ok(None));
        assert!(session.is_idle());
    }
}

#[test]
fn one_byte_fragments_are_assembled_with_few_allocations() {
    let limits = Limits::new(1 << 16);
    let mut session = Session::default();
    let mut start = frame(0x02, b"x");
    assert_eq!(session.next_event(&mut start.as_mut_slice(), &limits, None), Ok(None));
    let mut growths = 0;
    let mut capacity = 0;
    for _ in 1..limits.max_message_bytes {
        let mut more = frame(0x00, b"x");
        assert_eq!(session.next_event(&mut more.as_mut_slice(), &limits, None), Ok(None));
        let now = session.partial.as_ref().unwrap().message_capacity();
        growths += usize::from(now != capacity);
        capacity = now;
    }
    assert!((10..=17).contains(&growths), "{growths}: doubling gives one per bit of the size");
}
