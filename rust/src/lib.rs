//! Hugging Face tokenizers and Jinja chat templates behind a C header (include/tandem_text.h, the contract of every
//! `extern "C"` function here).

mod ffi;
mod python;
mod stream;
mod template;
mod tojson;
mod tokenizer;
mod train;
