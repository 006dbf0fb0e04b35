//! Encoding and decoding by the `tokenizers` crate.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::ffi::{self, Ids, Text};
use crate::stream::TokenStream;

/// `tandem_tokenizer`; streams share it.
pub type Shared = Arc<Tokenizer>;

#[no_mangle]
pub unsafe extern "C" fn tandem_tokenizer_new(json: *const u8, size: usize, out: *mut Text) -> *mut Shared {
    ffi::object(out, || {
        let mut tokenizer = Tokenizer::from_bytes(ffi::array(json, size))?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Arc::new(tokenizer))
    })
}

#[no_mangle]
pub unsafe extern "C" fn tandem_tokenizer_free(tokenizer: *mut Shared) {
    ffi::free_object(tokenizer);
}

#[no_mangle]
pub unsafe extern "C" fn tandem_tokenizer_encode(
    tokenizer: *const Shared,
    input: *const u8,
    size: usize,
    add_special: bool,
    ids: *mut Ids,
    out: *mut Text,
) -> bool {
    ffi::answer(out, || {
        let encoding = (*tokenizer).encode_fast(ffi::text(input, size)?, add_special)?;
        ids.write(encoding.get_ids().to_vec().into());
        Ok(String::new())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tandem_tokenizer_decode(
    tokenizer: *const Shared,
    ids: *const u32,
    count: usize,
    skip_special: bool,
    out: *mut Text,
) -> bool {
    ffi::answer(out, || (*tokenizer).decode(ffi::array(ids, count), skip_special))
}

#[no_mangle]
pub unsafe extern "C" fn tandem_tokenizer_id_of(
    tokenizer: *const Shared,
    token: *const u8,
    size: usize,
    id: *mut u32,
) -> bool {
    match ffi::text(token, size).ok().and_then(|token| (*tokenizer).token_to_id(token)) {
        Some(found) => {
            id.write(found);
            true
        }
        None => false,
    }
}

#[no_mangle]
pub unsafe extern "C" fn tandem_tokenizer_vocab_size(tokenizer: *const Shared) -> usize {
    (*tokenizer).get_vocab_size(true)
}

#[no_mangle]
pub unsafe extern "C" fn tandem_token_stream_new(
    tokenizer: *const Shared,
    skip_special: bool,
) -> *mut TokenStream {
    Box::into_raw(Box::new(TokenStream::new(Arc::clone(&*tokenizer), skip_special)))
}

#[no_mangle]
pub unsafe extern "C" fn tandem_token_stream_free(stream: *mut TokenStream) {
    ffi::free_object(stream);
}

#[no_mangle]
pub unsafe extern "C" fn tandem_token_stream_push(stream: *mut TokenStream, id: u32, out: *mut Text) -> bool {
    ffi::answer(out, || (*stream).push(id))
}

#[no_mangle]
pub unsafe extern "C" fn tandem_token_stream_finish(stream: *mut TokenStream, out: *mut Text) -> bool {
    ffi::answer(out, || (*stream).finish())
}
