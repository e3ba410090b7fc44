//! Manifests named on the command line: files, folders, standard input.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::output::Failure;

/// Most bytes of one file: what the control plane takes.
const FILE_MAX: u64 = signet_policy::MAX_TEXT_BYTES as u64;
/// Most files of one call: a mesh has tens.
const FILES_MAX: usize = 1000;

/// Which manifests.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Manifests {
    /// File, folder (its *.yaml, *.yml and *.json, by name), or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
}

/// One file's text, under the name that diagnostics show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ManifestText {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl ManifestText {
    /// Whether there is anything but comments and empty documents.
    fn says_anything(&self) -> bool {
        let says = |line: &str| !line.is_empty() && !line.starts_with('#') && !matches!(line, "---" | "...");
        self.text.lines().map(str::trim).any(says)
    }
}

impl Manifests {
    /// Reads them all.
    pub(crate) fn read(&self) -> Result<Vec<ManifestText>, Failure> {
        read(&self.paths)
    }
}

/// Reads every file that `paths` name.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<ManifestText>, Failure> {
    read_within(paths, FILE_MAX)
}

/// The same, of files with at most so many bytes.
pub(crate) fn read_within(paths: &[PathBuf], most: u64) -> Result<Vec<ManifestText>, Failure> {
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            texts.push(ManifestText {
                name: "<stdin>".to_owned(),
                text: limited(io::stdin().lock(), "<stdin>", most)?,
            });
        } else if path.is_dir() {
            for file in files_of(path)? {
                texts.push(read_file(&file, most)?);
            }
        } else {
            texts.push(read_file(path, most)?);
        }
        if texts.len() > FILES_MAX {
            return Err(Failure::Usage(format!("more than {FILES_MAX} manifest files")));
        }
    }
    // What makes manifests may have failed and left nothing.
    if !texts.iter().any(ManifestText::says_anything) {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let names = names.join(", ");
        return Err(Failure::Usage(format!("{names}: there is no manifest; fix: name files that hold some")));
    }
    Ok(texts)
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error: io::Error| Failure::Usage(format!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_manifest = path
            .extension()
            .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
        if is_manifest && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, most: u64) -> Result<ManifestText, Failure> {
    let name = path.display().to_string();
    let file = fs::File::open(path).map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
    let text = limited(file, &name, most)?;
    Ok(ManifestText { name, text })
}

fn limited(source: impl Read, name: &str, most: u64) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    source
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
    if bytes.len() as u64 > most {
        return Err(Failure::Usage(format!(
            "{name}: it is longer than {most} bytes; fix: split it into several files"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.split(|byte| *byte == b'\n').count();
        let column = String::from_utf8_lossy(good.rsplit(|byte| *byte == b'\n').next().unwrap_or_default());
        let column = column.chars().count() + 1;
        Failure::Usage(format!("{name}:{line}:{column}: it is no text in UTF-8; fix: save it as UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_gives_its_manifests_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yml", "a.yaml", "notes.txt"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let texts = read(&[folder.path().to_path_buf()]).unwrap();
        assert_eq!(texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>(), ["a.yaml", "b.yml"]);
    }

    #[test]
    fn missing_file_empty_folder_empty_file_and_long_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(&[folder.path().join("none.yaml")]), Err(Failure::Usage(_))));
        assert!(matches!(read(&[folder.path().to_path_buf()]), Err(Failure::Usage(_))));
        let nothing = folder.path().join("nothing.yaml");
        fs::write(&nothing, "# to be made\n---\n\n...\n").unwrap();
        let Err(Failure::Usage(reason)) = read(std::slice::from_ref(&nothing)) else {
            panic!("it was taken")
        };
        assert!(reason.starts_with(&nothing.display().to_string()), "{reason}");
        let long = folder.path().join("long.yaml");
        fs::write(&long, vec![b'#'; usize::try_from(FILE_MAX).unwrap() + 1]).unwrap();
        assert!(matches!(read(&[long]), Err(Failure::Usage(_))));
    }

    #[test]
    fn bytes_that_are_no_utf_8_are_refused_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("latin-1.yaml");
        fs::write(&file, b"kind: Mesh\n# caf\xe9\n").unwrap();
        let Err(Failure::Usage(message)) = read(std::slice::from_ref(&file)) else { panic!("refused") };
        assert!(
            message.ends_with("latin-1.yaml:2:6: it is no text in UTF-8; fix: save it as UTF-8"),
            "{message}"
        );
    }
}
