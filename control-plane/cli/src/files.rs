//! Files that commands write: the whole of a file or nothing, and directories for what nobody else may read.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;

use crate::output::Failure;

/// Most bytes of a file that is read whole.
pub(crate) const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Reads a text of at most [`FILE_MAX`] bytes; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let failed = |error: io::Error| Failure::Usage(format!("{name}: {error}"));
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        io::stdin().lock().take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        fs::File::open(path).map_err(failed)?.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    text(path, bytes)
}

/// As [`read`], for files that other files name: what is no regular file may never end, or never begin.
pub(crate) fn read_regular(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let failed = |error: io::Error| Failure::Usage(format!("{name}: {error}"));
    // A pipe that nobody writes to would keep an ordinary opening for ever.
    let opened = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = opened.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Failure::Usage(format!("{name}: it is no regular file; fix: name one")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    text(path, bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, Failure> {
    let name = path.display();
    if bytes.len() as u64 > FILE_MAX {
        return Err(Failure::Usage(format!("{name}: it is longer than {FILE_MAX} bytes; fix: split it")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.split(|byte| *byte == b'\n').count();
        Failure::Usage(format!("{name}:{line}: it is no text in UTF-8; fix: save it as UTF-8"))
    })
}

/// Standard input has no place to put a result in.
pub(crate) fn refuse_stdin_in_place(path: &Path, in_place: bool) -> Result<(), Failure> {
    if in_place && path.as_os_str() == "-" {
        return Err(Failure::Usage("--in-place needs a file, not standard input".to_owned()));
    }
    Ok(())
}

/// Puts `text` in the place of a file: whoever reads it meanwhile, or after a crash, finds the old or the new one.
/// A link stays a link, and a file that was there keeps its mode.
pub(crate) fn replace(path: &Path, text: &[u8], mode: u32) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("{}: {error}", path.display()));
    let (file, path) = beside(path, text, mode).map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Puts texts in the places of files that are there: all of them, or none where one cannot be. Each is replaced as by
/// [`replace`]; only a crash between two of them leaves the later ones as they were.
pub(crate) fn replace_all(files: &[(&Path, &[u8])]) -> Result<(), Failure> {
    const MODE: u32 = 0o644;
    // Everything is written, old and new, before the first file is touched: then there is space for the way back too.
    let mut ready = Vec::with_capacity(files.len());
    for (path, text) in files {
        let old = fs::read(path).map_err(unchanged(path))?;
        let new = beside(path, text, MODE).map_err(unchanged(path))?;
        ready.push(Replacement {
            old: beside(path, &old, MODE).map_err(unchanged(path))?.0,
            new: new.0,
            path: new.1,
        });
    }
    persist_all(ready)
}

fn unchanged(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let name = path.display().to_string();
    move |error| Failure::Usage(format!("{name}: {error}; none of the files was changed"))
}

/// A file with what is to stand in its place, and what stood there.
struct Replacement {
    path: PathBuf,
    old: tempfile::NamedTempFile,
    new: tempfile::NamedTempFile,
}

fn persist_all(ready: Vec<Replacement>) -> Result<(), Failure> {
    let mut done: Vec<(tempfile::NamedTempFile, PathBuf)> = Vec::with_capacity(ready.len());
    for Replacement { path, old, new } in ready {
        if let Err(error) = new.persist(&path) {
            for (old, path) in done {
                old.persist(&path).map_err(|error| {
                    let path = path.display();
                    Failure::Usage(format!(
                        "{path}: {}; it is changed, and could not be put back",
                        error.error
                    ))
                })?;
            }
            return Err(unchanged(&path)(error.error));
        }
        done.push((old, path));
    }
    Ok(())
}

/// A new file beside `path`, ready to take its place, and where that is behind links.
fn beside(path: &Path, text: &[u8], mode: u32) -> io::Result<(tempfile::NamedTempFile, PathBuf)> {
    let path: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let permissions =
        fs::metadata(&path).map_or_else(|_| Permissions::from_mode(mode), |found| found.permissions());
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    fs::set_permissions(file.path(), permissions)?;
    file.as_file().sync_all()?;
    Ok((file, path))
}

/// Makes a directory that only its owner can enter, or refuses one that others can.
pub(crate) fn private_directory(path: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("{}: {error}", path.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    let (owner, own) = (found.uid(), Uid::effective().as_raw());
    if owner != own {
        let path = path.display();
        return Err(Failure::Usage(format!(
            "{path}: it belongs to user {owner}, who can read the keys that will lie in it, and this is user {own}; fix: \
             run as its owner, or name another by --directory"
        )));
    }
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(Failure::Usage(format!(
            "{path}: others can enter it (mode {mode:03o}), and keys will lie in it; fix: remove it if it came with the \
             project, since whoever made it may have its keys, else chmod 700 {path}, or name another by --directory"
        )));
    }
    Ok(())
}

/// Lets everybody read what lies in a directory that only its owner can reach: root of a container without capabilities
/// cannot read another user's private file.
///
/// Links are refused: what they lead to may be anybody's, and a project's files may come from anybody.
pub(crate) fn open_within(folder: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("{}: {error}", folder.display()));
    refuse_link(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755)).map_err(failed)?;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if refuse_link(&path)?.is_file() {
            fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes a folder, or takes the one that is there; a link is refused.
pub(crate) fn folder(path: &Path) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refuse_link(path).map(drop),
        made => made.map_err(|error| Failure::Usage(format!("{}: {error}", path.display()))),
    }
}

fn refuse_link(path: &Path) -> Result<fs::FileType, Failure> {
    let name = path.display();
    let found = fs::symlink_metadata(path).map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
    if found.is_symlink() {
        return Err(Failure::Usage(format!("{name}: it is a link, and keys belong here; fix: remove it")));
    }
    Ok(found.file_type())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_file_keeps_its_mode_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, b"new", 0o644).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn several_files_are_replaced_all_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&first, "old").unwrap();
        let new: &[u8] = b"new";
        let told = replace_all(&[(&first, new), (&second, new)]).unwrap_err();
        assert!(matches!(told, Failure::Usage(text) if text.contains("none of the files was changed")));
        assert_eq!(fs::read(&first).unwrap(), b"old");
        fs::write(&second, "old").unwrap();
        // The second fails at the last moment, when the first is replaced already.
        let ready: Vec<Replacement> = [&first, &second]
            .map(|path| {
                let ready = |text| beside(path, text, 0o644).unwrap().0;
                Replacement { path: path.clone(), old: ready(b"old"), new: ready(b"new") }
            })
            .into();
        fs::remove_file(ready[1].new.path()).unwrap();
        assert!(persist_all(ready).is_err());
        assert_eq!(
            (fs::read(&first).unwrap(), fs::read(&second).unwrap()),
            (b"old".to_vec(), b"old".to_vec())
        );
        replace_all(&[(&first, new), (&second, new)]).unwrap();
        assert_eq!(
            (fs::read(&first).unwrap(), fs::read(&second).unwrap()),
            (b"new".to_vec(), b"new".to_vec())
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
    }

    #[test]
    fn directory_that_others_can_enter_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("a/b");
        private_directory(&made).unwrap();
        private_directory(&made).unwrap();
        fs::set_permissions(&made, Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private_directory(&made), Err(Failure::Usage(_))));
    }

    #[test]
    fn directory_of_another_user_is_refused() {
        // Nobody owns both: `/proc/1` is root's, and root meets a folder that it has given away.
        let folder = tempfile::tempdir().unwrap();
        let foreign = if Uid::effective().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
            folder.path()
        } else {
            Path::new("/proc/1")
        };
        let Err(Failure::Usage(told)) = private_directory(foreign) else { panic!("{foreign:?} is taken") };
        assert!(told.contains("belongs to user"), "{told}");
    }

    #[test]
    fn pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read_regular(&pipe), Err(Failure::Usage(_))));
        assert!(matches!(read_regular(folder.path()), Err(Failure::Usage(_))));
        fs::write(folder.path().join("file"), "text").unwrap();
        assert_eq!(read_regular(&folder.path().join("file")).ok().as_deref(), Some("text"));
    }

    #[test]
    fn links_are_neither_followed_nor_opened() {
        let place = tempfile::tempdir().unwrap();
        let (mine, tokens, secret) =
            (place.path().join("mine"), place.path().join("tokens"), place.path().join("mine/secret"));
        fs::create_dir(&mine).unwrap();
        fs::write(&secret, "s").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&mine, &tokens).unwrap();
        assert!(matches!(folder(&tokens), Err(Failure::Usage(_))));
        assert!(matches!(open_within(&tokens), Err(Failure::Usage(_))));
        fs::remove_file(&tokens).unwrap();
        folder(&tokens).unwrap();
        folder(&tokens).unwrap();
        std::os::unix::fs::symlink(&secret, tokens.join("web.token")).unwrap();
        assert!(matches!(open_within(&tokens), Err(Failure::Usage(_))));
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
