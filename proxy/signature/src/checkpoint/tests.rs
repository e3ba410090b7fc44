use aws_lc_rs::signature::Ed25519KeyPair;

use super::*;

const CHANNEL: ChannelId = ChannelId([7; 16]);
const ID: &str = "spiffe://td/app/d/a";

fn signer() -> MeshSigner {
    let key = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    MeshSigner::new(key.as_ref(), format!("{ID}#fingerprint")).unwrap()
}

fn logs() -> (SentLog, ReceivedLog) {
    let c2s = Direction::ClientToServer;
    (SentLog::new(ID, &CHANNEL, c2s), ReceivedLog::new(ID, &CHANNEL, c2s))
}

fn start() -> Moment {
    Moment { at: Duration::from_secs(7), turn: 0 }
}

fn later(moment: Moment, milliseconds: u64, turns: u64) -> Moment {
    Moment { at: moment.at + Duration::from_millis(milliseconds), turn: moment.turn + turns }
}

fn base(seq: u64) -> Vec<u8> {
    format!("\"@method\": GET\n\"@path\": /{seq}").into_bytes()
}

#[test]
fn roots_are_those_of_the_classic_leaves_of_certificate_transparency() {
    let leaves =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let roots =
        ["6e340b9c", "fac54203", "aeb6bcfe", "d37ee418", "4e3bbb1f", "76e67dad", "ddb89be4", "5dc9da79"];
    let mut tree = Tree::default();
    assert_eq!(hex(&tree.root()), "e3b0c442");
    for (text, root) in leaves.iter().zip(roots) {
        let data: Vec<u8> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        tree.push(hash(&[LEAF_PREFIX, &data]));
        assert_eq!(hex(&tree.root()), root);
    }
}

fn hex(hash: &Hash) -> String {
    hash[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn checkpoints_cover_what_was_received_and_the_log_goes_on() {
    let (signer, now, (mut sent, mut received)) = (signer(), start(), logs());
    let mut seq = 0;
    for count in [1, 2, 5, 1024] {
        for _ in 0..count {
            seq += 1;
            sent.append(seq, &base(seq), now);
            received.receive(seq, &base(seq), now).unwrap();
        }
        let checkpoint = sent.seal(&signer).unwrap();
        let covered = received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]);
        assert_eq!((covered, received.debt(), sent.is_settled()), (Ok(count), 0, true));
        let expected = format!("mesh/{ID}/{CHANNEL}/c2s\n{seq}\n");
        assert!(checkpoint.note.starts_with(&expected), "{}", checkpoint.note);
    }
    // Nothing new is a checkpoint of the same size.
    let again = sent.seal(&signer).unwrap();
    assert_eq!(received.cover(&again.note, &again.entries, [signer.public_key()]), Ok(0));
}

#[test]
fn messages_may_overtake_each_other_and_some_never_arrive() {
    let (signer, now, (mut sent, mut received)) = (signer(), start(), logs());
    (1..=5).for_each(|seq| sent.append(seq, &base(seq), now));
    for seq in [3, 1] {
        received.receive(seq, &base(seq), now).unwrap();
    }
    let checkpoint = sent.seal(&signer).unwrap();
    assert_eq!(received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]), Ok(2));
    // The fourth never comes.
    for seq in [5, 2] {
        assert_eq!(received.receive(seq, &base(seq), now), Ok(true));
    }
    assert_eq!(received.debt(), 0, "announced, so covered");
    sent.append(6, &base(6), now);
    received.receive(6, &base(6), now).unwrap();
    let checkpoint = sent.seal(&signer).unwrap();
    assert_eq!(received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]), Ok(1));
}

#[test]
fn message_that_is_not_the_one_announced_is_refused() {
    let (signer, now, (mut sent, mut received)) = (signer(), start(), logs());
    sent.append(1, &base(2), now);
    let checkpoint = sent.seal(&signer).unwrap();
    received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]).unwrap();
    assert_eq!(received.receive(1, &base(1), now), Err(CheckpointError::Mismatch));
}

#[test]
fn checkpoint_over_anything_else_than_what_was_received_is_refused() {
    let (signer, stranger, now) = (signer(), signer(), start());
    let honest = || {
        let (mut sent, mut received) = logs();
        for seq in 1..=3 {
            sent.append(seq, &base(seq), now);
            received.receive(seq, &base(seq), now).unwrap();
        }
        (sent, received)
    };
    let refused = |change: &dyn Fn(&mut Checkpoint), key: &MeshSigner| {
        let (mut sent, mut received) = honest();
        let mut checkpoint = sent.seal(&signer).unwrap();
        change(&mut checkpoint);
        received.cover(&checkpoint.note, &checkpoint.entries, [key.public_key()]).unwrap_err()
    };
    let (mismatch, bad) = (CheckpointError::Mismatch, CheckpointError::BadSignature);
    assert_eq!(refused(&|it| it.entries.truncate(it.entries.len() - 1), &signer), CheckpointError::Malformed);
    assert_eq!(refused(&|it| it.entries.truncate(2 * ENTRY), &signer), mismatch, "one left out");
    assert_eq!(refused(&|it| it.entries.rotate_left(ENTRY), &signer), mismatch, "another order");
    assert_eq!(refused(&|it| it.note = it.note.replace("\n3\n", "\n4\n"), &signer), mismatch);
    assert_eq!(refused(&|it| it.note = it.note.replace("/c2s\n", "/s2c\n"), &signer), mismatch);
    assert_eq!(refused(&|it| it.note.push('\n'), &signer), bad);
    assert_eq!(refused(&|it| it.note.truncate(it.note.len() - 3), &signer), bad);
    assert_eq!(refused(&|_| {}, &stranger), bad, "somebody else's key");
    assert_eq!(
        refused(&|it| it.entries = vec![0; (MAX_ENTRIES + 1) * ENTRY], &signer),
        CheckpointError::Malformed
    );

    // The sender signs for another message than the one it sent.
    let (mut sent, mut received) = logs();
    received.receive(1, &base(1), now).unwrap();
    sent.append(1, &base(2), now);
    let lie = sent.seal(&signer).unwrap();
    assert_eq!(received.cover(&lie.note, &lie.entries, [signer.public_key()]), Err(mismatch));

    // One of the other direction, of another channel, of somebody else.
    let s2c = Direction::ServerToClient;
    for mut other in [
        SentLog::new(ID, &CHANNEL, s2c),
        SentLog::new(ID, &ChannelId([8; 16]), Direction::ClientToServer),
        SentLog::new("spiffe://td/app/d/b", &CHANNEL, Direction::ClientToServer),
    ] {
        let (_, mut received) = honest();
        (1..=3).for_each(|seq| other.append(seq, &base(seq), now));
        let checkpoint = other.seal(&signer).unwrap();
        assert_eq!(
            received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]),
            Err(mismatch)
        );
    }
}

#[test]
fn log_cannot_be_rewritten_by_a_later_checkpoint() {
    let (signer, now, (mut sent, mut received)) = (signer(), start(), logs());
    sent.append(1, &base(1), now);
    received.receive(1, &base(1), now).unwrap();
    let first = sent.seal(&signer).unwrap();
    received.cover(&first.note, &first.entries, [signer.public_key()]).unwrap();
    assert_eq!(
        received.cover(&first.note, &first.entries, [signer.public_key()]),
        Err(CheckpointError::Mismatch),
        "the same once more"
    );
    let (mut fork, _) = logs();
    fork.append(9, &base(9), now);
    fork.append(2, &base(2), now);
    received.receive(2, &base(2), now).unwrap();
    let fork = fork.seal(&signer).unwrap();
    assert_eq!(
        received.cover(&fork.note, &fork.entries[ENTRY..], [signer.public_key()]),
        Err(CheckpointError::Mismatch)
    );
}

#[test]
fn both_ends_stop_at_the_limit_of_what_may_wait() {
    let (now, (mut sent, mut received)) = (start(), logs());
    for seq in 1..=MAX_DEBT as u64 {
        assert!(sent.has_room(now) && received.admit(now).is_ok(), "{seq}");
        sent.append(seq, &base(seq), now);
        received.receive(seq, &base(seq), now).unwrap();
        assert_eq!(sent.is_due(now), seq >= MAX_ENTRIES as u64, "{seq}");
        assert_eq!(received.is_due(now), seq >= MAX_ENTRIES as u64, "{seq}");
    }
    assert!(!sent.has_room(now));
    assert_eq!(received.admit(now), Err(CheckpointError::Overdue));
    // One checkpoint covers half of it.
    let signer = signer();
    let checkpoint = sent.seal(&signer).unwrap();
    received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]).unwrap();
    assert!(sent.has_room(now) && received.admit(now).is_ok() && !sent.is_settled());
}

#[test]
fn both_ends_stop_when_a_message_waits_too_long_unless_they_stood_still_themselves() {
    let (now, (mut sent, mut received)) = (start(), logs());
    sent.append(1, &base(1), now);
    received.receive(1, &base(1), now).unwrap();
    assert!(!sent.is_due(later(now, 999, 0)) && sent.is_due(later(now, 1000, 1)));
    assert!(!received.is_due(later(now, 999, 0)) && received.is_due(later(now, 1000, 1)));
    for (then, taken) in
        [(later(now, 2000, 2), true), (later(now, 2001, 2), false), (later(now, 60_000, 1), true)]
    {
        assert_eq!((sent.has_room(then), received.admit(then).is_ok()), (taken, taken), "{then:?}");
    }
}

#[test]
fn what_is_announced_and_never_comes_is_bounded() {
    let (signer, now, (mut sent, mut received)) = (signer(), start(), logs());
    for round in 0..3 {
        for seq in 1..=MAX_ENTRIES as u64 {
            sent.append(round * MAX_ENTRIES as u64 + seq, &base(seq), now);
        }
        let checkpoint = sent.seal(&signer).unwrap();
        received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]).unwrap();
        assert!(received.announced.len() <= MAX_ANNOUNCED);
    }
}

#[test]
fn a_number_is_entered_once_whatever_its_leaf() {
    let (signer, now) = (signer(), start());
    // Received and covered; announced alone. Then once more: the same, and as another message.
    for arrives in [true, false] {
        for second in [7, 8] {
            let (mut sent, mut received) = logs();
            sent.append(7, &base(7), now);
            if arrives {
                received.receive(7, &base(7), now).unwrap();
            }
            let first = sent.seal(&signer).unwrap();
            received.cover(&first.note, &first.entries, [signer.public_key()]).unwrap();
            sent.append(7, &base(second), now);
            let again = sent.seal(&signer).unwrap();
            let refused = received.cover(&again.note, &again.entries, [signer.public_key()]);
            assert_eq!(refused, Err(CheckpointError::Mismatch), "{arrives} {second}");
        }
    }
    // Twice in one list.
    let (mut sent, mut received) = logs();
    received.receive(7, &base(7), now).unwrap();
    (0..2).for_each(|_| sent.append(7, &base(7), now));
    let twice = sent.seal(&signer).unwrap();
    let refused = received.cover(&twice.note, &twice.entries, [signer.public_key()]);
    assert_eq!(refused, Err(CheckpointError::Mismatch));
}

#[test]
fn an_entry_far_behind_the_others_is_taken() {
    let (signer, now, (mut sent, mut received)) = (signer(), start(), logs());
    for seq in [crate::replay::WINDOW + 9, 1] {
        sent.append(seq, &base(seq), now);
        received.receive(seq, &base(seq), now).unwrap();
    }
    let checkpoint = sent.seal(&signer).unwrap();
    assert_eq!(received.cover(&checkpoint.note, &checkpoint.entries, [signer.public_key()]), Ok(2));
}
