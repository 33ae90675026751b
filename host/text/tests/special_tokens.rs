//! The tokens that begin and end texts: which they are, whatever a file says or leaves out, and that they come once.

use realm_text::{Chat, ChatMessage, Specials, TextModel, TextSource};

/// Control tokens as SentencePiece places them, every byte, and a few words.
fn sentence_piece() -> TextSource {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    token_types.resize(tokens.len(), 6);
    tokens.extend(["▁", "▁a", "a"].map(str::to_owned));
    token_types.resize(tokens.len(), 1);
    TextSource {
        model: "llama".to_owned(),
        scores: vec![0.0; tokens.len()],
        token_types,
        tokens,
        ..TextSource::default()
    }
}

const BOS: u32 = 1;

fn encode(source: TextSource, text: &str, specials: Specials) -> Vec<u32> {
    let model = TextModel::new(source).expect("a model");
    model
        .encode(text, specials, true, 100)
        .expect("a text that fits")
}

fn count(ids: &[u32], wanted: u32) -> usize {
    ids.iter().filter(|id| **id == wanted).count()
}

#[test]
fn a_prompt_that_brings_its_bos_gets_no_second_one() {
    for text in ["a", "<s>a", "<s> a", "<s>"] {
        let ids = encode(sentence_piece(), text, Specials::Parse);
        assert_eq!(ids[0], BOS, "{text:?}");
        assert_eq!(count(&ids, BOS), 1, "{text:?}: {ids:?}");
    }
    // One further on is the client's own.
    assert_eq!(
        count(&encode(sentence_piece(), "a<s>a", Specials::Parse), BOS),
        2
    );
    // Where its name is text like any other, nothing was brought.
    let ids = encode(sentence_piece(), "<s>a", Specials::Literal);
    assert_eq!((ids[0], count(&ids, BOS)), (BOS, 1));
    assert!(ids.len() > 4, "{ids:?}");
    // A model that wants none gets what the client wrote.
    let unwanted = TextSource {
        add_bos: Some(false),
        ..sentence_piece()
    };
    assert_eq!(
        count(&encode(unwanted.clone(), "<s>a", Specials::Parse), BOS),
        1
    );
    assert_eq!(count(&encode(unwanted, "a", Specials::Parse), BOS), 0);
}

#[test]
fn a_template_that_writes_the_bos_gets_no_second_one() {
    for template in [
        "{{ messages[0].content }}",
        "{{ bos_token }}{{ messages[0].content }}",
        "<s>{{ messages[0].content }}",
    ] {
        let source = TextSource {
            chat_template: Some(template.to_owned()),
            ..sentence_piece()
        };
        let message = ChatMessage::new("user", "a");
        let model = TextModel::new(source).unwrap();
        let ids = model.chat_tokens(&Chat::new([message]), 100).unwrap();
        assert_eq!((ids[0], count(&ids, BOS)), (BOS, 1), "{template}: {ids:?}");
    }
}

#[test]
fn a_text_that_ends_with_its_separator_gets_no_second_one() {
    let mut tokens = vec![String::new(); 100];
    tokens.extend(["[UNK]", "[CLS]", "[SEP]", "▁a"].map(str::to_owned));
    let source = TextSource {
        model: "bert".to_owned(),
        token_types: [vec![5; 100], vec![3, 3, 3, 1]].concat(),
        tokens,
        ..TextSource::default()
    };
    for text in ["a", "[CLS]a", "a[SEP]", "[CLS] a [SEP]"] {
        let ids = encode(source.clone(), text, Specials::Parse);
        assert_eq!(ids, [101, 103, 102], "{text:?}");
    }
}

#[test]
fn ids_that_a_file_leaves_out_are_where_sentence_piece_has_them() {
    let model = TextModel::new(sentence_piece()).unwrap();
    let ids = model.encode("a", Specials::Parse, true, 100).unwrap();
    assert_eq!(ids, [BOS, 260]);
    assert!(model.is_end_of_generation(2));
    // Also in a file without types, where the names say so.
    let untyped = TextSource {
        token_types: Vec::new(),
        ..sentence_piece()
    };
    assert_eq!(encode(untyped, "a", Specials::Parse), [BOS, 260]);
    // A vocabulary that has text at these places has other tokens for it.
    let mut other = sentence_piece();
    other.tokens.drain(..3);
    other.token_types.drain(..3);
    other.scores.truncate(other.tokens.len());
    assert_eq!(encode(other, "a", Specials::Parse), [257]);
}

#[test]
fn ids_that_the_vocabulary_lacks_are_as_if_left_out() {
    for id in [262, 32_000, u32::MAX] {
        let source = TextSource {
            bos: Some(id),
            eos: Some(id),
            eot: Some(id),
            sep: Some(id),
            unk: Some(id),
            pad: Some(id),
            ..sentence_piece()
        };
        let model = TextModel::new(source).unwrap();
        let ids = model.encode("a", Specials::Parse, true, 100).unwrap();
        assert_eq!(ids, [BOS, 260], "{id}");
        assert!(model.is_end_of_generation(2) && !model.is_end_of_generation(id));
    }
    // Byte-level vocabularies have no place that is always the same.
    let bytes = TextSource {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: vec!["a".to_owned(), "<|endoftext|>".to_owned()],
        token_types: vec![1, 3],
        bos: Some(11),
        eos: Some(11),
        add_bos: Some(true),
        ..TextSource::default()
    };
    assert_eq!(encode(bytes, "a", Specials::Parse), [0]);
}

#[test]
fn tokens_are_found_in_the_text_that_they_were_made_of() {
    let model = TextModel::new(sentence_piece()).unwrap();
    for (text, offsets) in [
        ("a", vec![0, 0]),
        // A space in front that is not in the text, and one byte at a time: the character is one.
        ("éa", vec![0, 0, 0, 0, 1]),
        ("<s>a</s>a", vec![0, 3, 4, 8]),
    ] {
        let ids = model.encode(text, Specials::Parse, true, 100).unwrap();
        assert_eq!(model.offsets(text, &ids), offsets, "{text:?}: {ids:?}");
    }
}
