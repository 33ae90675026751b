//! Files of repacked weights, so that the next start maps them instead of repacking: one file for each model file.
//!
//! Layout, little-endian: magic of 8 bytes, key u128, then offset u64, length u64 and hash u64 of the table, padding to
//! 4096; the panels of every matrix, each aligned to 64 bytes; the table, in postcard. The key says which model file in
//! which state the panels were made of ([`ModelSource::fingerprint`]), and how. A file is written
//! under another name and renamed when it is complete, so that none is ever seen half-written.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use realm_kernels::Matrix;
use realm_kernels::quant::BlockType;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::map;
use crate::source::ModelSource;

/// The last two digits count versions of the file; the panels have their own, which is part of the key.
const MAGIC: &[u8; 8] = b"REALMP01";
const HEADER_BYTES: usize = 4096;
const ALIGNMENT: u64 = 64;

/// Why a file of repacked weights is not used. None of this is fatal: the model file has everything.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PackedError {
    /// It cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// It was made of another model file, or of an earlier state of it, or by another version of Realm.
    #[error("{} was not made of this model file by this version", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
    },
    /// It is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The part that is wrong.
        what: String,
    },
}

/// One matrix in the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    ty: u32, // of GGML
    rows: usize,
    cols: usize,
    offset: u64,
    bytes: u64,
    hash: u64, // XXH3 of the panels
}

/// Which file holds the repacked weights of a model file in its present state.
#[derive(Clone, Debug)]
pub struct PackedFile {
    path: PathBuf,
    key: u128,
}

impl PackedFile {
    /// The one in this folder. `None` for a model that is not a file.
    pub fn of(source: &dyn ModelSource, folder: &Path) -> Option<PackedFile> {
        let model = source.path()?.canonicalize().ok()?;
        // Model files of one name in two folders have two.
        let place = xxh3_64(model.parent()?.as_os_str().as_encoded_bytes());
        let name = model.file_stem()?.to_string_lossy();
        Some(PackedFile {
            path: folder.join(format!("{name}-{place:016x}.panels")),
            key: source
                .fingerprint()?
                .wrapping_add(Matrix::PANELS_VERSION.into()),
        })
    }

    /// Where it is, or would be.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A mapped file whose every matrix was held against its hash.
#[derive(Debug)]
pub struct Packed {
    bytes: Bytes,
    by_name: HashMap<String, (Entry, Range<usize>)>,
}

impl Packed {
    /// Maps a file and checks all its matrices, with this many threads; `None` when there is no such file.
    ///
    /// # Errors
    /// [`PackedError`]; the file is then to be written again.
    pub fn open(place: &PackedFile, threads: usize) -> Result<Option<Packed>, PackedError> {
        let PackedFile { path, key } = place;
        let io = |source| PackedError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        };
        let damaged = |what: String| PackedError::Damaged {
            path: path.to_owned(),
            what,
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(io)?,
        };
        if file.metadata().map_err(io)?.len() < HEADER_BYTES as u64 {
            return Err(damaged("it has no header".to_owned()));
        }
        let bytes = Bytes::from_owner(map::map_file(&file).map_err(io)?);
        let header = Header::read(&bytes);
        if &header.magic != MAGIC || header.key != *key {
            return Err(PackedError::Stale {
                path: path.to_owned(),
            });
        }
        let table = part(&bytes, header.table_at, header.table_bytes)
            .map(|range| &bytes[range])
            .filter(|table| xxh3_64(table) == header.table_hash)
            .ok_or_else(|| damaged("the table".to_owned()))?;
        let table: Vec<Entry> =
            postcard::from_bytes(table).map_err(|error| damaged(error.to_string()))?;
        let mut by_name = HashMap::with_capacity(table.len());
        for entry in table {
            let range = part(&bytes, entry.offset, entry.bytes)
                .filter(|range| (range.start as u64).is_multiple_of(ALIGNMENT))
                .ok_or_else(|| damaged(format!("where {} lies", entry.name)))?;
            by_name.insert(entry.name.clone(), (entry, range));
        }
        match find_damage(&bytes, by_name.values(), threads) {
            Some(name) => Err(damaged(format!("matrix {name}"))),
            None => Ok(Some(Packed { bytes, by_name })),
        }
    }

    /// The panels of a matrix, if the file has it in this type and shape.
    pub fn panels(&self, name: &str, ty: BlockType, rows: usize, cols: usize) -> Option<Bytes> {
        let (entry, range) = self.by_name.get(name)?;
        ((entry.ty, entry.rows, entry.cols) == (ty.ggml_id(), rows, cols))
            .then(|| self.bytes.slice(range.clone()))
    }
}

/// The name of a matrix whose bytes are not those its hash was made of. The first touch of every page is here, so the
/// matrices are shared out between threads.
fn find_damage<'a>(
    bytes: &[u8],
    entries: impl Iterator<Item = &'a (Entry, Range<usize>)>,
    threads: usize,
) -> Option<String> {
    let mut entries: Vec<_> = entries.collect();
    // The longest first, so that no thread is left with one at the end.
    entries.sort_by_key(|(_, range)| std::cmp::Reverse(range.len()));
    let next = AtomicUsize::new(0);
    let check = || {
        while let Some((entry, range)) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            if xxh3_64(&bytes[range.clone()]) != entry.hash {
                return Some(entry.name.clone());
            }
        }
        None
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(check)).collect();
        let mine = check();
        others
            .into_iter()
            .filter_map(|thread| thread.join().expect("hashing does not panic"))
            .fold(mine, |found, other| found.or(Some(other)))
    })
}

fn part(bytes: &[u8], offset: u64, length: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes.len()).then_some(start..end)
}

struct Header {
    magic: [u8; 8],
    key: u128,
    table_at: u64,
    table_bytes: u64,
    table_hash: u64,
}

impl Header {
    /// From the first bytes of a file that has them.
    fn read(bytes: &[u8]) -> Header {
        fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("a slice of N bytes")
        }
        Header {
            magic: array(bytes, 0),
            key: u128::from_le_bytes(array(bytes, 8)),
            table_at: u64::from_le_bytes(array(bytes, 24)),
            table_bytes: u64::from_le_bytes(array(bytes, 32)),
            table_hash: u64::from_le_bytes(array(bytes, 40)),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        [
            &self.magic[..],
            &self.key.to_le_bytes(),
            &self.table_at.to_le_bytes(),
            &self.table_bytes.to_le_bytes(),
            &self.table_hash.to_le_bytes(),
        ]
        .concat()
    }
}

/// Writes a file, matrix by matrix. Dropped before [`finish`](PackedWriter::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct PackedWriter {
    place: PackedFile,
    file: BufWriter<NamedTempFile>,
    at: u64,
    table: Vec<Entry>,
}

impl PackedWriter {
    /// Begins a file that will replace the one at this place; makes its folder.
    ///
    /// # Errors
    /// [`PackedError::Io`].
    pub fn create(place: &PackedFile) -> Result<PackedWriter, PackedError> {
        let begin = || {
            let folder = place.path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)?;
            let mut file = BufWriter::new(NamedTempFile::new_in(folder)?);
            file.write_all(&[0; HEADER_BYTES])?;
            Ok(file)
        };
        Ok(PackedWriter {
            file: begin().map_err(|source| write_error(&place.path, source))?,
            place: place.clone(),
            at: HEADER_BYTES as u64,
            table: Vec::new(),
        })
    }

    /// Adds the panels of a matrix.
    ///
    /// # Errors
    /// [`PackedError::Io`], for instance when the disk is full.
    pub fn add(
        &mut self,
        name: &str,
        ty: BlockType,
        rows: usize,
        cols: usize,
        panels: &[u8],
    ) -> Result<(), PackedError> {
        let padding = (self.at.next_multiple_of(ALIGNMENT) - self.at) as usize;
        self.file
            .write_all(&[0; ALIGNMENT as usize][..padding])
            .and_then(|()| self.file.write_all(panels))
            .map_err(|source| write_error(&self.place.path, source))?;
        self.table.push(Entry {
            name: name.to_owned(),
            ty: ty.ggml_id(),
            rows,
            cols,
            offset: self.at + padding as u64,
            bytes: panels.len() as u64,
            hash: xxh3_64(panels),
        });
        self.at += (padding + panels.len()) as u64;
        Ok(())
    }

    /// Writes the table and puts the file in its place.
    ///
    /// # Errors
    /// As [`add`](PackedWriter::add).
    pub fn finish(self) -> Result<(), PackedError> {
        let path = self.place.path.clone();
        self.close().map_err(|source| write_error(&path, source))
    }

    fn close(mut self) -> std::io::Result<()> {
        let table = postcard::to_allocvec(&self.table).map_err(std::io::Error::other)?;
        let header = Header {
            magic: *MAGIC,
            key: self.place.key,
            table_at: self.at,
            table_bytes: table.len() as u64,
            table_hash: xxh3_64(&table),
        };
        self.file.write_all(&table)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header.bytes())?;
        let file = self.file.into_inner().map_err(|error| error.into_error())?;
        // Not synced: what a power cut takes away is found by the hashes, and made again.
        file.persist(&self.place.path)?;
        Ok(())
    }
}

fn write_error(path: &Path, source: std::io::Error) -> PackedError {
    PackedError::Io {
        what: "write",
        path: path.to_owned(),
        source,
    }
}
