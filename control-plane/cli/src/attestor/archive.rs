//! A tar of one small file, as the engine takes it (POSIX.1-1988, ustar).

/// Tar counts in blocks of this size.
const BLOCK: usize = 512;

/// A tar with one file that only its owner, root, may read. The name is shorter than 100 bytes.
pub(super) fn of_one_file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut head = [0_u8; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        for (place, byte) in head.iter_mut().skip(at).zip(text) {
            *place = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(156, b"0");
    put(257, b"ustar\x0000");
    // The sum counts its own field as blanks.
    put(148, b"        ");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    for (place, byte) in head.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *place = byte;
    }
    let mut archive = head.to_vec();
    archive.extend_from_slice(content);
    // The end of an archive is two empty blocks.
    let padded = archive.len().next_multiple_of(BLOCK) + 2 * BLOCK;
    archive.resize(padded, 0);
    archive
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_itself_takes_the_file_out_again() {
        for content in [&b"a token"[..], &[b'x'; BLOCK], &[b'y'; BLOCK + 1]] {
            let mut tar = Command::new("tar")
                .args(["-xOf", "-", "token"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            tar.stdin.take().unwrap().write_all(&of_one_file("token", content)).unwrap();
            let output = tar.wait_with_output().unwrap();
            assert!(output.status.success());
            assert_eq!(output.stdout, content);
        }
    }
}
