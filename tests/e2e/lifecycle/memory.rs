//! What is in another process's memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use memchr::memmem;
use signet_identity::PrivateKey;

use crate::protocols::stage::Failure;

/// Bytes of a page, on every machine that these tests run on.
const PAGE: u64 = 4096;
/// Bytes of a page's entry in the kernel's list, the highest bits last.
const ENTRY: usize = 8;
/// Secret bytes of the keys in use, P-256 and Ed25519 alike.
const SECRET: usize = 32;

/// The forms in which the secret of a key may stand in memory: as it is written, the other way round as a library
/// computes with it, and the line of its PEM file.
pub(super) fn forms(pem: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let key = PrivateKey::from_pem(pem.as_bytes()).ok_or("no key in the file")?;
    let der = key.secret_der();
    // The first octet string of 32 bytes: RFC 5915 and RFC 8410 alike.
    let at =
        der.windows(2).position(|window| window == [0x04, SECRET as u8]).ok_or("no secret in the key")?;
    let secret = der.get(at + 2..at + 2 + SECRET).ok_or("the key is cut short")?.to_vec();
    let reversed = secret.iter().rev().copied().collect();
    let (_, section) = pem.split_once("-----BEGIN PRIVATE KEY-----\n").ok_or("no key in the file")?;
    let line = section.lines().next().unwrap_or_default().as_bytes().to_vec();
    Ok(vec![secret, reversed, line])
}

/// Whether one of these byte strings stands anywhere in the process's memory. Only pages that are there are read: an allocator
/// reserves far more than it uses.
pub(super) fn holds(pid: u32, forms: &[Vec<u8>]) -> Result<bool, Failure> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let longest = forms.iter().map(Vec::len).max().unwrap_or_default();
    let mut looked_at = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut fields = line.split(' ');
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').ok_or("a mapping without a range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut last = Vec::new();
        for (at, is_there) in there(&pages, start, end)? {
            let mut page = vec![0; PAGE as usize];
            // A mapping may go away meanwhile.
            if !is_there || memory.read_exact_at(&mut page, at).is_err() {
                last.clear();
                continue;
            }
            looked_at += 1;
            // With the end of the page before, for what lies across.
            last.extend_from_slice(&page);
            if forms.iter().any(|form| memmem::find(&last, form).is_some()) {
                return Ok(true);
            }
            last.drain(..last.len().saturating_sub(longest));
        }
    }
    if looked_at == 0 { Err("nothing of that memory can be read".into()) } else { Ok(false) }
}

/// The pages from `start` to `end`, and whether each is in memory or swapped out: bits 63 and 62 of its entry.
fn there(pages: &File, start: u64, end: u64) -> Result<Vec<(u64, bool)>, Failure> {
    let mut entries = vec![0; usize::try_from((end - start) / PAGE)? * ENTRY];
    // Of what is no memory, such as a device, there are none.
    if pages.read_exact_at(&mut entries, start / PAGE * ENTRY as u64).is_err() {
        return Ok(Vec::new());
    }
    let entries = entries.chunks_exact(ENTRY).map(|entry| entry[ENTRY - 1] & 0b1100_0000 != 0);
    Ok((start..end).step_by(PAGE as usize).zip(entries).collect())
}
