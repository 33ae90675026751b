//! One hand-made bad file for every error: each is refused with the names and numbers that show where.

mod common;

use common::*;
use realm_weights::{Gguf, GgufError};

/// The file is refused, and the message reads like this.
#[track_caller]
fn refused(file: &File, message: &str) {
    refused_bytes(file.bytes(), message);
}

#[track_caller]
fn refused_bytes(bytes: Vec<u8>, message: &str) {
    let error = Gguf::from_bytes(bytes).expect_err("the file is bad");
    assert_eq!(error.to_string(), message);
}

#[test]
fn an_empty_file() {
    refused_bytes(
        Vec::new(),
        "the file ends inside the magic: 4 bytes are needed at byte 0, but only 0 are left",
    );
}

#[test]
fn a_wrong_magic() {
    let file = File {
        magic: *b"GGML",
        ..good()
    };
    refused(
        &file,
        "not a GGUF file: it starts with [47, 47, 4d, 4c], not with \"GGUF\"",
    );
}

#[test]
fn a_big_endian_file() {
    let file = File {
        version: 3u32.swap_bytes(),
        ..good()
    };
    refused(
        &file,
        "big-endian GGUF files are not supported (the version reads as 0x03000000)",
    );
}

#[test]
fn versions_before_two_and_after_three() {
    for version in [0, 1, 4] {
        let file = File { version, ..good() };
        refused(
            &file,
            &format!("GGUF version {version} is not supported; versions 2 and 3 are"),
        );
    }
}

#[test]
fn a_file_that_ends_in_its_header() {
    refused_bytes(
        good().bytes()[..20].to_vec(),
        "the file ends inside the key count: 8 bytes are needed at byte 16, but only 4 are left",
    );
}

#[test]
fn an_absurd_key_count() {
    let file = File {
        key_count: Some(u64::MAX),
        ..good()
    };
    let room = (file.bytes().len() - 24) / 14;
    refused(
        &file,
        &format!(
            "the file claims to have 18446744073709551615 metadata keys, but at most {room} fit in the rest of it"
        ),
    );
}

#[test]
fn an_absurd_tensor_count() {
    let file = File {
        tensor_count: Some(1 << 60),
        ..good()
    };
    let error = Gguf::from_bytes(file.bytes()).expect_err("the file is bad");
    assert!(
        matches!(error, GgufError::TooMany { what: "tensors", count, room } if count == 1 << 60 && room < 10)
    );
}

#[test]
fn one_key_more_than_there_is() {
    let mut file = good();
    file.key_count = Some(file.keys.len() as u64 + 1);
    // The first table row is read as a key: its one dimension becomes the value type bool, its length the value, and the
    // table begins in the middle of it.
    file.tensors[0].shape = vec![4];
    file.tensors[0].name = b"norm".to_vec();
    let mut bytes = file.bytes();
    let at = bytes.windows(4).position(|four| four == b"norm");
    bytes[at.expect("the name is in the file") + 4] = 7;
    refused_bytes(bytes, "tensor 0 has an empty name");
}

#[test]
fn a_key_longer_than_the_format_allows() {
    let mut file = good();
    file.keys[0].0 = vec![b'k'; 70_000];
    refused(
        &file,
        "the name of metadata key 0 has 70000 bytes, but at most 65535 are allowed",
    );
}

#[test]
fn an_empty_key() {
    let mut file = good();
    file.keys[1].0.clear();
    refused(&file, "metadata key 1 has an empty name");
}

#[test]
fn a_key_that_is_not_utf8() {
    let mut file = good();
    file.keys[0].0 = b"ab\xff".to_vec();
    refused(
        &file,
        "metadata key 0 is not valid UTF-8 (byte 34 of the file)",
    );
}

#[test]
fn a_duplicate_key() {
    let mut file = good();
    file.keys.push(key("nested", U8, &[1]));
    refused(&file, "key nested appears twice");
}

#[test]
fn an_unknown_value_type() {
    refused(
        &good().with_key("odd", 13, &[0]),
        "key odd has the unknown value type 13",
    );
}

#[test]
fn a_string_longer_than_the_file() {
    let file = good().with_key("odd", STRING, &u64::MAX.to_le_bytes());
    let error = Gguf::from_bytes(file.bytes()).expect_err("the file is bad");
    let message = error.to_string();
    assert!(
        message
            .starts_with("the file ends inside the value of key odd: 18446744073709551615 bytes"),
        "{message}"
    );
}

#[test]
fn a_string_value_that_is_not_utf8() {
    let value = [&1u64.to_le_bytes()[..], b"\xc3"].concat();
    let error = Gguf::from_bytes(good().with_key("odd", STRING, &value).bytes());
    let message = error.expect_err("the file is bad").to_string();
    assert!(
        message.starts_with("the value of key odd is not valid UTF-8"),
        "{message}"
    );
}

#[test]
fn arrays_longer_than_the_file() {
    for (ty, count) in [
        (U8, u64::MAX),
        (U64, 1 << 61),
        (STRING, 1 << 40),
        (ARRAY, 1 << 33),
    ] {
        let file = good().with_key("odd", ARRAY, &array(ty, count, &[]));
        let error = Gguf::from_bytes(file.bytes()).expect_err("the file is bad");
        assert!(
            matches!(&error, GgufError::ArrayTooLong { key, count: claimed, .. } if key == "odd" && *claimed == count),
            "{error}"
        );
    }
}

#[test]
fn an_array_element_cut_off() {
    let mut file = good().with_key("odd", ARRAY, &array(STRING, 1, &9u64.to_le_bytes()));
    file.tensors.clear();
    file.data.clear();
    file.alignment = 1;
    let start = file.bytes().len();
    refused(
        &file,
        &format!(
            "the file ends inside element 0 of key odd: 9 bytes are needed at byte {start}, but only 0 are left"
        ),
    );
}

#[test]
fn an_unknown_element_type() {
    refused(
        &good().with_key("odd", ARRAY, &array(99, 0, &[])),
        "key odd has the unknown value type 99",
    );
}

#[test]
fn arrays_nested_without_end() {
    let mut value = array(U8, 0, &[]);
    for _ in 0..50_000 {
        value = [&array(ARRAY, 1, &[])[..], &value].concat();
        if value.len() > 100_000 {
            break;
        }
    }
    refused(
        &good().with_key("odd", ARRAY, &value),
        "the arrays of key odd are nested more than 4 levels deep",
    );
}

#[test]
fn a_split_file() {
    let file = good()
        .with_key("split.count", U32, &3u32.to_le_bytes())
        .with_key("split.no", U32, &1u32.to_le_bytes());
    refused(
        &file,
        "this is part 1 of a model split into 3 files; join them into one file first",
    );
}

#[test]
fn alignments_that_are_none() {
    for value in [0u32, 4, 33, 1 << 21] {
        let file = good().with_key("general.alignment", U32, &value.to_le_bytes());
        refused(
            &file,
            &format!(
                "general.alignment is {value}, but it must be a power of two from 8 to 1048576"
            ),
        );
    }
}

#[test]
fn an_alignment_of_the_wrong_type() {
    refused(
        &good().with_key("general.alignment", STRING, &string("32")),
        "key general.alignment is a string, but it must be an integer",
    );
}

#[test]
fn a_duplicate_tensor() {
    let mut file = good();
    file.tensors[1].name = b"norm.weight".to_vec();
    refused(&file, "tensor norm.weight appears twice");
}

#[test]
fn a_tensor_without_a_name() {
    let mut file = good();
    file.tensors[0].name.clear();
    refused(&file, "tensor 0 has an empty name");
}

#[test]
fn a_tensor_name_that_is_not_utf8() {
    let mut file = good();
    file.tensors[1].name = vec![0xf0, 0x9f];
    let error = Gguf::from_bytes(file.bytes()).expect_err("the file is bad");
    assert!(
        error.to_string().starts_with("tensor 1 is not valid UTF-8"),
        "{error}"
    );
}

#[test]
fn a_tensor_name_without_measure() {
    let mut file = good();
    file.tensors[1].name = vec![b'n'; 300];
    refused(
        &file,
        "the name of tensor 1 has 300 bytes, but at most 256 are allowed",
    );
}

#[test]
fn no_dimension_or_too_many() {
    for shape in [vec![], vec![1; 5], vec![1; 9]] {
        let count = shape.len();
        let mut file = good();
        file.tensors[0].shape = shape;
        refused(
            &file,
            &format!("tensor norm.weight has {count} dimensions, but it must have 1 to 4"),
        );
    }
}

#[test]
fn a_dimension_of_zero() {
    let mut file = good();
    file.tensors[1].shape = vec![32, 0];
    refused(&file, "tensor output.weight has length 0 in dimension 1");
}

#[test]
fn unknown_tensor_types() {
    // Removed ids, one past the last, one of another project, one without meaning.
    for id in [4, 5, 31, 33, 36, 38, 137, 202, u32::MAX] {
        let mut file = good();
        file.tensors[1].ty = id;
        refused(
            &file,
            &format!("tensor output.weight has the unknown type {id}"),
        );
    }
}

#[test]
fn rows_that_end_inside_a_block() {
    let mut file = good();
    file.tensors[1].shape = vec![33, 2];
    refused(
        &file,
        "tensor output.weight has rows of 33 values, but Q4_0 is stored in blocks of 32",
    );
}

#[test]
fn shapes_whose_bytes_cannot_be_counted() {
    for shape in [
        vec![1 << 32, 1 << 32],
        vec![!31, 1],
        vec![32, u64::MAX, 2],
        vec![1 << 62],
        vec![1 << 63, 1, 1, 1],
    ] {
        let mut file = good();
        file.tensors[0].shape = shape.clone();
        let error = Gguf::from_bytes(file.bytes()).expect_err("the file is bad");
        assert!(
            matches!(&error, GgufError::TensorTooLarge { name, shape: found } if name == "norm.weight" && *found == shape),
            "{shape:?}: {error}"
        );
    }
}

#[test]
fn an_offset_off_the_alignment() {
    let mut file = good();
    file.tensors[1].offset = 40;
    refused(
        &file,
        "tensor output.weight starts at offset 40, which is not a multiple of the alignment 32",
    );
}

#[test]
fn a_tensor_past_the_end() {
    let mut file = good();
    file.data.pop();
    refused(
        &file,
        "tensor output.weight takes 36 bytes at offset 32, but there are only 67 bytes of data",
    );
}

#[test]
fn an_offset_that_overflows() {
    let mut file = good();
    file.tensors[1].offset = u64::MAX - 31;
    refused(
        &file,
        "tensor output.weight takes 36 bytes at offset 18446744073709551584, but there are only 68 bytes of data",
    );
}

#[test]
fn a_file_that_ends_before_its_data() {
    let mut file = good();
    file.data.clear();
    file.alignment = 1;
    refused(
        &file,
        "tensor norm.weight takes 16 bytes at offset 0, but there are only 0 bytes of data",
    );
}

#[test]
fn tensors_that_overlap() {
    let mut file = good();
    file.tensors[1].offset = 0;
    refused(
        &file,
        "tensor output.weight starts at offset 0, inside tensor norm.weight, which ends at 16",
    );
}

#[test]
fn a_path_that_is_no_file() {
    let here = std::env::temp_dir();
    assert!(matches!(
        Gguf::open(&here),
        Err(GgufError::NotAFile { path }) if path == here
    ));
    let gone = here.join("realm-weights-no-such-file.gguf");
    assert!(matches!(Gguf::open(&gone), Err(GgufError::Io { path, .. }) if path == gone));
}
