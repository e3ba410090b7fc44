use std::io;

use super::file::Seen;
use super::*;

fn file(path: PathBuf) -> Settings {
    Settings { file: Some(path), command: None }
}

fn command(words: &[&str]) -> Settings {
    Settings { file: None, command: Some(words.iter().map(|&word| word.to_owned()).collect()) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn missing() -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::NotFound.into())
}

#[test]
fn a_file_says_tampering_by_anything_but_zero_twice_in_a_row() {
    let mut seen = Seen::default();
    for quiet in [missing(), Ok(b"0".to_vec()), Ok(b"0\n".to_vec()), Ok(b"".to_vec()), Ok(b"0\n".to_vec())] {
        assert_eq!(seen.judged_twice(quiet), None);
    }
    assert_eq!(seen.judged_twice(Ok(b"1\n".to_vec())), None, "once");
    assert_eq!(seen.judged_twice(Ok(b"1\n".to_vec())), Some(Tampering::FileSays("1".into())));
}

#[test]
fn a_sensor_that_goes_away_is_tampering_and_one_that_never_came_is_not() {
    let mut seen = Seen::default();
    for _ in 0..3 {
        assert_eq!(seen.judged_twice(missing()), None);
    }
    assert_eq!(seen.judged_twice(Ok(b"0".to_vec())), None);
    assert_eq!(seen.judged_twice(missing()), None, "once");
    assert_eq!(seen.judged_twice(missing()), Some(Tampering::FileGone));
    let denied = || Err(io::ErrorKind::PermissionDenied.into());
    assert_eq!(seen.judge(denied()), Some(Tampering::FileUnreadable(io::ErrorKind::PermissionDenied)));
}

#[test]
fn a_shortage_that_a_peer_can_bring_about_is_not_tampering() {
    let mut seen = Seen::default();
    for errno in [nix::errno::Errno::EMFILE, nix::errno::Errno::ENFILE, nix::errno::Errno::ENOMEM] {
        for _ in 0..3 {
            assert_eq!(seen.judged_twice(Err(errno.into())), None);
        }
    }
}

#[test]
fn what_the_file_says_at_the_start_is_noticed_before_anything_else_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tampered");
    assert_eq!(Watch::start(&file(path.clone())).unwrap().noticed(), None);
    std::fs::write(&path, "lid\n\u{1b}[2J").unwrap();
    let noticed = Watch::start(&file(path)).unwrap().noticed();
    assert_eq!(noticed, Some(Tampering::FileSays("lid".into())));
}

#[test]
fn a_file_that_appears_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tampered");
    let mut watch = Watch::start(&file(path.clone())).unwrap();
    std::fs::write(&path, "").unwrap();
    assert_eq!(runtime().block_on(watch.tampering()), Tampering::FileSays(String::new()));
}

#[test]
fn a_file_that_cannot_be_read_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    // A directory opens, and has nothing to read.
    let started = Watch::start(&file(directory.path().to_owned()));
    assert!(matches!(started, Err(WatchError::File { .. })), "{started:?}");
}

#[test]
fn whatever_a_command_prints_is_tampering_and_so_is_its_end() {
    let noticed = |words: &[&str]| runtime().block_on(Watch::start(&command(words)).unwrap().tampering());
    assert_eq!(noticed(&["echo", "lid open"]), Tampering::CommandSaid("lid open".into()));
    assert_eq!(noticed(&["true"]), Tampering::CommandEnded);
}

#[test]
fn a_command_that_cannot_be_started_does_not_start() {
    let started = Watch::start(&command(&["/nonexistent/sensor"]));
    assert!(matches!(started, Err(WatchError::Command { .. })), "{started:?}");
}

#[test]
fn the_end_of_a_command_means_nothing_once_we_are_stopped_too() {
    let mut watch = Watch::start(&command(&["cat", "/dev/null"])).unwrap();
    watch.stopping();
    // The wait ends with the thread that could have told.
    let ended = runtime().block_on(async {
        drop(std::mem::replace(&mut watch._waiting, mpsc::channel(1).0));
        watch.events.recv().await
    });
    assert_eq!(ended, None);
}
