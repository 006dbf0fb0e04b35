//! Training byte-level BPE by the `tokenizers` crate.

use tokenizers::models::bpe::BpeTrainer;
use tokenizers::models::TrainerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::ffi::{self, Text};

/// As DeepSeek's: each digit and each run of Chinese characters by itself, words with the space before them.
const UNTRAINED: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": "[\\p{Han}]+"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": " ?\\p{L}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {}, "merges": []}}"#;

/// `tandem_trainer`
pub struct Trainer {
    vocabulary: usize,
    tokens: Vec<AddedToken>,
    texts: Vec<String>,
}

#[no_mangle]
pub unsafe extern "C" fn tandem_trainer_new(vocabulary: usize) -> *mut Trainer {
    Box::into_raw(Box::new(Trainer { vocabulary, tokens: Vec::new(), texts: Vec::new() }))
}

#[no_mangle]
pub unsafe extern "C" fn tandem_trainer_free(trainer: *mut Trainer) {
    ffi::free_object(trainer);
}

#[no_mangle]
pub unsafe extern "C" fn tandem_trainer_add_token(
    trainer: *mut Trainer,
    token: *const u8,
    size: usize,
    special: bool,
    out: *mut Text,
) -> bool {
    ffi::answer(out, || {
        (*trainer).tokens.push(AddedToken::from(ffi::text(token, size)?, special).normalized(false));
        Ok(String::new())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tandem_trainer_add_text(
    trainer: *mut Trainer,
    text: *const u8,
    size: usize,
    out: *mut Text,
) -> bool {
    ffi::answer(out, || {
        (*trainer).texts.push(ffi::text(text, size)?.to_owned());
        Ok(String::new())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tandem_trainer_finish(trainer: *mut Trainer, out: *mut Text) -> bool {
    ffi::answer(out, || {
        let Trainer { vocabulary, tokens, texts } = &*trainer;
        let mut tokenizer = Tokenizer::from_bytes(UNTRAINED)?;
        let bpe = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(*vocabulary)
            .min_frequency(2)
            .special_tokens(tokens.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        tokenizer.train(&mut TrainerWrapper::from(bpe), texts.iter())?;
        tokenizer.to_string(true)
    })
}
