//! What a valid file says, key by key and tensor by tensor, and what is refused only when it is asked for.

mod common;

use common::*;
use realm_kernels::quant::BlockType;
use realm_weights::{Array, Gguf, ModelSource, SourceError, Value};

fn open(file: &File) -> Gguf {
    Gguf::from_bytes(file.bytes()).expect("the file is good")
}

#[test]
fn every_key_is_read() {
    let file = open(&good());
    let metadata = file.metadata();
    assert_eq!(
        metadata.require_str("general.architecture").unwrap(),
        "llama"
    );
    assert_eq!(metadata.require_u32("llama.block_count").unwrap(), 2);
    assert_eq!(metadata.require_f32("llama.eps").unwrap(), 1e-5);
    assert!(
        metadata
            .require_bool("tokenizer.ggml.add_bos_token")
            .unwrap()
    );
    assert_eq!(
        metadata.require_strings("tokenizer.ggml.tokens").unwrap(),
        ["a", "", "é"]
    );
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::U8(vec![3])]);
    assert_eq!(metadata.get("nested"), Some(&Value::Array(nested)));
    assert_eq!(metadata.iter().count(), 7);
}

#[test]
fn version_two_reads_like_three() {
    let file = File {
        version: 2,
        ..good()
    };
    assert_eq!(open(&file).metadata(), open(&good()).metadata());
}

#[test]
fn every_value_type_is_read() {
    let types: [(u32, &[u8], &str); 13] = [
        (0, &[200], "200"),
        (1, &[0x80], "-128"),
        (2, &[0, 1], "256"),
        (3, &[0xff, 0xff], "-1"),
        (4, &[0, 0, 0, 0x80], "2147483648"),
        (5, &[0xfe, 0xff, 0xff, 0xff], "-2"),
        (6, &[0, 0, 0x80, 0x3f], "1"),
        (7, &[1], "true"),
        (8, b"\x02\0\0\0\0\0\0\0hi", "\"hi\""),
        (9, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "[0 elements]"),
        (10, &[0xff; 8], "18446744073709551615"),
        (11, &[0xff; 8], "-1"),
        (12, &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f], "1"),
    ];
    for (ty, bytes, shown) in types {
        let file = open(&good().with_key("one", ty, bytes));
        let value = file.metadata().get("one").expect("the key is there");
        assert_eq!(value.to_string(), shown);
        if ty != ARRAY {
            let listed = array(ty, 2, &[bytes, bytes].concat());
            let file = open(&good().with_key("two", ARRAY, &listed));
            let Some(Value::Array(array)) = file.metadata().get("two") else {
                panic!("an array of type {ty}");
            };
            assert_eq!(array.len(), 2);
        }
    }
}

#[test]
fn integers_of_any_width_convert_when_they_fit() {
    let file = open(
        &good()
            .with_key("small", 3, &(-1i16).to_le_bytes())
            .with_key("large", U64, &u64::MAX.to_le_bytes())
            .with_key("list", ARRAY, &array(U8, 2, &[7, 255]))
            .with_key("flags", ARRAY, &array(BOOL, 2, &[1, 0])),
    );
    let metadata = file.metadata();
    assert_eq!(metadata.u64("large").unwrap(), Some(u64::MAX));
    assert_eq!(metadata.i32s("list").unwrap(), Some(vec![7, 255]));
    assert_eq!(metadata.bools("flags").unwrap(), Some(vec![true, false]));
    let error = metadata.bools("list").expect_err("integers");
    assert!(error.to_string().contains("array of booleans"), "{error}");
    let error = metadata.u32("small").expect_err("negative");
    assert_eq!(
        error.to_string(),
        "key small is -1, which does not fit in a u32"
    );
    let error = metadata.u32("large").expect_err("too large");
    assert_eq!(
        error.to_string(),
        "key large is 18446744073709551615, which does not fit in a u32"
    );
}

/// A number of type `ty` as files store it.
fn stored(ty: u32, number: i64) -> Vec<u8> {
    match ty {
        0 | 1 | 7 => vec![number as u8],
        2 | 3 => (number as u16).to_le_bytes().to_vec(),
        4 | 5 => (number as u32).to_le_bytes().to_vec(),
        6 => (number as f32).to_le_bytes().to_vec(),
        10 | 11 => number.to_le_bytes().to_vec(),
        12 => (number as f64).to_le_bytes().to_vec(),
        other => panic!("no number has the type {other}"),
    }
}

const NUMBER_TYPES: [u32; 10] = [0, 1, 2, 3, 4, 5, 6, 10, 11, 12];

#[test]
fn a_number_is_one_in_whichever_type_it_is_stored() {
    for ty in NUMBER_TYPES.into_iter().chain([BOOL]) {
        let two = if ty == BOOL { 1 } else { 2 };
        let layers = array(ty, 3, &stored(ty, two).repeat(3));
        let file = open(
            &good()
                .with_key("two", ty, &stored(ty, two))
                .with_key("one", ty, &stored(ty, 1))
                .with_key("zero", ty, &stored(ty, 0))
                .with_key("layers", ARRAY, &layers)
                .with_key(
                    "list",
                    ARRAY,
                    &array(ty, 2, &[stored(ty, 1), stored(ty, 0)].concat()),
                ),
        );
        let metadata = file.metadata();
        for key in ["two", "layers"] {
            assert_eq!(metadata.u32(key).unwrap(), Some(two as u32), "{ty} {key}");
            assert_eq!(metadata.u64(key).unwrap(), Some(two as u64), "{ty} {key}");
            assert_eq!(metadata.f32(key).unwrap(), Some(two as f32), "{ty} {key}");
        }
        assert_eq!(metadata.bool("one").unwrap(), Some(true), "{ty}");
        assert_eq!(metadata.bool("zero").unwrap(), Some(false), "{ty}");
        assert_eq!(
            metadata.bools("list").unwrap(),
            Some(vec![true, false]),
            "{ty}"
        );
        assert_eq!(metadata.i32s("list").unwrap(), Some(vec![1, 0]), "{ty}");
        assert_eq!(metadata.f32s("list").unwrap(), Some(vec![1.0, 0.0]), "{ty}");
        let error = metadata.u32("list").expect_err("two numbers").to_string();
        let message =
            "key list is an array of values that differ, but it must be the same for every layer";
        assert_eq!(error, message, "{ty}");
    }
}

#[test]
fn a_number_that_is_none_is_refused() {
    let file = open(
        &good()
            .with_key("half", F32, &0.5f32.to_le_bytes())
            .with_key("nan", F32, &f32::NAN.to_le_bytes())
            .with_key("huge", 12, &1e300f64.to_le_bytes())
            .with_key("nothing", ARRAY, &array(U32, 0, &[]))
            .with_key("two", U32, &2u32.to_le_bytes()),
    );
    let metadata = file.metadata();
    assert_eq!(metadata.f32("half").unwrap(), Some(0.5));
    for key in ["half", "nan", "huge"] {
        let error = metadata.u32(key).expect_err("no integer").to_string();
        assert!(
            error.ends_with("but it must be an integer"),
            "{key}: {error}"
        );
    }
    assert!(metadata.u32("nothing").is_err() && metadata.f32("nothing").is_err());
    let error = metadata
        .bool("two")
        .expect_err("no truth value")
        .to_string();
    assert_eq!(error, "key two is 2, which does not fit in a boolean");
}

#[test]
fn an_id_that_no_vocabulary_can_have_is_read_as_one_that_none_has() {
    let ids: [(u32, Vec<u8>, Option<u32>); 6] = [
        (U32, 7u32.to_le_bytes().to_vec(), Some(7)),
        (U32, u32::MAX.to_le_bytes().to_vec(), Some(u32::MAX)),
        (5, (-1i32).to_le_bytes().to_vec(), Some(u32::MAX)),
        (U64, u64::MAX.to_le_bytes().to_vec(), Some(u32::MAX)),
        (12, 3f64.to_le_bytes().to_vec(), Some(3)),
        (1, vec![0xff], Some(u32::MAX)),
    ];
    for (ty, bytes, id) in ids {
        let file = good()
            .with_key("tokenizer.ggml.model", STRING, &string("llama"))
            .with_key("tokenizer.ggml.padding_token_id", ty, &bytes);
        let source = open(&file);
        let tokenizer = ModelSource::tokenizer(&source).expect("its ids are for others to judge");
        assert_eq!((tokenizer.pad, tokenizer.bos), (id, None));
    }
}

#[test]
fn a_truth_value_is_any_byte_but_0() {
    let file = open(&good().with_key("odd", BOOL, &[2]).with_key(
        "odds",
        ARRAY,
        &array(BOOL, 3, &[255, 0, 1]),
    ));
    assert_eq!(file.metadata().bool("odd").unwrap(), Some(true));
    let odds = file.metadata().bools("odds").unwrap();
    assert_eq!(odds, Some(vec![true, false, true]));
}

#[test]
fn a_key_of_another_type_names_both_types() {
    let file = open(&good());
    let metadata = file.metadata();
    let messages = [
        metadata.u32("general.architecture").unwrap_err(),
        metadata.str("llama.block_count").unwrap_err(),
        metadata.f32("general.architecture").unwrap_err(),
        metadata.bool("nested").unwrap_err(),
        metadata.strings("nested").unwrap_err(),
        metadata.i32s("tokenizer.ggml.tokens").unwrap_err(),
        metadata.f32s("llama.eps").unwrap_err(),
        metadata.require_u64("absent").unwrap_err(),
    ]
    .map(|error| error.to_string());
    assert_eq!(
        messages,
        [
            "key general.architecture is a string, but it must be an integer",
            "key llama.block_count is a u64, but it must be a string",
            "key general.architecture is a string, but it must be a number",
            "key nested is an array, but it must be a boolean",
            "key nested is an array, but it must be an array of strings",
            "key tokenizer.ggml.tokens is an array, but it must be an array of integers",
            "key llama.eps is an f32, but it must be an array of numbers",
            "key absent is missing",
        ]
    );
}

#[test]
fn tensors_lie_where_the_table_says() {
    let mut file = good();
    let values = [1.0f32, -2.0, 0.5, 4.0];
    for (chunk, value) in file.data.chunks_mut(4).zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    let file = open(&file);
    let norm = file.require("norm.weight").unwrap();
    assert_eq!(norm.vector_f32().unwrap(), values);
    let output = file.require("output.weight").unwrap().matrix().unwrap();
    assert_eq!((output.rows, output.cols), (2, 32));
    assert_eq!(output.ty, BlockType::Q4_0);
    assert_eq!(output.data, (32..68).collect::<Vec<u8>>());
    let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["norm.weight", "output.weight"]);
}

#[test]
fn the_alignment_of_the_file_is_honoured() {
    let mut file = good().with_key("general.alignment", U32, &64u32.to_le_bytes());
    file.alignment = 64;
    file.tensors[1].offset = 64;
    file.data.resize(100, 0);
    assert_eq!(open(&file).require("output.weight").unwrap().data.len(), 36);
    file.alignment = 16;
    let mut file = file.with_key("general.alignment", U32, &16u32.to_le_bytes());
    file.tensors[1].offset = 16;
    file.data.truncate(52);
    assert_eq!(open(&file).require("output.weight").unwrap().data.len(), 36);
}

#[test]
fn a_missing_tensor_is_named() {
    let file = open(&good());
    assert!(file.tensor("token_embd.weight").is_none());
    let error = file.require("token_embd.weight").expect_err("missing");
    assert_eq!(error.to_string(), "tensor token_embd.weight is missing");
}

#[test]
fn a_type_without_kernels_is_refused_only_when_asked_for() {
    let mut file = good();
    file.tensors[1] = tensor("output.weight", &[256, 1], GGML_Q8_K, 32);
    file.data.resize(32 + 292, 0);
    let file = open(&file);
    let tensor = file.require("output.weight").unwrap();
    let error = tensor.matrix().expect_err("no kernel");
    assert!(matches!(&error, SourceError::NotRunnable { ty, .. } if *ty == tensor.ty));
    assert_eq!(
        error.to_string(),
        "tensor output.weight is stored as Q8_K, which is not supported yet"
    );
}

#[test]
fn a_vector_is_no_matrix_and_a_matrix_no_vector() {
    let file = open(&good());
    let error = file.require("norm.weight").unwrap().matrix().unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor norm.weight has shape [4], but it must be a matrix"
    );
    let error = file.require("output.weight").unwrap().vector_f32();
    assert_eq!(
        error.unwrap_err().to_string(),
        "tensor output.weight has shape [32, 2], but it must be a vector"
    );
}

#[test]
fn a_file_on_disk_is_mapped() {
    let path = std::env::temp_dir().join(format!("realm-weights-{}.gguf", std::process::id()));
    std::fs::write(&path, good().bytes()).unwrap();
    let file = Gguf::open(&path);
    std::fs::remove_file(&path).unwrap();
    let file = file.unwrap();
    assert_eq!(file.file_bytes(), good().bytes().len() as u64);
    assert_eq!(file.require("output.weight").unwrap().data.len(), 36);
}

#[test]
fn a_source_says_what_its_tokenizer_is_made_of() {
    let file = good()
        .with_key("tokenizer.ggml.model", STRING, &string("gpt2"))
        .with_key("tokenizer.ggml.cls_token_id", U32, &1u32.to_le_bytes())
        .with_key(
            "tokenizer.ggml.seperator_token_id",
            U32,
            &2u32.to_le_bytes(),
        );
    let file = open(&file);
    let source: &dyn ModelSource = &file;
    let tokenizer = source.tokenizer().expect("all that must be there is");
    assert_eq!(tokenizer.model, "gpt2");
    assert_eq!(tokenizer.tokens, ["a", "", "é"]);
    assert_eq!((tokenizer.bos, tokenizer.sep), (Some(1), Some(2)));
    assert_eq!(tokenizer.add_bos, Some(true));
    assert!(tokenizer.merges.is_empty() && tokenizer.chat_template.is_none());

    let file = open(&good());
    let error = file.tokenizer().expect_err("no kind of tokenizer");
    assert_eq!(error.to_string(), "key tokenizer.ggml.model is missing");
}
