//! Components by digest, one file each: `blobs/<sha256>.wasm`. A file has that name only once its bytes are on the disk.

use crate::auth::{hex, random_hex, sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The beginning of an unfinished file's name.
const UNFINISHED: &str = ".tmp-";

/// The folder of components.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: PathBuf,
}

/// What can go wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Reading or writing failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The bytes are not those that were stored.
    #[error("{} is damaged: its contents do not match the digest in its name", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl Blobs {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub async fn open(dir: &Path) -> Result<Blobs, BlobError> {
        let blobs = Blobs {
            dir: dir.to_owned(),
        };
        blobs
            .run(|dir| {
                fs::create_dir_all(dir).map_err(failed("create", dir))?;
                // The folder's own entry must survive too, else everything in it is lost with it.
                sync_dir(dir.parent().unwrap_or(dir))
            })
            .await?;
        Ok(blobs)
    }

    /// Stores bytes and returns their digest in hex, once they are on the disk. A file that is there already and has been
    /// damaged is written anew.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub async fn put(&self, bytes: &[u8]) -> Result<String, BlobError> {
        let (bytes, digest) = (bytes.to_vec(), hex(&sha256(bytes)));
        let name = digest.clone();
        self.run(move |dir| {
            let path = dir.join(format!("{name}.wasm"));
            match fs::read(&path) {
                Ok(stored) if stored == bytes => Ok(()),
                Ok(_) | Err(_) => replace_file(&path, &bytes),
            }
        })
        .await?;
        Ok(digest)
    }

    /// The bytes with this digest, checked.
    ///
    /// # Errors
    /// [`BlobError::Io`] when they are not there, [`BlobError::Damaged`].
    pub async fn get(&self, digest: &str) -> Result<Vec<u8>, BlobError> {
        let digest = digest.to_owned();
        self.run(move |dir| {
            let path = dir.join(format!("{digest}.wasm"));
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            if hex(&sha256(&bytes)) != digest {
                return Err(BlobError::Damaged { path });
            }
            Ok(bytes)
        })
        .await
    }

    /// Removes unfinished files and every blob outside `named`; returns what of `named` is missing.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub async fn clean_up(&self, named: &BTreeSet<String>) -> Result<Vec<String>, BlobError> {
        let mut missing = named.clone();
        self.run(move |dir| {
            for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
                let path = entry.map_err(failed("list", dir))?.path();
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let digest = name.strip_suffix(".wasm");
                if digest.is_some_and(|digest| missing.remove(digest)) {
                    continue;
                }
                if name.starts_with(UNFINISHED) || digest.is_some_and(is_digest) {
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
            }
            Ok(missing.into_iter().collect())
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let dir = self.dir.clone();
        let path = dir.clone();
        let ended = tokio::task::spawn_blocking(move || work(&dir)).await;
        ended.unwrap_or_else(|error| Err(failed("use", &path)(io::Error::other(error))))
    }
}

/// Writes a whole file so that a reader sees the old bytes or the new ones, also after a crash.
///
/// # Errors
/// [`BlobError::Io`].
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let unfinished = dir.join(format!("{UNFINISHED}{}", random_hex::<8>()));
    let written = write_synced(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, path).map_err(failed("rename to", path)));
    if written.is_err() {
        // It is cleared away at the next start otherwise; the first error is the one to tell.
        let _ = fs::remove_file(&unfinished);
    }
    written?;
    sync_dir(dir)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(failed("create", path))?;
    file.write_all(bytes).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))
}

fn sync_dir(dir: &Path) -> Result<(), BlobError> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", dir))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError + use<> {
    let path = path.to_owned();
    move |source| BlobError::Io { what, path, source }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
