//! Files of repacked weights: the second start takes the first one's, computes the same, and never takes a wrong one.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Model, threads};
use realm_engine::model::ModelOptions;
use realm_kernels::Cpu;
use tempfile::TempDir;

const IO: &str = "temporary files can be read and written";

/// A model file of its own and a folder for its weights.
struct World {
    folder: TempDir,
}

impl World {
    fn new() -> World {
        let world = World {
            folder: tempfile::tempdir().expect(IO),
        };
        world.take("llama-q4_k_m.gguf");
        world
    }

    /// Puts a fixture in the place of the model file.
    fn take(&self, fixture: &str) {
        let fixture = Path::new("tests/fixtures/zoo").join(fixture);
        fs::write(self.model(), fs::read(fixture).expect(IO)).expect(IO);
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn packed_dir(&self) -> PathBuf {
        self.folder.path().join("panels")
    }

    /// Starts the model and returns the bits of some logits.
    fn start(&self, packed_dir: Option<PathBuf>) -> Vec<u32> {
        let options = ModelOptions {
            packed_dir,
            ..ModelOptions::default()
        };
        let mut model = Model::open_with(&self.model(), Cpu::new(threads()), options);
        let logits = model.prefill(&[0, 1], &[1, 5, 9, 2, 7], 5);
        logits
            .concat()
            .iter()
            .map(|logit| logit.to_bits())
            .collect()
    }

    fn start_packed(&self) -> Vec<u32> {
        self.start(Some(self.packed_dir()))
    }

    /// The only file of the folder: nothing half-written or outdated is left beside it.
    fn packed(&self) -> PathBuf {
        let mut files: Vec<PathBuf> = fs::read_dir(self.packed_dir())
            .expect(IO)
            .map(|entry| entry.expect(IO).path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    /// Whether this start wrote the file anew.
    fn writes(&self, start: impl FnOnce()) -> bool {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let file = fs::File::options().append(true).open(self.packed());
        file.expect(IO).set_modified(long_ago).expect(IO);
        start();
        fs::metadata(self.packed()).expect(IO).modified().expect(IO) != long_ago
    }
}

#[test]
fn the_second_start_maps_what_the_first_left() {
    let world = World::new();
    let in_memory = world.start(None);
    assert!(!world.packed_dir().exists(), "nothing is kept unasked");
    assert_eq!(world.start_packed(), in_memory);
    assert!(!world.writes(|| assert_eq!(world.start_packed(), in_memory)));
}

#[test]
fn another_model_file_or_a_later_state_of_it_is_packed_anew() {
    let world = World::new();
    world.start_packed();
    let touched = SystemTime::now() + Duration::from_secs(5);
    let model = fs::File::options().append(true).open(world.model());
    model.unwrap().set_modified(touched).unwrap();
    assert!(world.writes(|| drop(world.start_packed())));
    world.take("llama-q8_0.gguf");
    let of_q8 = world.start(None);
    assert!(world.writes(|| assert_eq!(world.start_packed(), of_q8)));
    assert!(!world.writes(|| assert_eq!(world.start_packed(), of_q8)));
}

#[test]
fn whatever_is_damaged_is_found_and_made_again() {
    let world = World::new();
    let good = world.start_packed();
    let bytes = fs::read(world.packed()).unwrap();
    let check = |what: &str, damaged: &[u8]| {
        fs::write(world.packed(), damaged).unwrap();
        let rebuilt = world.writes(|| assert_eq!(world.start_packed(), good, "{what}"));
        assert!(rebuilt, "{what}");
        assert_eq!(fs::read(world.packed()).unwrap(), bytes, "{what}");
    };
    for length in [0, 1, 47, 4095, 4096, bytes.len() / 2, bytes.len() - 1] {
        check(&format!("cut to {length}"), &bytes[..length]);
    }
    let table = bytes.len() - 10;
    for at in [
        0,
        8,
        24,
        32,
        40,
        4096,
        bytes.len() / 2,
        table,
        bytes.len() - 1,
    ] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        check(&format!("byte {at}"), &damaged);
    }
}

#[test]
fn a_folder_that_cannot_be_made_costs_only_the_file() {
    let world = World::new();
    let in_memory = world.start(None);
    fs::write(world.packed_dir(), "a file, not a folder").unwrap();
    assert_eq!(world.start_packed(), in_memory);
}
