/* The C face of the Rust crate tandem_text: Hugging Face tokenizers and Jinja chat templates.
 *
 * Text is UTF-8, pointer and length, never NUL-terminated. A function that can fail takes `tandem_string*
 * text`: it holds the result or, where the function returns false or NULL, the error message. Whatever comes
 * back in it, and in `tandem_ids`, is the caller's to free. No Rust panic leaves a function; it becomes an
 * error message. Objects other than token streams may be used by several threads at once. Free functions take
 * NULL. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tandem_string {
  char* data;
  size_t size;
} tandem_string;

typedef struct tandem_ids {
  uint32_t* data;
  size_t size;
} tandem_ids;

void tandem_string_free(tandem_string string);
void tandem_ids_free(tandem_ids ids);

/* A tokenizer, from the bytes of a tokenizer.json. Truncation and padding set there are left out. */
typedef struct tandem_tokenizer tandem_tokenizer;
tandem_tokenizer* tandem_tokenizer_new(const char* json, size_t size, tandem_string* text);
void tandem_tokenizer_free(tandem_tokenizer* tokenizer);

bool tandem_tokenizer_encode(const tandem_tokenizer* tokenizer, const char* input, size_t size,
                             bool add_special, tandem_ids* ids, tandem_string* text);
/* Ids that are no token are passed over. */
bool tandem_tokenizer_decode(const tandem_tokenizer* tokenizer, const uint32_t* ids, size_t count,
                             bool skip_special, tandem_string* text);
/* False, and no message, where there is no such token. */
bool tandem_tokenizer_id_of(const tandem_tokenizer* tokenizer, const char* token, size_t size, uint32_t* id);
size_t tandem_tokenizer_vocab_size(const tandem_tokenizer* tokenizer);

/* Training one: byte-level BPE over the texts given so far. */
typedef struct tandem_trainer tandem_trainer;
tandem_trainer* tandem_trainer_new(size_t vocabulary);
void tandem_trainer_free(tandem_trainer* trainer);
/* A token of its own, with the next id from 0 on; special ones are left out of decoded text. */
bool tandem_trainer_add_token(tandem_trainer* trainer, const char* token, size_t size, bool special,
                              tandem_string* text);
bool tandem_trainer_add_text(tandem_trainer* trainer, const char* input, size_t size, tandem_string* text);
/* The tokenizer.json. */
bool tandem_trainer_finish(tandem_trainer* trainer, tandem_string* text);

/* Decoding one id at a time. A stream keeps its tokenizer alive. */
typedef struct tandem_token_stream tandem_token_stream;
tandem_token_stream* tandem_token_stream_new(const tandem_tokenizer* tokenizer, bool skip_special);
void tandem_token_stream_free(tandem_token_stream* stream);
bool tandem_token_stream_push(tandem_token_stream* stream, uint32_t id, tandem_string* text);
/* What is still held back; the stream then stands at its beginning. */
bool tandem_token_stream_finish(tandem_token_stream* stream, tandem_string* text);

/* A chat template, parsed once. `fuel` bounds one rendering: an instruction or 64 bytes of text cost 1. */
typedef struct tandem_template tandem_template;
tandem_template* tandem_template_new(const char* source, size_t size, uint64_t fuel, tandem_string* text);
void tandem_template_free(tandem_template* chat_template);
/* `variables` is a JSON object. */
bool tandem_template_render(const tandem_template* chat_template, const char* variables, size_t size,
                            tandem_string* text);

#ifdef __cplusplus
}
#endif
